"""The presets of downloaded data through the whole pipeline, on miniatures in the same formats."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from project import ROOT, dvc, make_project, merged, ran
from raw import write_cityscapes, write_gta5, write_photographs, write_synthia
from watch import watched

from cag.commands.runs import results
from cag.config.base import load_params
from cag.datasets.images import read_label
from cag.datasets.prepared import read_manifest
from cag.project.oracle import LABELLED, OracleParams, prepare_labelled, require_labels
from cag.runtime.errors import UserError
from stages.prepare import raw_folder

CLASSES = {
    "gta5_to_cityscapes": 19,
    "synthia_to_cityscapes_online": 16,
    "synthia13_to_cityscapes": 13,
    "cityscapes_to_idd_lite": 7,
    "scenes_to_cityscapes": 19,
}
# Presets that differ from another one in their data alone: the other's students are theirs too.
LIKE = {
    "synthia13_to_cityscapes": "gta5_to_cityscapes",
    "scenes_to_cityscapes": "cityscapes_to_idd_lite",
}
# Of the target: images, labels of training images, labels of validation images.
PLAIN = ("images", "labels/train", "labels/val")
TARGETS = dict.fromkeys(CLASSES, ("cityscapes", "leftImg8bit", "gtFine/train", "gtFine/val")) | {
    "cityscapes_to_idd_lite": ("idd_lite", *PLAIN),
    "scenes_to_cityscapes": ("cityscapes_small", *PLAIN),
}
RAW_SIZE, SIZE, CROP = (64, 128), [48, 96], [32, 64]
TRAINING, VALIDATION = 3, 2
SHRUNK_TRAINING = {
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "augmentation": {"crop": CROP},
}
# Fewer, smaller and shorter; thresholds that a network which has seen 20 batches can pass.
SHRUNK = {
    "evaluated": ["round1"],
    "source": {"size": SIZE},
    "target": {"size": SIZE},
    "network": {
        "architecture": "DeepLabV3Plus",
        "encoder": "tu-test_efficientnet",
        "encoder_weights": None,
        "options": {"decoder_channels": 16},
    },
    "pretrain": {**SHRUNK_TRAINING, "iterations": 20},
    "warmup": {**SHRUNK_TRAINING, "iterations": 1},
    "anchors": {"min_pixels": 1, "min_recall": 0.0},
    "pseudo_label": {
        "margin": 0.0,
        "relative_margin": None,
        "agreement": False,
        "probability": 0.1,
    },
    "adapt": {**SHRUNK_TRAINING, "iterations": 1},
    "evaluate": {"panels": 1},
    "report": {"images": 1},
}


@dataclass(frozen=True)
class Finished:
    """The finished run of a preset."""

    name: str
    project: Path
    stages: list[str]
    opened: set[str]  # raw files that any process opened meanwhile

    @property
    def evaluation(self) -> Path:
        """The evaluation of its last model."""
        (folder,) = (self.project / "data/evaluation").glob("*/")
        return folder


def write_raw(name: str, folder: Path) -> None:
    """Write the data sets of a preset, with target training labels."""
    splits, seven = {"train": TRAINING, "val": VALIDATION}, ROOT / "classes/cityscapes_7.yaml"
    if name in ("cityscapes_to_idd_lite", "scenes_to_cityscapes"):
        target = TARGETS[name][0]
        write_photographs(folder / "cityscapes_small", {"train": 4}, RAW_SIZE, seven)
        shutil.rmtree(folder / target, ignore_errors=True)
        write_photographs(folder / target, splits, RAW_SIZE, seven)
        return
    if name.startswith("gta5"):
        write_gta5(folder / "gta5", 4, RAW_SIZE, mismatched=1)
    else:
        write_synthia(folder / "synthia", 4, RAW_SIZE)
    write_cityscapes(folder / "cityscapes", splits, RAW_SIZE)


def preset(name: str) -> dict:
    """A preset's parameters."""
    return yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text(encoding="utf-8"))


def shrunk(name: str) -> dict:
    """A preset's parameters, shrunk."""
    params = preset(name)
    rounds = {"round1": params["rounds"]["round1"]}
    images = {"source": {"images": 4}} if params["source"]["layout"] == "scenes" else {}
    return merged(merged(params, SHRUNK), images) | {"rounds": rounds}


@pytest.fixture(scope="module", params=CLASSES)
def finished(request, tmp_path_factory) -> Finished:
    """A preset after `dvc repro` on its miniature; if LIKE another, only of its first network."""
    if sys.platform != "linux":
        pytest.skip("the watch over opened files needs Linux")
    folder = tmp_path_factory.mktemp(request.param)
    write_raw(request.param, folder / "raw")
    params, target = shrunk(request.param), []
    if request.param in LIKE:
        params, target = params | {"evaluated": ["pretrain"]}, ["evaluate@pretrain"]
    project = make_project(folder / "project", replace=params)
    with watched(folder / "raw") as opened:
        printed = dvc(project, "repro", *target, CAG_DATA=str(folder / "raw"))
        return Finished(request.param, project, ran(printed), opened())


