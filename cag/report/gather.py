"""Reads a run's artifacts for the report, and writes the report's folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cag.analysis.plots import save_png
from cag.analysis.threshold_curves import decimal, read_thresholds
from cag.anchors import read_anchors
from cag.config.base import RULES
from cag.datasets.images import read_image, read_label
from cag.datasets.prepared import evenly_spaced, read_label_space, read_manifest
from cag.features import (
    Sample,
    TargetStore,
    merge_samples,
    open_store,
    pixel_draws,
    read_array,
    read_target_row,
    read_target_store,
    sample_pixels,
)
from cag.pseudo_labels import anchor_distances
from cag.report.contents import (
    Evaluation,
    Features,
    LabelledSample,
    Maps,
    Round,
    Run,
    TrainingSample,
    ValidationSample,
)
from cag.report.figures import drawable
from cag.report.page import report_page
from cag.report.tables import BASELINE, baseline_of
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, inside

FEATURES_PER_CLASS = 60  # of each domain that are drawn
FEATURE_IMAGES = 200  # target images, evenly spaced, that they are drawn from
SAMPLE_MAPS = ("nearest", "nearest_distance", "second_distance", "prediction", "probability")


@dataclass(frozen=True)
class Folders:
    """Where the pipeline's artifacts lie."""

    source: Path  # prepared
    target: Path
    models: Path
    curves: Path
    features: Path
    rounds: Path
    labelled: Path  # the rules on labelled validation images
    evaluation: Path
    report: Path


def collect(folders: Folders, params) -> Run:
    """Read the contents of the page.

    Args:
        folders: Where the artifacts lie.
        params: The parameters that the page shows or needs, in their sections.

    Raises:
        UserError: An artifact is missing or damaged.
    """
    manifest, label_space = read_manifest(folders.target), read_label_space(folders.target)
    training, validation = (manifest[manifest["split"] == split] for split in ("train", "val"))
    shown = _evenly(training, params.report.images)
    rounds, maps = {}, {}
    for name in params.rounds:
        store = read_target_store(folders.features / name / "target.h5")
        path = folders.rounds / name / "anchors.npy"
        anchors = read_anchors(path, label_space.num_classes, store.width)
        features = read_features(folders.features / name, store, anchors, params.seed)
        rounds[name] = read_round(folders.rounds, name, params.rounds, features)
        maps[name] = training_maps(store, anchors, [row["name"] for row in shown])
    models = trained_models(params.rounds)
    return Run(
        label_space=label_space,
        summary=_summary(params, models, label_space.num_classes, training, validation),
        evaluations={model: read_evaluation(folders, model) for model in params.evaluated},
        rounds=rounds,
        curves=read_curves(folders.curves, models),
        training=[_training_sample(folders, row, maps) for row in shown],
        labelled=labelled_samples(folders, validation, params.rounds),
        validation=[
            _validation_sample(folders, row, baseline_of(params.evaluated), params.evaluated[-1])
            # A target without labels is the normal case: then nothing is evaluated.
            for row in _evenly(validation, params.report.images if params.evaluated else 0)
        ],
        rules=params.pseudo_label,
        parameters=params.model_dump(),
        fingerprints=_checksums(folders),
        locations=_locations(folders),
    )


def write(run: Run, folder: Path) -> None:
    """Write the page and its figures; all of them appear, or none."""
    with atomic_folder(folder) as partial:
        (partial / "index.html").write_text(report_page(run), encoding="utf-8", newline="\n")
        for draw in drawable(run):
            save_png(draw(run), partial / f"{draw.__name__}.png")


def read_evaluation(folders: Folders, model: str) -> Evaluation:
    """Read the scores that `evaluate` wrote for a model."""
    metrics, confusion = (
        _existing(folders.evaluation / model / name, f"evaluate@{model}")
        for name in ("metrics.json", "confusion.csv")
    )
    matrix = pd.read_csv(confusion).iloc[:, 1:].to_numpy(dtype=np.int64)
    return Evaluation(json.loads(metrics.read_text(encoding="utf-8")), matrix)


