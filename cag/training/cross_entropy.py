"""Cross-entropy over labelled pixels, and the weights of its classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cag.datasets.labels import IGNORE

Divisor = Callable[[Tensor], Tensor]


def own_count(count: Tensor) -> Tensor:
    """What a mean over a whole batch divides by: the count itself, a scalar of at least 0."""
    return count


def class_balance_weights(pixels: Tensor, power: float) -> Tensor:
    """Weights that make rare classes count more: (median frequency / frequency) ^ power.

    Not in the paper, whose cross-entropy is plain (power 0). A short training on few images never
    learns classes of a percent of the pixels without; 1 is median frequency balancing.

    Args:
        pixels: integer [K], labelled pixels of each class.
        power: at least 0.

    Returns:
        float32 [K]; 0 for a class without pixels.
    """
    seen = pixels > 0
    frequency = pixels.double().masked_fill(~seen, torch.nan)
    weights = (frequency.nanmedian() / frequency) ** power
    return weights.masked_fill(~seen, 0).float()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    divisor: Divisor = own_count,
) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 with a zero gradient where there is none.

    Args:
        logits: float [B, K, h, w].
        labels: integer [B, h, w]; others than 0..K-1 ignored.
        class_weights: float [K]; the mean is then weighted by the pixels' classes. None: all 1.
        divisor: as for `adaptation_loss`.

    Returns:
        float32 scalar.
    """
    labelled = labelled_pixels(labels, logits.shape[1])
    labels = labels.long().masked_fill(~labelled, IGNORE)
    total = F.cross_entropy(
        logits.float(), labels, class_weights, ignore_index=IGNORE, reduction="sum"
    )
    if class_weights is None:
        return quotient(total, labelled.sum(), divisor)
    weight = (class_weights[labels.masked_fill(~labelled, 0)] * labelled).sum()
    return quotient(total, weight, divisor)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] as float32 [B, K, H, W], bilinear with aligned corners."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=True)


def quotient(total: Tensor, count: Tensor, divisor: Divisor) -> Tensor:
    """A sum over what its mean is over; 0 where that is nothing."""
    count = divisor(count)
    return total / count.masked_fill(count == 0, 1)


def labelled_pixels(labels: Tensor, num_classes: int) -> Tensor:
    """Where labels of any integer dtype are in 0..num_classes-1, bool."""
    return (labels >= 0) & (labels < num_classes)
