"""Predictions of a network at the labels' full resolution, and the scores derived from them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag import metrics
from cag.datasets.labels import LabelSpace
from cag.datasets.prepared import PreparedImages
from cag.networks import SegmentationNetwork
from cag.prediction import ImageBatch, full_resolution, image_batches, known, predict
from cag.runtime.files import write_csv, write_json
from cag.runtime.numbers import percent
from cag.runtime.overlap import overlapped, to_cpu
from cag.runtime.progress import Progress

BATCH_SIZE = 4
Predicted = tuple[int, Tensor, Callable[[], tuple[Tensor, ...]]]  # index, label map, prediction


def full_resolution_prediction(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The predicted class uint8 [H, W] of logits [K, h, w], upsampled with aligned corners."""
    return full_resolution(logits, size)[0]


def predict_labelled(
    network: SegmentationNetwork,
    images: PreparedImages,
    batches: Sequence[Sequence[int]],
    fabric: Fabric,
    advance: Progress,
    on_prediction: Callable[[int, Tensor], None] = lambda index, prediction: None,
) -> Tensor:
    """Predict labelled images, and count their pixels by true and by predicted class.

    Gives the confusion matrix int64 [K, K], rows = truth. The network is in eval mode on the
    fabric's device. The images of a batch, given as indices, have one size. `on_prediction` gets an
    image's index and its prediction, uint8 [H, W] on the CPU at the label map's size, in any order
    and in several threads.
    """

    def predictions(batch: ImageBatch) -> Iterator[Predicted]:
        logits = predict(network, batch.images, fabric).logits
        for index, label, scores in zip(batch.indices, batch.labels, logits, strict=True):
            yield index, label, to_cpu(full_resolution_prediction(scores, label.shape))

    def finish(predicted: Predicted) -> Tensor:
        index, label, arrived = predicted
        prediction = known(*arrived())
        on_prediction(index, prediction)
        return metrics.confusion_matrix(prediction, label, network.num_classes)

    confusion = torch.zeros(network.num_classes, network.num_classes, dtype=torch.int64)
    read = image_batches(images, batches, fabric.device)
    with closing(overlapped(read, predictions, advance, finish)) as counted:
        for counts in counted:
            confusion += counts
            advance()
    return confusion


def in_words(confusion: Tensor, images: int) -> str:
    """The mIoU of a confusion matrix [K, K] over so many images, or why there is none."""
    if not confusion.sum():
        return f"no mIoU: no pixel of the {images} images' labels has a class"
    return f"mIoU {percent(metrics.mean_iou(confusion))} over {images} images"


def write_scores(folder: Path, confusion: Tensor, classes: LabelSpace, images: int) -> None:
    """Write metrics.json, per_class.csv and confusion.csv of int64 [K, K], rows = truth.

    Beside `miou`, the mean IoU is also named by the number of classes, `miou_16`, and there is one
    for each subset of the classes, `miou_13_of_16`.
    """
    iou, class_accuracy = metrics.iou(confusion).numpy(), metrics.class_accuracy(confusion)
    scores = {
        "miou": metrics.mean_iou(confusion),
        f"miou_{classes.num_classes}": metrics.mean_iou(confusion),
        **{f"miou_{name}": metrics.mean_iou(confusion, ids) for name, ids in classes.subsets},
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "mean_accuracy": class_accuracy.nanmean().item(),
        "images": images,
        "iou": dict(zip(classes.names, iou.tolist(), strict=True)),
    }
    write_json(folder / "metrics.json", scores)
    per_class = {"class": classes.names, "iou": iou, "accuracy": class_accuracy.numpy()}
    write_csv(folder / "per_class.csv", pd.DataFrame({**per_class, "pixels": confusion.sum(1)}))
    table = pd.DataFrame(confusion.numpy(), columns=list(classes.names))
    table.insert(0, "truth", classes.names, allow_duplicates=True)  # or a class has this name
    write_csv(folder / "confusion.csv", table)
