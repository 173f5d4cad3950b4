"""A round's pseudo-labels for other training programs."""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cag.datasets.images import write_image
from cag.datasets.labels import IGNORE, LabelSpace, read_class_map
from cag.datasets.prepared import read_label_space, read_manifest, read_train_ids
from cag.deploy import cityscapes
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_folder, inside, require_new, write_csv, write_json
from cag.runtime.overlap import in_order, threads
from cag.runtime.progress import progress

TARGET, ROUND, LABELS = Path("data/prepared/target"), "data/rounds/{}", "pseudo_labels"
SPLIT = "train"


def chosen_round(wanted: str | None, rounds: Sequence[str]) -> str:
    """The round with a name or a number from 1, None for the last; UserError: there is none."""
    if not rounds:
        raise UserError("params.yaml: rounds is empty, so there are no pseudo-labels")
    if wanted is None:
        return rounds[-1]
    if wanted in rounds:
        return wanted
    if wanted.isdecimal() and 1 <= int(wanted) <= len(rounds):
        return rounds[int(wanted) - 1]
    raise UserError(f"--round is '{wanted}'; params.yaml has {', '.join(rounds)}")


def export_cityscapes(
    out: Path, round_name: str, rules: Sequence[str], class_map: Path, copy: bool
) -> tuple[int, float]:
    """Write a round's pseudo-labels and images to a new folder, as `cag pseudo export` says.

    Two rules give the label that either gives; the target's class map gives the raw values of
    labelIds. Unless `copy`, images are hard links where possible. Returns the number of images and
    the share of the pixels with a label. UserError: a file is missing or does not fit the others.
    """
    require_new(out)
    classes = read_label_space(TARGET)
    decoding = _decoding(class_map, classes)
    rows = read_manifest(TARGET).query(f"split == '{SPLIT}'").sort_values("name")
    names = cityscapes.cityscapes_names(rows["name"].tolist())
    label_folders = [Path(ROUND.format(round_name)) / LABELS / rule for rule in rules]

    with atomic_folder(out) as folder, progress("export", len(rows), "images") as advance:

        def write(pair: tuple[Any, str]) -> np.ndarray:
            row, new = pair
            paths = [inside(place, f"{row.name}.png") for place in label_folders]
            maps = [_read_map(path, classes.num_classes, row) for path in paths]
            train_ids = cityscapes.either(*maps) if len(maps) == 2 else maps[0]
            _put(TARGET / row.image, folder / cityscapes.image_path(new, SPLIT), copy)
            written = {"labelTrainIds": train_ids}
            if decoding is not None:
                written["labelIds"] = decoding[train_ids]
            for kind, pixels in written.items():
                path = folder / cityscapes.label_path(new, SPLIT, kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, pixels)
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
    return len(rows), 1 - counts[IGNORE] / max(1, counts.sum())


def _decoding(path: Path, classes: LabelSpace) -> np.ndarray | None:
    """The raw value of each train id, uint8 [256]; None where there are no labelIds to write."""
    class_map = read_class_map(path)
    if class_map.label_space.names != classes.names:
        raise UserError(f"{path}: has other classes than {TARGET}; run `dvc repro` first")
    decoding = class_map.decoding()
    values = np.arange(classes.num_classes)
    is_identity = decoding is not None and np.array_equal(decoding[: len(values)], values)
    return None if is_identity else decoding


def _read_map(path: Path, num_classes: int, row: Any) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such pseudo-label map; run `dvc repro` first")
    return read_train_ids([path], num_classes, (row.height, row.width))[0]


def _put(source: Path, goal: Path, copy: bool) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        with suppress(OSError):  # another disk, or one without hard links
            return os.link(os.path.realpath(source), goal)
    try:
        shutil.copyfile(source, goal)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; run `dvc repro` first") from None
