"""Compare the reduced with the full feature store: disk, time of each step, and the labels.

A network is trained shortly on the built-in scenes. Then, for each form of the store, the target is
extracted, labelled, given to DVC, and labelled again with four thresholds. The second table stores
the numbers of a few images in other forms and with other filters. The last lines say what the span
of the anchors leaves out of other means: the class means of single images.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import h5py
import hdf5plugin
import numpy as np
import torch
from torch import Tensor

from benchmarks import ROOT  # noqa: F401
from benchmarks.measure import machine, table
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

FULL, CONFIGURED = None, 40  # directions
SWEEP = (0.0, 0.01, 0.03, 0.05)  # relative margins
MARGIN = 0.02  # a relative margin that so short a training reaches
FILTERED = 4  # images whose numbers are stored with other filters
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
}
CLASSES, MIN_PIXELS, MORE = 19, 10, 20  # of a class in an image; directions of such means
PIXELS = 500  # whose distances to means of single images are compared
CITYSCAPES = 2975 * 256 * 512  # feature pixels of a round at 2048 x 1024


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


def timed(folder: Path, *program: str) -> float:
    """Run a program in a project, and return the seconds it takes.

    A UserError says that it failed, with its last line.
    """
    began = time.perf_counter()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([sys.executable, "-m", *program], cwd=folder, check=False, **output)
    if done.returncode:
        reason = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"`python -m {' '.join(program)}` failed: {reason}")
    return time.perf_counter() - began


def stage_seconds(folder: Path) -> dict[str, float]:
    """The seconds of each step with the project's parameters."""
    stage = "extract_target"
    return {
        stage: timed(folder, f"stages.{stage}", "round1", "warmup", "round1"),
        "DVC's commit": timed(folder, "dvc", "commit", "--quiet", "--force", f"{stage}@round1"),
        "pseudo_label": timed(folder, "stages.pseudo_label", "round1"),
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


def filtered(numbers: np.ndarray, options: dict, folder: Path) -> tuple[int, float]:
    """The bytes that numbers [n, C, h, w] take with a filter, and the seconds to read them."""
    path = folder / "filtered.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=numbers, chunks=(1, *numbers.shape[1:]), **options)
        size = data.id.get_storage_size()
    with h5py.File(path, "r") as file:
        began = time.perf_counter()
        assert np.array_equal(file["x"][:], numbers)
        return size, time.perf_counter() - began


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
        for name, options in FILTERS.items():
            size, seconds = filtered(numbers, options, folder)
            pixels = true.numel()
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


@click.command(help=__doc__)
@click.option("--size", default="512,1024", show_default=True, help="Height and width.")
@click.option("--images", default=24, show_default=True, help="Target images.")
@click.option("--iterations", default=60, show_default=True, help="Of the pretraining.")
@click.option("--width", default=256, show_default=True, help="Channels of the features.")
def main(size: str, images: int, iterations: int, width: int) -> None:
    """Print the tables."""
    height, breadth = map(int, size.split(","))
    params = parameters((height, breadth), images, iterations, width)
    columns, labels, found, numbers = {}, {}, {}, {}
    with TemporaryDirectory(prefix="cag-stores-") as name:
        folder = Path(name) / "project"
        copy_project(folder, params)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        timed(folder, "dvc", "init", "--quiet", "--force")
        timed(folder, "dvc", "repro", "--quiet", "anchors@round1")
        for form, directions in (("full", FULL), ("reduced", CONFIGURED)):
            chosen = merged(params, {"extract": {"directions": directions}})
            write_params(folder, chosen)
            seconds = stage_seconds(folder)
            seconds["four thresholds"] = sweep_seconds(folder, chosen)
            timed(folder, "stages.pseudo_label", "round1")
            labels[form], found[form] = read_labels(folder), margins(folder)
            numbers[form] = first_numbers(folder)
            columns[form] = store_bytes(folder), seconds
        filters = filter_rows(numbers["full"], numbers["reduced"], folder)
        single_means(folder, numbers["full"])
    pixels = found["full"].numel()
    rows = [{"": "bytes a pixel"} | {form: f"{b / pixels:.1f}" for form, (b, _) in columns.items()}]
    rows.append(
        {"": "GB a round of the preset gta5_to_cityscapes"}
        | {form: f"{b / pixels * CITYSCAPES / 1e9:.1f}" for form, (b, _) in columns.items()}
    )
    for step in columns["full"][1]:
        rows.append(
            {"": f"{step}, s"} | {form: f"{s[step]:.1f}" for form, (_, s) in columns.items()}
        )
    for row in rows:
        row["full / reduced"] = f"{float(row['full']) / float(row['reduced']):.1f}"
    print(f"{images} images of {height} x {breadth}; {machine(torch.device('cpu'))}")
    print(table(rows))
    for number, rule in enumerate(RULES):
        differ = labels["full"][:, number] != labels["reduced"][:, number]
        print(f"{rule} labels that differ: {differ.mean():.2e} of the pixels")
    error = (found["full"] - found["reduced"]).abs()
    print(f"error of a margin: mean {error.mean():.1e}, largest {error.max():.1e}")
    print(table(filters))


if __name__ == "__main__":
    run(main)