def read_round(folder: Path, name: str, rounds: Mapping, features: Features | None = None) -> Round:
    """Read a round's tables from the folder of all rounds."""
    coverage = _existing(folder / name / "coverage.csv", f"pseudo_label@{name}")
    anchors = _existing(folder / name / "anchors.csv", f"anchors@{name}")
    # A class may be called "none" or "null": names are text, whatever they spell.
    tables = [
        pd.read_csv(
            path,
            dtype={"class": str, "nearest_anchor": str},
            keep_default_na=False,
            na_values={column: ["", "nan"] for column in numbers},
        )
        for path, numbers in (
            (coverage, ()),
            (anchors, ("recall", "norm", "distance", "nearest_anchor")),
        )
    ]
    entry = rounds[name]
    path = folder / name / "threshold_curves.csv"
    thresholds = quantile_thresholds(path, list(tables[0]["class"]))
    return Round(entry.teacher, rounds[entry.anchors].teacher, *tables, thresholds, features)


def quantile_thresholds(path: Path, classes: Sequence[str]) -> dict[float, np.ndarray]:
    """Read the class thresholds at each quantile, float32 [K]."""
    grid, cuts = read_thresholds(path, classes)
    columns = zip(grid["quantile"], cuts.T.numpy(), strict=True)
    return {decimal(quantile): column for quantile, column in columns}


def read_features(folder: Path, store: TargetStore, anchors: torch.Tensor, seed: int) -> Features:
    """Read a sample of a round's features: up to FEATURES_PER_CLASS of each class and domain."""
    keys = ("sample_features", "sample_labels")
    with open_store(folder / "source.h5", keys) as file:
        features, labels = (read_array(file, key) for key in keys)
    # The sample is ordered by class, and by the draw in each of them.
    rank = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
    drawn = target_sample(store, seed)
    return Features(
        anchors.numpy(),
        features[rank < FEATURES_PER_CLASS].float().numpy(),
        labels[rank < FEATURES_PER_CLASS].numpy(),
        drawn.features.float().numpy(),
        drawn.labels.numpy(),
    )


def target_sample(store: TargetStore, seed: int) -> Sample:
    """Draw target pixels by predicted class; one image is in memory at a time."""
    samples = []
    for index in evenly_spaced(len(store.names), FEATURE_IMAGES):
        features, prediction, _ = read_target_row(store, index)
        draws = pixel_draws(seed, [index], prediction.shape[1:])
        samples.append(sample_pixels(features, prediction, draws, FEATURES_PER_CLASS))
        samples = [merge_samples(samples, FEATURES_PER_CLASS)]
    return samples[0]


def training_maps(
    store: TargetStore, anchors: torch.Tensor, names: Iterable[str]
) -> dict[str, Maps]:
    """Work out the maps of some training images from their features."""
    maps = {}
    for name in names:
        features, *predicted = read_target_row(store, store.names.index(name))
        parts = (*anchor_distances(features, anchors), *predicted)
        maps[name] = Maps(*(part[0].numpy() for part in parts))
    return maps


def labelled_samples(
    folders: Folders, rows: pd.DataFrame, rounds: Iterable[str]
) -> list[LabelledSample]:
    """Open the labelled validation images that each round's rules were tried on."""
    maps = {name: _labelled_maps(folders.labelled / name / "samples.h5") for name in rounds}
    names = dict.fromkeys(name for by_image in maps.values() for name in by_image)
    images = rows.set_index("name")["image"]
    unknown = [name for name in names if name not in images]
    if unknown:
        raise UserError(
            f"{folders.labelled}: samples of '{unknown[0]}', which is no validation image of "
            f"{folders.target}; run `dvc repro` first"
        )
    return [
        LabelledSample(
            name,
            read_image(inside(folders.target, images[name])),
            {key: by_image[name] for key, by_image in maps.items() if name in by_image},
        )
        for name in names
    ]


def _labelled_maps(path: Path) -> dict[str, Maps]:
    """Read the maps of labelled validation images, by name; empty where there are none."""
    if not path.is_file():
        return {}
    maps = {}
    with open_store(path, ()) as file:
        for key in sorted(file, key=int):
            parts = (read_array(file, f"{key}/{part}").numpy() for part in (*SAMPLE_MAPS, "truth"))
            maps[str(file[key].attrs.get("name"))] = Maps(*parts)
    return maps


