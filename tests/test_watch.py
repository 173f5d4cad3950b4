"""Measures without labels have the values worked out by hand, and are best where expected."""

import json
import math
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from project import TRAINING
from torch import Tensor, nn

from cag.config.adaptation import Adapt
from cag.config.networks import Network, Normalization
from cag.config.watch import MEASURES, Watch
from cag.datasets.images import write_image, write_label
from cag.datasets.labels import LabelSpace
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS, PreparedImages
from cag.networks import Model, build, save_model
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.watch import (
    MAPS,
    MEASURE,
    Verdict,
    Watched,
    class_totals,
    divergence,
    entropy,
    kept_model,
    neighbourhood_density,
    recoloured,
    regressed,
    two_rules,
    watch,
)
from stages import adapt, watch_start
from stages import watch as stage

SPACE = LabelSpace(("red", "green", "blue"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
SIZE = (4, 8)


def test_entropy_is_one_of_equal_and_zero_of_sure_probabilities():
    found = entropy(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    assert found.tolist() == pytest.approx([1, 0, 0.5])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 3], [25, 75], 0),
        ([5, 0], [0, 7], 1),
        # the mean is (3/4, 1/4), of 2 - 3/4 log2(3) bits; (1/2, 1/2) has one bit, (1, 0) none
        ([1, 0], [1, 1], 1.5 - 0.75 * math.log2(3)),
    ],
)
def test_divergence_of_class_counts(first, second, expected):
    found = divergence(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(divergence(torch.tensor(second), torch.tensor(first)))


def test_density_of_equal_pixels_is_greatest():
    assert neighbourhood_density(torch.full((7, 3), 0.3)) == pytest.approx(math.log(6))


def test_density_counts_the_neighbours_of_a_pixel():
    """Two clusters of orthogonal outputs: of the 9 others, a pixel is like 4."""
    points = torch.eye(2).repeat_interleave(5, dim=0)
    assert neighbourhood_density(points, 0.01) == pytest.approx(math.log(4))
    weights = [math.e] * 4 + [1] * 5  # at temperature 1
    shares = np.array(weights) / sum(weights)
    assert neighbourhood_density(points, 1.0) == pytest.approx(-(shares * np.log(shares)).sum())


def test_two_rules_compare_the_nearest_anchor_with_the_prediction():
    anchors = torch.tensor([[0.0], [4.0], [math.nan]])
    features, prediction = torch.tensor([[[[0.0, 1.0, 3.0]]]]), torch.tensor([[[0, 2, 1]]])
    agreement, margin = two_rules(features, prediction, anchors)
    assert agreement.tolist() == [[[1, 0, 1]]]
    assert margin.tolist() == [[[1, 0.5, 0.5]]]
    for part in two_rules(features, prediction, anchors[1:]):
        assert part.isnan().all() and part.shape == prediction.shape


def test_totals_are_sums_over_each_class():
    maps = torch.tensor([[[1.0, 2.0, 4.0]], [[0.0, 1.0, 1.0]]])
    assert class_totals(maps, torch.tensor([[2, 0, 2]]), 3).tolist() == [[2, 0, 5], [1, 0, 1]]


def test_recoloured_images_are_darker_or_unchanged():
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    assert torch.equal(recoloured(images, 1, 1, 1), images)
    darker = recoloured(images, 0.5, 1, 1)
    assert darker.dtype == torch.uint8 and torch.equal(darker, images // 2)
    assert recoloured(images, 1, 1, 2).float().mean() < images.float().mean()


class Output(NamedTuple):
    """As a network's."""

    features: Tensor
    logits: Tensor


class Colours(nn.Module):
    """Each colour is a class; with a slope, the first class is likelier on the right."""

    num_classes = 3

    def __init__(self, slope=0.0, scale=10.0):
        super().__init__()
        self.slope, self.scale = slope, scale

    def forward(self, images: Tensor) -> Output:
        """Features and logits [B, 3, H, W]."""
        logits = self.scale * images
        logits[:, 0] += self.slope * torch.linspace(-1, 1, images.shape[3])
        return Output(images, logits)


def prepared(folder, split, pixels):
    """Images of one colour for each pixel's class [N, H, W], labelled so; a target has no label."""
    rows, labelled = [], folder.name == "source"
    (folder / "images").mkdir(parents=True)
    for i, classes in enumerate(pixels):
        colours = 200 * np.eye(3)[classes] + 20
        write_image(folder / f"images/{i}.png", colours.astype(np.uint8))
        paths = {"name": f"{i}", "image": f"images/{i}.png"}
        if labelled:
            write_label(folder / f"{i}.png", classes.astype(np.uint8), SPACE.palette_array)
            paths["label"] = f"{i}.png"
        rows.append({"split": split, "height": SIZE[0], "width": SIZE[1], **paths})
    write_manifest(folder, pd.DataFrame(rows, columns=COLUMNS).fillna(""), SPACE)
    return folder


@pytest.fixture
def folders(tmp_path):
    """A source with as many pixels of each class, and a target without the third class."""
    random = np.random.default_rng(0)
    halves = np.repeat([[0] * 4 + [1] * 4], SIZE[0], axis=0)
    source = prepared(tmp_path / "data/prepared/source", "train", random.integers(0, 3, (5, *SIZE)))
    target = prepared(tmp_path / "data/prepared/target", "train", np.stack([halves] * 7))
    return source, target


def measured(network, folders, teacher=None, **config):
    source, target = folders
    domains = PreparedImages(source, "train", True), PreparedImages(target, "train", False)
    with progress("watch", 1, "images") as advance:
        fabric = make_fabric("32-true")
        return watch(network, *domains, Watch(**config), 0, fabric, advance, teacher), advance.done


def test_a_sure_and_equivariant_network_has_the_best_measures(folders):
    (numbers, table), done = measured(Colours(), folders)
    assert done == 5 + 7 and list(numbers) == list(MEASURES)
    for name in ("agreement", "relative_margin", "coverage", "flip_consistency"):
        assert numbers[name] == pytest.approx(1, abs=1e-5), name
    assert numbers["colour_consistency"] == 1
    assert numbers["confidence"] == pytest.approx(1, abs=2e-3)
    assert numbers["entropy"] == pytest.approx(0, abs=1e-2)
    # Two of three classes, equally often.
    whole = math.log(2) / math.log(3)
    assert numbers["information"] + numbers["entropy"] == pytest.approx(whole, abs=5e-3)
    assert numbers["neighbourhood_density"] == pytest.approx(math.log(7 * 16 - 1), abs=1e-2)
    assert table["pixels"].tolist() == [112, 112, 0]
    assert table["share"].tolist() == [0.5, 0.5, 0]
    assert table["source_share"].sum() == pytest.approx(1) and table["source_share"].min() > 0.2
    known = [name for name in MAPS if name != "teacher_agreement"]  # of no teacher
    assert table[known].notna().all(axis=1).tolist() == [True, True, False]
    assert math.isnan(numbers["teacher_agreement"])
    expected = divergence(torch.tensor(table["share"]), torch.tensor(table["source_share"]))
    assert numbers["share_divergence"] == pytest.approx(expected)


def test_a_network_that_sees_left_and_right_is_not_consistent(folders):
    (numbers, table), done = measured(Colours(slope=1000), folders, images=2)
    # All that is right of the middle is red; of the mirrored image, all that is left of it.
    assert numbers["flip_consistency"] == 0 and numbers["colour_consistency"] == 1
    assert table["pixels"][0] == 32 and done == 4


@pytest.mark.parametrize(("slope", "expected"), [(0, 1), (1000, 0)])
def test_agreement_with_the_teacher(folders, slope, expected):
    """The student sees red left and green right; one teacher does, too, one no red on the left."""
    (numbers, table), _ = measured(Colours(), folders, teacher=Colours(slope))
    assert numbers["teacher_agreement"] == expected
    assert table["teacher_agreement"][:2].tolist() == [expected, expected]


def test_a_network_that_knows_one_class_has_no_agreement(folders):
    (numbers, _), _ = measured(Colours(scale=0), folders)
    assert math.isnan(numbers["agreement"]) and math.isnan(numbers["relative_margin"])
    assert numbers["entropy"] == pytest.approx(1) and numbers["coverage"] == 0
    assert numbers["information"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (0.8, 0.79, True),
        (0.8, 0.7949, True),
        (0.8, 0.7951, False),  # a fall of less than LEAST
        (0.8, 0.81, False),
        (None, 0.5, False),
    ],
)
def test_regressed_compares_the_one_measure(before, after, worse):
    assert MEASURES[MEASURE].better == 1
    message = regressed({MEASURE: before}, {MEASURE: after, "entropy": 1.0})
    assert (message is not None) == worse
    if worse:
        assert f"from 0.8000 to {after:.4f}" in message and "\n" not in message


def test_regressed_knows_the_better_direction_and_missing_numbers(monkeypatch):
    monkeypatch.setattr("cag.watch.MEASURE", "entropy")
    assert regressed({"entropy": 0.1}, {"entropy": 0.2})
    assert regressed({"entropy": 0.2}, {"entropy": 0.1}) is None
    assert regressed({}, {"entropy": math.nan}) is None


def small_model(seed):
    """A model of random weights."""
    config = Network(
        architecture="FPN",
        encoder="tu-test_efficientnet",
        encoder_weights=None,
        normalization=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    torch.manual_seed(seed)
    return Model(build(config, 3).eval(), config, SPACE, None)


@pytest.mark.parametrize("action", ["ignore", "warn", "stop", "keep_teacher"])
@pytest.mark.parametrize("worse", [False, True])
def test_what_a_round_keeps(folders, tmp_path, monkeypatch, capsys, action, worse):
    values = iter([0.8, 0.7 if worse else 0.9])
    monkeypatch.setattr("cag.watch.watch", lambda *_: Watched({MEASURE: next(values)}, None))
    teacher, student = (small_model(seed) for seed in (0, 1))
    save_model(tmp_path / "teacher.safetensors", *teacher)
    inputs = (tmp_path / "teacher.safetensors", student, action, folders, Watch(images=2), 0)
    if worse and action == "stop":
        with pytest.raises(UserError, match=r"from 0.8000 to 0.7000 .*on_regression is stop"):
            kept_model(*inputs, make_fabric("32-true"))
        return
    model, verdict = kept_model(*inputs, make_fabric("32-true"))
    kept = "teacher" if worse and action == "keep_teacher" else "student"
    expected = {"teacher": teacher, "student": student}[kept].network.classifier.weight
    assert torch.equal(model.network.classifier.weight, expected)
    measured = Verdict(kept, worse, MEASURE, 0.8, 0.7 if worse else 0.9)
    assert verdict == (Verdict() if action == "ignore" else measured)
    warned = f"warning: {MEASURE} went from 0.8000 to 0.7000" in capsys.readouterr().err
    assert warned == (worse and action in ("warn", "keep_teacher"))


@pytest.fixture
def round_of(folders, tmp_path, monkeypatch, capsys):
    """Runs a round of two steps whose student measures worse than its teacher.

    Takes changes of the section adapt; gives the exit status and what was printed on stderr.
    """
    teacher, random = small_model(0), np.random.default_rng(0)
    save_model(tmp_path / "data/models/warmup.safetensors", *teacher)
    folder = tmp_path / "data/rounds/round1"
    folder.mkdir(parents=True)
    anchors = random.normal(size=(3, teacher.network.width)).astype(np.float32)
    np.save(folder / "anchors.npy", anchors)
    for rule, image in product(("anchor", "probability"), range(7)):
        path = folder / f"pseudo_labels/{rule}/{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_label(path, random.integers(0, 3, SIZE, np.uint8), SPACE.palette_array)
    training = {**TRAINING, "augmentation": TRAINING["augmentation"].model_dump(), "iterations": 2}
    plain = {"teacher": "ema", "target_statistics": 0.5, "target_labels": "both"}
    plain |= {"distance_weight": 0.7, "distance_kind": "class_mean"}
    params = {"seed": 0, "precision": "32-true", "max_batch_per_device": None, "compile": False}
    params["anchors"] = {"average": "images", "min_pixels": 1, "min_recall": 0.0}
    params["pseudo_label"] = {"relative_margin": 0.1, "probability": 0.5}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["adapt", "round1", "warmup"])

    def run(**changes):
        values = iter([0.8, 0.7])
        monkeypatch.setattr("cag.watch.watch", lambda *_: Watched({MEASURE: next(values)}, None))
        text = json.dumps(params | {"adapt": {**training, **plain, **changes}})
        (tmp_path / "params.yaml").write_text(text)
        status = 0
        try:
            run_stage(adapt.main)
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run


def test_after_a_stop_no_step_is_made_again(round_of, tmp_path, monkeypatch):
    model, curve = (
        tmp_path / f"data/{name}" for name in ("models/round1.safetensors", "curves/round1.csv")
    )
    assert round_of(on_regression="warn")[0] == 0
    whole = [path.read_bytes() for path in (model, curve)]
    assert json.loads((tmp_path / "data/rounds/round1/verdict.json").read_text()) == {
        **{"kept": "student", "regressed": True, "measure": MEASURE},
        **{"teacher": 0.8, "student": 0.7},
    }
    for path in (model, curve):
        path.unlink()

    status, said = round_of(on_regression="stop")
    (error,) = [line for line in said.splitlines() if line.startswith("error")]
    assert status == 1 and "set it to warn" in error and "Traceback" not in said
    assert not model.exists() and not curve.exists()

    monkeypatch.setattr("cag.training.loop._gradients", None)  # a step would be an error
    status, said = round_of(on_regression="warn")
    assert status == 0 and f"warning: {MEASURE} went from 0.8000 to 0.7000" in said
    assert [path.read_bytes() for path in (model, curve)] == whole


def test_what_acts_after_the_last_step_is_no_part_of_a_training():
    keys = {"distance_weight": 0.7, "distance_kind": "class_mean", "target_labels": "both"}
    plain = Adapt(**TRAINING, **keys, teacher="ema")
    later = {"kept": "teacher", "target_statistics": 0.5, "on_regression": "stop"}
    assert plain.model_copy(update=later).of_training == plain.of_training == plain
    other = plain.model_copy(update={"anchor_momentum": 0.9})
    assert other.of_training == other != plain


def test_stage_writes_numbers_and_a_table_and_opens_no_target_label(folders, tmp_path, monkeypatch):
    for seed, model in enumerate(("round1", "warmup")):
        save_model(tmp_path / f"data/models/{model}.safetensors", *small_model(seed))
    (tmp_path / "params.yaml").write_text("{seed: 0, precision: 32-true}")  # no section: defaults
    monkeypatch.chdir(tmp_path)
    written = []
    for _ in range(2):
        CliRunner().invoke(stage.main, ["round1", "warmup"], catch_exceptions=False)
        paths = sorted((tmp_path / "data/watch").iterdir())
        written.append([path.read_bytes() for path in paths])
    assert [path.name for path in paths] == ["round1.csv", "round1.json"]
    assert written[0] == written[1]
    table, numbers = pd.read_csv(paths[0]), json.loads(paths[1].read_text())
    assert table["class"].tolist() == list(SPACE.names)
    assert list(numbers) == [*MEASURES, "images"] and numbers["images"] == 7
    for name in set(MEASURES) - {"neighbourhood_density"}:
        assert numbers[name] is None or 0 <= numbers[name] <= 1
    assert numbers["teacher_agreement"] is not None

    start = CliRunner().invoke(watch_start.main, ["round1"], catch_exceptions=False)
    assert "teacher_agreement none" in start.output
    assert json.loads(paths[1].read_text()) == numbers | {"teacher_agreement": None}
