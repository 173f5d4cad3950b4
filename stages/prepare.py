"""Turn a raw data set into the prepared form: images, train-id label maps, a manifest."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import pandas as pd

from cag.config import FolderSource, FolderTarget, ScenesSource, ScenesTarget, load_params
from cag.datasets import list_folder, prepare_split, write_manifest
from cag.files import atomic_folder, data_root, inside
from cag.labels import read_class_map
from cag.scenes import write_dataset
from cag.stage import progress, run

PREPARED = "data/prepared/{}"
RENDERED = ".scratch/prepare/{}"
SCENES_SEED = 0
RENDERED_AT_ONCE = 8

Config = FolderSource | FolderTarget | ScenesSource | ScenesTarget


class Split(NamedTuple):
    """A split and its folders; `labels` None: none is opened."""

    name: str
    images: str
    labels: str | None
    label_size: str


def splits(domain: str, config: Config) -> list[Split]:
    """What is prepared of a domain: of target training images never a label."""
    if config.layout == "scenes":
        train, val = ("train/images", "train/labels"), ("val/images", "val/labels")
    elif domain == "source":
        train = (config.images, config.labels)
    else:
        train, val = (config.images, None), (config.val_images, config.val_labels)
    if domain == "source":
        return [Split("train", *train, "prepared")]
    validation = [Split("val", *val, "own")] if config.has_validation else []
    return [Split("train", train[0], None, "prepared"), *validation]


def render_scenes(
    domain: str, config: ScenesSource | ScenesTarget, folder: Path, oracle: bool
) -> None:
    """Write the built-in scenes as an ordinary data set; target training images get no labels.

    For the oracle they do, and the validation images are left out.
    """
    parts = [("train", 0, config.images, domain == "source" or oracle)]
    if domain == "target" and not oracle:
        parts.append(("val", config.images, config.val_images, True))
    tasks = [
        (folder / name, first, min(RENDERED_AT_ONCE, start + count - first), labels)
        for name, start, count, labels in parts
        for first in range(start, start + count, RENDERED_AT_ONCE)
    ]
    height, width = config.size
    total = sum(task[2] for task in tasks)
    with ProcessPoolExecutor() as pool, progress("render scenes", total, "images") as advance:
        futures = [
            pool.submit(write_dataset, path, domain, SCENES_SEED, count, height, width, first, lab)
            for path, first, count, lab in tasks
        ]
        for future, task in zip(futures, tasks, strict=True):
            future.result()
            advance(task[2])


@contextmanager
def raw_folder(domain: str, config: Config, oracle: bool = False) -> Iterator[Path]:
    """The raw data set's folder: the user's, or a temporary one of rendered scenes."""
    if config.layout == "folder":
        yield inside(data_root(), config.folder)
        return
    folder = Path(RENDERED.format("oracle" if oracle else domain))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        render_scenes(domain, config, folder, oracle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(domain: str, config: Config, raw: Path, out: Path) -> int:
    """Write a domain's splits and manifest; return the number of images."""
    class_map = read_class_map(Path(config.class_map))
    parts = [(part, list_folder(raw, part.images, part.labels)) for part in splits(domain, config)]
    total = sum(len(items) for _, items in parts)
    size = config.size if config.size is None else tuple(config.size)
    with progress(f"prepare {domain}", total, "images") as advance:
        tables = [
            prepare_split(
                items,
                raw,
                out,
                part.name,
                class_map,
                size,
                part.label_size,
                workers=os.cpu_count(),
                on_item=advance,
            )
            for part, items in parts
        ]
    write_manifest(out, pd.concat(tables, ignore_index=True), class_map.label_space)
    return total


@click.command(help=__doc__)
@click.argument("domain", type=click.Choice(["source", "target"]))
def main(domain: str) -> None:
    """Write `data/prepared/<domain>/`."""
    config = getattr(load_params(domain), domain)
    with (
        raw_folder(domain, config) as raw,
        atomic_folder(Path(PREPARED.format(domain))) as partial,
    ):
        prepare(domain, config, raw, partial)


if __name__ == "__main__":
    run(main)