def read_curves(folder: Path, models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the learning curves there are; a model passed through untrained has none."""
    paths = {model: folder / f"{model}.csv" for model in models}
    curves = {name: pd.read_csv(path) for name, path in paths.items() if path.is_file()}
    return {name: curve for name, curve in curves.items() if len(curve)}


def trained_models(rounds: Mapping) -> list[str]:
    """Name the models in the order of training."""
    teachers = (entry.teacher for entry in rounds.values())
    return list(dict.fromkeys([BASELINE, *teachers, *rounds]))


def _evenly(rows: pd.DataFrame, number: int) -> list[pd.Series]:
    """Pick the manifest rows whose pictures are shown."""
    return [rows.iloc[index] for index in evenly_spaced(len(rows), number)]


def _training_sample(
    folders: Folders, row: pd.Series, maps: Mapping[str, Mapping[str, Maps]]
) -> TrainingSample:
    """Open a target training image and its pseudo-labels; it has no other labels."""
    name = row["name"]
    labels = {
        key: tuple(
            read_label(inside(folders.rounds / key / "pseudo_labels" / rule, f"{name}.png"))
            for rule in RULES
        )
        for key in maps
    }
    image = read_image(inside(folders.target, row["image"]))
    return TrainingSample(name, image, labels, {key: part[name] for key, part in maps.items()})


def _validation_sample(folders: Folders, row: pd.Series, *models: str) -> ValidationSample:
    """Open a labelled target image with two models' predictions."""
    predictions = (
        read_label(inside(folders.evaluation / model / "predictions", f"{row['name']}.png"))
        for model in models
    )
    image = read_image(inside(folders.target, row["image"]))
    truth = read_label(inside(folders.target, row["label"]))
    return ValidationSample(row["name"], image, *predictions, truth)


def _checksums(folders: Folders) -> list[tuple[str, str]]:
    """MD5 of each domain's manifest."""
    stages = {folders.source: "prepare@source", folders.target: "prepare@target"}
    paths = [_existing(folder / "manifest.csv", stage) for folder, stage in stages.items()]
    return [(str(path), hashlib.md5(path.read_bytes()).hexdigest()) for path in paths]


def _summary(
    params, models: Iterable[str], classes: int, training: pd.DataFrame, validation: pd.DataFrame
) -> dict[str, str]:
    """State the main facts about the run."""
    sizes = training[["width", "height"]].drop_duplicates()
    size = " x ".join(str(side) for side in sizes.iloc[0]) if len(sizes) == 1 else "various sizes"
    return {
        "seed": str(params.seed),
        "models": " → ".join(models),
        "rounds": str(len(params.rounds)),
        "classes": str(classes),
        "target training images": f"{len(training)} ({size})",
        "target validation images": str(len(validation)),
    }


def _locations(folders: Folders) -> list[tuple[str, str]]:
    """Say where the artifacts lie; <round> and <model> stand for the names in the tables."""
    rounds, scores = f"{folders.rounds}/<round>", f"{folders.evaluation}/<model>"
    return [
        ("models", f"{folders.models}/<model>.safetensors"),
        ("learning curves", f"{folders.curves}/<model>.csv"),
        ("anchors", f"{rounds}/anchors.npy, anchors.csv"),
        ("pseudo-labels, anchor rule", f"{rounds}/pseudo_labels/anchor/"),
        ("pseudo-labels, probability rule", f"{rounds}/pseudo_labels/probability/"),
        ("coverage", f"{rounds}/coverage.csv"),
        ("pixels at each threshold", f"{rounds}/threshold_curves.csv"),
        ("precision at each threshold", f"{folders.labelled}/<round>/curves.csv"),
        ("metrics and confusion matrix", f"{scores}/metrics.json, confusion.csv"),
        ("picture panels", f"{scores}/panels.png"),
        ("predictions", f"{scores}/predictions/"),
        ("this page and its figures", f"{folders.report}/"),
    ]


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro {stage}` first")
    return path
