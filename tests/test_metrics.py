"""Confusion matrices and scores against the released code and hand-computed values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cag import metrics
from cag.metrics import class_accuracy, confusion_matrix, iou, mean_iou, pixel_accuracy

GOLDEN = Path(__file__).parent / "golden"
K = 19

# rows = truth: 4 pixels of class 0, 2 of class 1, none of class 2, which is predicted once
HAND = torch.tensor([[3, 0, 1], [1, 1, 0], [0, 0, 0]])


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    with np.load(GOLDEN / "golden_iou.npz") as arrays:
        return {
            name.removesuffix(f"_{request.param}"): torch.from_numpy(np.asarray(arrays[name]))
            for name in arrays.files
            if name.endswith(f"_{request.param}")
        }


def test_released_confusion_and_scores(golden):
    confusion = confusion_matrix(golden["preds"], golden["labels"], K)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion.double(), golden["confusion"].double())
    torch.testing.assert_close(iou(confusion), golden["iou"].double(), equal_nan=True)
    assert mean_iou(confusion) == pytest.approx(golden["miou"].item(), rel=1e-12)
    assert pixel_accuracy(confusion) == pytest.approx(golden["acc"].item(), rel=1e-12)
    mean_accuracy = class_accuracy(confusion).nanmean().item()
    assert mean_accuracy == pytest.approx(golden["mean_acc"].item(), rel=1e-12)


def test_rows_are_the_truth():
    confusion = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]), 2)
    assert confusion.tolist() == [[0, 2], [1, 0]]


def test_confusions_of_images_add_up(golden):
    parts = [
        confusion_matrix(p, t, K) for p, t in zip(golden["preds"], golden["labels"], strict=True)
    ]
    assert torch.equal(sum(parts), confusion_matrix(golden["preds"], golden["labels"], K))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_pixels_without_a_class_are_skipped(dtype):
    labels = torch.tensor([0, 1, 200, 3, 255, 2]).to(dtype)
    predictions = torch.tensor([0, 2, 0, 0, 1, 255]).to(dtype)
    expected = [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert confusion_matrix(predictions, labels, 3).tolist() == expected
    if dtype.is_signed:
        assert confusion_matrix(-predictions - 1, labels, 3).sum() == 0


def test_many_classes_do_not_overflow_small_integers():
    labels = torch.arange(254).to(torch.uint8)
    confusion = confusion_matrix(labels, labels, 254)
    assert torch.equal(confusion, torch.eye(254, dtype=torch.int64))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, 3).int(), torch.zeros(3, 2).int(), 2)


def test_scores_by_hand():
    assert iou(HAND).tolist() == pytest.approx([3 / 5, 1 / 2, 0])
    assert class_accuracy(HAND).tolist() == pytest.approx([3 / 4, 1 / 2, math.nan], nan_ok=True)
    assert mean_iou(HAND) == pytest.approx((3 / 5 + 1 / 2) / 3)
    assert pixel_accuracy(HAND) == pytest.approx(4 / 6)


def test_mean_over_some_classes_keeps_the_errors_of_the_others():
    # without class 2 altogether, class 0 would score 3 / 4
    assert mean_iou(HAND, classes=[0, 1]) == pytest.approx((3 / 5 + 1 / 2) / 2)


def test_a_class_in_neither_is_left_out_of_the_mean():
    confusion = torch.tensor([[2, 0], [0, 0]])
    assert iou(confusion)[1].isnan() and mean_iou(confusion) == 1


def test_nothing_counted_is_nan():
    nothing = torch.zeros(2, 2, dtype=torch.int64)
    assert math.isnan(mean_iou(nothing)) and math.isnan(pixel_accuracy(nothing))
    assert iou(nothing).dtype == torch.float64


def test_coverage_precision_and_recall_by_hand():
    labels = torch.tensor([0, 1, 1, 255, 255, 2], dtype=torch.uint8)
    truth = torch.tensor([0, 1, 0, 1, 255, 255], dtype=torch.uint8)
    outcome = metrics.labelling_outcome(labels, truth)
    assert outcome.tolist() == [6, 4, 4, 3, 2]
    scores = metrics.labelling_scores(outcome)
    assert scores == pytest.approx({"coverage": 4 / 6, "precision": 2 / 3, "recall": 2 / 4})
    parts = sum(metrics.labelling_outcome(labels[i::2], truth[i::2]) for i in range(2))
    assert torch.equal(parts, outcome)


def test_scores_of_no_pseudo_label_are_undefined():
    none = torch.full((4,), 255, dtype=torch.uint8)
    scores = metrics.labelling_scores(metrics.labelling_outcome(none, torch.zeros_like(none)))
    assert (scores["coverage"], scores["recall"]) == (0, 0) and math.isnan(scores["precision"])
