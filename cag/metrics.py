"""Confusion matrix, and the segmentation scores derived from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cag.datasets.labels import IGNORE


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and by predicted class. Matrices of several images add up.

    Args:
        predictions: integer [...], train ids.
        labels: integer [...] of the same shape, train ids.
        num_classes: K.

    Returns:
        int64 [K, K], rows = truth, columns = prediction. A pixel where either map is outside 0..K-1
        (255 = ignored or unlabelled) is skipped.

    Raises:
        ValueError: the maps differ in shape.
    """
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} "
            "differ in shape"
        )
    truth, predicted = labels.flatten().long(), predictions.flatten().long()
    counted = (truth >= 0) & (truth < num_classes) & (predicted >= 0) & (predicted < num_classes)
    cells = truth.mul(num_classes).add_(predicted)
    cells.masked_fill_(~counted, num_classes**2)  # one cell more, for what is skipped
    counts = torch.bincount(cells, minlength=num_classes**2 + 1)
    return counts[:-1].view(num_classes, num_classes)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, float64 [K]; NaN where a class occurs in neither."""
    confusion = confusion.double()
    hits = confusion.diagonal()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def mean_iou(confusion: Tensor, classes: Sequence[int] | None = None) -> float:
    """Mean IoU over the classes that occur, or over those of `classes` that do.

    With `classes`, pixels of the other classes still count as errors where they are confused:
    "13 of 16 classes" is such a figure, and differs from that of a model trained with 13.
    """
    scores = iou(confusion)
    chosen = scores if classes is None else scores[list(classes)]
    return chosen.nanmean().item()


def class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's pixels predicted as such, float64 [K]; NaN where the truth has none."""
    confusion = confusion.double()
    return confusion.diagonal() / confusion.sum(dim=1)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of all counted pixels predicted as their class; NaN where there is none."""
    confusion = confusion.double()
    return (confusion.diagonal().sum() / confusion.sum()).item()


def labelling_outcome(labels: Tensor, truth: Tensor) -> Tensor:
    """Count what pseudo-labels come to: the sufficient statistics of `labelling_scores`, which add.

    Args:
        labels: uint8 [...], the pseudo-label, 255 = none.
        truth: uint8 [...], the true class, 255 = not known.

    Returns:
        int64 [5]: pixels, labelled ones, ones of a known class, labelled ones of a known class,
        rightly labelled ones.
    """
    labelled, known = labels != IGNORE, truth != IGNORE
    masks = (torch.ones_like(known), labelled, known, labelled & known, (labels == truth) & known)
    return torch.stack([mask.sum() for mask in masks])


def labelling_scores(outcome: Tensor) -> dict[str, float]:
    """Coverage, precision and recall in [0, 1] of `labelling_outcome`'s counts; NaN for 0 / 0.

    Coverage is the labelled share of the pixels, precision the rightly labelled share of the
    labelled ones of a known class, recall that of all pixels of a known class.
    """
    pixels, labelled, known, judged, right = outcome.double().unbind()
    shares = {"coverage": labelled / pixels, "precision": right / judged, "recall": right / known}
    return {name: share.item() for name, share in shares.items()}
