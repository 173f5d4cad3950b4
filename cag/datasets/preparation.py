"""How a raw data set becomes a prepared one."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from cag.datasets.images import image_size, read_image, read_label, resize, write_image, write_label
from cag.datasets.labels import IGNORE, ClassMap, LabelSpace, read_class_map
from cag.datasets.prepared import CLASSES, COLUMNS, MANIFEST
from cag.runtime.errors import UserError
from cag.runtime.files import inside, require_space, sha256, write_csv, write_json
from cag.runtime.overlap import cores, in_order

EXCLUDED = "excluded.csv"
EXCLUDED_COLUMNS = ["name", "image_height", "image_width", "label_height", "label_width"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a raw data set."""

    name: str  # of the prepared files: a posix path without extension
    image: str  # posix path below the data set's folder
    label: str | None  # the same; None if there is no label, or if it may not be opened
    turn_by_exif: bool | None = None  # the parameter; None: its layout has none, and images turn

    @property
    def turns(self) -> bool:
        """Whether the image is read as its EXIF orientation says."""
        return self.turn_by_exif is not False


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

    Images are resized to `size`, (height, width) in pixels or None for each image's own, bilinearly
    with antialiasing; label maps by nearest neighbour, or not at all (`label_size` "own"), for
    evaluation at full resolution. Few images are in memory. If an item fails, nothing of the split
    is left; the error is the first bad item's. `on_item` is called after each item, in the calling
    thread. The result is the split's rows of the manifest (`COLUMNS`), in the order of `items`.

    Raises:
        UserError: A file cannot be read, leaves its folder or has a value outside the class map; an
            image and its label differ in size; two items have one name; the labels of all items
            are void; or the disk is too full.
    """
    _check_names(items, split)
    height, width = size or image_size(inside(folder, items[0].image))
    needed = prepared_bytes(len(items) * height * width)
    require_space(out, needed, f"the prepared split '{split}'")
    targets = [Path(out) / kind / split for kind in ("images", "labels")]
    for target in targets:
        target.mkdir(parents=True)

    def prepare(item: Item) -> dict:
        return _prepare_item(item, Path(folder), Path(out), split, class_map, size, label_size)

    columns: dict[str, list] = {name: [] for name in COLUMNS}  # a third of the size of many rows
    void = items[0].label is not None  # until a pixel has a class
    try:
        with closing(in_order(prepare, items, workers or cores())) as prepared:
            for row in prepared:
                for name, values in columns.items():
                    values.append(row[name])
                void &= row["void"]
                if on_item:
                    on_item()
        if void:
            raise UserError(void_labels(folder, split))
    except BaseException:
        for target in targets:
            shutil.rmtree(target)
        raise
    return pd.DataFrame(columns)


def domain_class_map(path: str | Path) -> ClassMap:
    """Read a domain's class map; a UserError, too, if it has a single class."""
    class_map = read_class_map(Path(path))
    if class_map.label_space.num_classes < 2:
        hint = "give all the rest a class, too, such as background, in place of `ignore`"
        raise UserError(f"{path}: classes: there is one, but anchors and margins need two; {hint}")
    return class_map


def void_labels(folder: Path, split: str) -> str:
    """The error message for a split whose label maps hold no pixel of any class."""
    return (
        f"{folder}: no pixel of the split '{split}' has a class: its labels hold only values that "
        "the class map ignores, as those of a test split often do; take other labels or another "
        "class map (or no validation: target.val_images and val_labels null, evaluated [])"
    )


def prepared_bytes(pixels: int) -> int:
    """Estimate the bytes of prepared images with so many pixels in sum, and of their label maps."""
    return 2 * pixels  # a photograph is lightly compressed


