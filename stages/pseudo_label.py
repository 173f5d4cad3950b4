"""Label a round's target pixels by their nearest anchor and by the predicted probability."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cag.analysis import plots
from cag.analysis.threshold_curves import ThresholdCounts, curve_table, threshold_grid
from cag.anchors import read_anchors, resize_labels
from cag.config.base import RULES, Section, load_params
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.images import write_label
from cag.datasets.labels import IGNORE, LabelSpace
from cag.datasets.prepared import read_label_space, read_manifest
from cag.features import TargetStore, read_target_rows, read_target_store
from cag.pseudo_labels import (
    MarginHistogram,
    anchor_distances,
    apply_rules,
    relative_margins,
)
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import inside, write_csv
from cag.runtime.overlap import ahead, in_order, threads, to_cpu
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.progress import Advance, progress

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
STORE, ROUND = "data/features/{}/target.h5", "data/rounds/{}"
Row = tuple[Tensor, Tensor, Tensor]  # of an image: features, prediction, probability
Labelled = tuple[str, Callable[[], tuple[Tensor, ...]]]


class Params(Section):
    """The declared parameters."""

    pseudo_label: PseudoLabel


@contextmanager
def shared_progress(
    store: TargetStore, what: str, processes: Processes
) -> Iterator[tuple[Advance, Iterator[tuple[str, Row]]]]:
    """A progress bar, and this process's part of the store's images, which are read ahead."""
    parts = store.shards[processes.rank :: processes.count]
    own = sum(len(rows) for _, rows in parts)

    def images() -> Iterator[tuple[str, Row]]:
        for path, rows in parts:
            yield from zip(
                (store.names[i] for i in rows), read_target_rows(path, len(rows)), strict=True
            )

    with progress(what, own, "images") as advance:
        with closing(ahead(images(), depth=4)) as read:
            yield advance, advance.waiting(read)
        processes.wait()
        advance(len(store.names) - own)


def class_thresholds(
    store: TargetStore, anchors: Tensor, keep: float | None, processes: Processes
) -> Tensor | None:
    """The relative margin that the share `keep` of each class reaches, [K]; a first pass."""
    if keep is None:
        return None
    histogram = MarginHistogram(len(anchors), device=anchors.device)
    with shared_progress(store, "quantiles", processes) as (advance, images):
        for _, (features, _, _) in images:
            nearest, first, second = anchor_distances(features.to(anchors.device), anchors)
            histogram.update(nearest, relative_margins(first, second))
            advance()
    histogram.counts = processes.total(histogram.counts).to(anchors.device)
    return histogram.thresholds(keep)


def label_images(
    images: Iterator[tuple[str, Row]],
    anchors: Tensor,
    thresholds: Tensor | None,
    config: PseudoLabel,
    curves: ThresholdCounts,
) -> Iterator[Labelled]:
    """Of each image its name, nearest anchor, anchor label, probability label, uint8 [1, h, w].

    The pixels are counted in `curves` on the way.
    """
    for name, row in images:
        features, prediction, probability = (part.to(anchors.device) for part in row)
        distances = anchor_distances(features, anchors)
        curves.update_anchor(*distances)
        curves.update_probability(prediction, probability)
        labels = apply_rules(distances, prediction, probability, config, thresholds)
        yield name, to_cpu(distances[0], *labels)


def count_classes(labels: Tensor, num_classes: int) -> np.ndarray:
    """Pixels of each class in a label map, int64 [K]."""
    return torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:num_classes].numpy()


def write_labels(
    store: TargetStore,
    anchors: Tensor,
    config: PseudoLabel,
    classes: LabelSpace,
    processes: Processes,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the label maps of both rules; return the coverage and the curves of all images."""
    rows = read_manifest(TARGET).query("split == 'train'")
    sizes = dict(zip(rows["name"], zip(rows["height"], rows["width"], strict=True), strict=True))
    counts = np.zeros((4, classes.num_classes), np.int64)

    def write(labelled: Labelled) -> list[np.ndarray]:
        name, arrived = labelled
        nearest, by_anchor, by_probability = arrived()
        for rule, labels in zip(RULES, (by_anchor, by_probability), strict=True):
            path = inside(folder / rule, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            full = resize_labels(labels, sizes[name], align_corners=True)[0].numpy()
            write_label(path, full, classes.palette_array)
        agree = by_anchor.masked_fill(by_anchor != by_probability, IGNORE)
        maps = (nearest, by_anchor, by_probability, agree)
        return [count_classes(labels, classes.num_classes) for labels in maps]

    grid = threshold_grid(anchors, config)
    curves = ThresholdCounts(classes.num_classes, grid, anchors.device)
    thresholds = class_thresholds(store, anchors, config.quantile, processes)
    with shared_progress(store, "pseudo-labels", processes) as (advance, images):
        labelled = label_images(images, anchors, thresholds, config, curves)
        with closing(in_order(write, labelled, threads())) as written:
            for image_counts in written:
                counts += image_counts
                advance()
    total = processes.total(torch.from_numpy(counts)).numpy()
    columns = dict(zip(("nearest", *RULES, "agree"), total, strict=True))
    curves.add_up(processes.total)
    table = curve_table(classes.names, grid, curves, curves.class_thresholds(grid["quantile"]))
    return pd.DataFrame({"class": classes.names, **columns}), table


@click.command(help=__doc__)
@click.argument("round_name")
def main(round_name: str) -> None:
    """Write a round's pseudo-label PNGs, its coverage and its threshold curves."""
    config = load_params(Params).pseudo_label
    folder = Path(ROUND.format(round_name))
    classes = read_label_space(SOURCE)
    store = read_target_store(Path(STORE.format(round_name)))
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, store.width)
    fabric = make_fabric("32-true")
    processes, anchors = Processes(fabric), anchors.to(fabric.device)
    with processes.folder(folder / "pseudo_labels") as partial:
        coverage, curves = write_labels(store, anchors, config, classes, processes, partial)
        if coverage["anchor"].sum() == 0:
            raise UserError("pseudo_label: no pixel is active; lower its thresholds")
    if processes.main:
        write_csv(folder / "coverage.csv", coverage)
        write_csv(folder / "threshold_curves.csv", curves)
        look = (classes.names, classes.palette_array, config.model_dump())
        figure = plots.threshold_curves_figure(curves, *look)
        plots.save_png(figure, folder / "threshold_curves.png")
        total = coverage["nearest"].sum()
        shares = ", ".join(f"{rule} {coverage[rule].sum() / total:.1%}" for rule in RULES)
        print(f"pseudo_label@{round_name}: labelled by {shares} of the pixels")


if __name__ == "__main__":
    run_stage(main)
