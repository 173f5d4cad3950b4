"""Compare the reduced with the full feature store: disk, time of each step, and the labels.

A network is trained shortly on the built-in scenes. Then, for each form of the store, the target is
extracted, labelled, given to DVC, and labelled again with four thresholds.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch

from benchmarks import ROOT  # noqa: F401
from benchmarks.measure import machine, table
from benchmarks.miniature import copy_project, merged, scenes_params, write_params
from cag.anchors import read_anchors
from cag.config.base import RULES
from cag.datasets.images import read_label
from cag.features import read_target_images, read_target_store
from cag.pseudo_labels import anchor_margins
from cag.runtime.errors import UserError
from cag.runtime.program import run

FULL, CONFIGURED = None, 40  # directions
SWEEP = (0.0, 0.01, 0.03, 0.05)  # relative margins
CITYSCAPES = 2975 * 256 * 512  # feature pixels of a round at 2048 x 1024


def parameters(size: tuple[int, int], images: int, iterations: int, width: int) -> dict:
    """The preset `scenes` with larger images and wider features."""
    return scenes_params(
        {
            "source": {"size": list(size)},
            "target": {"images": images, "val_images": 1, "size": list(size)},
            "network": {"options": {"decoder_channels": width}},
            "pretrain": {"iterations": iterations},
            "extract": {"batch_size": 2},
            # Thresholds that so short a training reaches.
            "pseudo_label": {"agreement": False, "relative_margin": 0.02, "probability": 0.3},
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


def margins(folder: Path, num_classes: int) -> torch.Tensor:
    """The margin of each pixel of a store, float32 [N, h, w], in units of the features."""
    store = read_target_store(folder / "data/features/round1/target.h5", num_classes)
    anchors = read_anchors(folder / "data/rounds/round1/anchors.npy", num_classes, store.width)
    placed, _ = store.place(anchors)
    images = read_target_images(store, store.shards)
    return torch.cat([anchor_margins(image.row[0].float(), placed)[1] for image in images])


@click.command(help=__doc__)
@click.option("--size", default="512,1024", show_default=True, help="Height and width.")
@click.option("--images", default=24, show_default=True, help="Target images.")
@click.option("--iterations", default=60, show_default=True, help="Of the pretraining.")
@click.option("--width", default=256, show_default=True, help="Channels of the features.")
def main(size: str, images: int, iterations: int, width: int) -> None:
    """Print the tables."""
    height, breadth = map(int, size.split(","))
    params = parameters((height, breadth), images, iterations, width)
    columns, labels, found = {}, {}, {}
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
            labels[form], found[form] = read_labels(folder), margins(folder, 19)
            columns[form] = store_bytes(folder), seconds
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


if __name__ == "__main__":
    run(main)
