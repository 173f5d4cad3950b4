"""The one prepared form of a data set, which every later stage reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cag.datasets.images import read_image, read_label
from cag.datasets.labels import IGNORE, LabelSpace
from cag.runtime.errors import UserError, shortened
from cag.runtime.files import is_local, sha256
from cag.runtime.validation import readable

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST, CLASSES = "manifest.csv", "classes.json"
_PATH_COLUMNS = ["name", "image", "label"]
MOST_PIXELS = 2**28  # of an image, more than are read
PREPARE, AGAIN = "run `dvc repro` to prepare the data set", "prepare it again"
COLUMNS = ["split", *_PATH_COLUMNS, "height", "width", "image_sha256", "label_sha256"]


def common_size(rows: pd.DataFrame) -> tuple[int, int] | None:
    """The (height, width) of all images of a manifest's rows, or None if they differ."""
    sizes = rows[["height", "width"]].drop_duplicates().to_numpy()
    return (int(sizes[0, 0]), int(sizes[0, 1])) if len(sizes) == 1 else None


def most_pixels(rows: pd.DataFrame) -> int:
    """The pixels of the largest image of a manifest's rows; 0 without any."""
    return int((rows["height"] * rows["width"]).max()) if len(rows) else 0


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read a prepared data set's table of images, with the columns `COLUMNS`.

    Paths are posix, below the folder; label is "" if there is none; height and width (int64,
    pixels) are the image's. A UserError if the manifest is missing, or has other columns, sizes
    that are no numbers, a repeated name or a path that leaves the folder.
    """
    path = Path(folder) / MANIFEST
    with readable(path, "a readable table", PREPARE, AGAIN):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    _check_manifest(path, rows)
    return rows.astype({"height": "int64", "width": "int64"})


def read_label_space(folder: Path) -> LabelSpace:
    """Read a prepared data set's classes; a UserError if classes.json is missing or damaged."""
    path = Path(folder) / CLASSES
    with readable(path, "a list of classes", PREPARE, AGAIN):
        return LabelSpace.from_dict(json.loads(path.read_text(encoding="utf-8")))


def read_shared_label_space(source: Path, target: Path) -> LabelSpace:
    """Read the target's classes; a UserError unless the source's have the same names and order."""
    theirs, ours = read_label_space(source), read_label_space(target)
    require_same_classes(theirs, ours)
    return ours


def require_same_classes(source: LabelSpace, target: LabelSpace) -> None:
    """Raise a UserError unless two domains have classes of the same names in the same order."""
    if source.names != target.names:
        raise UserError(class_difference(source.names, target.names))


def class_difference(source: Sequence[str], target: Sequence[str]) -> str:
    """The error message for two domains whose classes differ."""
    pairs = enumerate(zip_longest(source, target))
    train_id, names = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    name, other = ("missing" if name is None else repr(name) for name in names)
    counts = f"the source has {len(source)} classes, the target {len(target)}; "
    return (
        f"{counts * (len(source) != len(target))}train id {train_id} is {name} in the source and "
        f"{other} in the target: give source.class_map and target.class_map the same classes in "
        "the same order"
    )


