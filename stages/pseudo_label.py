"""Label a round's target pixels by their nearest anchor and by the predicted probability."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import click
import pandas as pd
import torch
from torch import Tensor

from cag.analysis.plots import save_png
from cag.analysis.threshold_curves import ThresholdCounts, curve_table, threshold_grid
from cag.analysis.threshold_figures import threshold_curves_figure
from cag.anchors import read_anchors, resize_labels
from cag.config.base import RULES, Section, load_params
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.images import write_label
from cag.datasets.labels import LabelSpace
from cag.datasets.prepared import most_pixels, read_label_space, read_manifest
from cag.features import TargetImage, TargetStore, read_target_images, read_target_store
from cag.pseudo_labels import (
    COVERAGE,
    MarginHistogram,
    apply_rules,
    count_labels,
    left_out,
    measure,
)
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import inside, write_csv
from cag.runtime.overlap import overlapped, to_cpu
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
STORE, ROUND = "data/features/{}/target.h5", "data/rounds/{}"
Labelled = tuple[str, Callable[[], tuple[Tensor, ...]]]  # name; nearest anchors and both labels
S = TypeVar("S")
T = TypeVar("T")


class Params(Section):
    """The declared parameters."""

    pseudo_label: PseudoLabel


def for_images(
    what: str,
    store: TargetStore,
    processes: Processes,
    compute: Callable[[TargetImage], S],
    finish: Callable[[S], T],
) -> Iterator[T]:
    """Compute and finish this process's share of the store's images, with a progress bar."""
    shards = store.shards[processes.rank :: processes.count]
    count, images = sum(len(rows) for _, rows in shards), read_target_images(store, shards)
    with processes.progress(what, count, len(store.names)) as advance:
        computed = overlapped(images, lambda image: [compute(image)], advance, finish)
        with closing(computed) as results:
            for result in results:
                yield result
                advance()


def class_thresholds(
    store: TargetStore, anchors: Tensor, keep: float | None, processes: Processes
) -> Tensor | None:
    """A first pass: the relative margin that the share `keep` of each class reaches, [K]."""
    if keep is None:
        return None
    histogram = MarginHistogram(len(anchors), device=anchors.device)

    def count(image: TargetImage) -> None:
        pixels = measure(*image.row, anchors)
        histogram.update(pixels.nearest, pixels.relative_margin())

    for _ in for_images("quantiles", store, processes, count, lambda _: None):
        pass
    histogram.counts = processes.total(histogram.counts).to(anchors.device)
    return histogram.thresholds(keep)


def write_labels(
    store: TargetStore,
    anchors: Tensor,
    config: PseudoLabel,
    classes: LabelSpace,
    processes: Processes,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the label maps of both rules; return the coverage and the curves of all images."""
    images = read_manifest(TARGET).query("split == 'train'")[["name", "height", "width"]]
    sizes = {name: (height, width) for name, height, width in images.itertuples(index=False)}
    grid = threshold_grid(anchors, config)
    curves = ThresholdCounts(classes.num_classes, grid, anchors.device)
    placed, error = store.place(anchors)
    if processes.main and (line := left_out(error, anchors, config)):
        print(line)
    thresholds = class_thresholds(store, placed, config.quantile, processes)

    def label(image: TargetImage) -> Labelled:
        pixels = measure(*image.row, placed)
        curves.update(pixels)
        return image.name, to_cpu(pixels.nearest, *apply_rules(pixels, config, thresholds))

    def write(labelled: Labelled) -> Tensor:
        name, arrived = labelled
        nearest, *maps = arrived()
        for rule, labels in zip(RULES, maps, strict=True):
            path = inside(folder / rule, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            full = resize_labels(labels, sizes[name], align_corners=True)[0].numpy()
            write_label(path, full, classes.palette_array)
        return count_labels(nearest, *maps, classes.num_classes)

    counts = torch.zeros(len(COVERAGE), classes.num_classes, dtype=torch.int64)
    for image_counts in for_images("pseudo-labels", store, processes, label, write):
        counts += image_counts
    columns = dict(zip(COVERAGE, processes.total(counts).numpy(), strict=True))
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
    path, pixels = Path(STORE.format(round_name)), most_pixels(read_manifest(TARGET))
    store = read_target_store(path, classes.num_classes, pixels)
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
        drawn = (curves, classes.names, classes.palette_array, config.model_dump())
        save_png(threshold_curves_figure(*drawn), folder / "threshold_curves.png")
        total = coverage["nearest"].sum()
        shares = ", ".join(f"{rule} {coverage[rule].sum() / total:.1%}" for rule in RULES)
        print(f"pseudo_label@{round_name}: labelled by {shares} of the pixels")


if __name__ == "__main__":
    run_stage(main)
