"""The one prepared form of a data set, which every later stage reads, and how it is made."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from cag.errors import UserError
from cag.files import inside, is_local, require_space, sha256, write_csv, write_json
from cag.images import image_size, read_image, read_label, resize, write_image, write_label
from cag.labels import ClassMap, LabelSpace
from cag.streams import in_order

MANIFEST, CLASSES = "manifest.csv", "classes.json"
_PATH_COLUMNS = ["name", "image", "label"]
COLUMNS = ["split", *_PATH_COLUMNS, "height", "width", "image_sha256", "label_sha256"]
EXCLUDED = "excluded.csv"
EXCLUDED_COLUMNS = ["name", "image_height", "image_width", "label_height", "label_width"]
_BYTES_PER_PIXEL = 2  # of a lightly compressed photograph and its label map


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a raw data set.

    Attributes:
        name: What the prepared files are called: a posix path without extension.
        image: Posix path below the data set's folder.
        label: Posix path below the data set's folder; None where there is no label, or none may be
            opened.
    """

    name: str
    image: str
    label: str | None


def prepare_split(
    items: Sequence[Item],
    folder: Path,
    out: Path,
    split: str,
    class_map: ClassMap,
    size: tuple[int, int] | None = None,
    label_size: Literal["prepared", "own"] = "prepared",
    workers: int | None = None,
    on_item: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """Write one split in the prepared form: images/<split>/ and labels/<split>/ below `out`.

    Images are resized bilinearly with antialiasing, label maps by nearest neighbour. An item
    without a label path gets no label map, and no label of it is opened. At most a few images for
    each worker are in memory. When an item fails nothing of the split is left behind, and the error
    is that of the first bad item in the given order.

    Args:
        items: What to prepare, in the order of the rows.
        folder: The raw data set's folder, which no item may leave.
        out: The prepared folder, which must not have this split yet.
        split: "train" or "val".
        class_map: Translates raw label values to train ids.
        size: (height, width) in pixels of the prepared images; None keeps each image's own.
        label_size: "prepared": the label map gets its image's prepared size; "own": it keeps its
            size, for evaluation at full resolution.
        workers: Number of threads; None for one for each core.
        on_item: Called after each item, in the calling thread.

    Returns:
        The split's rows of the manifest (see `COLUMNS`).

    Raises:
        UserError: A file cannot be read, leaves its folder or has a value outside the class map; an
            image and its label differ in size; two items have one name; or the disk is too full.
    """
    _check_names(items, split)
    require_space(out, _estimated_bytes(items, folder, size), f"the prepared split '{split}'")
    targets = [Path(out) / kind / split for kind in ("images", "labels")]
    for target in targets:
        target.mkdir(parents=True)

    def prepare(item: Item) -> dict:
        return _prepare_item(item, Path(folder), Path(out), split, class_map, size, label_size)

    columns: dict[str, list] = {name: [] for name in COLUMNS}  # a third of the size of many rows
    try:
        with closing(in_order(prepare, items, workers or os.cpu_count() or 1)) as prepared:
            for row in prepared:
                for name, values in columns.items():
                    values.append(row[name])
                if on_item:
                    on_item()
    except BaseException:
        for target in targets:
            shutil.rmtree(target)
        raise
    return pd.DataFrame(columns)


def prepared_bytes(pixels: int) -> int:
    """Bytes that prepared images of so many pixels in sum, and their label maps, take."""
    return pixels * _BYTES_PER_PIXEL


def without_mismatched(
    items: Sequence[Item], folder: Path, workers: int | None = None
) -> tuple[list[Item], pd.DataFrame]:
    """Leave out the images whose size differs from their label's, by the files' headers.

    Args:
        items: With labels.
        folder: The raw data set's folder.
        workers: Number of threads; None for one for each core.

    Returns:
        The items that remain, and a table of the others (see `EXCLUDED_COLUMNS`), sizes in pixels.

    Raises:
        UserError: A file cannot be read or leaves its folder.
    """

    def sizes(item: Item) -> tuple[tuple[int, int], tuple[int, int]]:
        image, label = (inside(folder, path) for path in (item.image, item.label))
        return image_size(image), image_size(label)

    kept, excluded = [], []
    with closing(in_order(sizes, items, workers or os.cpu_count() or 1)) as found:
        for item, (image, label) in zip(items, found, strict=True):
            if image == label:
                kept.append(item)
            else:
                excluded.append([item.name, *image, *label])
    return kept, pd.DataFrame(excluded, columns=EXCLUDED_COLUMNS)


def read_raw_label(item: Item, folder: Path, size: tuple[int, int] | None) -> np.ndarray:
    """Read an item's label as stored.

    Args:
        item: With a label.
        folder: The raw data set's folder.
        size: Height and width that the label must have, its image's; None: any.

    Returns:
        See `images.read_label`.

    Raises:
        UserError: It cannot be read, leaves its folder, or has another size.
    """
    path = inside(folder, item.label)
    raw = read_label(path)
    if size is not None and raw.shape[:2] != size:
        (height, width), (label_height, label_width) = size, raw.shape[:2]
        raise UserError(
            f"{folder / item.image} is {width} x {height} pixels, but its label {path} is "
            f"{label_width} x {label_height}; they must have one size"
        )
    return raw


def require_one_size(rows: pd.DataFrame) -> None:
    """Check that prepared images share one size, which a feature store needs.

    Args:
        rows: Of a split of the manifest.

    Raises:
        UserError: Two of them differ.
    """
    sizes = rows[["height", "width"]]
    other = (sizes != sizes.iloc[0]).any(axis=1)
    if other.any():
        first, second = rows.iloc[0], rows[other].iloc[0]
        raise UserError(
            f"target images of several sizes: {first['name']} is {first['width']} x "
            f"{first['height']} pixels, {second['name']} is {second['width']} x "
            f"{second['height']}; the rounds need one size: set target.size to [height, width]"
        )


def common_size(rows: pd.DataFrame) -> tuple[int, int] | None:
    """The (height, width) that all images of a manifest's rows have, or None."""
    sizes = rows[["height", "width"]].drop_duplicates().to_numpy()
    return (int(sizes[0, 0]), int(sizes[0, 1])) if len(sizes) == 1 else None


def write_manifest(folder: Path, rows: pd.DataFrame, label_space: LabelSpace) -> None:
    """Write manifest.csv and classes.json, which make a folder of prepared files a data set.

    Args:
        folder: The prepared folder.
        rows: What `prepare_split` gave, for all splits.
        label_space: The classes of its label maps.
    """
    write_json(Path(folder) / CLASSES, label_space.to_dict())
    write_csv(Path(folder) / MANIFEST, rows[COLUMNS])


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read a prepared data set's table of images.

    Returns:
        Columns split, name, image, label, height, width, image_sha256, label_sha256; paths are
        posix, below the folder, label is "" where there is none; height and width (int64, pixels)
        are the prepared image's.

    Raises:
        UserError: The manifest is missing, has other columns, sizes that are no numbers, a repeated
            name, or a path that leaves the folder.
    """
    path = Path(folder) / MANIFEST
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro` to prepare the data set") from None
    except (OSError, ValueError) as error:  # what pandas raises for a broken file is a ValueError
        raise UserError(f"{path}: not a readable table ({error}); prepare it again") from error
    _check_manifest(path, rows)
    return rows.astype({"height": "int64", "width": "int64"})


def read_label_space(folder: Path) -> LabelSpace:
    """Read a prepared data set's classes.

    Raises:
        UserError: classes.json is missing or not of the form that `write_manifest` writes.
    """
    path = Path(folder) / CLASSES
    try:
        return LabelSpace.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro` to prepare the data set") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a list of classes ({error}); prepare it again") from error


def read_shared_label_space(source: Path, target: Path) -> LabelSpace:
    """Read the target's classes, which must be the source's: same names, same order.

    Raises:
        UserError: They differ, or cannot be read.
    """
    expected, found = (read_label_space(folder) for folder in (source, target))
    if found.names != expected.names:
        raise UserError(class_difference(expected.names, found.names))
    return found


def class_difference(source: Sequence[str], target: Sequence[str]) -> str:
    """Say how the classes of the two domains differ, and what to do."""
    pairs = list(zip_longest(source, target))
    first = next(i for i, (one, other) in enumerate(pairs) if one != other)
    return (
        f"the source has {len(source)} classes, the target {len(target)}; train id {first} is "
        f"{pairs[first][0]!r} in the source and {pairs[first][1]!r} in the target: give "
        "source.class_map and target.class_map the same classes in the same order"
    )


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices of `count` images spread over all `total`, the first and the last among them."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 (hex) that names a prepared data set's content.

    The manifest and the classes are hashed; they hold the digest of every image and label map.
    """
    digest = hashlib.sha256()
    for name in (MANIFEST, CLASSES):
        try:
            digest.update(f"{name} {sha256(Path(folder) / name)}\n".encode())
        except FileNotFoundError:
            raise UserError(
                f"{Path(folder) / name}: no such file; run `dvc repro` to prepare the data set"
            ) from None
    return digest.hexdigest()


# Preparing


def _check_names(items: Sequence[Item], split: str) -> None:
    if not items:
        raise UserError(f"the split '{split}' has no images; check the data set's folders")
    seen: dict[str, str] = {}
    for item in items:
        if item.name in seen:
            raise UserError(f"{item.image}: has the same name as {seen[item.name]} ({item.name})")
        seen[item.name] = item.image


def _estimated_bytes(items: Sequence[Item], folder: Path, size: tuple[int, int] | None) -> int:
    height, width = size or image_size(inside(folder, items[0].image))
    return prepared_bytes(len(items) * height * width)


def _prepare_item(
    item: Item,
    folder: Path,
    out: Path,
    split: str,
    class_map: ClassMap,
    size: tuple[int, int] | None,
    label_size: str,
) -> dict:
    image = read_image(inside(folder, item.image))  # (H, W, 3)
    labels = None
    if item.label is not None:
        labels = _read_train_ids(item, folder, image.shape[:2], class_map)  # (H, W)
    image = resize(image, size)
    row = {"split": split, "name": item.name, "label": "", "label_sha256": ""}
    row["height"], row["width"] = image.shape[:2]

    row["image"], path = _output(out, "images", split, item.name)
    write_image(path, image)
    row["image_sha256"] = sha256(path)
    if labels is not None:
        if label_size == "prepared":
            labels = resize(labels, size, Image.Resampling.NEAREST)
        row["label"], path = _output(out, "labels", split, item.name)
        write_label(path, labels, class_map.label_space.palette_array)
        row["label_sha256"] = sha256(path)
    return row


def _read_train_ids(
    item: Item, folder: Path, size: tuple[int, int], class_map: ClassMap
) -> np.ndarray:
    raw = read_raw_label(item, folder, size)
    try:
        return class_map.encode(raw)
    except UserError as error:
        raise UserError(f"{folder / item.label}: {error}") from None


def _output(out: Path, kind: str, split: str, name: str) -> tuple[str, Path]:
    """Return the path below `out` for the manifest and the path to write, whose folder exists."""
    relative = f"{kind}/{split}/{name}.png"
    path = inside(out, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    return relative, path


# Checking


def _check_manifest(path: Path, rows: pd.DataFrame) -> None:
    if list(rows.columns) != COLUMNS:
        raise UserError(
            f"{path}: found the columns {', '.join(rows.columns)}; expected {', '.join(COLUMNS)}; "
            "prepare it again"
        )
    for column in ("height", "width"):
        wrong = ~rows[column].str.fullmatch(r"[1-9][0-9]{0,8}")
        if wrong.any():
            raise UserError(
                f"{path}: {column} of {rows['name'][wrong].iloc[0]!r} is "
                f"{rows[column][wrong].iloc[0]!r}; expected a number of pixels; prepare it again"
            )
    for column in _PATH_COLUMNS:
        for value in rows[column]:
            if not is_local(value) or (not value and column != "label"):
                raise UserError(
                    f"{path}: the {column} {value!r} is not a path below {path.parent}; "
                    "prepare it again"
                )
    repeated = rows.duplicated(["split", "name"])
    if repeated.any():
        raise UserError(f"{path}: {rows['name'][repeated].iloc[0]!r} is listed twice")
