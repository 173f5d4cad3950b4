"""Cross-entropy over labelled pixels, and the weights of its classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cag.datasets.labels import IGNORE

Divisor = Callable[[Tensor], Tensor]


def own_count(count: Tensor) -> Tensor:
    """The divisor of a mean over a whole batch: the count itself, a scalar of at least 0."""
    return count


def class_balance_weights(pixels: Tensor, power: float) -> Tensor:
    """Weights that make rare classes count more: (median frequency / frequency) ^ power.

    float32 [K] from each class's labelled pixels, integer [K]. A class without pixels gets the
    largest weight of the others: in the counted images it is rarer than they. The paper's
    cross-entropy is plain (power 0), but a short training on few images then never learns classes
    of a percent of the pixels. Power 1 is median frequency balancing.
    """
    seen = pixels > 0
    frequency = pixels.double().masked_fill(~seen, torch.nan)
    weights = (frequency.nanmedian() / frequency) ** power
    return weights.masked_fill(~seen, weights[seen].max() if seen.any() else 1).float()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    divisor: Divisor = own_count,
) -> Tensor:
    """Mean cross-entropy over the labelled pixels, float32; 0 with a zero gradient without any.

    Takes logits float [B, K, h, w] and labels integer [B, h, w]; others than 0..K-1 are ignored.
    `class_weights` float [K] are the pixels' weights in the mean by class; None: all 1. `divisor`
    as for `AdaptationLoss`.
    """
    logits, labelled = logits.float(), labelled_pixels(labels, logits.shape[1])
    labels = labels.long().masked_fill(~labelled, IGNORE)
    total = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORE, reduction="sum")
    if class_weights is None:
        return quotient(total, labelled.sum(), divisor)
    weight = (class_weights[labels.masked_fill(~labelled, 0)] * labelled).sum()
    return quotient(total, weight, divisor)


def pixel_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's cross-entropy float32 [B, h, w], 0 without a label; and which have one, bool.

    Takes logits float [B, K, h, w] and labels integer [B, h, w]; others than 0..K-1 are ignored.
    """
    labelled = labelled_pixels(labels, logits.shape[1])
    labels = labels.long().masked_fill(~labelled, IGNORE)
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    return losses, labelled


def quotient(total: Tensor, count: Tensor, divisor: Divisor) -> Tensor:
    """A mean from its sum and count; 0 if the count is 0."""
    count = divisor(count)
    return total / count.masked_fill(count == 0, 1)


def labelled_pixels(labels: Tensor, num_classes: int) -> Tensor:
    """Where integer labels are in 0..num_classes-1, bool."""
    return (labels >= 0) & (labels < num_classes)
