"""Damage files at random: each reader gives its content or one line of error, and nothing else.

python -m benchmarks.fuzz --seconds 600

A mutation is known by its reader and number, so `--only anchors --first 17 --count 1` repeats one.
"""

import faulthandler
import functools
import json
import os
import resource
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import click
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from benchmarks import ROOT
from cag.analysis.threshold_curves import (
    ThresholdCounts,
    curve_table,
    read_thresholds,
    threshold_grid,
)
from cag.anchors import class_sums, read_anchors
from cag.config.networks import Network, Normalization
from cag.config.parameters import load_all
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import LabelSpace, read_class_map
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS, read_label_space, read_manifest
from cag.features import (
    SOURCE_KEYS,
    cut_shards,
    join_source,
    link_target,
    open_store,
    read_array,
    read_names,
    read_target_images,
    read_target_store,
    reduced_row,
    source_rows,
    write_source_shard,
    write_target_shard,
)
from cag.networks import build, load_encoder_weights, load_model, save_model
from cag.project.experiments import read_grid, read_miou
from cag.projection import span
from cag.pseudo_labels import COVERAGE, measure
from cag.report.gather import (
    read_curves,
    read_evaluation,
    read_measures,
    read_round,
    read_verdict,
)
from cag.runtime.devices import one_device
from cag.runtime.errors import UserError
from cag.runtime.files import write_csv, write_json
from cag.training.loop import Checkpoint, _resume
from cag.watch import Verdict

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
K, D, SIZE, COUNT = SPACE.num_classes, 4, (3, 5), 4
NETWORK = Network(
    architecture="FPN",
    encoder="mobilenet_v2",
    encoder_weights=None,
    normalization=Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
)
LONGEST = 60  # seconds that a reader may take
MEMORY = 8 * 2**30  # bytes
PIECES = (
    *(b"\0", b"\xff", b"\r", b"\n", b'"', b"'", b",", b": ", b"- ", b"[" * 50, b"{", b"&a ", b"*a"),
    *(
        b"nan",
        b"inf",
        b"1e400",
        b"-1",
        b"999999999999",
        b"9" * 5000,
        b"null",
        b"!!binary ",
        b"\\ud8",
    ),
    *(b"\xed\xa0\x80", b"\x1b[31m", b"../", b"\x7f\xff\xff\xff\xff\xff\xff\xff"),
)


class Reader(NamedTuple):
    """A kind of file."""

    write: Callable[[Path], Path]  # a whole one in a folder, which holds nothing else
    read: Callable[[Path], object]
    mutable: int | None = None  # only its first bytes are of interest


