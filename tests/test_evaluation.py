"""Predictions are counted as one by one; each mean IoU has its own name on disk."""

import json
import threading
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cag.datasets.images import write_image, write_label
from cag.datasets.labels import IGNORE, LabelSpace
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS, PreparedImages
from cag.evaluation import full_resolution_prediction, in_words, predict_labelled, write_scores
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.progress import progress

SPACE = LabelSpace(("road", "wall", "sky"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


def test_each_mean_is_under_its_name(tmp_path):
    confusion = torch.tensor([[6, 2, 0], [0, 2, 0], [2, 0, 4]])
    iou = [6 / 10, 2 / 4, 4 / 6]
    space = LabelSpace(SPACE.names, SPACE.palette, (("2_of_3", (0, 2)), ("1_of_3", (1,))))
    write_scores(tmp_path, confusion, space, 5)
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["miou"] == scores["miou_3"] == pytest.approx(sum(iou) / 3)
    assert scores["miou_2_of_3"] == pytest.approx((iou[0] + iou[2]) / 2)
    assert scores["miou_1_of_3"] == pytest.approx(iou[1])
    # A model of 2 classes never takes road for wall, which costs 2 of the 10 pixels here.
    assert scores["miou_2_of_3"] != pytest.approx((6 / 8 + 4 / 6) / 2)
    assert list(scores["iou"].values()) == pytest.approx(iou)
    assert scores["images"] == 5


def test_without_subsets_there_is_one_mean(tmp_path):
    write_scores(tmp_path, torch.eye(3, dtype=torch.int64), SPACE, 1)
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert [key for key in scores if key.startswith("miou")] == ["miou", "miou_3"]


def test_a_class_may_have_the_name_of_a_column(tmp_path):
    space = LabelSpace(("truth", "class", "pixels"), SPACE.palette)
    write_scores(tmp_path, torch.eye(3, dtype=torch.int64), space, 1)
    head, *rows = (tmp_path / "confusion.csv").read_text().splitlines()
    assert head == "truth,truth,class,pixels" and rows[0] == "truth,1,0,0"


class Output(NamedTuple):
    """As a network's."""

    features: Tensor
    logits: Tensor


class Colours(nn.Module):
    """Each colour is a class's logit, at half the image's size."""

    num_classes = 3

    def forward(self, images: Tensor) -> Output:
        """Logits [B, 3, H/2, W/2]."""
        small = F.avg_pool2d(images, 2)
        return Output(small, small)


@pytest.fixture
def images(tmp_path) -> PreparedImages:
    """Labelled images of two sizes, whose labels are twice as large."""
    random, rows = np.random.default_rng(0), []
    for i, height in enumerate([4, 4, 4, 6, 6, 4, 4]):
        write_image(tmp_path / f"{i}.png", random.integers(0, 256, (height, 8, 3)).astype(np.uint8))
        labels = random.choice([0, 1, 2, IGNORE], (2 * height, 16)).astype(np.uint8)
        write_label(tmp_path / f"{i}_label.png", labels, SPACE.palette_array)
        paths = {"name": f"{i}", "image": f"{i}.png", "label": f"{i}_label.png"}
        rows.append({"split": "val", "height": height, "width": 8, **paths})
    write_manifest(tmp_path, pd.DataFrame(rows, columns=COLUMNS).fillna(""), SPACE)
    return PreparedImages(tmp_path, "val", with_labels=True)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_counts_are_those_of_a_loop_over_images(images, size, capsys):
    fabric, seen = make_fabric("32-true"), {}
    with progress("evaluate", len(images), "images") as advance:
        found = predict_labelled(
            Colours(), images, images.batches(size), fabric, advance, seen.__setitem__
        )
    expected = np.zeros((3, 3), np.int64)
    for i, (image, label, _) in enumerate(images[i] for i in range(len(images))):
        logits = Colours()(image[None] / 255).logits[0]
        prediction = full_resolution_prediction(logits, label.shape)
        assert torch.equal(prediction, seen[i])
        known = label != IGNORE
        np.add.at(expected, (label[known], prediction[known]), 1)
    assert np.array_equal(found, expected)
    printed = capsys.readouterr().out
    assert printed.startswith("evaluate: 7 images") and "waiting for data" in printed


def test_outputs_that_are_no_numbers_are_no_class(images):
    """As of finite weights that overflow."""

    class Overflowing(Colours):
        def forward(self, images: Tensor) -> Output:
            logits = super().forward(images).logits
            logits[:, 1, 0, 0] = torch.nan
            return Output(logits, logits)

    batches, fabric = images.batches(1), make_fabric("32-true")
    with (
        pytest.raises(UserError, match="outputs are NaN or infinite"),
        progress("evaluate", 7, "images") as advance,
    ):
        predict_labelled(Overflowing(), images, batches, fabric, advance)


def test_parts_of_the_images_add_up(images):
    fabric, batches = make_fabric("32-true"), images.batches(2)
    parts = []
    for chosen in (batches, batches[::2], batches[1::2]):
        with progress("evaluate", 7, "images") as advance:
            parts.append(predict_labelled(Colours(), images, chosen, fabric, advance))
    assert torch.equal(parts[0], parts[1] + parts[2])


def test_an_error_in_writing_stops_the_predictions(images):
    def fail(index, prediction):
        raise OSError("disk is full")

    before = threading.active_count()
    with (
        pytest.raises(OSError, match="disk is full"),
        progress("evaluate", 7, "images") as advance,
    ):
        batches = images.batches(1)
        predict_labelled(Colours(), images, batches, make_fabric("32-true"), advance, fail)
    deadline = time.monotonic() + 5  # the progress bar's thread may end a little later
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_void_labels_give_a_sentence_and_no_number(tmp_path):
    nothing = torch.zeros(3, 3, dtype=torch.int64)
    assert in_words(nothing, 4) == "no mIoU: no pixel of the 4 images' labels has a class"
    assert in_words(torch.eye(3, dtype=torch.int64), 4) == "mIoU 100.0 over 4 images"
    write_scores(tmp_path, nothing, SPACE, 4)  # without a warning of numpy's
    assert json.loads((tmp_path / "metrics.json").read_text())["miou"] is None
