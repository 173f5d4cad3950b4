"""How fast this machine trains and predicts, measured on a few steps and images."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from copy import deepcopy
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag.config.extract import Extract
from cag.config.parameters import Parameters
from cag.datasets.images import write_label
from cag.datasets.prepared import PreparedImages, read_label_space, read_manifest
from cag.features import reduced_row, source_rows, write_source_shard, write_target_shard
from cag.networks import SegmentationNetwork
from cag.prediction import ImageBatch, image_batches, predict, predict_pixels
from cag.project.dry_run import new_objective
from cag.projection import Projection, span
from cag.runtime.devices import loader_workers
from cag.runtime.overlap import overlapped, to_cpu
from cag.runtime.progress import Progress
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import Batch
from cag.training.samples import Sample, TrainingSamples, labelled_samples, unlabelled_samples

SECONDS = 10  # that steps are measured for, after the first ones; half of it for other work
WARM_UP = 2  # steps or batches; more where loaders have read ahead
STEPS = 1000
BLOCKS = (8, 16)  # of a pseudo-label, as rows and columns
RATES = ("learning_rate", "learning_rate_decoder", "discriminator_learning_rate")
LEARNING_RATE = 1e-12  # the weights stay: a training from random weights must not diverge
IMAGES, PIXELS = 50, 100  # of the source, and the most of a class in each, for any class means
Rows = tuple[Tensor, ...]
Extraction = tuple[Callable[[ImageBatch], Rows], Callable[[Path, int, Iterable[Rows]], None]]


def start_seconds() -> float:
    """Seconds in which a program of the pipeline starts and has its libraries."""
    began = time.monotonic()
    program = "import cag.adaptation, cag.training.fit"
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.monotonic() - began


def step_seconds(
    training: str,
    params: Parameters,
    network: SegmentationNetwork,
    images: int,
    folder: Path,
    fabric: Fabric,
) -> float:
    """Mean seconds of a step of the training loop on so many images of each domain.

    The folder has the prepared images of both domains, which are read and augmented as in the
    training.
    """
    config = getattr(params, training)
    rates = {key: LEARNING_RATE for key in RATES if getattr(config, key, None) is not None}
    config = config.model_copy(update={"iterations": STEPS, "batch_size": images} | rates)
    params = params.model_copy(update={training: config})
    augmentation = getattr(config, "of_samples", config).augmentation
    domains = [
        TrainingSamples(samples, augmentation, seed)
        for seed, samples in enumerate(_samples(training, folder))
    ]
    watch = _Stopwatch(WARM_UP + 2 * loader_workers(fabric.device), SECONDS)  # read ahead

    def timed(steps: range) -> Iterator[Batch]:
        for batch in shared_batches(domains, images, fabric)(steps):
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            if watch.enough():
                raise _Enough
            yield batch

    objective = new_objective(training, params, deepcopy(network))
    checkpoint = Checkpoint(folder / "checkpoint.pt", "")
    with suppress(_Enough):
        train(objective, timed, params, config, 0, fabric, checkpoint, Progress(lambda *_: None))
    return watch.mean()


def forward_seconds(
    function: Callable[[nn.Module, Tensor, Fabric], tuple[Tensor, ...]],
    network: SegmentationNetwork,
    shape: tuple[int, int, int],
    fabric: Fabric,
) -> float:
    """Mean seconds of a function of `cag.prediction` on images of the shape (B, H, W)."""
    count, *size = shape
    images = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
    network, watch = _to_predict(network, fabric), _Stopwatch(0, SECONDS / 2)
    while True:
        *_, last = function(network, images, fabric)
        last[(0,) * last.dim()].item()  # one number waits for the device
        if watch.enough():
            return watch.mean()


def extraction_seconds(
    domain: str, params: Parameters, network: SegmentationNetwork, folder: Path, fabric: Fabric
) -> float:
    """Mean seconds of an image in the extraction of a domain's features.

    The folder has the prepared images of both domains. As in the stage, batches are read, computed
    and written at the same time, and a target store has `extract.directions`.
    """
    make = {"source": _source_extraction, "target": _target_extraction}[domain]
    rows, write = make(params.extract, _to_predict(network, fabric), fabric)
    images = PreparedImages(folder / domain, "train", with_labels=domain == "source")
    size = params.extract.batch_size
    batch = list(islice(cycle(images.batches(size)[0]), size))
    read = image_batches(images, [batch] * STEPS, fabric.device)
    computed = overlapped(read, lambda b: [to_cpu(*rows(b))], Progress(lambda *_: None))
    watch = _Stopwatch(WARM_UP - 1, SECONDS / 2)  # a moment comes after its batch
    with closing(computed) as results:
        for arrived in results:
            write(folder / "shard.h5", len(batch), [arrived()])
            if watch.enough():
                break
    return watch.mean() / len(batch)


def random_projection(num_classes: int, width: int, most: int) -> Projection:
    """The `span` of random class means of so many channels, with at most `most` directions."""
    generator = torch.Generator().manual_seed(0)
    shape = IMAGES, num_classes
    counts = torch.randint(1, PIXELS + 1, shape, generator=generator)
    means = torch.rand(*shape, width, generator=generator)
    return span([(means * counts[..., None], counts)], most)


def _source_extraction(config: Extract, network: nn.Module, fabric: Fabric) -> Extraction:
    """The functions that make a batch's rows of the source store, and write them."""
    per_class = config.samples_per_class

    def rows(batch: ImageBatch) -> Rows:
        output, labels = predict(network, batch.images, fabric), torch.stack(batch.labels)
        return source_rows(*output, labels, batch.indices, 0, per_class)

    return rows, partial(write_source_shard, per_class=per_class)


