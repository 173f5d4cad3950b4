"""Scores on disk: each mean IoU under its own name."""

import json

import pytest
import torch

from cag.evaluation import write_scores
from cag.labels import LabelSpace

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
