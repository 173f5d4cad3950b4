"""Read a run's artifacts for the report, and write the report's folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter
from torch import Tensor

from cag.analysis.plots import save_png
from cag.analysis.threshold_curves import decimal, read_thresholds
from cag.anchors import read_anchors
from cag.config.base import RULES
from cag.datasets.images import read_image, read_label
from cag.datasets.prepared import (
    common_size,
    evenly_spaced,
    most_pixels,
    read_label_space,
    read_manifest,
)
from cag.features import (
    PixelSample,
    TargetStore,
    merge_samples,
    open_store,
    pixel_draws,
    read_array,
    read_group_name,
    read_target_row,
    read_target_store,
    require_classes,
    sample_pixels,
)
from cag.pseudo_labels import COVERAGE, Pixels, measure
from cag.report import contents
from cag.report.contents import Features, Maps, Round, Run
from cag.report.figures import drawable
from cag.report.page import report_page
from cag.report.tables import BASELINE, baseline_of
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, inside
from cag.runtime.validation import readable

FEATURES_PER_CLASS = 60  # drawn of each domain
FEATURE_IMAGES = 200  # target images, evenly spaced, to draw from


Share = Annotated[float, Field(ge=0, le=1)]


class _Verdict(BaseModel):
    """The form of a file that says what a round kept."""

    model_config = ConfigDict(strict=True, extra="forbid")

    kept: Literal["student", "teacher"]
    regressed: bool | None
    measure: str | None
    teacher: FiniteFloat | None
    student: FiniteFloat | None


MEASURES = TypeAdapter(dict[str, FiniteFloat | None], config=ConfigDict(strict=True))
COUNTS = dict.fromkeys(COVERAGE, np.int64)
ANCHOR_NUMBERS = {"images": np.int64, "pixels": np.int64}
ANCHOR_NUMBERS |= dict.fromkeys(("recall", "norm", "distance"), np.float64)


class _Scores(BaseModel):
    """The form of a file of scores."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat | None]

    miou: Share | None
    iou: dict[str, Share | None]


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
    watch: Path  # measures without labels
    evaluation: Path
    report: Path


def collect(folders: Folders, params) -> Run:
    """Read the contents of the page; UserError: an artifact is missing or damaged."""
    manifest, label_space = read_manifest(folders.target), read_label_space(folders.target)
    training, validation = (manifest[manifest["split"] == split] for split in ("train", "val"))
    shown = _evenly(training, params.report.images)
    rounds, maps = {}, {}
    for name in params.rounds:
        path = folders.features / name / "target.h5"
        store = read_target_store(path, label_space.num_classes, most_pixels(training))
        path = folders.rounds / name / "anchors.npy"
        anchors = read_anchors(path, label_space.num_classes, store.width)
        features = read_features(folders.features / name, store, anchors, params.seed)
        rounds[name] = read_round(folders.rounds, name, params.rounds, features)
        maps[name] = training_maps(store, anchors, [row["name"] for row in shown])
    models = trained_models(params.rounds)
    # A target without labels is the normal case: then nothing is evaluated.
    scored = _evenly(validation, params.report.images if params.evaluated else 0)
    compared = [baseline_of(params.evaluated), params.evaluated[-1]] if scored else []
    return Run(
        label_space=label_space,
        summary=_summary(params, models, label_space.num_classes, training, validation),
        evaluations={model: read_evaluation(folders, model) for model in params.evaluated},
        rounds=rounds,
        curves=read_curves(folders.curves, models),
        watched={
            model: read_measures(folders.watch, model, stage)
            for model, stage in watched_models(params).items()
        },
        verdicts={name: read_verdict(folders.rounds, name) for name in params.rounds},
        training=[_training_sample(folders, row, maps) for row in shown],
        labelled=labelled_images(folders, validation, params.rounds),
        validation=[_validation_sample(folders, row, *compared) for row in scored],
        rules=params.pseudo_label,
        parameters=params.model_dump(),
        fingerprints=_checksums(folders),
        locations=_locations(folders),
    )


def write(run: Run, folder: Path) -> None:
    """Write the page and its figures: all or none."""
    with atomic_folder(folder) as partial:
        (partial / "index.html").write_text(report_page(run), encoding="utf-8", newline="\n")
        for draw in drawable(run):
            save_png(draw(run), partial / f"{draw.__name__}.png")


def read_evaluation(folders: Folders, model: str) -> contents.Evaluation:
    """Read a model's scores, as `evaluate` wrote them."""
    metrics, confusion = (
        _existing(folders.evaluation / model / name, f"evaluate@{model}")
        for name in ("metrics.json", "confusion.csv")
    )
    with _readable(metrics, "a file of scores"):
        scores = json.loads(metrics.read_text(encoding="utf-8"))
        _Scores.model_validate(scores)
    with _readable(confusion, "a confusion matrix"):
        table = pd.read_csv(confusion).iloc[:, 1:]
        size, integers = len(scores["iou"]), (table.dtypes == np.int64).all()
        if table.shape != (size, size) or not integers or (table < 0).any(axis=None):
            raise ValueError(f"expected numbers of pixels for {size} x {size} classes")
    return contents.Evaluation(scores, table.to_numpy())


