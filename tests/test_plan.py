"""`cag plan`: what a run will take, against what a run took; its times, and its errors."""

import json
import shutil
from itertools import count
from types import SimpleNamespace

import h5py
import pandas as pd
import pytest
import yaml
from project import ROOT, finished_project, merged, read_params, write_params
from raw import write_gta5

from benchmarks.plan import comparison
from cag import cli
from cag.commands.planning import duration, scaled
from cag.config.parameters import load_all
from cag.datasets.prepared import read_label_space, read_manifest
from cag.networks import build
from cag.project import plan, sample, speed
from cag.project.dry_run import Work
from cag.project.repository import read_stages
from cag.project.sample import sample_domain
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import used_bytes

START, STEP, FORWARD = 5.0, 2.0, 3.0  # seconds of a program's start, a step, a batch forward
EXTRACTED = {"source": 7.0, "target": 11.0}  # of an image in each domain's extraction


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return finished_project(tmp_path_factory)


@pytest.fixture(scope="module")
def planned(project):
    """The plan of the finished project, with times of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        set_times(patch, lambda *_: STEP)
        return plan.make_plan(measured=True)


def set_times(patch, step_seconds):
    """Let a plan have these times instead of measured ones."""
    patch.setattr(plan, "start_seconds", lambda: START)
    patch.setattr(plan, "step_seconds", step_seconds)
    patch.setattr(plan, "forward_seconds", lambda *_: FORWARD)
    patch.setattr(plan, "extraction_seconds", lambda domain, *_: EXTRACTED[domain])


def test_the_disk_is_about_what_the_run_wrote(project, planned):
    written = {s.name: sum(map(used_bytes, s.outputs)) for s in read_stages(project)[1]}
    estimates = {stage.stage: stage.bytes for stage in planned.stages}
    assert list(estimates) == list(written)
    for name, size in written.items():
        assert size / 3 - 20_000 < estimates[name] < 3 * size + 20_000, name
    model = (project / "data/models/round1.safetensors").read_bytes()
    weights = len(model) - 8 - int.from_bytes(model[:8], "little")  # the rest is their description
    by_name = {stage.stage: stage for stage in planned.stages}
    assert by_name["adapt@round1"].bytes == pytest.approx(weights, rel=0.03)
    assert by_name["prepare@target"].bytes == pytest.approx(written["prepare@target"], rel=0.3)


def test_the_steps_and_images_are_those_of_the_run(project, planned):
    by_name = {stage.stage: stage for stage in planned.stages}
    trainings = {"pretrain": 1, "warmup": 2, "adapt@round1": 2, "adapt@round2": 2}
    for name, domains in trainings.items():
        curve = project / f"data/curves/{name.removeprefix('adapt@')}.csv"
        steps = pd.read_csv(curve)["iteration"].iloc[-1]
        assert by_name[name].steps == steps
        assert by_name[name].work.trained == steps * domains * 2  # images in a batch
    assert by_name["extract_source@round1"].work.forwarded == pytest.approx(8)
    assert by_name["extract_target@round1"].work.forwarded == pytest.approx(6)
    assert by_name["evaluate@round2"].work.forwarded == pytest.approx(4)
    assert by_name["watch_start@pretrain"].work.forwarded == pytest.approx(8 + 4 * 6)
    assert by_name["watch@round2"].work.forwarded == pytest.approx(8 + 5 * 6)
    assert by_name["evaluate_pseudo_labels@round1"].work.forwarded == pytest.approx(4)
    total = planned.total()
    assert total.steps == 30 + 2 + 2 * 4 and total.bytes == sum(s.bytes for s in planned.stages)
    assert total.work.memory == by_name["warmup"].work.memory > by_name["pretrain"].work.memory


def test_the_seconds_are_starts_steps_and_forward_passes(planned):
    seconds = {stage.stage: stage.seconds for stage in planned.stages}
    assert seconds["index"] == 0 < seconds["prepare@source"] < 60
    assert seconds["pretrain"] == START + 30 * STEP
    # Forward passes are of 8 images; after the last step, 6 pass for the target's statistics.
    assert seconds["adapt@round2"] == pytest.approx(START + 4 * STEP + 6 / 8 * FORWARD)
    assert seconds["anchors@round1"] == START
    assert seconds["extract_source@round1"] == START + 8 * EXTRACTED["source"]
    assert seconds["extract_target@round1"] == START + 6 * EXTRACTED["target"]
    assert seconds["evaluate@round2"] == pytest.approx(START + 4 / 8 * FORWARD)
    assert planned.total().seconds == pytest.approx(sum(seconds.values()))


@pytest.fixture
def copy(project, tmp_path, monkeypatch):
    """A project of the same stages, without data, in which the commands work."""
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("prepared", "features", "cache")
    shutil.copytree(project, folder, ignore=ignore, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def call(*arguments):
    cli.cli.main(["plan", *arguments], standalone_mode=False)


def test_the_command_prints_a_table_or_json(copy, planned, monkeypatch, capsys):
    monkeypatch.setattr(plan, "make_plan", lambda devices, measured: planned._replace(devices=2))
    call("--measure", "--devices", "2")
    heads, *rows, machine, alone = capsys.readouterr().out.splitlines()
    assert heads.split()[:3] == ["stage", "disk", "steps"] and heads.split()[-1] == "time"
    assert rows[-1].split()[0] == "all" and len(rows) == len(planned.stages) + 1
    assert machine.startswith("on 2 devices like ") and machine.endswith(", 32-true")
    assert alone.startswith("not shared by the devices: index, prepare@source, prepare@target, ")
    assert ", pretrain" not in alone and alone.endswith(", report")
    call("--json")
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["steps"] == 40 and found["stages"][0]["stage"] == "index"
    assert {"bytes", "training_flop", "memory", "seconds", "shared"} <= found["stages"][0].keys()


def test_devices_share_a_step_and_its_memory(copy):
    params = load_all()
    with pytest.raises(UserError, match="^pretrain.batch_size is 2; expected a multiple of 3"):
        plan.Estimator(params, 3, copy / "sample")
    larger = params.pretrain.model_copy(update={"batch_size": 8})
    sections = {"pretrain": larger, "adapt": params.adapt.model_copy(update={"batch_size": 4})}
    sections["warmup"] = params.warmup.model_copy(update={"iterations": 0})
    params = params.model_copy(update=sections)
    one, two = (plan.Estimator(params, n, copy / f"sample{n}").step("pretrain") for n in (1, 2))
    parts = params.model_copy(update={"max_batch_per_device": 4})
    assert two == plan.Estimator(parts, 1, copy / "parts").step("pretrain")
    assert (one.trained, one.training_flop) == (two.trained, two.training_flop)
    assert one.memory > 1.5 * two.memory


def test_devices_share_the_time_of_steps_and_images(copy, monkeypatch):
    """A step takes a second for each image; its batch has 4."""
    batch = {"batch_size": 4}
    changes = {"pretrain": batch, "warmup": batch, "adapt": batch | {"on_regression": "warn"}}
    write_params(copy, merged(read_params(copy), changes))
    params = load_all()
    set_times(monkeypatch, lambda training, params, network, images, *_: float(images))
    names = "pretrain", "extract_target@round1", "evaluate@round1", "watch@round1", "adapt@round1"

    def seconds(devices, **changes):
        folder = copy / f"times{devices}{len(changes)}"
        estimator = plan.Estimator(params.model_copy(update=changes), devices, folder)
        commands = {name: "python" if "watch" in name else "$LAUNCH" for name in names}
        planned = [estimator.plan(*item, measured=True) for item in commands.items()]
        return [stage.seconds - START for stage in planned]

    # 6 images of the target, in batches of 4; `watch` also predicts them with the teacher.
    measured, watched = ((8 + passes * 6) / 8 * FORWARD for passes in (4, 5))
    statistics = 8 / 8 * FORWARD
    for devices, step in {1: 4, 2: 2, 4: 1}.items():  # of 4 devices, a half of 2 images' step
        expected = [
            30 * step,
            6 * EXTRACTED["target"] / devices,
            4 / 8 * FORWARD / devices,
            watched,
            4 * step + statistics / devices + 2 * measured,  # one process looks for a regression
        ]
        assert seconds(devices) == pytest.approx(expected), devices
    # Single images at a time, which 4 devices normalise together.
    assert seconds(4, max_batch_per_device=1) == pytest.approx(expected)


def test_a_change_of_the_parameters_changes_the_plan(copy, monkeypatch):
    monkeypatch.setattr(plan, "training_step", lambda *_: Work())
    changes = {"extract": {"target_views": {"gammas": [0.8, 1.0], "flip": True}}}
    changes |= {"warmup": {"iterations": 0}, "adapt": {"on_regression": "warn"}}
    write_params(copy, merged(read_params(copy), changes))
    stages = {stage.stage: stage for stage in plan.make_plan().stages}
    assert stages["extract_target@round1"].work.forwarded == pytest.approx(4 * 6)
    assert stages["warmup"].steps == 0 and stages["warmup"].bytes == stages["pretrain"].bytes
    # 6 images for the target's statistics, and two models are measured.
    assert stages["adapt@round1"].work.forwarded == pytest.approx(6 + 2 * (8 + 4 * 6))
    assert all(stage.seconds is None for stage in stages.values())


# Samples of the data


def domain(preset, name, **changes):
    return getattr(load_all(ROOT / f"presets/{preset}.yaml"), name).model_copy(update=changes)


def test_raw_images_give_the_size_of_the_prepared_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    write_gta5(tmp_path / "gta5", 9, (48, 96))
    source = domain("gta5_to_cityscapes", "source", size=None)
    found = sample_domain("source", source, tmp_path / "out")["train"]
    assert (found.count, found.size) == (9, (48, 96))
    assert len(read_manifest(tmp_path / "out")) == sample.SAMPLED
    kept = sum(used_bytes(tmp_path / "out" / kind) for kind in ("images", "labels"))
    assert found.bytes == pytest.approx(kept * 9 / 4, rel=0.01)


def test_without_the_data_sets_their_numbers_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    target = domain("gta5_to_cityscapes", "target", size=(64, 128))
    found = sample_domain("target", target, tmp_path / "out")
    assert {name: images.count for name, images in found.items()} == {"train": 2975, "val": 500}
    assert found["val"].size == (64, 128) and found["train"].bytes == 2 * 2975 * 64 * 128
    assert (read_manifest(tmp_path / "out").query("split == 'train'")["label"] == "").all()
    with pytest.raises(UserError, match="no such folder; put the data set there"):
        sample_domain("target", domain("camvid_day_to_dusk", "target"), tmp_path / "other")


def test_domains_of_other_classes_have_no_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = load_all(ROOT / "presets/scenes.yaml")
    changes = {"source": {}, "target": {"class_map": "classes/cityscapes_7.yaml"}}
    domains = {
        name: getattr(params, name).model_copy(update={"size": (32, 64), **change})
        for name, change in changes.items()
    }
    with pytest.raises(UserError, match="the source has 19 classes, the target 7; train id 0 is"):
        plan.Estimator(params.model_copy(update=domains), 1, tmp_path)


# Times


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Small parameters and a network of them; their prepared images are in `tmp_path`."""
    params = load_all(ROOT / "presets/scenes.yaml")
    network = params.network.model_copy(
        update={"encoder": "tu-test_efficientnet", "encoder_weights": None, "options": {}}
    )
    crop = params.adapt.augmentation.model_copy(update={"crop": (32, 64)})
    params = params.model_copy(
        update={
            "network": network,
            "adapt": params.adapt.model_copy(update={"augmentation": crop}),
        }
    )
    monkeypatch.chdir(ROOT)
    for name in ("source", "target"):
        config = getattr(params, name).model_copy(update={"size": (32, 64)})
        sample_domain(name, config, tmp_path / name)
    return params, build(params.network, read_label_space(tmp_path / "source").num_classes)


