"""Gather a run's tables and pictures in one HTML page that opens without a network."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from cag import report
from cag.analysis import plots
from cag.analysis.threshold_curves import decimal, read_thresholds
from cag.anchors import read_anchors
from cag.config.base import RULES, load_params
from cag.config.parameters import Experiment
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
from cag.report.run_card import times_table
from cag.report.seeds import read_seed_scores
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, inside, write_csv
from cag.runtime.program import read_records, run_stage

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
FEATURES = Path("data/features")
LABELLED = Path("data/pseudo_label_evaluation")
MODELS = Path("data/models")
CURVES = Path("data/curves")
ROUNDS = Path("data/rounds")
EVALUATION = Path("data/evaluation")
REPORT = Path("data/report")
FEATURES_PER_CLASS = 60  # of each domain that are drawn
FEATURE_IMAGES = 200  # target images, evenly spaced, that they are drawn from
SAMPLE_MAPS = ("nearest", "nearest_distance", "second_distance", "prediction", "probability")


def read_evaluation(model: str) -> report.Evaluation:
    """Read what `evaluate` wrote about one model."""
    folder = EVALUATION / model
    metrics = json.loads(_existing(folder / "metrics.json", f"evaluate@{model}").read_text())
    confusion = pd.read_csv(_existing(folder / "confusion.csv", f"evaluate@{model}"))
    return report.Evaluation(metrics, confusion.iloc[:, 1:].to_numpy(dtype=np.int64))


def read_round(name: str, rounds: dict, features: report.Features | None = None) -> report.Round:
    """Read a round's tables."""
    coverage = _existing(ROUNDS / name / "coverage.csv", f"pseudo_label@{name}")
    anchors = _existing(ROUNDS / name / "anchors.csv", f"anchors@{name}")
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
    teacher = rounds[entry.anchors].teacher
    curves = ROUNDS / name / "threshold_curves.csv"
    thresholds = quantile_thresholds(curves, list(tables[0]["class"]))
    return report.Round(entry.teacher, teacher, *tables, thresholds, features)


def quantile_thresholds(path: Path, classes: Sequence[str]) -> dict[float, np.ndarray]:
    """Read the class thresholds at each quantile, float32 [K]."""
    grid, cuts = read_thresholds(path, classes)
    columns = zip(grid["quantile"], cuts.T.numpy(), strict=True)
    return {decimal(quantile): column for quantile, column in columns}


def read_features(
    name: str, store: TargetStore, anchors: torch.Tensor, seed: int
) -> report.Features:
    """Read a sample of a round's features that has as many pixels of each class as there are."""
    keys = ("sample_features", "sample_labels")
    with open_store(FEATURES / name / "source.h5", keys) as file:
        features, labels = (read_array(file, key) for key in keys)
    # The sample is ordered by class, and by the draw in each of them.
    rank = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
    drawn = target_sample(store, seed)
    return report.Features(
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
) -> dict[str, report.Maps]:
    """Work out the maps of some training images from their features."""
    maps = {}
    for name in names:
        features, *predicted = read_target_row(store, store.names.index(name))
        found = (*anchor_distances(features, anchors), *predicted)
        maps[name] = report.Maps(*(part[0].numpy() for part in found))
    return maps


def labelled_maps(round_name: str) -> dict[str, report.Maps]:
    """Read the maps of labelled validation images, by name; empty where there are none."""
    path = LABELLED / round_name / "samples.h5"
    if not path.is_file():
        return {}
    maps = {}
    with open_store(path, ()) as file:
        for key in sorted(file, key=int):
            parts = (read_array(file, f"{key}/{part}").numpy() for part in (*SAMPLE_MAPS, "truth"))
            maps[str(file[key].attrs.get("name"))] = report.Maps(*parts)
    return maps


