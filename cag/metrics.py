"""Confusion matrix, and the segmentation scores derived from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cag.datasets.labels import IGNORE


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and by predicted class. Matrices of several images add up.

    Both maps are integer train ids [...] of one shape, else a ValueError. Gives int64 [K, K], rows
    = truth, columns = prediction, without the pixels where either map is outside 0..K-1 (255 =
    ignored or unlabelled).
    """
    if predictions.shape != labels.shape:
        shapes = f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} differ in shape")
    truth, predicted = labels.flatten().long(), predictions.flatten().long()
    counted = (truth >= 0) & (truth < num_classes) & (predicted >= 0) & (predicted < num_classes)
    cells = truth.mul(num_classes).add_(predicted)
    cells.masked_fill_(~counted, num_classes**2)  # an additional cell for the skipped pixels
    counts = torch.bincount(cells, minlength=num_classes**2 + 1)
    return counts[:-1].view(num_classes, num_classes)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, float64 [K]; NaN where a class occurs in neither."""
    confusion = confusion.double()
    hits = confusion.diagonal()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def mean_iou(confusion: Tensor, classes: Sequence[int] | None = None) -> float:
    """Mean IoU over the classes that occur, or over those of `classes` that do.

    With `classes`, confusions with the other classes still count as errors: "13 of 16 classes"
    differs from the score of a model trained with 13.
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
    """Count pixels for `labelling_scores`; the counts of several images add up.

    Takes pseudo-labels uint8 [...], 255 = none, and true classes uint8 [...], 255 = unknown. Gives
    int64 [5]: all pixels, labelled, of a known class, labelled and of a known class, correctly
    labelled.
    """
    labelled, known = labels != IGNORE, truth != IGNORE
    masks = (torch.ones_like(known), labelled, known, labelled & known, (labels == truth) & known)
    return torch.stack([mask.sum() for mask in masks])


def labelling_scores(outcome: Tensor) -> dict[str, float]:
    """Coverage, precision and recall in [0, 1] from `labelling_outcome`; NaN for 0 / 0.

    Coverage is the labelled share of all pixels; precision the correct share of labelled pixels of
    a known class; recall the correctly labelled share of all pixels of a known class.
    """
    pixels, labelled, known, judged, right = outcome.double().unbind()
    shares = {"coverage": labelled / pixels, "precision": right / judged, "recall": right / known}
    return {name: share.item() for name, share in shares.items()}