@pytest.fixture
def ticks(monkeypatch):
    """A clock that goes on by a second whenever it is read."""
    ticks = count()
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(speed, "SECONDS", 2)
    return ticks


def test_steps_are_made_by_the_loop_and_timed_after_the_first(tiny, ticks, tmp_path):
    (params, model), fabric = tiny, make_fabric("32-true")
    assert speed.step_seconds("adapt", params, model, 2, tmp_path, fabric) == 1
    assert next(ticks) == speed.WARM_UP + 4  # a reading before each step, and after the last
    assert speed.forward_seconds(plan.predict, model, (1, 32, 64), fabric) == 1


def test_an_extraction_is_timed_with_all_that_it_does(tiny, ticks, tmp_path, monkeypatch):
    (params, model), fabric, written = tiny, make_fabric("32-true"), []

    def observed(write):
        def writing(path, count, rows, **options):
            write(path, count, rows, **options)
            with h5py.File(path) as file:
                written.append({key: (data.dtype.char, data.shape) for key, data in file.items()})

        return writing

    for name in ("write_source_shard", "write_target_shard"):
        monkeypatch.setattr(speed, name, observed(getattr(speed, name)))
    for domain, directions in (("source", 3), ("target", 3), ("target", None)):
        config = params.extract.model_copy(update={"batch_size": 6, "directions": directions})
        changed = params.model_copy(update={"extract": config})
        found = speed.extraction_seconds(domain, changed, model, tmp_path, fabric)
        assert found == 1 / 6  # of a batch's second
    # Two batches come before the first that is timed, and SECONDS is exceeded after the fourth.
    assert len(written) == 3 * 4
    source, reduced, whole = written[::4]
    assert source["class_sums"][1] == (6, model.num_classes, model.width)
    assert reduced["features"] == ("h", (6, 3 + 1, 8, 16))
    assert whole["features"] == ("e", (6, model.width, 8, 16))


