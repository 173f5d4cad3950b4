"""Measure each stage's peak memory and time against the number of images, without DVC.

Every stage runs as a program of its own on small labelled images, a thousand and then ten thousand
of each domain. Exit status 1: a stage takes over 10 % more memory for ten times the images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import numpy as np
import pandas as pd
import yaml
from PIL import Image

from cag.datasets.images import write_image
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file
from cag.runtime.program import run

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 32, 64
DRAWN_AT_ONCE = 500
VALIDATION_SHARE = 10  # training images for each validation image
BATCH_SIZE = 4
MOST_GROWTH = 1.10
SKY, BUILDING, ROAD = 23, 11, 7  # raw label values
COLORS = np.zeros((256, 3), np.int16)
COLORS[[SKY, BUILDING, ROAD]] = [[130, 170, 210], [120, 90, 70], [80, 75, 90]]
LOOKS = {"source": 0, "target": -30}  # what is added to the colours
POLL_SECONDS, WORKER_SECONDS = 0.05, 0.5
# The kernel counts for a process what the one that forked it had: this one has next to nothing.
LAUNCHER = """
import json, resource, subprocess, sys
with open(sys.argv[1], "wb") as log:
    code = subprocess.call(sys.argv[2:], stdout=log, stderr=log)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


class Stage(NamedTuple):
    """A program, and how many images it goes through when each domain has n for training."""

    name: str
    arguments: list[str]
    images: Callable[[int], int]


