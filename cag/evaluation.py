"""Predictions of a network at the labels' full resolution, and the scores derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag import metrics
from cag.files import write_csv, write_json
from cag.labels import LabelSpace
from cag.prediction import image_batches, predict
from cag.prepared import PreparedImages

BATCH_SIZE = 4


def full_resolution_prediction(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The predicted class uint8 [H, W] of logits [K, h, w], upsampled with aligned corners."""
    upsampled = F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=True)
    return upsampled[0].argmax(0).byte()


def labelled_predictions(
    network: nn.Module, images: PreparedImages, fabric: Fabric
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Predict labelled images one after the other.

    Args:
        network: In eval mode, on the fabric's device.
        images: With labels.
        fabric: Device and precision.

    Yields:
        Name, image uint8 [3, h, w], label map and prediction, both uint8 [H, W] on the CPU.
    """
    for names, batch, labels in image_batches(images, BATCH_SIZE):
        logits = predict(network, batch, fabric).logits
        for name, image, label, scores in zip(names, batch, labels, logits, strict=True):
            yield name, image, label, full_resolution_prediction(scores, label.shape).cpu()


def write_scores(folder: Path, confusion: Tensor, classes: LabelSpace, images: int) -> None:
    """Write metrics.json, per_class.csv and confusion.csv.

    The mean IoU is also given under the number of its classes, and that over each of the classes'
    subsets under the subset's name: `miou_16` and `miou_13_of_16` beside `miou`.

    Args:
        folder: Where.
        confusion: int64 [K, K], rows = truth.
        classes: Names and subsets of the K classes.
        images: Number of images that the matrix counts.
    """
    iou, accuracy = metrics.iou(confusion).numpy(), metrics.class_accuracy(confusion).numpy()
    scores = {
        "miou": metrics.mean_iou(confusion),
        f"miou_{classes.num_classes}": metrics.mean_iou(confusion),
        **{f"miou_{name}": metrics.mean_iou(confusion, ids) for name, ids in classes.subsets},
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "mean_accuracy": float(np.nanmean(accuracy)),
        "images": images,
        "iou": dict(zip(classes.names, iou.tolist(), strict=True)),
    }
    write_json(folder / "metrics.json", scores)
    per_class = {"class": classes.names, "iou": iou, "accuracy": accuracy}
    write_csv(folder / "per_class.csv", pd.DataFrame({**per_class, "pixels": confusion.sum(1)}))
    table = pd.DataFrame(confusion.numpy(), columns=list(classes.names))
    table.insert(0, "truth", classes.names)
    write_csv(folder / "confusion.csv", table)