def read_measures(folder: Path, model: str, stage: str) -> dict[str, float | None]:
    """Read a model's measures without labels, by name; the stage is the one that writes them."""
    path = _existing(folder / f"{model}.json", f"{stage}@{model}")
    with _readable(path, "a file of measures"):
        return MEASURES.validate_python(json.loads(path.read_text(encoding="utf-8")))


def read_verdict(folder: Path, name: str) -> dict[str, bool | float | str | None]:
    """Read what a round kept, and why, from the folder of all rounds."""
    path = _existing(folder / name / "verdict.json", f"adapt@{name}")
    with _readable(path, "a verdict"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Verdict.model_validate(content).model_dump()


def read_round(folder: Path, name: str, rounds: Mapping, features: Features | None = None) -> Round:
    """Read a round's tables from the folder of all rounds."""
    # A class may be called "none" or "null": names are text, whatever they spell.
    missing = dict.fromkeys(("recall", "norm", "distance", "nearest_anchor"), ["", "nan"])
    texts = dict.fromkeys(("class", "nearest_anchor"), str)
    options = {"na_values": missing, "keep_default_na": False}
    numbers = {"coverage": COUNTS, "anchors": ANCHOR_NUMBERS}
    stages = {"coverage": f"pseudo_label@{name}", "anchors": f"anchors@{name}"}
    paths = [_existing(folder / name / f"{table}.csv", stages[table]) for table in stages]
    tables = []
    for path in paths:
        kinds = numbers[path.stem]
        with _readable(path, "a table of classes"):
            table = pd.read_csv(path, dtype=texts | kinds, **options)
            if absent := [column for column in ("class", *kinds) if column not in table]:
                raise ValueError(f"it lacks the column {absent[0]}")
            if tables and list(table["class"]) != list(tables[0]["class"]):
                raise ValueError(f"its classes are not those of {paths[0].name}")
            tables.append(table)
    coverage, anchors = tables
    path = folder / name / "threshold_curves.csv"
    thresholds = quantile_thresholds(path, list(coverage["class"]))
    teachers = rounds[name].teacher, rounds[rounds[name].anchors].teacher
    return Round(*teachers, coverage, anchors, thresholds, features)


def quantile_thresholds(path: Path, classes: Sequence[str]) -> dict[float, np.ndarray]:
    """Read the class thresholds float32 [K] by quantile."""
    grid, cuts = read_thresholds(path, classes)
    return dict(zip(map(decimal, grid["quantile"]), cuts.T.numpy(), strict=True))


def read_features(folder: Path, store: TargetStore, anchors: Tensor, seed: int) -> Features:
    """Read up to FEATURES_PER_CLASS features of a round for each class and domain."""
    keys = ("sample_features", "sample_labels")
    with open_store(folder / "source.h5", keys) as file:
        features, labels = (read_array(file, key) for key in keys)
        require_classes(file, labels, store.num_classes)
    # The sample is ordered by class, then by draw.
    kept = torch.arange(len(labels)) - torch.searchsorted(labels, labels) < FEATURES_PER_CLASS
    source = features[kept].float().numpy(), labels[kept].numpy()
    drawn = target_sample(store, seed)
    target = store.vectors(drawn.features).numpy(), drawn.labels.numpy()
    return Features(anchors.numpy(), *source, *target)


def target_sample(store: TargetStore, seed: int) -> PixelSample:
    """Draw target pixels by predicted class, with one image in memory at a time."""
    samples = []
    for index in evenly_spaced(len(store.names), FEATURE_IMAGES):
        features, prediction, _ = read_target_row(store, index)
        draws = pixel_draws(seed, [index], prediction.shape[1:])
        samples.append(sample_pixels(features, prediction, draws, FEATURES_PER_CLASS))
        samples = [merge_samples(samples, FEATURES_PER_CLASS)]
    return samples[0]


def training_maps(store: TargetStore, anchors: Tensor, names: Iterable[str]) -> dict[str, Maps]:
    """Work out the maps of training images from their features."""
    maps, (anchors, _) = {}, store.place(anchors)
    for name in names:
        pixels = measure(*read_target_row(store, store.names.index(name)), anchors)
        maps[name] = Maps(*(pixel_map[0].numpy() for pixel_map in pixels))
    return maps


def labelled_images(
    folders: Folders, rows: pd.DataFrame, rounds: Iterable[str]
) -> list[contents.LabelledSample]:
    """Read the labelled validation images on which each round's rules were tried."""
    maps = {name: _labelled_maps(folders.labelled / name / "samples.h5") for name in rounds}
    names = dict.fromkeys(name for by_image in maps.values() for name in by_image)
    images = rows.set_index("name")["image"]
    samples = []
    for name in names:
        if name not in images:
            fault = f"samples of '{name}', which is no validation image of {folders.target}"
            raise UserError(f"{folders.labelled}: {fault}; run `dvc repro` first")
        by_round = {key: by_image[name] for key, by_image in maps.items() if name in by_image}
        image = read_image(inside(folders.target, images[name]))
        samples.append(contents.LabelledSample(name, image, by_round))
    return samples


def _labelled_maps(path: Path) -> dict[str, Maps]:
    """Read the maps of labelled validation images by name, if there are any."""
    if not path.is_file():
        return {}
    maps, fields = {}, (*Pixels._fields, "truth")
    with open_store(path, ()) as file:
        for key in sorted(file, key=lambda key: (len(key), key)):
            parts = (read_array(file, f"{key}/{field}").numpy() for field in fields)
            maps[read_group_name(file, key)] = Maps(*parts)
    return maps


def read_curves(folder: Path, models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the learning curves; an untrained model that was passed on has none."""
    paths = {model: folder / f"{model}.csv" for model in models}
    curves = {}
    for name, path in paths.items():
        if path.is_file():
            with _readable(path, "a learning curve"):
                curves[name] = curve = pd.read_csv(path)
                if len(curve) and not np.isfinite(curve[["iteration", "loss"]]).all(axis=None):
                    raise ValueError("it has losses that are no numbers")
    return {name: curve for name, curve in curves.items() if len(curve)}


def trained_models(rounds: Mapping) -> list[str]:
    """The models in the order of training."""
    teachers = (entry.teacher for entry in rounds.values())
    return list(dict.fromkeys([BASELINE, *teachers, *rounds]))


def watched_models(params) -> dict[str, str]:
    """The models whose measures are shown, and the kind of stage that writes them.

    A warm-up that is a copy of the pretrained model is none of them.
    """
    copied = params.warmup.weights is None and params.warmup.iterations == 0
    first = [BASELINE] if copied else [BASELINE, "warmup"]
    return dict.fromkeys(first, "watch_start") | dict.fromkeys(params.rounds, "watch")


def _evenly(rows: pd.DataFrame, number: int) -> list[pd.Series]:
    """Pick rows of a manifest to show."""
    return [rows.iloc[index] for index in evenly_spaced(len(rows), number)]


def _training_sample(folders: Folders, row: pd.Series, maps: Mapping) -> contents.TrainingSample:
    """Read a target training image and its pseudo-labels; it has no other labels."""
    name, labels = row["name"], {}
    for key in maps:
        paths = (folders.rounds / key / "pseudo_labels" / rule for rule in RULES)
        labels[key] = tuple(read_label(inside(path, f"{name}.png")) for path in paths)
    image, shown = (
        read_image(inside(folders.target, row["image"])),
        {key: maps[key][name] for key in maps},
    )
    return contents.TrainingSample(name, image, labels, shown)


def _validation_sample(folders: Folders, row: pd.Series, *models: str) -> contents.ValidationSample:
    """Read a labelled target image and two models' predictions."""
    paths = (folders.evaluation / model / "predictions" for model in models)
    predictions = (read_label(inside(path, f"{row['name']}.png")) for path in paths)
    image = read_image(inside(folders.target, row["image"]))
    truth = read_label(inside(folders.target, row["label"]))
    return contents.ValidationSample(row["name"], image, *predictions, truth)


def _checksums(folders: Folders) -> list[tuple[str, str]]:
    """The MD5 of each domain's manifest."""
    domains = {"source": folders.source, "target": folders.target}
    paths = [_existing(domains[key] / "manifest.csv", f"prepare@{key}") for key in domains]
    return [(str(path), hashlib.md5(path.read_bytes()).hexdigest()) for path in paths]


def _summary(params, models, classes, training, validation) -> dict[str, str]:
    common = common_size(training)
    size = f"{common[1]} x {common[0]}" if common else "various sizes"
    return {
        "seed": str(params.seed),
        "models": " → ".join(models),
        "rounds": str(len(params.rounds)),
        "classes": str(classes),
        "target training images": f"{len(training)} ({size})",
        "target validation images": str(len(validation)),
    }


def _locations(folders: Folders) -> list[tuple[str, str]]:
    """The paths of the artifacts; <round> and <model> stand for the names in the tables."""
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
        ("measures without labels", f"{folders.watch}/<model>.json, <model>.csv"),
        ("model that a round kept", f"{rounds}/verdict.json"),
        ("metrics and confusion matrix", f"{scores}/metrics.json, confusion.csv"),
        ("picture panels", f"{scores}/panels.png"),
        ("predictions", f"{scores}/predictions/"),
        ("this page and its figures", f"{folders.report}/"),
    ]


def _readable(path: Path, kind: str) -> AbstractContextManager[None]:
    return readable(path, kind, "run `dvc repro`", "delete it, then run `dvc repro`")


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro {stage}` first")
    return path
