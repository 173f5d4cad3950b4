"""Gather a run's tables and pictures in one HTML page that opens without a network."""

import json
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cag import plots, report
from cag.config import load_params
from cag.datasets import read_label_space, read_manifest
from cag.errors import UserError
from cag.files import atomic_folder, inside
from cag.images import read_image, read_label
from cag.stage import run_stage

TARGET = Path("data/prepared/target")
MODELS = Path("data/models")
CURVES = Path("data/curves")
ROUNDS = Path("data/rounds")
EVALUATION = Path("data/evaluation")
REPORT = Path("data/report")


def read_evaluation(model: str) -> report.Evaluation:
    """Read what `evaluate` wrote about one model."""
    folder = EVALUATION / model
    metrics = json.loads(_existing(folder / "metrics.json", f"evaluate@{model}").read_text())
    confusion = pd.read_csv(_existing(folder / "confusion.csv", f"evaluate@{model}"))
    return report.Evaluation(metrics, confusion.iloc[:, 1:].to_numpy(dtype=np.int64))


def read_round(name: str, rounds: dict) -> report.Round:
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
        for path, numbers in ((coverage, ()), (anchors, ("norm", "distance", "nearest_anchor")))
    ]
    entry = rounds[name]
    return report.Round(entry.teacher, rounds[entry.anchors].teacher, *tables)


def read_curves(models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the learning curves there are; a model passed through untrained has none."""
    paths = {model: CURVES / f"{model}.csv" for model in models}
    curves = {name: pd.read_csv(path) for name, path in paths.items() if path.is_file()}
    return {name: curve for name, curve in curves.items() if len(curve)}


def training_sample(row: pd.Series, rounds: Iterable[str]) -> report.TrainingSample:
    """Open a target training image and its pseudo-labels; it has no other labels."""
    maps = {
        name: tuple(
            read_label(inside(ROUNDS / name / "pseudo_labels" / rule, f"{row['name']}.png"))
            for rule in ("anchor", "probability")
        )
        for name in rounds
    }
    return report.TrainingSample(row["name"], read_image(inside(TARGET, row["image"])), maps)


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
    return report.Run(
        label_space=label_space,
        summary=summary(params, label_space, training, validation),
        evaluations={model: read_evaluation(model) for model in params.evaluated},
        rounds={name: read_round(name, params.rounds) for name in params.rounds},
        curves=read_curves(trained_models(params.rounds)),
        training=[training_sample(row, params.rounds) for row in sample(training, params)],
        validation=compared,
        locations=locations(),
    )


def sample(rows: pd.DataFrame, params) -> list[pd.Series]:
    """Pick the manifest rows whose pictures are shown."""
    picks = report.evenly_spaced(range(len(rows)), params.report.images)
    return [rows.iloc[index] for index in picks]


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


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro {stage}` first")
    return path


@click.command(help=__doc__)
def main() -> None:
    """Read the artifacts, write `data/report/`."""
    params = load_params("seed", "rounds", "evaluated", "report")
    result = collect(params)
    write(result)
    print(f"report: {REPORT}/index.html; `cag summary` prints the scores")


if __name__ == "__main__":
    run_stage(main)