def without_mismatched(items: Sequence[Item], folder: Path) -> tuple[list[Item], pd.DataFrame]:
    """Split labelled items by their files' headers: those as large as their label, and the others.

    The others come as a table (`EXCLUDED_COLUMNS`, sizes in pixels). A UserError if a file cannot
    be read or leaves its folder.
    """

    def sizes(item: Item) -> tuple[tuple[int, int], tuple[int, int]]:
        image, label = (inside(folder, path) for path in (item.image, item.label))
        return image_size(image), image_size(label)

    kept, excluded = [], []
    with closing(in_order(sizes, items, cores())) as pairs:
        for item, (image, label) in zip(items, pairs, strict=True):
            if image == label:
                kept.append(item)
            else:
                excluded.append([item.name, *image, *label])
    return kept, pd.DataFrame(excluded, columns=EXCLUDED_COLUMNS)


def read_raw_label(
    item: Item, folder: Path, size: tuple[int, int] | None, colors: bool = False
) -> np.ndarray:
    """Read an item's label below the raw data set's folder with `read_label`.

    A UserError if it cannot be read, leaves the folder, or has not the image's `size` (None: any).
    """
    path = inside(folder, item.label)
    raw = read_label(path, colors)
    if size is not None and raw.shape[:2] != size:
        image = f"{folder / item.image} is {size[1]} x {size[0]} pixels"
        label = f"its label {path} is {raw.shape[1]} x {raw.shape[0]}"
        is_turned = raw.shape[1::-1] == size and item.turn_by_exif is not None
        hint = " (or, if EXIF data turn the image, another turn_by_exif)" if is_turned else ""
        raise UserError(f"{image}, but {label}; they must have one size{hint}")
    return raw


def require_one_size(rows: pd.DataFrame) -> None:
    """Raise a UserError unless a manifest's rows share one size, as a feature store needs."""
    different = rows.drop_duplicates(["height", "width"])[["name", "width", "height"]]
    if len(different) > 1:
        first, second = ("{} is {} x {}".format(*row) for row in different.values[:2])
        problem = f"target images of several sizes: {first} pixels, {second}"
        remedy = "set target.size to [height, width]"
        raise UserError(f"{problem}; the rounds need one size: {remedy}")


def write_manifest(folder: Path, rows: pd.DataFrame, label_space: LabelSpace) -> None:
    """Complete a prepared data set with manifest.csv, the rows of all splits, and classes.json."""
    write_json(Path(folder) / CLASSES, label_space.to_dict())
    write_csv(Path(folder) / MANIFEST, rows[COLUMNS])


def _check_names(items: Sequence[Item], split: str) -> None:
    if not items:
        raise UserError(f"the split '{split}' has no images; check the data set's folders")
    seen: dict[str, str] = {}
    for item in items:
        if item.name in seen:
            raise UserError(f"{item.image}: has the same name as {seen[item.name]} ({item.name})")
        seen[item.name] = item.image


def _prepare_item(
    item: Item, folder: Path, out: Path, split: str, class_map: ClassMap, size, label_size: str
) -> dict:
    image = read_image(inside(folder, item.image), item.turns)  # (H, W, 3)
    labels = None
    if item.label is not None:
        raw = read_raw_label(item, folder, image.shape[:2], class_map.by_color)
        try:
            labels = class_map.encode(raw)  # (H, W)
        except UserError as error:
            raise UserError(f"{folder / item.label}: {error}") from None
    image = resize(image, size)
    row = {"split": split, "name": item.name, "label": "", "label_sha256": ""}
    row["void"] = labels is not None and bool((labels == IGNORE).all())
    row["height"], row["width"] = image.shape[:2]
    row["image"] = f"images/{split}/{item.name}.png"
    row["image_sha256"] = _write(out, row["image"], write_image, image)
    if labels is not None:
        if label_size == "prepared":
            labels = resize(labels, size, Image.Resampling.NEAREST)
        palette = class_map.label_space.palette_array
        row["label"] = f"labels/{split}/{item.name}.png"
        row["label_sha256"] = _write(out, row["label"], write_label, labels, palette)
    return row


def _write(out: Path, relative: str, write: Callable, *content: np.ndarray) -> str:
    """Write a file below `out`; its SHA-256."""
    path = inside(out, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, *content)
    return sha256(path)
