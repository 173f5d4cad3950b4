"""Compare the reduced with the full feature store: disk, time of each step, and the labels.

A network is trained shortly on the built-in scenes. Then, for each form of the store, the target is
extracted, labelled, given to DVC, and labelled again with four thresholds. The second table stores
the numbers of a few images in other forms and with other filters. The last lines say what the span
of the anchors leaves out of other means: the class means of single images.

Seconds are those of the processors, which other programs change little. Exits with status 1 if
`pseudo_label` reads more than an eighth of the bytes that it would read of float16.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import h5py
import hdf5plugin
import numpy as np
import torch
from torch import Tensor

from benchmarks import ROOT  # noqa: F401
from benchmarks.measure import alternating_seconds, machine, table
from benchmarks.miniature import copy_project, merged, scenes_params, write_params
from cag.anchors import read_anchors
from cag.config.base import RULES
from cag.datasets.images import read_label
from cag.datasets.labels import IGNORE
from cag.features import (
    COMPRESSION,
    TARGET_ROWS,
    TargetStore,
    open_store,
    read_anchor_statistics,
    read_array,
    read_target_images,
    read_target_store,
)
from cag.projection import Projection
from cag.pseudo_labels import anchor_distances, anchor_margins, relative_margins
from cag.runtime.errors import UserError
from cag.runtime.program import run

# The forms of a store: its directions, and whether it is compressed.
FORMS = {"float16": (None, False), "full": (None, True), "reduced": (40, True)}
FEWER = 8  # times the bytes of float16 that a reduced store's must be fewer
UNCOMPRESSED = """
import runpy, sys
from cag import features
features.COMPRESSION = {}
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
SWEEP = (0.0, 0.01, 0.03, 0.05)  # relative margins
MARGIN = 0.02  # a relative margin that so short a training reaches
FILTERED, READS = 4, 5  # images whose numbers are stored with other filters; times they are read
BITS = 10  # of a float16's fraction
LZ4, ZSTD = (
    dict(hdf5plugin.Blosc(cname=name, clevel=1, shuffle=hdf5plugin.Blosc.BITSHUFFLE))
    for name in ("lz4", "zstd")
)
FILTERS = {
    "none": {},
    "shuffle, gzip": {"shuffle": True, "compression": "gzip", "compression_opts": 1},
    "shuffle, zstd": COMPRESSION,
    "blosc, bitshuffle, lz4": LZ4,
    "blosc, bitshuffle, zstd": ZSTD,
    "bitshuffle, lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
}
CLASSES, MIN_PIXELS, MORE = 19, 10, 20  # of a class in an image; directions of such means
PIXELS = 500  # whose distances to means of single images are compared
CITYSCAPES = 2975 * 256 * 512  # feature pixels of a round at 2048 x 1024


class Column(NamedTuple):
    """The measurements of one form of the store."""

    bytes: int  # of its shards; `pseudo_label` reads them once
    pixels: int
    seconds: dict[str, float]  # by step

    def rows(self) -> dict[str, float]:
        """The numbers of the form's column by row."""
        return {
            "bytes a pixel": self.bytes / self.pixels,
            "GB a round of the preset gta5_to_cityscapes": (
                self.bytes / self.pixels * CITYSCAPES / 1e9
            ),
            "MB that `pseudo_label` reads": self.bytes / 1e6,
            **{f"{step}, s": seconds for step, seconds in self.seconds.items()},
        }


def parameters(size: tuple[int, int], images: int, iterations: int, width: int) -> dict:
    """The preset `scenes` with larger images and wider features."""
    return scenes_params(
        {
            "source": {"images": 4 * images, "size": list(size)},
            "target": {"images": images, "val_images": 1, "size": list(size)},
            "network": {"options": {"decoder_channels": width}},
            "pretrain": {"iterations": iterations},
            "extract": {"batch_size": 2},
            # Thresholds that so short a training reaches.
            "pseudo_label": {"agreement": False, "relative_margin": MARGIN, "probability": 0.3},
        }
    )


def timed(folder: Path, *program: str, compressed: bool = True) -> float:
    """Run a program in a project, and return the processor seconds it takes.

    A UserError says that it failed, with its last line.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = ["-m"] if compressed else ["-c", UNCOMPRESSED]
    done = subprocess.run([sys.executable, *first, *program], cwd=folder, check=False, **output)
    if done.returncode:
        reason = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"`python -m {' '.join(program)}` failed: {reason}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stage_seconds(folder: Path, compressed: bool) -> dict[str, float]:
    """The seconds of each step with the project's parameters."""
    stage, arguments = "stages.extract_target", ("round1", "warmup", "round1")
    commit = "dvc", "commit", "--quiet", "--force", "extract_target@round1"
    return {
        "`extract_target`": timed(folder, stage, *arguments, compressed=compressed),
        "DVC's commit": timed(folder, *commit),
        "`pseudo_label`": timed(folder, "stages.pseudo_label", "round1"),
    }