def labelled_samples(rows: pd.DataFrame, rounds: Iterable[str]) -> list[report.LabelledSample]:
    """Open the labelled validation images that each round's rules were tried on."""
    maps = {name: labelled_maps(name) for name in rounds}
    names = dict.fromkeys(name for one in maps.values() for name in one)
    images = rows.set_index("name")["image"]
    unknown = [name for name in names if name not in images]
    if unknown:
        raise UserError(
            f"{LABELLED}: samples of '{unknown[0]}', which is no validation image of {TARGET}; "
            "run `dvc repro` first"
        )
    return [
        report.LabelledSample(
            name,
            read_image(inside(TARGET, images[name])),
            {key: one[name] for key, one in maps.items() if name in one},
        )
        for name in names
    ]


def checksums() -> list[tuple[str, str]]:
    """MD5 of each domain's manifest."""
    paths = [domain / "manifest.csv" for domain in (SOURCE, TARGET)]
    return [
        (
            str(path),
            hashlib.md5(_existing(path, f"prepare@{path.parent.name}").read_bytes()).hexdigest(),
        )
        for path in paths
    ]


def own_records(params) -> list[Mapping]:
    """The records of this run's stages: those of rounds that are no more are left out."""
    names = {"", "source", "target", *params.rounds, *params.evaluated}
    return [one for stage, one in read_records().items() if stage.partition("@")[2] in names]


