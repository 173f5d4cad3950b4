"""The warm-up stage copies or aligns, never opens a target label, resumes, names errors."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import cag.training.loop
from cag.config.parameters import load_all
from cag.datasets.images import read_label, write_image, write_label
from cag.datasets.labels import LabelSpace
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS
from cag.networks import build, load_model, save_model
from cag.runtime.program import run

ROOT = Path(__file__).resolve().parent.parent
SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SIZE = (32, 64)
IMAGES = 4
PRETRAINED, MODEL = (Path(f"data/models/{name}.safetensors") for name in ("pretrain", "warmup"))
CURVE, CHECKPOINT = Path("data/curves/warmup.csv"), Path(".scratch/warmup/checkpoint.pt")


def write_prepared(folder, seed):
    """A prepared data set of noise, with label maps."""
    random = np.random.default_rng(seed)
    rows = []
    for name in map(str, range(IMAGES)):
        image, label = f"images/train/{name}.png", f"labels/train/{name}.png"
        for path in (image, label):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / image, random.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        labels = random.integers(0, 3, SIZE).astype(np.uint8)
        write_label(folder / label, labels, SPACE.palette_array)
        rows.append(("train", name, image, label, *SIZE, f"{seed}", f"{seed}"))
    write_manifest(folder, pd.DataFrame(rows, columns=COLUMNS), SPACE)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The stage's inputs, with two iterations; both domains have labels on disk."""
    monkeypatch.chdir(tmp_path)
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    content = yaml.safe_load((ROOT / "presets/scenes.yaml").read_text(encoding="utf-8"))
    content["network"] |= {"encoder": "tu-test_efficientnet", "options": {"decoder_channels": 16}}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    change(iterations=2, batch_size=2, class_balance=0.0)
    change(augmentation=content["warmup"]["augmentation"] | {"crop": list(SIZE)})
    for seed, domain in enumerate(("source", "target")):
        write_prepared(Path("data/prepared", domain), seed)
    Path("data/index").mkdir()
    Path("data/index/warmup.csv").write_text("path,sha256\n")  # no model is given
    torch.manual_seed(0)
    network = load_all().network
    save_model(PRETRAINED, build(network, SPACE.num_classes), network, SPACE)
    return tmp_path


def change(**values):
    """Set parameters of the section."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["warmup"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(content))


def stage():
    """Run the stage in this process, like its program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["warmup"])
        run(importlib.import_module("stages.warmup").main)


def outcome():
    """The bytes of the stage's outputs, which are then removed."""
    written = MODEL.read_bytes(), CURVE.read_bytes()
    MODEL.unlink()
    CURVE.unlink()
    return written


def test_0_iterations_copy_the_bytes_and_read_no_data(project):
    change(iterations=0)
    for domain in ("source", "target"):
        Path("data/prepared", domain, "manifest.csv").unlink()
    stage()
    assert MODEL.read_bytes() == PRETRAINED.read_bytes()
    curve = pd.read_csv(CURVE)
    assert curve.empty and {"iteration", "loss"} <= set(curve)


def test_the_pretrained_model_is_trained_and_target_labels_stay_closed(project, monkeypatch):
    opened = []
    record = lambda path: opened.append(path) or read_label(path)  # noqa: E731
    monkeypatch.setattr("cag.datasets.prepared.read_label", record)
    stage()
    source = Path("data/prepared/source/labels/train")
    assert {path.parent for path in opened} == {source}
    before, after = (load_model(path, SPACE).network.state_dict() for path in (PRETRAINED, MODEL))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert before.keys() == after.keys()  # no discriminator among them
    curve = pd.read_csv(CURVE)
    losses = ["loss", "source_ce", "adversarial", "discriminator"]
    assert list(curve) == ["iteration", "learning_rate", *losses]
    assert len(curve) == 2 and np.isfinite(curve).all(axis=None)
    assert not CHECKPOINT.exists()


@pytest.mark.parametrize("objective", ["vanilla", "least_squares"])
def test_an_interrupted_warmup_resumes_and_ends_the_same(project, monkeypatch, objective, capsys):
    change(iterations=3, objective=objective, adversarial_weight=0.5)
    stage()
    whole = outcome()

    save = cag.training.loop.Checkpoint.save

    def save_and_stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(cag.training.loop, "READ_EVERY", 1)
    monkeypatch.setenv("CAG_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(cag.training.loop.Checkpoint, "save", save_and_stop)
        stage()
    assert caught.value.code == 130 and not MODEL.exists() and not CURVE.exists()
    assert torch.load(CHECKPOINT, weights_only=True)["iteration"] == 1
    capsys.readouterr()
    stage()
    assert "warmup: 2 iterations" in capsys.readouterr().out
    assert outcome() == whole


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda: change(batch_size=1), ["batch_size", "a single image"]),
        (lambda: change(adversarial_weight=-1), ["warmup.adversarial_weight is -1"]),
        (
            lambda: change(iterations=20, learning_rate=1000.0, weight_decay=1000.0),
            ["the loss is not finite", "learning_rate"],
        ),
        (lambda: PRETRAINED.write_bytes(b"no model"), [f"{PRETRAINED}: damaged model file"]),
        (PRETRAINED.unlink, [f"{PRETRAINED}: no such model"]),
        (Path("data/prepared/target/images/train/1.png").unlink, ["images/train/1.png"]),
        (Path("data/prepared/target/manifest.csv").unlink, ["target/manifest.csv: no such file"]),
    ],
    ids=["batch", "weight", "rate", "damaged", "missing", "image", "manifest"],
)
def test_what_fails_is_one_line(project, capsys, damage, words):
    damage()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        stage()
    message = capsys.readouterr().err
    assert caught.value.code == 1
    assert message.startswith("error: ") and message.count("\n") == 1
    assert all(word in message for word in words)
    assert not MODEL.exists() and not CURVE.exists()