def sweep_seconds(folder: Path, params: dict) -> float:
    """The seconds that `pseudo_label` takes for all thresholds of a sweep."""
    total = 0.0
    for margin in SWEEP:
        write_params(folder, merged(params, {"pseudo_label": {"relative_margin": margin}}))
        total += timed(folder, "stages.pseudo_label", "round1")
    write_params(folder, params)
    return total


def store_bytes(folder: Path) -> int:
    """The size of a round's target store."""
    return sum(path.stat().st_size for path in (folder / "data/features/round1/target").iterdir())


def comparison(columns: Mapping[str, Column]) -> list[dict[str, str]]:
    """The rows of the table of forms, with the ratios of the others to the reduced form."""
    values = {form: column.rows() for form, column in columns.items()}
    reduced = values["reduced"]
    rows = []
    for name in reduced:
        row = {form: f"{value[name]:.1f}" for form, value in values.items()}
        ratios = {
            f"{form} / reduced": f"{value[name] / reduced[name]:.1f}"
            for form, value in values.items()
            if form != "reduced"
        }
        rows.append({"": name, **row, **ratios})
    return rows


def require_fewer(columns: Mapping[str, Column]) -> None:
    """Raise a UserError unless the reduced form has FEWER times fewer bytes than float16."""
    before, after = (columns[form].bytes for form in ("float16", "reduced"))
    if before < FEWER * after:
        times = f"{before / after:.1f} times as many bytes as reduced"
        raise UserError(f"float16 takes {times}; expected {FEWER} times or more")


def read_labels(folder: Path) -> np.ndarray:
    """The label maps of a round, uint8 [N, 2, H, W]."""
    maps = folder / "data/rounds/round1/pseudo_labels"
    names = sorted(path.name for path in (maps / RULES[0]).glob("*.png"))
    return np.stack([[read_label(maps / rule / name) for rule in RULES] for name in names])


def read_store(folder: Path) -> tuple[TargetStore, Tensor]:
    """A round's target store, and its anchors in the form of its rows."""
    store = read_target_store(folder / "data/features/round1/target.h5", CLASSES)
    anchors = read_anchors(folder / "data/rounds/round1/anchors.npy", CLASSES, store.width)
    return store, store.place(anchors)[0]


def margins(folder: Path) -> Tensor:
    """The margin of each pixel of a store, float32 [N, h, w], in units of the features."""
    store, placed = read_store(folder)
    images = read_target_images(store, store.shards)
    return torch.cat([anchor_margins(image.row[0].float(), placed)[1] for image in images])


def first_numbers(folder: Path) -> np.ndarray:
    """The numbers of a store's first images, float16 or int16 [n, C, h, w]."""
    store, _ = read_store(folder)
    with open_store(store.shards[0][0], TARGET_ROWS) as file:
        return read_array(file, "features", slice(FILTERED)).numpy()


def labelled(numbers: np.ndarray, anchors: Tensor, projection: Projection | None) -> Tensor:
    """Labels of the anchor rule, uint8 [n, h, w], of a store's numbers."""
    features = torch.from_numpy(numbers)
    features = features.float() if projection is None else projection.coordinates(features)
    nearest, first, second = anchor_distances(features, anchors)
    return nearest.masked_fill(relative_margins(first, second) < MARGIN, IGNORE)


