"""The target's statistics in the batch norm of a trained network (alpha-BN)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import cycle, islice

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop

from cag.datasets.prepared import PreparedImages, evenly_spaced
from cag.prediction import predict
from cag.runtime.overlap import in_order, threads
from cag.runtime.progress import progress
from cag.training.objectives import batch_norms

IMAGES = 200  # of the target that are measured


def take_statistics(
    network: nn.Module,
    images: PreparedImages,
    share: float,
    batch_size: int,
    fabric: Fabric,
    frozen: nn.Module | None = None,
) -> None:
    """Give the target's statistics a share in a network's batch norm, in place.

    At most IMAGES of the images are measured, as they are, in batches of `batch_size`, at least 2,
    of which each process takes its part. Their labels are not opened. The statistics of the part
    `frozen` stay.
    """
    kept = [] if frozen is None else batch_norms(frozen)
    layers = [layer for layer in batch_norms(network) if layer not in kept]
    if share == 0 or not layers:
        return
    planned = spread(evenly_spaced(len(images), IMAGES), max(2, batch_size))
    batches = plain_batches(images, planned, fabric)
    with closing(batches), progress("batch norm", len(planned), "batches") as advance:

        def counted() -> Iterator[Tensor]:
            for batch in advance.waiting(batches):
                yield batch
                advance()

        move_statistics(network, layers, counted(), share, fabric)


def move_statistics(
    network: nn.Module,
    layers: Sequence[nn.Module],
    batches: Iterable[Tensor],
    share: float,
    fabric: Fabric,
) -> None:
    """Move the mean and variance that batch-norm layers keep towards those of images, in place.

    kept = (1 - share) kept + share measured (alpha-BN: You et al., "Test-time batch statistics
    calibration for covariate shift", 2021; Schneider et al., NeurIPS 2020). What is measured is the
    mean over the batches, each normalised by its own statistics, while all other layers are in
    evaluation mode, in which the network is left.

    Args:
        network: On the fabric's device.
        layers: Its layers to change.
        batches: Images uint8 [B, 3, H, W], B > 1.
        share: In [0, 1].
        fabric: Gives the device and the precision.
    """
    network.eval()
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
    for number, images in enumerate(batches, start=1):
        for layer in layers:
            layer.momentum = 1 / number  # so the layers keep the mean over the batches
        predict(network, images, fabric)
    for layer, (mean, variance), momentum in zip(layers, before, momenta, strict=True):
        layer.running_mean.lerp_(mean, 1 - share)
        layer.running_var.lerp_(variance, 1 - share)
        layer.momentum = momentum
        layer.eval()


def spread(indices: Sequence[int], size: int) -> list[list[int]]:
    """Full batches of so many indices, each from all over their sequence.

    Neighbours may be frames of one film, which vary too little together. The first indices come
    again where a batch is not full.
    """
    count = -(-len(indices) // size)
    full = list(islice(cycle(indices), count * size))
    return [full[start::count] for start in range(count)]


def plain_batches(
    images: PreparedImages, batches: Sequence[Sequence[int]], fabric: Fabric
) -> Iterator[Tensor]:
    """This process's part of batches of images, uint8 [size / processes, 3, H, W].

    Of images of several sizes, a batch has the middle, as high as the lowest and as wide as the
    narrowest.
    """
    own = slice(fabric.global_rank, None, fabric.world_size)
    mine = [index for batch in batches for index in batch[own]]
    with closing(in_order(lambda index: images[index][0], mine, threads())) as read:
        for batch in batches:
            heights, widths = zip(*(images.sizes[index] for index in batch), strict=True)
            size = [min(heights), min(widths)]
            yield torch.stack([center_crop(one, size) for one in islice(read, len(batch[own]))])