def test_a_projection_for_measurements_has_the_directions_asked_for():
    projection = speed.random_projection(19, 256, 40)
    assert projection.directions.shape == (40, 256) and projection.units.isfinite().all()


def test_steps_are_timed_with_weights_that_stay(tmp_path, monkeypatch):
    """All learning rates are tiny, also those of the decoder and the discriminator."""
    params = load_all(ROOT / "presets/scenes.yaml")
    changed = {"learning_rate_decoder": 0.1, "discriminator_learning_rate": 0.1}
    params = params.model_copy(update={"warmup": params.warmup.model_copy(update=changed)})
    rates = []

    def train(objective, batches, run, config, *rest):
        groups = [g for optimizer in objective.optimizers(config) for g in optimizer.param_groups]
        rates.extend(group["lr"] for group in groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "train", train)
    monkeypatch.setattr(speed, "_samples", lambda *_: [])
    small = {"encoder": "tu-test_efficientnet", "encoder_weights": None, "options": {}}
    model = build(params.network.model_copy(update=small), 3)
    with pytest.raises(KeyboardInterrupt):
        speed.step_seconds("warmup", params, model, 2, tmp_path, make_fabric("32-true"))
    assert rates == [speed.LEARNING_RATE] * 3


def test_numbers_have_three_digits_and_a_unit():
    texts = [scaled(n, "B") for n in (0, 12, 1234, 202_283_520_000, 999_600)]
    assert texts == ["", "12 B", "1.23 kB", "202 GB", "1 MB"]
    assert scaled(1.42e12) == "1.42 T"
    texts = [duration(n) for n in (1.234, 234, 8640, 400_000)]
    assert texts == ["1.23 s", "3.9 min", "2.4 h", "4.63 days"]


def test_the_benchmark_compares_with_the_records(planned):
    records = {"pretrain": {"seconds": 50.0}, "anchors@round1": {"seconds": 15.0}, "gone": {}}
    rows, ratio = comparison(planned.stages, records)
    assert [list(row.values()) for row in rows] == [
        ["pretrain", "65.0", "50.0", "1.30"],
        ["anchors@round1", "5.0", "15.0", "0.33"],
        ["all 2", "70.0", "65.0", "1.08"],
    ]
    assert ratio == 70 / 65
    with pytest.raises(UserError, match="no stage has run in this folder"):
        comparison(planned.stages, {})


def test_every_stage_of_the_pipeline_has_a_task():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert stages.keys() == plan.TASKS.keys()