def read_train_ids(
    paths: Sequence[Path], num_classes: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read an image's maps of train ids, uint8 [n, H, W], n >= 1: 0 to K - 1, and 255 = ignored.

    A UserError if one cannot be read or has another form, other train ids, or not the others' size,
    nor `size`, (height, width), if given: somebody has changed it since it was written.
    """
    maps, problem = [read_label(path) for path in paths], None
    expected = tuple(size or maps[0].shape[:2])
    for path, labels in zip(paths, maps, strict=True):
        if labels.dtype != np.uint8 or labels.shape != expected:
            problem = f"holds {labels.dtype} of shape {labels.shape}; expected uint8 of {expected}"
        elif (unknown := (labels >= num_classes) & (labels != IGNORE)).any():
            known = f"0 to {num_classes - 1}, or {IGNORE}"
            problem = f"holds the train id {labels[unknown].max()}; expected {known}"
        if problem:
            raise UserError(f"{path}: {problem}: it was changed; delete it, then run `dvc repro`")
    return np.stack(maps)


def evenly_spaced(total: int, count: int) -> list[int]:
    """Evenly spaced indices of `count` of `total` images, with the first and the last."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def fingerprint(folder: Path) -> str:
    """The SHA-256 (hex) of a prepared data set: its classes, and its manifest with all digests."""
    digest = hashlib.sha256()
    for name in (MANIFEST, CLASSES):
        path = Path(folder) / name
        with readable(path, "a readable file", PREPARE):
            digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _check_manifest(path: Path, rows: pd.DataFrame) -> None:
    if list(rows.columns) != COLUMNS:
        columns, expected = shortened(", ".join(rows.columns), 300), ", ".join(COLUMNS)
        raise UserError(f"{path}: found the columns {columns}; expected {expected}; {AGAIN}")
    for column in ("height", "width"):
        wrong = rows[~rows[column].str.fullmatch(r"[1-9][0-9]{0,8}")]
        if len(wrong):
            name, value = (shortened(wrong[key].iloc[0], 100) for key in ("name", column))
            where, value = (
                f"{path}: {column} of {name!r}",
                f"{value!r}; expected a number of pixels",
            )
            raise UserError(f"{where} is {value}; {AGAIN}")
    too_large = rows[rows["height"].astype(int) * rows["width"].astype(int) > MOST_PIXELS]
    if len(too_large):
        where = f"{path}: the size of {too_large['name'].iloc[0]!r}"
        raise UserError(f"{where} is above {MOST_PIXELS:,} pixels; {AGAIN}")
    for column in _PATH_COLUMNS:
        for value in rows[column]:
            if not is_local(value) or (not value and column != "label"):
                problem = (
                    f"the {column} {shortened(value, 300)!r} is not a path below {path.parent}"
                )
                raise UserError(f"{path}: {problem}; {AGAIN}")
    repeated = rows.duplicated(["split", "name"])
    if repeated.any():
        raise UserError(f"{path}: {rows['name'][repeated].iloc[0]!r} is listed twice")


class PreparedImages:
    """One split ("train" or "val") of a prepared data set, in the manifest's order, for PyTorch.

    Has the images' `names` and `sizes`, (height, width) in pixels. Without `with_labels` no label
    map is ever opened, and `num_classes` is None. A UserError if the manifest is missing or broken
    or lacks the split or a wanted label.
    """

    def __init__(self, folder: Path, split: str, with_labels: bool):
        self.folder = Path(folder)
        self.with_labels, self.split = with_labels, split
        manifest = read_manifest(self.folder)
        rows = manifest[manifest["split"] == split]
        _check_rows(self.folder / MANIFEST, split, rows, manifest, with_labels)
        self.names: list[str] = rows["name"].tolist()
        self.sizes: list[tuple[int, int]] = list(zip(rows["height"], rows["width"], strict=True))
        # K, of which the label maps' train ids are.
        self.num_classes = read_label_space(self.folder).num_classes if with_labels else None
        self._images: list[str] = rows["image"].tolist()
        self._labels: list[str] = rows["label"].tolist()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None, str]:
        """An image uint8 [3, H, W], its train ids uint8 [h, w] (255 = ignored) or None, its name.

        The label map has the image's size, or its own if it was prepared so. A UserError if a file
        is missing or damaged, or not of the manifest's size.
        """
        import torch  # slow to import, and reading the manifest needs none

        path = self.folder / self._images[index]
        image = torch.from_numpy(read_image(path))  # (H, W, 3)
        size, expected = tuple(image.shape[:2]), self.sizes[index]
        if size != expected:
            problem = f"height and width are {size}, {MANIFEST} has {expected}"
            raise UserError(f"{path}: {problem}; prepare the data set again")
        labels = None
        if self.with_labels:
            size = expected if self.split == "train" else None
            path = self.folder / self._labels[index]
            (labels,) = read_train_ids([path], self.num_classes, size)
            labels = torch.from_numpy(labels)  # (h, w)
        return image.permute(2, 0, 1).contiguous(), labels, self.names[index]

    def batches(self, size: int, indices: Sequence[int] | None = None) -> list[list[int]]:
        """Cut indices (None: all), in order, into batches of one size, for any process count."""
        runs = groupby(range(len(self)) if indices is None else indices, self.sizes.__getitem__)
        groups = (list(run) for _, run in runs)
        return [run[i : i + size] for run in groups for i in range(0, len(run), size)]


def _check_rows(path: Path, split: str, rows, manifest, with_labels: bool) -> None:
    if rows.empty:
        splits = ", ".join(sorted(manifest["split"].unique())) or "none"
        raise UserError(f"{path}: no image of the split '{split}'; splits found: {splits}")
    unlabelled = rows["name"][rows["label"] == ""]
    if with_labels and len(unlabelled):
        problem = f"{unlabelled.iloc[0]!r} of the split '{split}' has no label map"
        remedy = "labels are needed here; prepare the data set with its labels"
        raise UserError(f"{path}: {problem}; {remedy}")
