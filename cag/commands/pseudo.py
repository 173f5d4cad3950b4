"""The commands about pseudo-labels."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd

from cag.commands.rounds import chosen_round
from cag.config.base import RULES
from cag.config.parameters import load_all
from cag.datasets.images import read_label, write_image
from cag.datasets.labels import IGNORE, read_class_map
from cag.deploy import cityscapes
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, inside, write_csv, write_json

if TYPE_CHECKING:
    from cag.datasets.labels import LabelSpace

TARGET, PSEUDO_LABELS = Path("data/prepared/target"), "data/rounds/{}/pseudo_labels"
CHOICES = {**{rule: (rule,) for rule in RULES}, "both": RULES}
SPLIT = "train"


@click.group()
def pseudo() -> None:
    """Use a round's pseudo-labels elsewhere."""


@pseudo.command(short_help="Pseudo-labels for other training programs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["cityscapes"]),
    default="cityscapes",
    show_default=True,
    help="Folder layout.",
)
@click.option("--round", "round_name", help="Its name or number. [default: the last]")
@click.option(
    "--rule",
    type=click.Choice(list(CHOICES)),
    default="both",
    show_default=True,
    help="both: the label that either rule gives; where they give two, none.",
)
@click.option("--copy", is_flag=True, help="Copy the images; else they are hard links if possible.")
def export(out: Path, layout: str, round_name: str | None, rule: str, copy: bool) -> None:
    """Write a round's pseudo-labels and their images in the layout of Cityscapes.

    \b
      leftImg8bit/train/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
      gtFine/train/<city>/<city>_<sequence>_<frame>_gtFine_labelTrainIds.png   255: no label
      gtFine/train/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png
      names.csv      name of each target image and its path here
      classes.json   names and colours of the train ids

    Images and labels have the size of the prepared images. If the names of the target images are
    not of this form, they are numbered in the order of their names: target_000000_<number>.
    labelIds holds raw values of target.class_map: of each class and of what has no label the
    smallest; it is left out where a class has no value of its own, and where the raw values are
    the train ids.

    \b
    Example:
      cag pseudo export --round round3 --out pseudo-cityscapes
    """
    from cag.datasets.prepared import read_label_space, read_manifest
    from cag.runtime.overlap import in_order, threads
    from cag.runtime.progress import progress

    params = load_all()
    name = chosen_round(round_name, list(params.rounds))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; name a new one")
    classes = read_label_space(TARGET)
    decoding = _decoding(params.target, classes)
    rows = read_manifest(TARGET).query(f"split == '{SPLIT}'").sort_values("name")
    names = cityscapes.cityscapes_names(rows["name"].tolist())
    labels = [Path(PSEUDO_LABELS.format(name)) / kind for kind in CHOICES[rule]]

    with atomic_folder(out) as folder, progress("export", len(rows), "images") as advance:

        def write(one: tuple[Any, str]) -> np.ndarray:
            row, new = one
            maps = [_read_map(inside(kind, f"{row.name}.png"), row) for kind in labels]
            train_ids = cityscapes.either(*maps) if len(maps) == 2 else maps[0]
            _put(TARGET / row.image, folder / cityscapes.image_path(new, SPLIT), copy)
            _write_map(folder / cityscapes.label_path(new, SPLIT, "labelTrainIds"), train_ids)
            if decoding is not None:
                path = folder / cityscapes.label_path(new, SPLIT, "labelIds")
                _write_map(path, decoding[train_ids])
            return np.bincount(train_ids.ravel(), minlength=IGNORE + 1)

        counts = np.zeros(IGNORE + 1, np.int64)
        pairs = zip(rows.itertuples(index=False, name="Row"), names, strict=True)
        with closing(in_order(write, pairs, threads())) as written:
            for pixels in written:
                counts += pixels
                advance()
        paths = [cityscapes.image_path(new, SPLIT) for new in names]
        write_csv(folder / "names.csv", pd.DataFrame({"name": rows["name"], "image": paths}))
        write_json(folder / "classes.json", classes.to_dict())
    share = 1 - counts[IGNORE] / max(1, counts.sum())
    print(f"{out}: {len(rows)} images, {share:.1%} of the pixels labelled ({name}, rule {rule})")


def _decoding(target: Any, classes: LabelSpace) -> np.ndarray | None:
    """The raw value of each train id, uint8 [256]; None where there are no labelIds to write."""
    class_map = read_class_map(Path(target.class_map))
    if class_map.label_space.names != classes.names:
        raise UserError(
            f"{target.class_map}: has other classes than {TARGET}; run `dvc repro` first"
        )
    decoding = class_map.decoding()
    is_identity = decoding is not None and np.array_equal(
        decoding[: classes.num_classes], np.arange(classes.num_classes)
    )
    return None if is_identity else decoding


def _read_map(path: Path, row: Any) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such pseudo-label map; run `dvc repro` first")
    labels = read_label(path)
    if labels.shape != (row.height, row.width):
        raise UserError(
            f"{path}: height and width are {labels.shape}, the image has "
            f"{(row.height, row.width)}; run `dvc repro` first"
        )
    return labels


def _write_map(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, labels)


def _put(source: Path, goal: Path, copy: bool) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(os.path.realpath(source), goal)
            return
        except OSError:  # another disk, or one without hard links
            pass
    try:
        shutil.copyfile(source, goal)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; run `dvc repro` first") from None
