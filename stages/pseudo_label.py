"""Label a round's target pixels by their nearest anchor and by the predicted probability."""

from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cag.anchors import resize_labels
from cag.config import PseudoLabel, load_params
from cag.datasets import read_label_space, read_manifest
from cag.errors import UserError
from cag.features import TARGET_KEYS, open_store, read_anchors, read_array, read_names
from cag.files import atomic_folder, inside, write_csv
from cag.images import write_label
from cag.labels import IGNORE, LabelSpace
from cag.pseudo_labels import (
    MarginHistogram,
    active,
    agreeing,
    anchor_distances,
    confident,
    relative_margins,
)
from cag.stage import run, tracked

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
STORE, ROUND = "data/features/{}/target.h5", "data/rounds/{}"
RULES = ("anchor", "probability")


def class_thresholds(file: h5py.File, anchors: Tensor, keep: float | None) -> Tensor | None:
    """The relative margin that the share `keep` of each class reaches, [K]; a first pass."""
    if keep is None:
        return None
    histogram = MarginHistogram(len(anchors))
    count = len(file["names"])
    for i in tracked(range(count), "quantiles", count, "images"):
        features = read_array(file, "features", slice(i, i + 1))
        nearest, first, second = anchor_distances(features, anchors)
        histogram.update(nearest, relative_margins(first, second))
    return histogram.thresholds(keep)


def label_images(
    file: h5py.File, anchors: Tensor, config: PseudoLabel
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each image in turn: nearest anchor, anchor label, probability label, uint8 [1, h, w]."""
    thresholds = class_thresholds(file, anchors, config.quantile)
    for i in range(len(file["names"])):
        rows = slice(i, i + 1)
        distances = anchor_distances(read_array(file, "features", rows), anchors)
        labels = active(*distances, config.margin, config.relative_margin, thresholds)
        prediction = read_array(file, "prediction", rows)
        if config.agreement:
            labels = agreeing(labels, prediction)
        probability = read_array(file, "probability", rows)
        yield distances[0], labels, confident(prediction, probability, config.probability)


def count_classes(labels: Tensor, num_classes: int) -> np.ndarray:
    """Pixels of each class in a label map, int64 [K]."""
    return torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:num_classes].numpy()


def write_labels(
    file: h5py.File, anchors: Tensor, config: PseudoLabel, classes: LabelSpace, folder: Path
) -> pd.DataFrame:
    """Write the label maps of both rules; return the coverage table."""
    names = read_names(file)
    manifest = read_manifest(TARGET).query("split == 'train'").set_index("name")
    counts = np.zeros((4, classes.num_classes), np.int64)
    labelled = label_images(file, anchors, config)
    for name, maps in zip(
        names, tracked(labelled, "pseudo-labels", len(names), "images"), strict=True
    ):
        nearest, by_anchor, by_probability = maps
        agree = by_anchor.where(
            by_anchor == by_probability, torch.tensor(IGNORE, dtype=torch.uint8)
        )
        counts += [count_classes(m, classes.num_classes) for m in (*maps, agree)]
        size = tuple(manifest.loc[name, ["height", "width"]].astype(int))
        for rule, labels in zip(RULES, (by_anchor, by_probability), strict=True):
            path = inside(folder / rule, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            full = resize_labels(labels, size, align_corners=True)[0].numpy()
            write_label(path, full, classes.palette_array)
    columns = dict(zip(("nearest", "anchor", "probability", "agree"), counts, strict=True))
    return pd.DataFrame({"class": classes.names, **columns})


@click.command(help=__doc__)
@click.argument("round_name")
def main(round_name: str) -> None:
    """Write a round's pseudo-label PNGs and its coverage table."""
    config = load_params("pseudo_label").pseudo_label
    folder = Path(ROUND.format(round_name))
    classes = read_label_space(SOURCE)
    with open_store(Path(STORE.format(round_name)), TARGET_KEYS) as file:
        width = file["features"].shape[1]
        anchors = read_anchors(folder / "anchors.npy", classes.num_classes, width)
        with atomic_folder(folder / "pseudo_labels") as partial:
            coverage = write_labels(file, anchors, config, classes, partial)
            if coverage["anchor"].sum() == 0:
                raise UserError("pseudo_label: no pixel is active; lower its thresholds")
    write_csv(folder / "coverage.csv", coverage)
    total = coverage["nearest"].sum()
    shares = ", ".join(f"{rule} {coverage[rule].sum() / total:.1%}" for rule in RULES)
    print(f"pseudo_label@{round_name}: labelled by {shares} of the pixels")


if __name__ == "__main__":
    run(main)