def _target_extraction(config: Extract, network: nn.Module, fabric: Fabric) -> Extraction:
    """The functions that make a batch's rows of the target store, and write them."""
    projection = None
    if config.directions is not None:
        projection = random_projection(network.num_classes, network.width, config.directions)

    def rows(batch: ImageBatch) -> Rows:
        row = predict_pixels(network, batch.images, config.target_views, fabric)
        return row if projection is None else reduced_row(*row, projection)

    return rows, write_target_shard


def _to_predict(network: SegmentationNetwork, fabric: Fabric) -> SegmentationNetwork:
    network = deepcopy(network).eval().to(memory_format=torch.channels_last)
    return fabric.to_device(network)


class _Stopwatch:
    """Moments before, between and after equal pieces of work, of which the first are left out."""

    def __init__(self, left_out: int, seconds: float):
        self.left_out, self.seconds = left_out, seconds
        self.times: list[float] = []

    def enough(self) -> bool:
        """Note a moment; whether at least one piece counts and all of them took the seconds."""
        self.times.append(time.monotonic())
        counted = self.times[self.left_out :]
        return len(counted) > 1 and counted[-1] - counted[0] > self.seconds

    def mean(self) -> float:
        """Mean seconds of a piece that counts."""
        counted = self.times[self.left_out :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


class _Enough(Exception):
    """Ends a training from inside."""


def _samples(training: str, folder: Path) -> list[list[Sample]]:
    """The samples of each domain of a training; their pseudo-labels are random."""
    source = labelled_samples(folder / "source")
    if training == "pretrain":
        return [source]
    target = unlabelled_samples(folder / "target")
    if training == "adapt":
        path = folder / "pseudo_labels.png"
        _write_blocks(folder / "target", path)
        target = [Sample(sample.image, (path, path)) for sample in target]
    return [source, target]


def _write_blocks(target: Path, path: Path) -> None:
    """Write a label map of random classes in blocks, as large as the prepared target's images."""
    space, sizes = read_label_space(target), read_manifest(target)[["height", "width"]]
    blocks = np.random.default_rng(0).integers(space.num_classes, size=BLOCKS)
    sides = zip(sizes.iloc[0], BLOCKS, strict=True)
    rows, columns = (np.arange(side) * count // side for side, count in sides)
    write_label(path, blocks[rows[:, None], columns], space.palette_array)
