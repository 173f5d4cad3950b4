"""Average source class sums into a round's anchors."""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cag.anchors import AnchorMean, class_recall, nearest_other_anchor, reliable
from cag.config.anchors import Anchors
from cag.config.base import Section, load_params
from cag.datasets.prepared import read_label_space
from cag.features import read_anchor_statistics
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, binary_file, write_csv
from cag.runtime.program import run_stage

SOURCE = Path("data/prepared/source")
STORE = "data/features/{}/source.h5"
ANCHORS, TABLE = "data/rounds/{}/anchors.npy", "data/rounds/{}/anchors.csv"


class Params(Section):
    """The declared parameters."""

    anchors: Anchors


def average(store: Path, config: Anchors, num_classes: int) -> tuple[AnchorMean, Tensor]:
    """The mean of a store's correctly predicted pixels, and the recall of each class."""
    mean = AnchorMean(config.average, config.min_pixels)
    correct, labelled = torch.zeros(2, 1, num_classes, dtype=torch.int64)
    for part in read_anchor_statistics(store, num_classes):
        mean.update(part.correct_class_sums, part.correct_class_counts)
        correct += part.correct_class_counts.sum(dim=0)
        labelled += part.class_counts.sum(dim=0)
    return mean, class_recall(correct, labelled)


def anchor_table(
    anchors: Tensor, mean: AnchorMean, recall: Tensor, names: tuple[str, ...]
) -> pd.DataFrame:
    """Each class's images, pixels, recall, norm of its anchor, nearest other anchor, distance."""
    nearest, distance = nearest_other_anchor(anchors)
    others = [names[i] if i >= 0 else "" for i in nearest.tolist()]
    counts = {"class": names, "images": mean.images, "pixels": mean.pixels, "recall": recall}
    norm = anchors.norm(dim=1)
    table = pd.DataFrame({**counts, "norm": norm, "nearest_anchor": others, "distance": distance})
    return table.round(4)


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("features_of")
def main(round_name: str, features_of: str) -> None:
    """Write a round's `anchors.npy` and `anchors.csv` from the source features of FEATURES_OF."""
    config = load_params(Params).anchors
    names = read_label_space(SOURCE).names
    mean, recall = average(Path(STORE.format(features_of)), config, len(names))
    anchors = reliable(mean.compute(), recall, config.min_recall)
    unseen = [names[i] for i in anchors.isnan().any(1).nonzero().flatten().tolist()]
    seen = len(names) - len(unseen)
    if seen < 2:
        raise UserError(
            f"anchors: the teacher predicts only {seen} classes right on the source; "
            "train it longer (pretrain.iterations), or lower anchors.min_pixels or min_recall"
        )
    write_csv(Path(TABLE.format(round_name)), anchor_table(anchors, mean, recall, names))
    with atomic_file(Path(ANCHORS.format(round_name))) as partial, binary_file(partial) as file:
        np.save(file, anchors.numpy())
    note = f"; without an anchor: {', '.join(unseen)}" if unseen else ""
    print(f"anchors@{round_name}: {seen} of {len(names)} classes{note}")


if __name__ == "__main__":
    run_stage(main)