def read_curves(models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the learning curves there are; a model passed through untrained has none."""
    paths = {model: CURVES / f"{model}.csv" for model in models}
    curves = {name: pd.read_csv(path) for name, path in paths.items() if path.is_file()}
    return {name: curve for name, curve in curves.items() if len(curve)}


def training_sample(
    row: pd.Series, maps: Mapping[str, Mapping[str, report.Maps]]
) -> report.TrainingSample:
    """Open a target training image and its pseudo-labels; it has no other labels."""
    labels = {
        name: tuple(
            read_label(inside(ROUNDS / name / "pseudo_labels" / rule, f"{row['name']}.png"))
            for rule in RULES
        )
        for name in maps
    }
    own = {name: images[row["name"]] for name, images in maps.items()}
    return report.TrainingSample(row["name"], read_image(inside(TARGET, row["image"])), labels, own)


def validation_sample(row: pd.Series, before: str, after: str) -> report.ValidationSample:
    """Open a labelled target image with two models' predictions."""
    predictions = [
        read_label(inside(EVALUATION / model / "predictions", f"{row['name']}.png"))
        for model in (before, after)
    ]
    truth = read_label(inside(TARGET, row["label"]))
    return report.ValidationSample(
        row["name"], read_image(inside(TARGET, row["image"])), *predictions, truth
    )


def collect(params) -> report.Run:
    """Read everything the page shows."""
    manifest, label_space = read_manifest(TARGET), read_label_space(TARGET)
    training, validation = (manifest[manifest["split"] == split] for split in ("train", "val"))
    if params.evaluated:
        pair = report.baseline_of(params.evaluated), params.evaluated[-1]
        compared = [validation_sample(row, *pair) for row in sample(validation, params)]
    else:  # a target without labels, the normal case
        compared = []
    shown = sample(training, params)
    rounds, maps = {}, {}
    for name in params.rounds:
        store = read_target_store(FEATURES / name / "target.h5")
        anchors = read_anchors(ROUNDS / name / "anchors.npy", label_space.num_classes, store.width)
        features = read_features(name, store, anchors, params.seed)
        rounds[name] = read_round(name, params.rounds, features)
        maps[name] = training_maps(store, anchors, [row["name"] for row in shown])
    return report.Run(
        label_space=label_space,
        summary=summary(params, label_space, training, validation),
        evaluations={model: read_evaluation(model) for model in params.evaluated},
        rounds=rounds,
        curves=read_curves(trained_models(params.rounds)),
        training=[training_sample(row, maps) for row in shown],
        labelled=labelled_samples(validation, params.rounds),
        validation=compared,
        rules=params.pseudo_label,
        parameters=params.model_dump(),
        seeds=read_seed_scores(params.model_dump()),
        records=own_records(params),
        fingerprints=checksums(),
        locations=locations(),
    )


def sample(rows: pd.DataFrame, params) -> list[pd.Series]:
    """Pick the manifest rows whose pictures are shown."""
    return [rows.iloc[index] for index in evenly_spaced(len(rows), params.report.images)]


def trained_models(rounds: dict) -> list[str]:
    """Name the models in the order of training."""
    teachers = (entry.teacher for entry in rounds.values())
    return list(dict.fromkeys([report.BASELINE, *teachers, *rounds]))


def summary(params, label_space, training: pd.DataFrame, validation: pd.DataFrame) -> dict:
    """Name what was run."""
    sizes = training[["width", "height"]].drop_duplicates()
    size = " x ".join(str(side) for side in sizes.iloc[0]) if len(sizes) == 1 else "various sizes"
    return {
        "seed": str(params.seed),
        "models": " → ".join(trained_models(params.rounds)),
        "rounds": str(len(params.rounds)),
        "classes": str(label_space.num_classes),
        "target training images": f"{len(training)} ({size})",
        "target validation images": str(len(validation)),
    }


def locations() -> list[tuple[str, str]]:
    """Say where the artifacts lie; <round> and <model> stand for the names in the tables."""
    return [
        ("models", f"{MODELS}/<model>.safetensors"),
        ("learning curves", f"{CURVES}/<model>.csv"),
        ("anchors", f"{ROUNDS}/<round>/anchors.npy, anchors.csv"),
        ("pseudo-labels, anchor rule", f"{ROUNDS}/<round>/pseudo_labels/anchor/"),
        ("pseudo-labels, probability rule", f"{ROUNDS}/<round>/pseudo_labels/probability/"),
        ("coverage", f"{ROUNDS}/<round>/coverage.csv"),
        ("pixels at each threshold", f"{ROUNDS}/<round>/threshold_curves.csv"),
        ("precision at each threshold", f"{LABELLED}/<round>/curves.csv"),
        ("metrics and confusion matrix", f"{EVALUATION}/<model>/metrics.json, confusion.csv"),
        ("picture panels", f"{EVALUATION}/<model>/panels.png"),
        ("predictions", f"{EVALUATION}/<model>/predictions/"),
        ("this page and its figures", f"{REPORT}/"),
    ]


def draw(result: report.Run) -> dict[str, Figure]:
    """Draw the figures there is something to draw for: file name -> figure."""
    figures, names = {}, result.label_space.names
    if result.evaluations:
        scores = {model: one.metrics for model, one in result.evaluations.items()}
        pair = report.baseline_of(list(scores)), list(scores)[-1]
        iou = (report.iou_of(scores[model], names) for model in pair)
        figures["miou.png"] = plots.miou_figure(report.results_table(scores))
        figures["per_class.png"] = plots.per_class_figure(*iou, names, labels=pair)
    if result.rounds:
        coverages = {name: one.coverage for name, one in result.rounds.items()}
        figures["coverage.png"] = plots.coverage_figure(coverages)
    if result.curves:
        figures["curves.png"] = plots.curves_figure(result.curves)
    return figures


def write(result: report.Run) -> None:
    """Write the page and its figures; all of them appear, or none."""
    with atomic_folder(REPORT) as folder:
        (folder / "index.html").write_text(report.page(result), encoding="utf-8", newline="\n")
        for name, figure in draw(result).items():
            plots.save_png(figure, folder / name)
        if result.records:
            write_csv(folder / "times.csv", times_table(result.records))


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro {stage}` first")
    return path


@click.command(help=__doc__)
def main() -> None:
    """Read the artifacts, write `data/report/`."""
    params = load_params(Experiment)
    result = collect(params)
    write(result)
    print(f"report: {REPORT}/index.html; `cag summary` prints the scores")


if __name__ == "__main__":
    run_stage(main)