def validation(count: int) -> int:
    """Number of validation images beside so many training images."""
    return -(-count // VALIDATION_SHARE)


def stages(iterations: int) -> list[Stage]:
    """The programs that `dvc.yaml` starts, for one round, and the check of the data."""

    def stage(name: str, command: str, images: Callable[[int], int]) -> Stage:
        return Stage(name, ["-m", *f"stages.{command}".split()], images)

    check = ["-c", "from cag.cli import main; main()", "data", "check", "--partial"]
    drawn = iterations * BATCH_SIZE
    return [
        Stage("cag data check", check, lambda n: 2 * n + validation(n)),
        stage("index", "index", lambda n: 2 * n + validation(n)),
        stage("prepare@source", "prepare source", lambda n: n),
        stage("prepare@target", "prepare target", lambda n: n + validation(n)),
        stage("pretrain", "pretrain", lambda n: drawn),
        stage("warmup", "warmup", lambda n: 2 * drawn),
        stage("extract", "extract round1 warmup", lambda n: 2 * n),
        stage("anchors", "anchors round1 round1", lambda n: n),
        stage("pseudo_label", "pseudo_label round1", lambda n: n),
        stage("evaluate_pseudo_labels", "evaluate_pseudo_labels round1 warmup", validation),
        stage("adapt", "adapt round1 warmup", lambda n: 2 * drawn),
        stage("evaluate", "evaluate round1", validation),
        stage("report", "report", lambda n: n + validation(n)),
    ]


# The project


def draw(count: int, seed: int) -> np.ndarray:
    """Label maps uint8 [count, H, W] of raw values: sky, a row of buildings, road."""
    rng = np.random.default_rng(seed)
    roofs = rng.integers(4, 14, (count, 1, WIDTH // 8)).repeat(8, axis=2)
    kerbs = rng.integers(18, 26, (count, 1, 1))
    rows = np.arange(HEIGHT)[:, None]
    return np.where(rows < roofs, SKY, np.where(rows < kerbs, BUILDING, ROAD)).astype(np.uint8)


def write_images(images: Path, labels: Path | None, count: int, look: str, seed: int) -> None:
    """Write noisy pictures, and their label maps unless `labels` is None."""
    rng = np.random.default_rng(seed)
    for folder in filter(None, (images, labels)):
        folder.mkdir(parents=True)
    for first in range(0, count, DRAWN_AT_ONCE):
        maps = draw(min(DRAWN_AT_ONCE, count - first), seed + first)  # (N, H, W)
        noise = rng.integers(-20, 20, (*maps.shape, 3), np.int16)
        pictures = (COLORS[maps] + LOOKS[look] + noise).clip(0, 255).astype(np.uint8)
        for number, (picture, label) in enumerate(zip(pictures, maps, strict=True), first):
            write_image(images / f"{number:06}.png", picture)
            if labels is not None:
                Image.fromarray(label).save(labels / f"{number:06}.png", compress_level=1)


def parameters(iterations: int) -> dict:
    """Those of the scenes, with a small network, short trainings and folders of images."""
    params = yaml.safe_load((ROOT / "presets/scenes.yaml").read_text(encoding="utf-8"))
    both = {"layout": "folder", "class_map": "classes/cityscapes.yaml", "size": [HEIGHT, WIDTH]}
    params["source"] = {**both, "folder": "source", "images": "images", "labels": "labels"}
    params["target"] = {
        **both,
        "folder": "target",
        "images": "images",
        "val_images": "val/images",
        "val_labels": "val/labels",
    }
    params["rounds"] = {"round1": {"teacher": "warmup", "anchors": "round1"}}
    params["evaluated"] = ["round1"]
    options = {"encoder_depth": 3, "decoder_channels": 16}
    params["network"] |= {"encoder": "mobilenet_v2", "options": options}
    for training in ("pretrain", "warmup", "adapt"):
        params[training] |= {"iterations": iterations, "batch_size": BATCH_SIZE}
        params[training]["augmentation"]["crop"] = [HEIGHT, WIDTH]
    params["extract"]["batch_size"] = 16
    # No threshold that so short a training could miss.
    params["anchors"] |= {"min_pixels": 1, "min_recall": 0.0}
    params["pseudo_label"] |= {"relative_margin": 0.0, "agreement": False}
    return params


def make_project(folder: Path, count: int, iterations: int) -> None:
    """Make a project of `count` training images in each domain."""
    for name in ("cag", "stages", "classes"):
        (folder / name).symlink_to(ROOT / name)
    text = yaml.safe_dump(parameters(iterations))
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    source, target = (folder / "data/raw" / domain for domain in LOOKS)
    write_images(source / "images", source / "labels", count, "source", seed=1)
    write_images(target / "images", None, count, "target", seed=2)
    val = target / "val"
    write_images(val / "images", val / "labels", validation(count), "target", seed=3)


# The measurement


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, directly or not."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in map(int, children.read_text().split()):
                yield child
                yield from descendants(child)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory now; 0 if it has ended."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def measure(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a Python program in a project; return its wall time and CPU time in s, and peak in MB.

    The peak is the kernel's own record for the largest of its processes or, where it has workers,
    the largest sum over its processes at one of the looks taken every 0.05 s, if that is more. A
    worker is a process that lives for half a second: not one that is forked to start a command, and
    until then shares its parent's memory.

    Raises:
        UserError: It fails.
    """
    # One thread: several would wait for each other at tensors as small as these.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "CAG_DATA": "data/raw"}
    log, peak, first_seen = folder / "log.txt", 0, {}
    command = [sys.executable, "-c", LAUNCHER, str(log), sys.executable, *arguments]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as launcher:
        while launcher.poll() is None:
            now = time.monotonic()
            processes = {pid: first_seen.setdefault(pid, now) for pid in descendants(launcher.pid)}
            old = [pid for pid, start in processes.items() if now - start >= WORKER_SECONDS]
            if len(old) > 1:
                peak = max(peak, sum(map(resident, old)))
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        code, cpu_seconds, kibibytes = json.loads(launcher.stdout.read())
    if code:
        said = log.read_text(encoding="utf-8").splitlines()
        raise UserError(f"{' '.join(arguments)} failed: {said[-1] if said else code}")
    return seconds, cpu_seconds, max(peak, 1024 * kibibytes) / 1e6


def run_stages(count: int, iterations: int) -> Iterator[dict]:
    """Run all stages on `count` images of each domain; yield a row of the table for each."""
    with TemporaryDirectory(prefix="cag-memory-") as name:
        folder = Path(name)
        make_project(folder, count, iterations)
        for stage, arguments, images in stages(iterations):
            seconds, cpu_seconds, megabytes = measure(arguments, folder)
            print(
                f"{count:>7} images  {stage:<15}{megabytes:7.0f} MB {seconds:7.1f} s, "
                f"CPU {cpu_seconds:.1f} s",
                flush=True,
            )
            rate = images(count) / seconds
            yield {"stage": stage, "n": count, "MB": megabytes, "s": seconds, "images/s": rate}


# The outcome


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each stage as text: memory, its ratio, time and throughput at each size."""
    counts = rows["n"].unique()
    names = rows["stage"].unique()
    wide = rows.pivot(index="stage", columns="n").loc[names]
    columns = {"stage": list(names)}
    columns |= {f"MB at {n:,}": wide["MB", n].map("{:.0f}".format) for n in counts}
    columns["ratio"] = growth(rows).loc[names].map("{:.2f}".format)
    columns |= {f"s at {n:,}": wide["s", n].map("{:.1f}".format) for n in counts}
    columns |= {f"images/s at {n:,}": wide["images/s", n].map("{:,.0f}".format) for n in counts}
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def growth(rows: pd.DataFrame) -> pd.Series:
    """Each stage's memory for most images over that for fewest."""
    memory = rows.pivot(index="stage", columns="n", values="MB")
    return memory[memory.columns.max()] / memory[memory.columns.min()]


def markdown(texts: pd.DataFrame) -> str:
    """A table of texts in Markdown, aligned; all but the first column to the right."""
    widths = [max(map(len, [name, *texts[name]])) for name in texts]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [list(texts.columns), rule, *texts.values.tolist()]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw memory and time against the number of images, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = {"MB": "peak memory, MB", "s": "time, s"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, (stage, line) in enumerate(rows.groupby("stage", sort=False)):
            style = {"color": f"C{number % 10}", "marker": "os"[number // 10], "markersize": 4}
            axes.loglog(line["n"], line[key], label=stage, **style)
        axes.set(xlabel="training images of each domain", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


@click.command(help=__doc__)
@click.option("--images", default="1000,10000", show_default=True, help="Numbers, with commas.")
@click.option("--iterations", default=20, show_default=True, help="Of each training.")
@click.option(
    "--out", default="benchmarks/memory.png", show_default=True, type=click.Path(path_type=Path)
)
def main(images: str, iterations: int, out: Path) -> None:
    """Print the table and draw the picture."""
    counts = sorted(map(int, images.split(",")))
    rows = pd.DataFrame([row for count in counts for row in run_stages(count, iterations)])
    print(markdown(table(rows)))
    plot(rows, out)
    grown = growth(rows).loc[lambda ratio: ratio > MOST_GROWTH]
    if len(grown):
        found = ", ".join(f"{stage} x {ratio:.2f}" for stage, ratio in grown.items())
        raise UserError(f"memory grows with the images: {found}; expected at most {MOST_GROWTH}")


if __name__ == "__main__":
    run(main)