def mutated(content: bytes, random: np.random.Generator, mutable: int | None = None) -> bytes:
    """A file's content with up to four changes at random places."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        end = min(len(data), mutable or len(data))
        start = int(random.integers(0, end + 1))
        stop = min(start + int(2 ** random.uniform(0, 10)), len(data))
        piece = PIECES[random.integers(len(PIECES))]
        match random.integers(6):
            case 0:
                data[start : start + 1] = random.bytes(1)
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop]
            case 3:
                data[start:start] = piece
            case 4:
                data[start : start + len(piece)] = piece
            case 5 if random.random() < 0.2:
                del data[start:]
    return bytes(data)


def attempt(reader: Reader, path: Path, content: bytes) -> str | None:
    """Read a file of this content; None if all is well, else what is wrong."""
    path.write_bytes(content)
    try:
        if reader.read(path) is False:
            return "neither its content nor an error"
    except UserError as error:
        text = str(error)
        return None if text.isprintable() and len(text) < 1000 else f"not one line: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def copied(source: Path) -> Callable[[Path], Path]:
    """Writes a copy of a file of the project."""

    def write(folder: Path) -> Path:
        (folder / source.name).write_bytes(source.read_bytes())
        return folder / source.name

    return write


def write_images(folder: Path) -> Path:
    """A manifest of four images, and their classes."""
    row = dict.fromkeys(COLUMNS, "") | {"split": "train", "height": 3, "width": 5}
    rows = [row | {"name": f"a/{i}", "image": f"images/train/a/{i}.png"} for i in range(COUNT)]
    write_manifest(folder, pd.DataFrame(rows), SPACE)
    return folder / "manifest.csv"


def write_classes(folder: Path) -> Path:
    """The classes of prepared images."""
    write_images(folder)
    return folder / "classes.json"


def write_anchors(folder: Path) -> Path:
    """Anchors, one of them missing."""
    anchors = np.arange(K * D, dtype=np.float32).reshape(K, D)
    anchors[1] = np.nan
    np.save(folder / "anchors.npy", anchors)
    return folder / "anchors.npy"


def _outputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, K, (COUNT, *SIZE)).byte()
    return torch.randn(COUNT, D, *SIZE), torch.randn(COUNT, K, *SIZE), labels


def write_target(folder: Path) -> Path:
    """A reduced store of four target images in one shard."""
    features, logits, labels = _outputs()
    projection = span([class_sums(features, labels, K)], most=3)
    row = features.half(), labels, logits.softmax(1).amax(1)
    shard = folder / "target/00000.h5"
    write_target_shard(shard, COUNT, [reduced_row(*row, projection)])
    link_target(folder / "target.h5", list("abcd"), [shard], projection)
    return folder / "target.h5"


def write_target_part(folder: Path) -> Path:
    """The shard of such a store."""
    return write_target(folder).parent / "target/00000.h5"


def write_source(folder: Path) -> Path:
    """A store of four source images."""
    (shard,) = cut_shards([range(COUNT)])
    rows = source_rows(*_outputs(), range(COUNT), seed=0, per_class=3)
    write_source_shard(folder / shard.name, COUNT, [rows], per_class=3)
    join_source(folder / "source.h5", list("abcd"), [folder / shard.name], per_class=3)
    return folder / "source.h5"


def read_source(path: Path) -> None:
    """Read all of a source store."""
    with open_store(path, SOURCE_KEYS) as file:
        read_names(file)
        for key in SOURCE_KEYS[1:]:
            read_array(file, key)


def read_target(path: Path) -> None:
    """Read all of a target store."""
    store = read_target_store(path, K)
    list(read_target_images(store, store.shards))


def write_model(folder: Path) -> Path:
    """An untrained model."""
    torch.manual_seed(0)
    save_model(folder / "model.safetensors", build(NETWORK, K), NETWORK, SPACE, (32, 64))
    return folder / "model.safetensors"


def write_scores(folder: Path) -> Path:
    """A model's scores and confusion matrix, as `evaluate` writes them."""
    numbers = {"miou": 0.25, "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "images": 3}
    write_json(folder / "m/metrics.json", {**numbers, "iou": {"road": 0.5, "sky": 0, "car": None}})
    counts = dict.fromkeys(SPACE.names, [3, 0, 12])
    write_csv(folder / "m/confusion.csv", pd.DataFrame({"truth": SPACE.names, **counts}))
    return folder / "m/metrics.json"


def write_confusion(folder: Path) -> Path:
    """The confusion matrix of such a model."""
    return write_scores(folder).with_name("confusion.csv")


def read_scores(path: Path) -> None:
    """Read a model's scores and confusion matrix."""
    read_evaluation(SimpleNamespace(evaluation=path.parents[1]), path.parent.name)


def write_measures(folder: Path) -> Path:
    """A model's measures without labels, as `watch` writes them."""
    write_json(folder / "m.json", {"agreement": 0.75, "entropy": None, "images": 6})
    return folder / "m.json"


def write_verdict(folder: Path) -> Path:
    """What a round kept, as `adapt` writes it."""
    verdict = Verdict("student", True, "information", 0.5, 0.25)
    write_json(folder / "r/verdict.json", verdict._asdict())
    return folder / "r/verdict.json"


def write_curve(folder: Path) -> Path:
    """A learning curve."""
    columns = ("iteration", "learning_rate", "loss", "source_ce")
    table = {column: np.arange(1, 9) * 0.1 for column in columns} | {"iteration": range(1, 9)}
    write_csv(folder / "m.csv", pd.DataFrame(table))
    return folder / "m.csv"


def write_round(folder: Path) -> Path:
    """A round's tables; the coverage."""
    torch.manual_seed(0)
    anchors, features = torch.randn(K, D), torch.randn(COUNT, D, *SIZE)
    grid = threshold_grid(anchors, PseudoLabel(relative_margin=0.1, probability=0.5))
    counts = ThresholdCounts(K, grid)
    prediction = torch.zeros(COUNT, *SIZE, dtype=torch.uint8)
    counts.update(measure(features, prediction, torch.rand(COUNT, *SIZE), anchors))
    curves = curve_table(SPACE.names, grid, counts, counts.class_thresholds(grid["quantile"]))
    write_csv(folder / "r/threshold_curves.csv", curves)
    classes = {"class": SPACE.names}
    write_csv(folder / "r/coverage.csv", pd.DataFrame(classes | dict.fromkeys(COVERAGE, 9)))
    numbers = {"images": 3, "pixels": 9, "recall": 0.5, "norm": 2.5, "nearest_anchor": "sky"}
    write_csv(folder / "r/anchors.csv", pd.DataFrame(classes | numbers | {"distance": 1.5}))
    return folder / "r/coverage.csv"


def read_tables(path: Path) -> None:
    """Read a round's tables."""
    entry = SimpleNamespace(teacher="warmup", anchors="r")
    read_round(path.parents[1], "r", {"r": entry})


@functools.cache
def small_encoder() -> torch.nn.Module:
    """An encoder of few layers."""
    return build(NETWORK.model_copy(update={"encoder": "tu-test_efficientnet"}), K).encoder


def write_encoder(folder: Path) -> Path:
    """An encoder's weights."""
    save_file(small_encoder().state_dict(), folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def read_encoder(path: Path) -> None:
    """Load an encoder's weights."""
    with mock.patch.dict(os.environ, CAG_WEIGHTS=str(path.parent)):
        load_encoder_weights(small_encoder(), "tu-test_efficientnet", path.name)


def training_state() -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    """What a checkpoint restores."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(D, K)
    return layer, [torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)]


def trained_state() -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    """What a checkpoint holds after two steps."""
    layer, optimizers = training_state()
    layer(torch.ones(1, D)).sum().backward()
    optimizers[0].step()
    return layer, optimizers


def write_checkpoint(folder: Path) -> Path:
    """The checkpoint of a training after two steps."""
    layer, (optimizer,) = trained_state()
    state = {"objective": layer.state_dict(), "optimizers": [optimizer.state_dict()]}
    state |= {"history": torch.ones(2, 3), "iteration": 2, "precision": {}}
    Checkpoint(folder / "checkpoint.pt", "a").save(state)
    return folder / "checkpoint.pt"


def read_checkpoint(path: Path) -> bool:
    """Resume a training, or start it afresh; whether it was as it had been."""
    (layer, optimizers), history = training_state(), array("f")
    start = _resume(Checkpoint(path, "a"), layer, optimizers, history, one_device("cpu"))
    expected, (optimizer,) = trained_state() if start else training_state()
    return (
        (start, *history) in ((0,), (2, *[1.0] * 6))
        and torch.equal(layer.weight, expected.weight)
        and str(optimizers[0].state_dict()) == str(optimizer.state_dict())
    )


READERS = {
    "parameters": Reader(copied(ROOT / "presets/scenes.yaml"), load_all),
    "class map": Reader(copied(ROOT / "classes/synthia_16.yaml"), read_class_map),
    "grid": Reader(copied(ROOT / "benchmarks/ablations.yaml"), read_grid),
    "manifest": Reader(write_images, lambda path: read_manifest(path.parent)),
    "classes": Reader(write_classes, lambda path: read_label_space(path.parent)),
    "anchors": Reader(write_anchors, lambda path: read_anchors(path, K, D)),
    "source store": Reader(write_source, read_source),
    "target store": Reader(write_target, read_target),
    "target shard": Reader(
        write_target_part, lambda path: read_target(path.parents[1] / "target.h5")
    ),
    "model": Reader(write_model, load_model, mutable=1200),
    "encoder weights": Reader(write_encoder, read_encoder, mutable=12_000),
    "checkpoint": Reader(write_checkpoint, read_checkpoint),
    "scores": Reader(write_scores, read_scores),
    "mean score": Reader(write_scores, read_miou),
    "confusion": Reader(write_confusion, read_scores),
    "measures": Reader(write_measures, lambda path: read_measures(path.parent, "m", "watch")),
    "verdict": Reader(write_verdict, lambda path: read_verdict(path.parents[1], "r")),
    "learning curve": Reader(write_curve, lambda path: read_curves(path.parent, ["m"])),
    "coverage": Reader(write_round, read_tables),
    "anchor table": Reader(
        lambda folder: write_round(folder).with_name("anchors.csv"), read_tables
    ),
    "threshold curves": Reader(
        lambda folder: write_round(folder).with_name("threshold_curves.csv"),
        lambda path: read_thresholds(path, SPACE.names),
    ),
}


def faults(name: str, folder: Path, numbers: range, seconds: float = float("inf")) -> list[str]:
    """What goes wrong with the mutations of these numbers, in so many seconds at most."""
    reader, found, began = READERS[name], [], time.monotonic()
    path = reader.write(folder)
    content = path.read_bytes()
    path.unlink()  # a memory map of the last content stays as it was
    for number in numbers:
        if time.monotonic() - began > seconds:
            break
        random = np.random.default_rng(number)
        problem = attempt(reader, path, mutated(content, random, reader.mutable))
        path.unlink()
        found += [f"{name} {number}: {problem}"] if problem else []
    return found


@click.command(help=__doc__)
@click.option("--seconds", default=600.0, help="For all readers together.")
@click.option("--only", type=click.Choice(list(READERS)), help="One reader.")
@click.option("--first", default=0, help="The number of the first mutation.")
@click.option("--count", default=10**9, help="The most mutations of a reader.")
def main(seconds: float, only: str | None, first: int, count: int) -> None:
    """Print what goes wrong; a crash or a hang of a library ends with Python's stack."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    names = [only] if only else list(READERS)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            share = seconds / len(names)
            faulthandler.dump_traceback_later(share + LONGEST, exit=True)
            found = faults(name, Path(folder), range(first, first + count), share)
        print(json.dumps({"reader": name, "wrong": len(found), "first": found[:20]}, indent=1))


if __name__ == "__main__":
    main()
