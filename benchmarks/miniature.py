"""Miniature projects for benchmarks and tests: a smaller preset `scenes`."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks import ROOT

FILES = ("dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore")
FOLDERS = ("stages", "cag", "classes", "presets")
SIZE = [48, 96]  # height, width
LENIENT = {"min_pixels": 1, "min_recall": 0.0}  # thresholds that the shortest training reaches


def scenes_params(changes: Mapping) -> dict:
    """The preset's parameters with changes; see `merged`."""
    preset = (ROOT / "presets/scenes.yaml").read_text(encoding="utf-8")
    return merged(yaml.safe_load(preset), changes)


def tiny_params(rounds: int = 2) -> dict:
    """The scenes preset with few and small images, and a few iterations of a small network."""
    models = ["warmup", *(f"round{i + 1}" for i in range(rounds))]
    students = {
        student: {"teacher": teacher, "anchors": student}
        for teacher, student in zip(models, models[1:], strict=False)
    }
    shrunk = {"batch_size": 2, "augmentation": {"crop": SIZE}}
    classes = {"class_map": "classes/cityscapes_7.yaml"}  # figures have a row for each
    params = scenes_params(
        {
            "evaluated": ["pretrain", models[-1]],
            "source": {**classes, "images": 8, "size": SIZE},
            "target": {**classes, "images": 6, "val_images": 4, "size": SIZE},
            "network": {
                "encoder": "tu-test_efficientnet",
                "encoder_weights": None,
                "options": {"decoder_channels": 32},
            },
            "pretrain": {**shrunk, "iterations": 30, "optimizer": "sgd", "learning_rate": 0.1},
            "warmup": shrunk,
            "anchors": LENIENT,
            "pseudo_label": {
                "relative_margin": None,
                "quantile": 0.667,
                "agreement": False,
                "probability": 0.2,
            },
            "adapt": {**shrunk, "iterations": 4, "teacher": "cached", "anchor_momentum": None},
            "evaluate": {"panels": 1},
            "report": {"images": 4},
        }
    )
    return params | {"rounds": students}


def merged(params: Mapping, changes: Mapping) -> dict:
    """Parameters with changes; a mapping changes only its own keys."""
    result = dict(params)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if nested else value
    return result


def write_params(folder: Path, params: Mapping) -> None:
    """Write a folder's params.yaml."""
    text = yaml.safe_dump(dict(params), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def copy_project(folder: Path, params: Mapping) -> None:
    """Copy the project to a new folder with other parameters, and without data."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_params(folder, params)
