"""Forward passes over prepared images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice, product
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag.datasets.labels import IGNORE
from cag.datasets.prepared import PreparedImages
from cag.networks import NetworkOutput, upsampled
from cag.runtime.errors import UserError
from cag.runtime.overlap import in_order, threads
from cag.runtime.precision import to_half

if TYPE_CHECKING:
    from cag.config.extract import Views

NO_NUMBERS = "the model's outputs are NaN or infinite: it is damaged, or its training failed"
UPSAMPLED_VALUES = 2**26  # most logits at an image's size that are in memory at a time


class ImageBatch(NamedTuple):
    """Images of one size."""

    indices: list[int]  # of the data set
    images: Tensor  # uint8 [b, 3, H, W]
    labels: tuple[Tensor | None, ...]  # each image's label map uint8, or None


def image_batches(
    images: PreparedImages, batches: Sequence[Sequence[int]], device: torch.device
) -> Iterator[ImageBatch]:
    """Read batches of images, given as indices of one size, in several threads, in order.

    To be predicted on a GPU `device`, they are put in pinned memory.
    """
    indices = chain.from_iterable(batches)
    with closing(in_order(lambda index: images[index], indices, threads())) as items:
        for batch in batches:
            pixels, labels, _ = zip(*islice(items, len(batch)), strict=True)
            stacked = torch.stack(pixels)
            stacked = stacked.pin_memory() if device.type == "cuda" else stacked
            yield ImageBatch(list(batch), stacked, labels)


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, fabric: Fabric) -> NetworkOutput:
    """The output of a network, in eval mode on the fabric's device, for images uint8 [B, 3, H, W].

    The fabric gives the device and the precision.
    """
    return _forward(network, images.to(fabric.device, non_blocking=True).float() / 255, fabric)


def full_resolution(
    logits: Tensor, size: tuple[int, int], confidence: bool = False
) -> tuple[Tensor, ...]:
    """The predicted class at an image's own size, from logits upsampled with aligned corners.

    For a large image, some classes are upsampled at a time, with the same result. Takes logits
    [K, h, w] of an image of `size` (H, W); gives classes uint8 [H, W] and, with `confidence`, their
    probability float32 [H, W]. All classes are 255 if a logit is NaN or infinite.
    """
    step = max(1, UPSAMPLED_VALUES // (size[0] * size[1]))
    best = classes = total = None
    for first in range(0, len(logits), step):
        part = upsampled(logits[first : first + step], size)  # (k, H, W)
        highest, index = part.max(0)
        if confidence:
            total, previous = part.sub_(highest).exp_().sum(0), total
        if best is None:
            best, classes = highest, index.byte()
            continue
        if confidence:  # sums of exp(logit - highest logit), each with its own highest
            above = torch.maximum(best, highest)
            total = total * (highest - above).exp() + previous * (best - above).exp()
        higher = highest > best
        classes = torch.where(higher, (index + first).byte(), classes)
        best = torch.where(higher, highest, best)
    classes = classes.masked_fill(~logits.isfinite().all(), IGNORE)  # waits for no device
    return (classes, 1 / total) if confidence else (classes,)


def known(classes: Tensor) -> Tensor:
    """The classes uint8 [H, W] that `full_resolution` gave; a UserError if they are 255."""
    if (classes == IGNORE).any():
        raise UserError(NO_NUMBERS)
    return classes


@torch.inference_mode()
def predict_views(
    network: nn.Module, images: Tensor, views: Views, fabric: Fabric
) -> NetworkOutput:
    """The mean of a network's outputs for several views of the same images.

    A network errs differently on lighter, larger or mirrored images, so that the mean is better
    than each output. The views are all combinations of a scale, a gamma and, with `flip`, a mirror
    image; network, images and fabric are those of `predict`.

    Returns:
        The mean features [B, D, h, w], at the size of unscaled images' features; and as logits
        [B, K, h, w] the logarithm of the mean probabilities.
    """
    images = images.to(fabric.device, non_blocking=True).float() / 255
    if views.scales == views.gammas == (1.0,) and not views.flip:
        return _forward(network, images, fabric)
    size = None if 1.0 in views.scales else _forward(network, images, fabric).features.shape[2:]
    features = probabilities = 0.0
    scales = sorted(views.scales, key=lambda scale: scale != 1)  # 1 first: it gives the size
    for scale, gamma, flip in product(scales, views.gammas, {False, views.flip}):
        output = _forward(network, _view(images, scale, gamma, flip), fabric)
        maps = [output.features.float(), output.logits.float().softmax(dim=1)]
        maps = [part.flip(3) for part in maps] if flip else maps
        size = size or maps[0].shape[2:]
        if maps[0].shape[2:] != size:
            maps = [upsampled(part, size) for part in maps]
        features, probabilities = features + maps[0], probabilities + maps[1]
    count = len(views.scales) * len(views.gammas) * (1 + views.flip)
    return NetworkOutput(features / count, (probabilities / count).log())


def predict_pixels(
    network: nn.Module, images: Tensor, views: Views, fabric: Fabric
) -> tuple[Tensor, Tensor, Tensor]:
    """The input of the pseudo-labels, by `predict_views`, whose arguments are the same.

    Features float16 [B, D, h, w], the predicted class uint8 and its probability float32 [B, h, w].
    """
    features, logits = predict_views(network, images, views, fabric)
    probability, prediction = logits.float().softmax(1).max(1)  # [B, h, w]
    return to_half(features), prediction.byte(), probability


def _view(images: Tensor, scale: float, gamma: float, flip: bool) -> Tensor:
    """Images float [B, 3, H, W] in [0, 1], scaled, raised to the power gamma and mirrored."""
    if scale != 1:
        options = {"mode": "bilinear", "align_corners": False, "antialias": True}
        size = [max(1, round(side * scale)) for side in images.shape[2:]]
        images = F.interpolate(images, size, **options).clamp(0, 1)
    images = images if gamma == 1 else images**gamma
    return images.flip(3) if flip else images


def _forward(network: nn.Module, images: Tensor, fabric: Fabric) -> NetworkOutput:
    with fabric.autocast():
        return network(images.to(memory_format=torch.channels_last))
