"""A few images of each domain in the prepared form, before `prepare` has run.

They are the user's, or scenes where the pipeline renders them or the raw data are not there yet.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cag.config.datasets import Source, Target
from cag.datasets.labels import ClassMap, LabelSpace
from cag.datasets.layouts import Split, list_split, splits
from cag.datasets.preparation import (
    Item,
    domain_class_map,
    prepare_split,
    prepared_bytes,
    without_mismatched,
    write_manifest,
)
from cag.datasets.prepared import evenly_spaced
from cag.project.raw_data import COMPLETE
from cag.runtime.files import data_root, inside, used_bytes
from cag.runtime.overlap import cores
from cag.scenes import CLASSES, write_dataset

SAMPLED = 4  # images of a split
LOOKS = {"simulator": "source", "camera": "target"}  # as `cag.scenes` names them


class Images(NamedTuple):
    """The images of a split, as `prepare` will write them."""

    count: int
    size: tuple[int, int]  # height, width; of the first, if they differ
    bytes: int  # of the files, with the label maps
    seconds: float  # that making them takes on all cores


class _Raw(NamedTuple):
    count: int  # of the whole split
    items: list[Item]
    folder: Path
    class_map: ClassMap
    label_size: str
    is_real: bool = True


def sample_domain(domain: str, config: Source | Target, out: Path) -> dict[str, Images]:
    """Write a prepared data set of a few images of a domain to `out`, and describe its splits.

    UserError: the raw data cannot be read, or are missing and not of a number and a size that is
    known.
    """
    class_map = domain_class_map(config.class_map)
    tables, found = [], {}
    for split in splits(domain, config):
        began = time.monotonic()
        raw = _raw(domain, config, split, out / "raw", class_map)
        rendered, began = time.monotonic() - began, time.monotonic()
        form = (out, split.name, raw.class_map, config.size, raw.label_size)
        rows = prepare_split(raw.items, raw.folder, *form)
        share = raw.count / len(rows)
        seconds = (time.monotonic() - began) * min(SAMPLED, cores()) / cores()
        if config.layout == "scenes":
            seconds += rendered / cores()
        size = tuple(map(int, rows[["height", "width"]].iloc[0]))
        written = sum(used_bytes(out / kind / split.name) for kind in ("images", "labels")) * share
        if not raw.is_real:
            written = prepared_bytes(raw.count * size[0] * size[1])
        found[split.name] = Images(raw.count, size, round(written), seconds * share)
        tables.append(rows)
    write_manifest(out, pd.concat(tables, ignore_index=True), class_map.label_space)
    return found


def _raw(
    domain: str, config: Source | Target, split: Split, folder: Path, class_map: ClassMap
) -> _Raw:
    """A sample of a split's raw images."""
    if config.layout == "scenes":
        count = config.images if split.name == "train" else config.val_images
        look = getattr(config, "look", "camera")
        items = _rendered(folder, split, LOOKS.get(look, look), count, config.size)
        return _Raw(count, items, folder, class_map, split.label_size)
    data = inside(data_root(), config.folder)
    count = COMPLETE.get((config.layout, split.name))
    if data.is_dir() or count is None or config.size is None:
        items = list_split(data, split)
        chosen = [items[index] for index in evenly_spaced(len(items), SAMPLED)]
        if split.drop_mismatched:
            chosen, _ = without_mismatched(chosen, data)
        return _Raw(len(items), chosen, data, class_map, split.label_size)
    scenes = Split(split.name, f"{split.name}/images", split.labels and f"{split.name}/labels")
    items = _rendered(folder, scenes, domain, count, (128, 256))
    return _Raw(count, items, folder, _any_classes(class_map.label_space), "prepared", False)


def _rendered(
    folder: Path, split: Split, look: str, count: int, size: tuple[int, int]
) -> list[Item]:
    write_dataset(folder / split.name, look, 0, min(SAMPLED, count), *size)
    return list_split(folder, split)


def _any_classes(space: LabelSpace) -> ClassMap:
    """The scenes' labels spread over other classes."""
    return ClassMap(space, {value: i % space.num_classes for i, value in enumerate(CLASSES)}, True)