def rounded(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers float16 with so many bits of their fraction, to the nearest, ties to even."""
    dropped, raw = BITS - bits, numbers.view(np.uint16).astype(np.uint32)
    odd = (raw >> dropped) & 1
    raw = (raw + (1 << dropped >> 1) - 1 + odd) >> dropped << dropped if dropped else raw
    return raw.astype(np.uint16).view(np.float16)


def read_numbers(path: Path) -> np.ndarray:
    """The numbers in a file that `filtered` wrote."""
    with h5py.File(path, "r") as file:
        return file["x"][:]


def filtered(numbers: np.ndarray, filters: Mapping, folder: Path) -> dict[str, tuple[int, float]]:
    """The bytes that numbers [n, C, h, w] take with each filter, and the seconds to read them.

    Seconds are the processor's, the median of READS readings in turn.
    """
    sizes, readings = [], []
    for number, options in enumerate(filters.values()):
        path = folder / f"filtered-{number}.h5"
        with h5py.File(path, "w") as file:
            chunks = (1, *numbers.shape[1:])
            data = file.create_dataset("x", data=numbers, chunks=chunks, **options)
            sizes.append(data.id.get_storage_size())
        assert np.array_equal(read_numbers(path), numbers)
        readings.append(partial(read_numbers, path))
    seconds = alternating_seconds(readings, READS, warm_up=1, clock=time.process_time)
    return dict(zip(filters, zip(sizes, seconds, strict=True), strict=True))


def filter_rows(full: np.ndarray, reduced: np.ndarray, folder: Path) -> list[dict[str, str]]:
    """A row for each form of the numbers and each filter."""
    (store, placed), width = read_store(folder), full.shape[1]
    anchors = read_anchors(folder / "data/rounds/round1/anchors.npy", CLASSES, width)
    forms = {f"float16, {bits} bits of fraction": rounded(full, bits) for bits in (BITS, 7, 5, 3)}
    labels = {name: labelled(numbers, anchors, None) for name, numbers in forms.items()}
    forms["reduced, int16"] = reduced
    labels["reduced, int16"] = labelled(reduced, placed, store.projection)
    true = next(iter(labels.values()))
    rows = []
    for form, numbers in forms.items():
        differ = (labels[form] != true).float().mean()
        pixels = true.numel()
        for name, (size, seconds) in filtered(numbers, FILTERS, folder).items():
            rows.append(
                {"numbers": form, "filter": name, "bytes a pixel": f"{size / pixels:.1f}"}
                | {"MB an image": f"{size / FILTERED / 1e6:.2f}"}
                | {"labels that differ": f"{differ:.1e}", "million pixels/s": ""}
            )
            rows[-1]["million pixels/s"] = f"{pixels / seconds / 1e6:.1f}"
    return rows


def single_means(folder: Path, full: np.ndarray) -> None:
    """Print what the span leaves out of the class means of single images."""
    projection = read_store(folder)[0].projection
    parts = read_anchor_statistics(folder / "data/features/round1/source.h5", CLASSES)
    statistics = [(part.correct_class_sums, part.correct_class_counts) for part in parts]
    sums, counts = (torch.cat(tensors) for tensors in zip(*statistics, strict=True))
    means = (sums / counts[..., None])[counts >= MIN_PIXELS]  # (M, D)
    means = means[:: max(1, len(means) // PIXELS)]
    columns = torch.from_numpy(full).float().movedim(1, -1).flatten(0, 2)
    pixels = columns[:: max(1, len(columns) // PIXELS)]  # (P, D)
    true = torch.cdist(pixels, means)
    centred = means - projection.origin
    left = centred - centred @ projection.directions.T @ projection.directions
    _, _, leading = torch.linalg.svd(left, full_matrices=False)
    for more in (0, MORE):
        directions = torch.cat([projection.directions, leading[:more]])
        units = torch.cat([projection.units[:-1], projection.units[-1:].expand(more + 1)])
        wider = Projection(projection.origin, directions, units)
        placed, neglected = wider.place(means)
        stored = wider.reduce(pixels.T[None, :, :, None])[0, :, :, 0].T  # (P, r + 1)
        found = torch.cdist(wider.coordinates(stored[..., None])[..., 0], placed)
        wrong = (found - true).abs() / true
        print(
            f"{len(directions)} directions: of {len(means)} class means of single images "
            f"{neglected.median() / true.median():.1%} of a distance is beyond the span; "
            f"a distance is wrong by {wrong.mean():.2%}, at most {wrong.max():.1%}"
        )


def measure_forms(folder: Path, params: dict) -> tuple[dict, dict, dict, dict]:
    """By form: its `Column`, label maps, margins, and the numbers of its first images."""
    columns, labels, found, numbers = {}, {}, {}, {}
    for form, (directions, compressed) in FORMS.items():
        chosen = merged(params, {"extract": {"directions": directions}})
        write_params(folder, chosen)
        seconds = stage_seconds(folder, compressed)
        seconds["a sweep of four thresholds"] = sweep_seconds(folder, chosen)
        seconds["the start alone of a stage"] = timed(folder, "stages.pseudo_label", "--help")
        timed(folder, "stages.pseudo_label", "round1")
        labels[form], found[form] = read_labels(folder), margins(folder)
        numbers[form] = first_numbers(folder)
        columns[form] = Column(store_bytes(folder), found[form].numel(), seconds)
    return columns, labels, found, numbers


@click.command(help=__doc__)
@click.option("--size", default="512,1024", show_default=True, help="Height and width.")
@click.option("--images", default=24, show_default=True, help="Target images.")
@click.option("--iterations", default=60, show_default=True, help="Of the pretraining.")
@click.option("--width", default=256, show_default=True, help="Channels of the features.")
def main(size: str, images: int, iterations: int, width: int) -> None:
    """Print the tables."""
    height, breadth = map(int, size.split(","))
    params = parameters((height, breadth), images, iterations, width)
    with TemporaryDirectory(prefix="cag-stores-") as name:
        folder = Path(name) / "project"
        copy_project(folder, params)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        timed(folder, "dvc", "init", "--quiet", "--force")
        timed(folder, "dvc", "repro", "--quiet", "anchors@round1")
        columns, labels, found, numbers = measure_forms(folder, params)
        filters = filter_rows(numbers["full"], numbers["reduced"], folder)
        single_means(folder, numbers["full"])
    print(f"{images} images of {height} x {breadth}; {machine(torch.device('cpu'))}")
    print(table(comparison(columns)))
    for number, rule in enumerate(RULES):
        differ = labels["full"][:, number] != labels["reduced"][:, number]
        print(f"{rule} labels that differ: {differ.mean():.2e} of the pixels")
    error = (found["full"] - found["reduced"]).abs()
    print(f"error of a margin: mean {error.mean():.1e}, largest {error.max():.1e}")
    print(table(filters))
    require_fewer(columns)


if __name__ == "__main__":
    run(main)