def test_the_whole_pipeline_ran(finished):
    if finished.name in LIKE:
        # DVC may prepare the target after the pretraining.
        prepared = {"index", "prepare@source", "prepare@target"}
        assert finished.stages[-1] == "evaluate@pretrain" and len(finished.stages) == 5
        assert set(finished.stages[:-1]) == prepared | {"pretrain"}
    else:
        assert finished.stages[-1] == "report"
        assert len(finished.stages) == 16


@pytest.mark.parametrize(("name", "other"), LIKE.items())
def test_the_rest_of_the_pipeline_is_that_of_another_preset(name, other):
    one, two = (merged(preset(n), {"source": None, "target": None}) for n in (name, other))
    assert merged(one, SHRUNK) == merged(two, SHRUNK)


def test_labels_of_target_training_images_are_never_opened(finished):
    opened = {path for path in finished.opened if path.endswith((".png", ".jpg"))}
    folder, *below = TARGETS[finished.name]
    images, hidden, labels = (
        [path for path in opened if path.startswith(f"{folder}/{part}")] for part in below
    )
    assert not hidden
    # What is read is seen: all images, the labels of the source and of the validation images.
    assert (len(images), len(labels)) == (TRAINING + VALIDATION, VALIDATION)
    if folder == "cityscapes":
        assert all(path.endswith("_gtFine_labelIds.png") for path in labels)
    source = {"gta5_to_cityscapes": 10, "scenes_to_cityscapes": 0}.get(finished.name, 8)
    assert len(opened) - len(images) - len(labels) == source


def test_scores_are_under_their_names(finished):
    count = CLASSES[finished.name]
    scores = json.loads((finished.evaluation / "metrics.json").read_text())
    expected = {f"miou_{count}"} | ({"miou_13_of_16"} if count == 16 else set())
    assert {key for key in scores if key.startswith("miou_")} == expected
    assert scores["images"] == VALIDATION
    assert len(scores["iou"]) == count
    if count == 16:
        iou = {k: v for k, v in scores["iou"].items() if k not in ("wall", "fence", "pole")}
        mean = np.mean([value for value in iou.values() if value is not None])
        assert scores["miou_13_of_16"] == pytest.approx(mean)


def test_evaluation_is_at_the_original_resolution(finished):
    predictions = list((finished.evaluation / "predictions").rglob("*.png"))
    assert {read_label(path).shape for path in predictions} == {RAW_SIZE}
    confusion = pd.read_csv(finished.evaluation / "confusion.csv")
    manifest = read_manifest(finished.project / "data/prepared/target").query("split == 'val'")
    labels = [read_label(finished.project / "data/prepared/target" / p) for p in manifest["label"]]
    assert confusion.iloc[:, 1:].to_numpy().sum() == sum((label < 255).sum() for label in labels)


def test_images_left_out_lie_beside_the_manifest(finished):
    folder = finished.project / "data/prepared/source"
    assert len(read_manifest(folder)) == 4
    if finished.name == "gta5_to_cityscapes":
        assert pd.read_csv(folder / "excluded.csv", dtype=str)["name"].tolist() == ["00005"]
    else:
        assert not (folder / "excluded.csv").exists()


def test_the_oracle_alone_finds_the_training_labels(tmp_path, monkeypatch):
    write_cityscapes(tmp_path / "raw/cityscapes", {"train": TRAINING, "val": 1}, RAW_SIZE)
    monkeypatch.setenv("CAG_DATA", str(tmp_path / "raw"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").symlink_to(ROOT / "classes")
    Path("params.yaml").write_text(yaml.safe_dump(shrunk("synthia_to_cityscapes")))
    params = load_params(OracleParams)
    require_labels(params)
    with raw_folder("target", params.target, oracle=True) as raw:
        prepare_labelled(params, raw)
    rows = read_manifest(LABELLED)
    assert len(rows) == TRAINING and (rows["label"] != "").all()
    assert read_label(LABELLED / rows["label"][0]).shape == tuple(SIZE)


@pytest.mark.parametrize(
    ("overrides", "oracle", "runs"),
    [
        ((), True, False),
        (("++oracle.labels=null",), True, True),  # these labels may be there
        ((), False, True),
    ],
)
def test_missing_labels_of_the_oracle_are_said_before_any_training(
    tmp_path, monkeypatch, overrides, oracle, runs
):
    write_cityscapes(tmp_path / "raw/cityscapes", {"train": TRAINING, "val": 1}, RAW_SIZE)
    shutil.rmtree(tmp_path / "raw/cityscapes/gtFine/train")
    monkeypatch.setenv("CAG_DATA", str(tmp_path / "raw"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").symlink_to(ROOT / "classes")
    Path("params.yaml").write_text(yaml.safe_dump(shrunk("synthia_to_cityscapes")))

    def run_experiments(*_):
        raise UserError("trained")

    monkeypatch.setattr("cag.project.experiments.run_experiments", run_experiments)
    expected = "^trained$" if runs else "gtFine/train.*`cag results --no-oracle` leaves"
    with pytest.raises(UserError, match=expected):
        results.callback("0", overrides, None, 1, oracle, None)
