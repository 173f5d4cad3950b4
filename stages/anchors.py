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
from cag.features import SOURCE_KEYS, open_store, read_array
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, write_csv
from cag.runtime.program import run_stage

SOURCE = Path("data/prepared/source")
STORE = "data/features/{}/source.h5"
ANCHORS, TABLE = "data/rounds/{}/anchors.npy", "data/rounds/{}/anchors.csv"
IMAGES_AT_ONCE = 256


class Params(Section):
    """The declared parameters."""

    anchors: Anchors


def average(store: Path, config: Anchors, num_classes: int) -> tuple[AnchorMean, Tensor]:
    """The mean of a store's sums over correctly predicted pixels, and the recall of each class."""
    mean = AnchorMean(config.average, config.min_pixels)
    correct, labelled = torch.zeros(2, 1, num_classes, dtype=torch.int64)
    with open_store(store, SOURCE_KEYS) as file:
        count, found = file["correct_class_counts"].shape
        if found != num_classes:
            raise UserError(f"{store}: {found} classes, the data have {num_classes}; delete it")
        for start in range(0, count, IMAGES_AT_ONCE):
            rows = slice(start, start + IMAGES_AT_ONCE)
            counts = read_array(file, "correct_class_counts", rows)
            mean.update(read_array(file, "correct_class_sums", rows), counts)
            correct += counts.sum(dim=0)
            labelled += read_array(file, "class_counts", rows).sum(dim=0)
    return mean, class_recall(correct, labelled)


def anchor_table(
    anchors: Tensor, mean: AnchorMean, recall: Tensor, names: tuple[str, ...]
) -> pd.DataFrame:
    """Per class: what is behind its anchor, its norm, the nearest other anchor and its distance."""
    nearest, distance = nearest_other_anchor(anchors)
    return pd.DataFrame(
        {
            "class": names,
            "images": mean.images.numpy(),
            "pixels": mean.pixels.numpy(),
            "recall": recall.numpy(),
            "norm": anchors.norm(dim=1).numpy(),
            "nearest_anchor": [names[i] if i >= 0 else "" for i in nearest.tolist()],
            "distance": distance.numpy(),
        }
    ).round(4)


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("features_of")
def main(round_name: str, features_of: str) -> None:
    """Write a round's `anchors.npy` and `anchors.csv` from the source features of FEATURES_OF."""
    config = load_params(Params).anchors
    names = read_label_space(SOURCE).names
    mean, recall = average(Path(STORE.format(features_of)), config, len(names))
    anchors = reliable(mean.compute(), recall, config.min_recall)
    seen = ~anchors.isnan().any(1)
    if int(seen.sum()) < 2:
        raise UserError(
            f"anchors: the teacher predicts only {int(seen.sum())} classes right on the source; "
            "train it longer (pretrain.iterations), or lower anchors.min_pixels or min_recall"
        )
    write_csv(Path(TABLE.format(round_name)), anchor_table(anchors, mean, recall, names))
    with atomic_file(Path(ANCHORS.format(round_name))) as partial, open(partial, "wb") as file:
        np.save(file, anchors.numpy())
    unseen = [name for name, s in zip(names, seen, strict=True) if not s]
    note = f"; without an anchor: {', '.join(unseen)}" if unseen else ""
    print(f"anchors@{round_name}: {int(seen.sum())} of {len(names)} classes{note}")


if __name__ == "__main__":
    run_stage(main)
