"""An image and a pixel of it are described as the rules label them."""

import numpy as np
import pytest
import torch

from cag.analysis.inspection import (
    describe_image,
    describe_pixel,
    enlarge,
    feature_pixel,
    find_image,
    inspect_image,
)
from cag.config.pseudo_labels import PseudoLabel
from cag.runtime.errors import UserError

NAMES = ("road", "sky", "car")
ANCHORS = torch.tensor([[0.0, 0.0], [10.0, 0.0], [torch.nan, torch.nan]])
FEATURES = torch.tensor([[1.0, 4.0, 8.0], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3).half()
PREDICTION = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
PROBABILITY = torch.tensor([[[0.5, 0.95, 0.7]]])


def config(**changes):
    values = {"margin": None, "relative_margin": None, "quantile": None, "agreement": False}
    return PseudoLabel(**values | {"probability": 0.6} | changes)


def inspected(thresholds, own=None):
    return inspect_image(FEATURES, PREDICTION, PROBABILITY, ANCHORS, thresholds, own)


def pixel(column, thresholds, own=None, target_labels="both"):
    found = inspected(thresholds, own)
    known = (found, (0, column), FEATURES, ANCHORS, thresholds, own, NAMES)
    return describe_pixel(*known, target_labels)


def test_a_pixel_by_hand():
    found = pixel(1, config(margin=2.5, relative_margin=0.2))
    assert found["distances"] == [
        {"class": "road", "distance": 4.0},
        {"class": "sky", "distance": 6.0},
    ]  # none to the class without an anchor
    assert (found["nearest"], found["margin"]) == ("road", 2.0)
    assert found["relative_margin"] == pytest.approx(0.2)
    rules = {rule["rule"]: rule["passes"] for rule in found["rules"]}
    assert rules == {"margin": False, "relative_margin": True, "probability": True}
    assert found["labels"] == {"anchor": None, "probability": "sky", "training": ["sky"]}


@pytest.mark.parametrize("own", [(0.1, 0.9, 0.9), (0.3, 0.1, 0.1)])
@pytest.mark.parametrize("agreement", [False, True])
def test_a_pixel_is_labelled_when_it_passes_every_rule(own, agreement):
    thresholds = config(margin=1.0, quantile=0.5, agreement=agreement)
    labelled = inspected(thresholds, torch.tensor(own)).by_anchor[0]
    for column in range(3):
        found = pixel(column, thresholds, torch.tensor(own))
        passes = [rule["passes"] for rule in found["rules"] if rule["rule"] != "probability"]
        assert len(passes) == 2 + agreement
        assert all(passes) == (labelled[column] < 255)


@pytest.mark.parametrize(
    ("target_labels", "training"),
    [("both", ["road", "sky"]), ("anchor", ["road"]), ("probability", ["sky"])],
)
def test_the_classes_that_training_draws_to(target_labels, training):
    found = pixel(1, config(margin=0.0), target_labels=target_labels)
    assert found["labels"]["training"] == training


def test_an_image_by_hand():
    found = describe_image(inspected(config(margin=3.0)), NAMES)
    assert found["pixels"] == 3
    assert found["classes"] == [
        {"class": "road", "nearest": 2, "anchor": 1, "probability": 0, "agree": 0},
        {"class": "sky", "nearest": 1, "anchor": 1, "probability": 1, "agree": 0},
        {"class": "car", "nearest": 0, "anchor": 0, "probability": 1, "agree": 0},
    ]
    median = next(row for row in found["quantiles"] if row["quantile"] == 0.5)
    assert median["margin"] == 6.0 and median["probability"] == pytest.approx(0.7)


def test_a_feature_pixel_is_the_one_that_labels_the_image_s():
    labels = torch.randint(0, 200, (5, 7), generator=torch.Generator().manual_seed(0)).byte()
    size = (18, 31)
    full = enlarge(labels, size)
    for x, y in np.ndindex(31, 18):
        assert labels[feature_pixel((x, y), size, labels.shape)] == full[y, x]


@pytest.mark.parametrize("xy", [(31, 0), (0, 18), (-1, 0)])
def test_a_pixel_outside_the_image_names_the_size(xy):
    with pytest.raises(UserError, match="31 x 18 pixels, so x is 0 to 30 and y 0 to 17"):
        feature_pixel(xy, (18, 31), torch.Size((5, 7)))


def test_images_are_found_by_name_part_and_path():
    names = ["a/frame_1", "a/frame_10", "b/frame_2", "frame_2"]
    assert find_image(names, "a/frame_1") == 0
    assert find_image(names, "e_10") == 1
    assert find_image(names, "data/prepared/target/images/train/b/frame_2.png") == 2
    assert find_image(names, "frame_2") == 3
    with pytest.raises(UserError, match="part of 2 names: a/frame_1, a/frame_10"):
        find_image(names, "a/fr")
    with pytest.raises(UserError, match="none of the 4 target training images; nearest: .*frame_1"):
        find_image(names, "frame_19")
    for nothing in ("", ".", "/"):
        with pytest.raises(UserError, match="none of the 4"):
            find_image(names, nothing)
