"""Turn a raw data set into the prepared form: images, train-id label maps, a manifest."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import pandas as pd

from cag.config.base import Section, load_params
from cag.config.datasets import ScenesSource, ScenesTarget, Source, Target
from cag.datasets import preparation
from cag.datasets.checks import refuse_label_maps
from cag.datasets.layouts import describe_files, list_split, passed_over, splits
from cag.runtime.files import atomic_folder, data_root, inside, write_csv
from cag.runtime.interrupts import follow_parent
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.scenes import write_dataset

PREPARED = "data/prepared/{}"
RENDERED = ".scratch/prepare/{}"
SCENES_SEED = 0
LOOKS = {"simulator": "source", "camera": "target"}  # as `cag.scenes` names them
RENDERED_AT_ONCE = 8


class SourceParams(Section):
    """The declared parameters of `prepare source`."""

    source: Source


class TargetParams(Section):
    """The declared parameters of `prepare target`."""

    target: Target


def render_scenes(
    domain: str, config: ScenesSource | ScenesTarget, folder: Path, oracle: bool
) -> None:
    """Write the built-in scenes as an ordinary data set, without labels of target training images.

    For the oracle these have labels, and there are no validation images.
    """
    look = LOOKS.get(config.look, config.look) if domain == "source" else domain
    seed = SCENES_SEED if look == domain else SCENES_SEED + 1  # never the target's own images
    parts = [("train", 0, config.images, domain == "source" or oracle)]
    if domain == "target" and not oracle:
        parts.append(("val", config.images, config.val_images, True))
    total = sum(count for _, _, count, _ in parts)
    with (
        ProcessPoolExecutor(initializer=follow_parent) as pool,
        progress("render scenes", total, "images", 0) as advance,
        ExitStack() as stack,
    ):
        stack.callback(pool.shutdown, cancel_futures=True)  # after an error or an interruption
        futures = {}
        for name, start, count, labels in parts:
            for first in range(start, start + count, RENDERED_AT_ONCE):
                images = min(RENDERED_AT_ONCE, start + count - first)
                chunk = (images, *config.size, first, labels)
                future = pool.submit(write_dataset, folder / name, look, seed, *chunk)
                futures[future] = images
        for future, rendered in futures.items():
            future.result()
            advance(rendered)


@contextmanager
def raw_folder(domain: str, config: Source | Target, oracle: bool = False) -> Iterator[Path]:
    """The raw data set's folder: the user's, or a temporary one of rendered scenes."""
    if config.layout != "scenes":
        yield inside(data_root(), config.folder)
        return
    rendered = Path(RENDERED.format("oracle" if oracle else domain))
    shutil.rmtree(rendered, ignore_errors=True)  # a killed run's
    folder = rendered / str(os.getpid())  # whose last workers may still write
    try:
        render_scenes(domain, config, folder, oracle)
        yield folder
    finally:
        shutil.rmtree(rendered, ignore_errors=True)


def prepare(domain: str, config: Source | Target, raw: Path, out: Path) -> int:
    """Write a domain's splits and manifest; return the number of images."""
    class_map = preparation.domain_class_map(config.class_map)
    parts = []
    for part in splits(domain, config):
        items = list_split(raw, part)
        if part.labels is None:
            refuse_label_maps(items, raw)
        if others := passed_over(raw, part):
            print(
                f"prepare {domain}: passed over, no images by their names: {describe_files(others)}"
            )
        if part.drop_mismatched:
            items, excluded = preparation.without_mismatched(items, raw)
            write_csv(out / preparation.EXCLUDED, excluded)
            listed = f"{PREPARED.format(domain)}/{preparation.EXCLUDED}"
            left_out = f"{len(excluded)} images left out, whose labels differ in size"
            print(f"prepare {domain}: {left_out} ({listed})")
        parts.append((part, items))
    total = sum(len(items) for _, items in parts)
    with progress(f"prepare {domain}", total, "images") as advance:
        tables = []
        for part, items in parts:
            form = (part.name, class_map, config.size, part.label_size)
            tables.append(preparation.prepare_split(items, raw, out, *form, None, advance))
    if domain == "target":
        preparation.require_one_size(tables[0])
    preparation.write_manifest(out, pd.concat(tables, ignore_index=True), class_map.label_space)
    return total


@click.command(help=__doc__)
@click.argument("domain", type=click.Choice(["source", "target"]))
def main(domain: str) -> None:
    """Write `data/prepared/<domain>/`."""
    params = load_params(SourceParams if domain == "source" else TargetParams)
    config = getattr(params, domain)
    out = Path(PREPARED.format(domain))
    with raw_folder(domain, config) as raw, atomic_folder(out) as partial:
        prepare(domain, config, raw, partial)


if __name__ == "__main__":
    run_stage(main)
