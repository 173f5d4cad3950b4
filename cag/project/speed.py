"""How fast this machine trains and predicts, measured on a few steps and images."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag.config.parameters import Parameters
from cag.datasets.images import write_label
from cag.datasets.prepared import read_label_space, read_manifest
from cag.networks import SegmentationNetwork
from cag.project.dry_run import new_objective
from cag.runtime.devices import loader_workers
from cag.runtime.progress import Progress
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import Batch
from cag.training.samples import Sample, TrainingSamples, labelled_samples, unlabelled_samples

SECONDS = 10  # that steps are measured for, after the first ones
WARM_UP = 2  # steps; more where loaders have read ahead
STEPS = 1000
BLOCKS = (8, 16)  # of a pseudo-label, as rows and columns
RATES = ("learning_rate", "learning_rate_decoder", "discriminator_learning_rate")
LEARNING_RATE = 1e-12  # the weights stay: a training from random weights must not diverge


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
    warm_up = WARM_UP + 2 * loader_workers(fabric.device)  # batches that are read ahead
    times: list[float] = []

    def timed(steps: range) -> Iterator[Batch]:
        for batch in shared_batches(domains, images, fabric)(steps):
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic())
            if len(times) > warm_up + 1 and times[-1] - times[warm_up] > SECONDS:
                raise _Enough
            yield batch

    objective = new_objective(training, params, deepcopy(network))
    checkpoint = Checkpoint(folder / "checkpoint.pt", "")
    with suppress(_Enough):
        train(objective, timed, params, config, 0, fabric, checkpoint, Progress(lambda *_: None))
    return (times[-1] - times[warm_up]) / (len(times) - 1 - warm_up)


def forward_seconds(
    function: Callable[[nn.Module, Tensor, Fabric], Any],
    network: SegmentationNetwork,
    shape: tuple[int, int, int],
    fabric: Fabric,
) -> float:
    """Mean seconds of a function of `cag.prediction` on images of the shape (B, H, W)."""
    count, *size = shape
    images = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
    network = deepcopy(network).eval().to(memory_format=torch.channels_last)
    network = fabric.to_device(network)
    function(network, images, fabric)[0].cpu()
    calls, began = 0, time.monotonic()
    now = began
    while now - began < SECONDS / 2:
        function(network, images, fabric)[0].cpu()  # waits for the device
        calls, now = calls + 1, time.monotonic()
    return (now - began) / calls


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
