"""Measure each stage's peak memory and time against the number of images, without DVC.

Each stage runs as a separate program on small labelled images: a thousand of each domain, and
beside it ten thousand. Exit status 1: a stage takes over 10 % more memory for ten times the images.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pandas as pd
import psutil
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import ROOT
from benchmarks.measure import table
from benchmarks.miniature import LENIENT, scenes_params, write_params
from cag.analysis.plots import save_png
from cag.datasets.images import write_image
from cag.runtime.errors import UserError
from cag.runtime.program import run
from cag.scenes import render

HEIGHT, WIDTH = 32, 64
SCENES = 100  # different images of a folder
VALIDATION_SHARE = 10  # training images for each validation image
BATCH_SIZE = 4
MOST_GROWTH = 1.10
POLL_SECONDS, WORKER_SECONDS = 0.05, 0.5
# The kernel's peak of a process includes its parent's memory at the fork; this parent is tiny.
LAUNCHER = """
import json, resource, subprocess, sys
with open(sys.argv[1], "wb") as log:
    code = subprocess.call(sys.argv[2:], stdout=log, stderr=log)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def validation(count: int) -> int:
    """Number of validation images for `count` training images."""
    return -(-count // VALIDATION_SHARE)


def stages(iterations: int) -> Iterator[tuple[str, list[str], Callable[[int], int]]]:
    """The check of the data and the programs of `dvc.yaml` for one round.

    Yields name, arguments, and the number of images for n training images in each domain.
    """
    check = ["-c", "from cag.cli import main; main()", "data", "check", "--partial"]
    drawn = iterations * BATCH_SIZE
    programs = {
        "index": lambda n: 2 * n + validation(n),
        "prepare source": lambda n: n,
        "prepare target": lambda n: n + validation(n),
        "pretrain": lambda n: drawn,
        "warmup": lambda n: 2 * drawn,
        "extract_source round1 warmup": lambda n: n,
        "extract_target round1 warmup round1": lambda n: n,
        "anchors round1 round1": lambda n: n,
        "pseudo_label round1": lambda n: n,
        "evaluate_pseudo_labels round1 warmup": validation,
        "adapt round1 warmup": lambda n: 2 * drawn,
        "watch_start pretrain": lambda n: 2 * min(n, 60),
        "watch_start warmup": lambda n: 2 * min(n, 60),
        "watch round1 warmup": lambda n: 2 * min(n, 60),
        "evaluate round1": validation,
        "report": lambda n: n + validation(n),
    }
    yield "cag data check", check, programs["index"]
    for command, images in programs.items():
        program, *arguments = command.split()
        several = program in ("prepare", "watch_start")
        name = f"{program}@{arguments[0]}" if several else program
        yield name, ["-m", f"stages.{program}", *arguments], images


def write_images(images: Path, labels: Path | None, count: int, look: str) -> None:
    """Write scenes, and their label maps unless `labels` is None."""
    scenes = [render(look, 0, number, HEIGHT, WIDTH) for number in range(min(count, SCENES))]
    for folder in filter(None, (images, labels)):
        folder.mkdir(parents=True)
    for number in range(count):
        picture, label = scenes[number % SCENES]
        write_image(images / f"{number:06}.png", picture)
        if labels is not None:
            Image.fromarray(label).save(labels / f"{number:06}.png", compress_level=1)


def make_project(folder: Path, count: int, iterations: int) -> None:
    """Make a project of `count` training images in each domain, with a small network."""
    both = {"layout": "folder", "class_map": "classes/cityscapes.yaml", "size": [HEIGHT, WIDTH]}
    labelled = {"folder": "source", "images": "images", "labels": "labels"}
    val = {"val_images": "val/images", "val_labels": "val/labels"}
    options = {"encoder_depth": 3, "decoder_channels": 16}
    augmentation = {"crop": [HEIGHT, WIDTH]}
    training = dict(iterations=iterations, batch_size=BATCH_SIZE, augmentation=augmentation)
    changes = {
        **dict.fromkeys(("pretrain", "warmup", "adapt"), training),
        "evaluated": ["round1"],
        "network": {"encoder": "mobilenet_v2", "encoder_weights": None, "options": options},
        "extract": {"batch_size": 16},
        "anchors": LENIENT,
        "pseudo_label": {"relative_margin": 0.0, "agreement": False},
    }
    params = scenes_params(changes) | {
        "source": both | labelled,
        "target": both | {"folder": "target", "images": "images"} | val,
        "rounds": {"round1": {"teacher": "warmup", "anchors": "round1"}},
    }
    for name in ("cag", "stages", "classes"):
        (folder / name).symlink_to(ROOT / name)
    write_params(folder, params)
    source, target = (folder / "data/raw" / domain for domain in ("source", "target"))
    write_images(source / "images", source / "labels", count, "source")
    write_images(target / "images", None, count, "target")
    images, labels = target / "val/images", target / "val/labels"
    write_images(images, labels, validation(count), "target")


def workers_bytes(launcher: int) -> int:
    """Bytes in memory of a process's descendants; 0 if there is only one.

    Programs younger than half a second do not count: a fork that is about to start a command still
    shares its parent's memory.
    """
    sizes, youngest = [], time.time() - WORKER_SECONDS
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has ended
                if process.create_time() <= youngest:
                    sizes.append(process.memory_info().rss)
    return sum(sizes) if len(sizes) > 1 else 0


def measure(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a Python program in a project; return its wall time and CPU time in s, and peak in MB.

    The peak is the greater of two: the kernel's record for the largest process and, with workers,
    the sum over all processes, taken every 0.05 s.

    Raises:
        UserError: The program fails.
    """
    # With tensors as small as these, several threads would wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "CAG_DATA": "data/raw"}
    log, peak = folder / "log.txt", 0
    command = [sys.executable, "-c", LAUNCHER, str(log), sys.executable, *arguments]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as launcher:
        while launcher.poll() is None:
            peak = max(peak, workers_bytes(launcher.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        code, cpu_seconds, kibibytes = json.loads(launcher.stdout.read())
    if code:
        *_, reason = [code, *log.read_text(encoding="utf-8").splitlines()]
        raise UserError(f"{' '.join(arguments)} failed: {reason}")
    return seconds, cpu_seconds, max(peak, 1024 * kibibytes) / 1e6


def run_stages(count: int, iterations: int) -> list[dict]:
    """Run all stages on `count` images of each domain; return a row for each stage."""
    rows = []
    with TemporaryDirectory(prefix="cag-memory-") as name:
        folder = Path(name)
        make_project(folder, count, iterations)
        for stage, arguments, images in stages(iterations):
            seconds, cpu_seconds, megabytes = measure(arguments, folder)
            measured = f"{megabytes:7.0f} MB {seconds:7.1f} s, CPU {cpu_seconds:.1f} s"
            print(f"{count:>7} images  {stage:<15}{measured}", flush=True)
            rate = images(count) / seconds
            row = {"stage": stage, "n": count, "MB": megabytes, "s": seconds, "images/s": rate}
            rows.append(row)
    return rows


def comparison(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A row of texts for each stage: memory, its ratio, time and throughput at each size."""
    ratios, texts = growth(rows), []
    for stage, sizes in rows.set_index("n").groupby("stage", sort=False):
        text = {"stage": stage}
        for column, digits in {"MB": ".0f", "s": ".1f", "images/s": ",.0f"}.items():
            text |= {f"{column} at {n:,}": f"{x:{digits}}" for n, x in sizes[column].items()}
            if column == "MB":
                text["ratio"] = f"{ratios[stage]:.2f}"
        texts.append(text)
    return texts


def growth(rows: pd.DataFrame) -> pd.Series:
    """Each stage's memory with the most images over that with the fewest."""
    memory = rows.pivot(index="stage", columns="n", values="MB")
    return memory.iloc[:, -1] / memory.iloc[:, 0]


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw memory and time against the number of images, both axes logarithmic."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = {"MB": "peak memory, MB", "s": "time, s"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, (stage, line) in enumerate(rows.groupby("stage", sort=False)):
            style = {"color": f"C{number % 10}", "marker": "os"[number // 10], "markersize": 4}
            axes.loglog(line["n"], line[key], label=stage, **style)
        axes.set(xlabel="training images of each domain", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_png(figure, path)


@click.command(help=__doc__)
@click.option("--images", default="1000,10000", show_default=True, help="Numbers, with commas.")
@click.option("--iterations", default=20, show_default=True, help="Of each training.")
@click.option("--out", default="benchmarks/memory.png", show_default=True, type=Path)
def main(images: str, iterations: int, out: Path) -> None:
    """Print the table and draw the picture."""
    counts = sorted(map(int, images.split(",")))
    # Side by side: half of the time is the start of programs, which use one core.
    with ThreadPoolExecutor(len(counts)) as pool:
        runs = pool.map(run_stages, counts, [iterations] * len(counts))
        rows = pd.DataFrame([row for run in runs for row in run])
    print(table(comparison(rows)))
    plot(rows, out)
    grown = growth(rows).loc[lambda ratio: ratio > MOST_GROWTH]
    if len(grown):
        ratios = ", ".join(f"{stage} x {ratio:.2f}" for stage, ratio in grown.items())
        raise UserError(f"memory grows with the images: {ratios}; expected at most {MOST_GROWTH}")


if __name__ == "__main__":
    run(main)
