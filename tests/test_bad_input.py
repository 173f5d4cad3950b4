"""Stages with every kind of bad input: a one-line error that names it, no partial files."""

import importlib
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cag.config.parameters import load_all
from cag.datasets.images import read_image, write_image, write_label
from cag.datasets.labels import MAX_CLASSES, LabelSpace
from cag.networks import build, save_model
from cag.runtime.files import sha256, write_csv, write_json
from cag.runtime.program import run
from cag.watch import Verdict
from stages.anchors import anchor_table

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("road", "sky", "car")
SPACE = LabelSpace(NAMES, ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SIZE = (32, 64)
WIDTH = 16
RAW = "data/raw/city"
AUGMENTATION = {"scale": [1.0, 1.0], "crop": list(SIZE), "flip": 0.5, "photometric": None}
TRAINING = {"iterations": 2, "batch_size": 2, "augmentation": AUGMENTATION}


def parameters():
    """Complete parameters of three folders of tiny images."""
    content = yaml.safe_load((ROOT / "presets/scenes.yaml").read_text(encoding="utf-8"))
    domain = {"layout": "folder", "folder": "city", "class_map": "classes.yaml", "size": list(SIZE)}
    content["source"] = domain | {"images": "images", "labels": "labels"}
    content["target"] = domain | {
        "images": "images",
        "val_images": "images",
        "val_labels": "labels",
    }
    small = {"encoder": "tu-test_efficientnet", "encoder_weights": None}
    content["network"] |= small | {"options": {"decoder_channels": WIDTH}}
    content["pretrain"] |= TRAINING
    content["warmup"] |= TRAINING | {"iterations": 0}
    content["adapt"] |= TRAINING
    content["pseudo_label"] = {
        "margin": None,
        "relative_margin": None,
        "quantile": 0.5,
        "agreement": False,
        "probability": 0.0,
    }
    return content


def write_raw(folder, count=3):
    """Four images with labels of raw values 1 to `count`."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(4):
        image = random.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        labels = random.integers(1, count + 1, SIZE).astype(np.uint8)
        write_image(folder / f"images/{i}.png", image)
        write_label(folder / f"labels/{i}.png", labels, np.zeros((count + 1, 3), np.uint8))


EXTRACT = ("extract_source round1 warmup", "extract_target round1 warmup round1")


def stage(name, *arguments):
    """Run a stage in this process, like its program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        run(importlib.import_module(f"stages.{name}").main)


def make_template(folder, space=SPACE):
    """A project run up to its first pseudo-labels, with an untrained network."""
    count = space.num_classes
    write_raw(folder / RAW, count)
    classes = [
        {"name": name, "color": list(color), "values": [i + 1]}
        for i, (name, color) in enumerate(zip(space.names, space.palette, strict=True))
    ]
    (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": classes, "ignore": []}))
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CAG_DATA", raising=False)
        for command in (["index"], ["prepare", "source"], ["prepare", "target"]):
            stage(*command)
        torch.manual_seed(0)
        network = load_all().network
        model = build(network, count).eval()
        save_model(Path("data/models/warmup.safetensors"), model, network, space)
        for command in EXTRACT:
            stage(*command.split())
        Path("data/rounds/round1").mkdir(parents=True)
        anchors = np.random.default_rng(0).random((count, WIDTH)).astype(np.float32)
        np.save("data/rounds/round1/anchors.npy", anchors)
        stage("pseudo_label", "round1")
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    """A copy of the template for a test."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    for variable in ("CAG_DATA", "CAG_WEIGHTS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    return folder


def contents(folder):
    """The files below a folder's data/ with their bytes, and its hidden or partial files."""
    paths = sorted((folder / "data").rglob("*"))
    kept = [path for path in paths if path.is_file() or path.name.startswith(".")]
    return {path: path.read_bytes() if path.is_file() else None for path in kept}


@pytest.fixture
def fails(project, capsys):
    """A function that checks that a stage fails with one line that has all given words."""

    def check(command, *words):
        before = contents(project)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            stage(*command.split())
        assert caught.value.code == 1
        check_message(capsys.readouterr().err, words)
        assert contents(project) == before

    return check


def check_message(text, words):
    """Check that the output is one line, an error that has every word."""
    assert text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1
    assert "Traceback" not in text and len(text) < 700
    for word in words:
        assert word in text


def change(key, value):
    """Set a parameter, named by its dotted path."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    section = content
    *outer, last = key.split(".")
    for part in outer:
        section = section[part]
    section[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(content))


def cut(path, kept=0.5):
    """Keep only the first part of a file."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * kept)])


def test_the_project_is_good_before_it_is_broken(project, capsys):
    """Without the faults of the other tests, all their stages run, in their order."""
    shutil.rmtree("data/prepared/target")  # the pretraining needs no target image, and sees none
    stage("pretrain")
    stage("prepare", "target")
    for command in (*EXTRACT, "pseudo_label round1", "adapt round1 warmup"):
        stage(*command.split())
    stage("evaluate_pseudo_labels", "round1", "warmup")
    stage("evaluate", "round1")
    assert "error" not in capsys.readouterr().err
    for path in ("models/pretrain.safetensors", "curves/round1.csv", "evaluation/round1"):
        assert Path("data", path).exists()


def test_as_many_classes_as_a_label_map_can_hold_go_through_the_stages(tmp_path, monkeypatch):
    monkeypatch.setattr("cag.analysis.plots.DPI", 20)  # coarse figures
    count = MAX_CLASSES
    space = LabelSpace(tuple(f"class {i}" for i in range(count)), ((9, 9, 9),) * count)
    monkeypatch.chdir(make_template(tmp_path, space))
    change("evaluated", [])
    folder = Path("data/rounds/round1")
    anchors = torch.from_numpy(np.load(folder / "anchors.npy"))
    mean = SimpleNamespace(images=torch.ones(count).long(), pixels=torch.ones(count).long())
    table = anchor_table(anchors, mean, torch.ones(count), space.names)
    write_csv(folder / "anchors.csv", table)
    stage("evaluate_pseudo_labels", "round1", "warmup")
    for model in ("pretrain", "round1"):
        shutil.copyfile("data/models/warmup.safetensors", f"data/models/{model}.safetensors")
    for model in ("pretrain", "warmup"):
        stage("watch_start", model)
    stage("watch", "round1", "warmup")
    write_json(folder / "verdict.json", Verdict()._asdict())
    Path("data/curves").mkdir()
    stage("report")
    page = Path("data/report/index.html").read_text(encoding="utf-8")
    assert all(f"class {i}<" in page for i in range(count))
    curves = pd.read_csv("data/pseudo_label_evaluation/round1/curves.csv")
    assert set(curves["class"]) == {*space.names, "all"}


def test_the_pretraining_opens_no_target_image(project, monkeypatch):
    opened = []

    def record(path):
        opened.append(Path(path))
        return read_image(path)

    monkeypatch.setattr("cag.training.samples.read_image", record)
    stage("pretrain")
    assert opened and all(p.is_relative_to("data/prepared/source/images/train") for p in opened)


# The data set


def test_a_missing_data_folder(project, fails):
    shutil.rmtree(RAW)
    fails("index", RAW, "no such folder")
    fails("prepare source", f"{RAW}/images", "no such folder")


def test_a_data_folder_elsewhere(project, fails, monkeypatch, tmp_path):
    monkeypatch.setenv("CAG_DATA", str(tmp_path / "nowhere"))
    fails("index", str(tmp_path / "nowhere/city"), "no such folder")


@pytest.mark.parametrize("name", ["", "prepared", "raw"])
def test_outputs_that_a_link_leads_out_of_the_project(project, fails, name, tmp_path, capsys):
    """DVC refuses them when their stage has run, as after hours of training."""
    (project / "data" / name).rename(tmp_path / "disk")
    (project / "data" / name).symlink_to(tmp_path / "disk")
    if name == "raw":
        stage("index")
    else:
        fails("index", str(Path("data", name)), "a link that leaves the project")


def test_no_images(project, fails):
    for path in Path(RAW, "images").iterdir():
        path.unlink()
    fails("prepare source", f"{RAW}/images", "no image found")
    fails("prepare target", f"{RAW}/images", "no image found")


def test_an_image_without_a_label(project, fails):
    Path(RAW, "labels/2.png").unlink()
    fails("prepare source", f"{RAW}/images/2.png", "no label")
    fails("prepare target", f"{RAW}/images/2.png", "no label")


def test_a_label_without_an_image(project, fails):
    Path(RAW, "images/2.png").unlink()
    fails("prepare source", f"{RAW}/labels/2.png", "no image")


def test_an_image_and_a_label_of_two_sizes(project, fails):
    labels = np.ones((32, 60), np.uint8)
    write_label(Path(RAW, "labels/1.png"), labels, np.zeros((4, 3), np.uint8))
    fails("prepare source", f"{RAW}/images/1.png is 64 x 32", f"{RAW}/labels/1.png is 60 x 32")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_truncated_image(project, fails, kind):
    cut(f"{RAW}/{kind}/3.png")
    fails("prepare source", f"{RAW}/{kind}/3.png", "not a readable image")


def test_a_file_that_is_no_image(project, fails):
    Path(RAW, "images/0.png").write_text("an image")
    fails("prepare target", f"{RAW}/images/0.png", "not a readable image")


def test_a_label_value_outside_the_class_map(project, fails):
    labels = np.full(SIZE, 9, np.uint8)
    write_label(Path(RAW, "labels/1.png"), labels, np.zeros((4, 3), np.uint8))
    fails("prepare source", f"{RAW}/labels/1.png: label value 9 not in the class map")


def test_a_missing_or_broken_class_map(project, fails):
    Path("classes.yaml").write_text("classes: [{name: road}]")
    fails("prepare source", "classes.yaml")
    Path("classes.yaml").unlink()
    fails("prepare source", "classes.yaml")


def test_domains_of_other_classes_are_found_before_the_pretraining(project, fails):
    content = yaml.safe_load(Path("classes.yaml").read_text())
    content["classes"].reverse()
    Path("others.yaml").write_text(yaml.safe_dump(content))
    change("target.class_map", "others.yaml")
    fails("index", "train id 0 is 'road' in the source and 'car' in the target: give source.class")


# Parameters


@pytest.mark.parametrize(
    ("command", "key", "value", "words"),
    [
        ("index", "pretraining", {}, ["unknown key 'pretraining'"]),
        ("index", "pseudo_label.margins", 2.5, ["unknown key 'pseudo_label.margins'"]),
        ("index", "rounds.round1.teacher", "round2", ["rounds.round1.teacher", "round2"]),
        ("prepare source", "source.size", [32.0, 64], ["source.size.0 is 32.0"]),
        ("pretrain", "pretrain.learning_rat", 0.1, ["unknown key 'pretrain.learning_rat'"]),
        ("pretrain", "pretrain.learning_rate", "fast", ["pretrain.learning_rate is 'fast'"]),
        ("pretrain", "pretrain.batch_size", 1, ["batch_size", "a single image"]),
        ("adapt round1 warmup", "adapt.batch_size", 1, ["batch_size", "a single image"]),
        ("pretrain", "network.encoder", "mobilnet", ["network", "mobilnet"]),
        (
            "pretrain",
            "network.options",
            {"decoder": 1},
            ["network.options.decoder is no option of DeepLabV3Plus"],
        ),
        ("adapt round1 warmup", "adapt.iterations", 0, ["adapt.iterations is 0"]),
        ("pseudo_label round1", "pseudo_label.quantile", 2, ["pseudo_label.quantile is 2"]),
        ("pseudo_label round1", "pseudo_label.margin", 1e6, ["no pixel is active"]),
        ("anchors round1 round1", "anchors.min_pixels", 10**6, ["anchors.min_pixels"]),
        (
            "extract_source round1 warmup",
            "extract.batch_size",
            True,
            ["extract.batch_size is True"],
        ),
        ("evaluate warmup", "evaluate.panels", -1, ["evaluate.panels is -1"]),
        ("warmup", "warmup.iterations", -1, ["warmup.iterations is -1"]),
        ("warmup", "warmup.objective", "wasserstein", ["warmup.objective is 'wasserstein'"]),
        ("warmup", "warmup.augmentation.crop", [31, 64], ["warmup.augmentation", "[31, 64]"]),
    ],
)
def test_a_bad_parameter(project, fails, command, key, value, words):
    change(key, value)
    fails(command, *words)


def test_a_missing_parameter_file(project, fails):
    Path("params.yaml").unlink()
    fails("index", "params.yaml: no such file")


# Artifacts


@pytest.mark.parametrize("shape", [(4, WIDTH), (3, WIDTH + 1)])
@pytest.mark.parametrize(
    "command",
    ["pseudo_label round1", "adapt round1 warmup", "evaluate_pseudo_labels round1 warmup"],
)
def test_anchors_of_other_classes_or_another_width(project, fails, command, shape):
    np.save("data/rounds/round1/anchors.npy", np.zeros(shape, np.float32))
    fails(command, "data/rounds/round1/anchors.npy", f"{shape}", f"(3, {WIDTH})")


@pytest.mark.parametrize(
    ("command", "domain"), [("anchors round1 round1", "source"), ("pseudo_label round1", "target")]
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_damaged_feature_store(project, fails, command, domain, kept):
    path = f"data/features/round1/{domain}.h5"
    cut(path, kept)
    fails(command, path, "damaged HDF5 file")


@pytest.mark.parametrize("quantile", [0.5, None])
def test_a_damaged_or_missing_shard(project, fails, quantile):
    change("pseudo_label.quantile", quantile)
    change("pseudo_label.margin", 0)
    path = Path("data/features/round1/target/00000.h5")
    cut(path)
    fails("pseudo_label round1", str(path), "damaged HDF5 file")
    path.unlink()
    fails("pseudo_label round1", f"{path}: no such feature store")


def test_a_missing_feature_store(project, fails):
    shutil.rmtree("data/features/round1")
    fails("anchors round1 round1", "data/features/round1/source.h5: no such feature store")
    fails("pseudo_label round1", "data/features/round1/target.h5: no such feature store")


@pytest.mark.parametrize(
    "command",
    [
        *(*EXTRACT, "adapt round1 warmup"),
        *("evaluate warmup", "evaluate_pseudo_labels round1 warmup"),
    ],
)
def test_a_damaged_or_missing_model(project, fails, command):
    path = Path("data/models/warmup.safetensors")
    cut(path)
    fails(command, f"{path}: damaged model file")
    path.unlink()
    fails(command, f"{path}: no such model")


def test_no_pretrained_model(project, fails):
    fails("warmup", "data/models/pretrain.safetensors: no such model")


def test_a_given_warmup(project, fails):
    change("warmup.weights", "given.safetensors")
    given = Path("data/weights/given.safetensors")
    for command in ("index", "warmup"):
        fails(command, f"{given.absolute()}: no such model (warmup.weights)", "CAG_WEIGHTS")
    given.parent.mkdir(parents=True)
    shutil.copyfile("data/models/warmup.safetensors", given)
    Path("data/models/warmup.safetensors").unlink()
    stage("index")
    assert pd.read_csv("data/index/warmup.csv").values.tolist() == [[given.name, sha256(given)]]
    stage("warmup")
    assert sha256(Path("data/models/warmup.safetensors")) == sha256(given)

    other = LabelSpace(("road", "sky"), SPACE.palette[:2])
    write_json(Path("data/prepared/source/classes.json"), other.to_dict())
    fails("warmup", f"{given.absolute()}: a model of 3 classes", "2 (road, sky)")
    cut(given)
    fails("warmup", f"{given.absolute()}: damaged model file")
    change("warmup.weights", "../../secret.safetensors")
    fails("index", "data/weights: the path", "leaves this folder")
    Path("data/index/warmup.csv").unlink()
    fails("warmup", "data/index/warmup.csv: no such file; `dvc repro` makes it")


@pytest.mark.parametrize("command", [*EXTRACT, "adapt round1 warmup", "evaluate warmup"])
def test_a_model_of_other_classes(project, fails, command):
    other = LabelSpace(("road", "sky"), SPACE.palette[:2])
    for domain in ("source", "target"):
        write_json(Path(f"data/prepared/{domain}/classes.json"), other.to_dict())
    fails(command, "data/models/warmup.safetensors: a model of 3 classes", "2 (road, sky)")


@pytest.mark.parametrize("command", [EXTRACT[1], "evaluate warmup"])
def test_a_target_of_other_classes(project, fails, command):
    other = LabelSpace(("road", "car", "sky"), SPACE.palette)
    write_json(Path("data/prepared/target/classes.json"), other.to_dict())
    fails(command, "train id 1 is 'sky' in the source and 'car' in the target", "class_map")


def test_too_little_disk(project, fails, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    for command in EXTRACT:
        fails(command, "data/features/round1", "the disk has 0.00 GB free")
    fails("prepare source", "data/prepared", "the disk has 0.00 GB free")


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("pretrain", "data/prepared/source/images/train/2.png"),
        (EXTRACT[0], "data/prepared/source/labels/train/2.png"),
        ("adapt round1 warmup", "data/rounds/round1/pseudo_labels/anchor/2.png"),
        ("evaluate warmup", "data/prepared/target/labels/val/2.png"),
        ("evaluate_pseudo_labels round1 warmup", "data/prepared/target/labels/val/2.png"),
    ],
)
def test_a_truncated_artifact(project, fails, command, path):
    cut(path)
    fails(command, path, "not a readable image")


def test_a_network_that_cannot_take_the_images_is_refused_before_its_training(fails):
    change("network.architecture", "Linear")
    change("network.encoder", "tu-test_vit")
    change("network.options", {"img_size": 32, "dynamic_img_size": False})
    change("pretrain.augmentation.crop", [32, 32])
    fails("pretrain", "network: cannot take images of 32 x 64 pixels", "another")


def test_missing_artifacts(project, fails):
    Path("data/rounds/round1/pseudo_labels/probability/1.png").unlink()
    fails("adapt round1 warmup", "probability/1.png: no such pseudo-label map")
    Path("data/index/weights.csv").unlink()
    fails("pretrain", "data/index/weights.csv: no such file")
    Path("data/prepared/source/classes.json").unlink()
    fails("pretrain", "data/prepared/source/classes.json: no such file")


def test_damaged_threshold_curves(project, fails):
    path = Path("data/rounds/round1/threshold_curves.csv")
    cut(path)
    fails("evaluate_pseudo_labels round1 warmup", str(path), "delete it and rerun")
    path.unlink()
    fails("evaluate_pseudo_labels round1 warmup", f"{path}: no such file")


def test_target_images_of_several_sizes(project, fails):
    """The error comes before any training, not from the feature store."""
    write_image(Path(RAW, "images/3.png"), np.zeros((64, 64, 3), np.uint8))
    labels = np.ones((64, 64), np.uint8)
    write_label(Path(RAW, "labels/3.png"), labels, np.zeros((4, 3), np.uint8))
    change("target.size", None)
    fails("prepare target", "0 is 64 x 32 pixels, 3 is 64 x 64", "target.size")
    change("source.size", None)
    stage("prepare", "source")
    for command in EXTRACT:
        stage(*command.split())


def test_an_image_that_is_not_as_prepared(project, fails):
    path = "data/prepared/target/images/train/2.png"
    write_image(Path(path), np.zeros((64, 64, 3), np.uint8))
    fails(EXTRACT[1], path, "(64, 64)", "(32, 64)", "prepare")


# Resuming


def extract(folder, monkeypatch):
    """Extract in a folder; return the files below its data/."""
    monkeypatch.chdir(folder)
    for command in EXTRACT:
        stage(*command.split())
    return {path.relative_to(folder): content for path, content in contents(folder).items()}


def test_an_extraction_goes_on_where_it_failed(project, fails, capsys, monkeypatch):
    """Complete shards are kept; damaged ones and those of other parameters are made again."""
    for kind in ("images", "labels"):  # six images: shards of four and two
        for i in (4, 5):
            shutil.copyfile(f"{RAW}/{kind}/{i - 4}.png", f"{RAW}/{kind}/{i}.png")
    stage("prepare", "source")
    stage("prepare", "target")
    change("extract.batch_size", 1)
    whole, other = (shutil.copytree(project, project.with_name(name)) for name in "ab")
    for domain, command in zip(("source", "target"), EXTRACT, strict=True):
        bad = Path(f"data/prepared/{domain}/images/train/5.png")
        image = bad.read_bytes()
        cut(bad)
        fails(command, str(bad), "not a readable image")
        shards = sorted(Path(f".scratch/{command.split()[0]}-round1").rglob("*.h5"))
        assert [path.name for path in shards] == ["00000.h5"]
        bad.write_bytes(image)
        shutil.copytree(".scratch", other / ".scratch", dirs_exist_ok=True)
        capsys.readouterr()
        stage(*command.split())
        assert f"extract {domain}: 2 images" in capsys.readouterr().out
    resumed = {path.relative_to(project): content for path, content in contents(project).items()}
    assert resumed == extract(whole, monkeypatch)
    assert not list((project / ".scratch").iterdir())

    monkeypatch.chdir(other)
    change("extract.samples_per_class", 3)
    capsys.readouterr()
    extract(other, monkeypatch)
    printed = capsys.readouterr().out
    assert "extract source: 6 images" in printed and "extract target: 6 images" in printed


def test_another_runs_shards_do_not_stay(project, fails):
    """They may be large, so a run with other parameters deletes them before it begins."""
    old = Path(".scratch/extract_source-round1/of other parameters/00000.h5")
    old.parent.mkdir(parents=True)
    old.touch()
    cut("data/prepared/source/images/train/0.png")
    fails(EXTRACT[0], "source/images/train/0.png")
    assert not old.parent.exists() and old.parent.parent.exists()


# As a user runs them


@pytest.mark.parametrize(
    ("command", "damage", "words"),
    [
        ("index", lambda: change("seeds", 0), ["unknown key 'seeds'"]),
        ("prepare source", lambda: cut(f"{RAW}/images/3.png"), [f"{RAW}/images/3.png"]),
        (
            EXTRACT[0],
            lambda: cut("data/models/warmup.safetensors"),
            ["data/models/warmup.safetensors: damaged model file"],
        ),
    ],
    ids=["parameter", "image", "model"],
)
def test_the_programs_say_it_too(project, command, damage, words):
    damage()
    before = contents(project)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{command.split()[0]}", *command.split()[1:]],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    check_message(done.stderr, words)
    assert contents(project) == before
