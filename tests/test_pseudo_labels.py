"""Pseudo-labels against the released code, float64 references and hand-computed values."""

import re
from types import NoneType
from typing import get_args

import numpy as np
import pytest
import torch
from golden_files import generated_maps, stored_maps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cag.config.pseudo_labels import PseudoLabel
from cag.pseudo_labels import (
    COVERAGE,
    THRESHOLDS,
    MarginHistogram,
    Pixels,
    Threshold,
    active,
    agreeing,
    anchor_distances,
    anchor_margins,
    by_anchor,
    by_probability,
    confident,
    count_labels,
    left_out,
    relative_margins,
)


@pytest.fixture(scope="module", params=[stored_maps, generated_maps])
def golden(request):
    return request.param()


def test_released_nearest_anchors_and_margins(golden):
    features, expected = golden["features"], golden
    nearest, margin = anchor_margins(features, expected["anchors"])
    clear = expected["near_tie_cluster"] == 0
    assert nearest.dtype == torch.uint8 and margin.dtype == torch.float32
    assert torch.equal(nearest[clear], expected["nearest_id"][clear])
    torch.testing.assert_close(margin, expected["margin"], rtol=0, atol=2e-5)


def test_released_pseudo_labels(golden):
    features, logits, expected = golden["features"], golden["logits"], golden
    clear = expected["near_tie_cluster"] == 0
    labels = by_anchor(features, expected["anchors"])
    assert torch.equal(labels[clear], expected["cluster_label"][clear])
    clear = expected["near_tie_prob"] == 0
    assert torch.equal(by_probability(logits)[clear], expected["prob_label"][clear])


def test_released_nearest_distance():
    features, expected = stored_maps()["features"], stored_maps()
    _, first, _ = anchor_distances(features, expected["anchors"])
    torch.testing.assert_close(first, expected["dist_min"], rtol=1e-5, atol=1e-5)


def reference(features, anchors):
    """Nearest, d1 and d2 in float64, anchor by anchor."""
    features, anchors = features.double().numpy(), anchors.double().numpy()
    distances = np.stack(
        [np.sqrt(((features - a[:, None, None]) ** 2).sum(axis=1)) for a in anchors], axis=1
    )
    ranked = np.sort(distances, axis=1)
    return distances.argmin(axis=1), ranked[:, 0], ranked[:, 1]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-2, 1.0])
def test_margins_keep_their_digits(offset, noise):
    # far from the origin, or close to an anchor, products of float32 have too few
    random = torch.Generator().manual_seed(0)
    anchors = torch.randn(6, 64, generator=random) + offset
    own = torch.randint(0, 6, (2, 5, 6), generator=random)
    features = anchors[own].movedim(-1, 1)
    features = features + noise * torch.randn(features.shape, generator=random)
    nearest, first, second = anchor_distances(features, anchors)
    expected_nearest, expected_first, expected_second = reference(features, anchors)
    np.testing.assert_array_equal(nearest, expected_nearest)
    np.testing.assert_allclose(first, expected_first, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(second, expected_second, rtol=1e-5, atol=2e-6)


def test_maps_larger_than_a_block_equal_their_parts():
    random = torch.Generator().manual_seed(1)
    features, anchors = (torch.randn(s, generator=random) for s in [(2, 3, 70, 90), (4, 3)])
    whole = anchor_distances(features, anchors)
    parts = [anchor_distances(features[:, :, row : row + 1], anchors) for row in range(70)]
    for result, rows in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(result, torch.cat(rows, dim=1), rtol=1e-5, atol=1e-6)


def line(*positions):
    """Features or anchors on a line: one channel."""
    return torch.tensor(positions, dtype=torch.float32)


def test_exactly_the_margin_is_kept():
    # distances to 0 and 10: 3.75 and 6.25, then 3.7501 and 6.2499; a third anchor farther off
    features = line(3.75, 3.7501)[None, None, None]
    for third in range(20, 120):
        labels = by_anchor(features, line(0, 10, third)[:, None], margin=2.5)
        assert labels.tolist() == [[[0, 255]]], third


@pytest.mark.parametrize("positions", [(10, 0, 10, 0), (0, 10, 0, 10)])
def test_lowest_class_on_ties(positions):
    features = line(5, 0, 10, -3)[None, None, None]  # midway, on two anchors each, beside two
    nearest, margin = anchor_margins(features, line(*positions)[:, None])
    first = positions.index
    assert nearest.tolist() == [[[0, first(0), first(10), first(0)]]]
    assert margin.tolist() == [[[0, 0, 0, 0]]]


def test_lowest_class_midway_in_many_dimensions():
    # multiples of 1/8, so that both distances are exactly the same
    random = torch.Generator().manual_seed(7)
    middle, step = (torch.randint(-n, n, (40, 256), generator=random) / 8 for n in (400, 20))
    nearest, margin = anchor_margins(
        middle.T[None, :, :, None], torch.cat([middle + step, middle - step])
    )
    assert nearest.flatten().tolist() == list(range(40)) and (margin == 0).all()


def test_lowest_of_two_equal_anchors_in_many_dimensions():
    anchors = torch.randn(19, 256, generator=torch.Generator().manual_seed(2))
    anchors[18] = anchors[7]
    features = (anchors[7] + 0.1)[None, :, None, None].expand(1, -1, 40, 41)
    nearest, margin = anchor_margins(features, anchors)
    assert (nearest == 7).all() and (margin == 0).all()


def test_unseen_anchors_are_never_nearest():
    random = torch.Generator().manual_seed(3)
    features, anchors = (torch.randn(s, generator=random) for s in [(1, 8, 4, 5), (5, 8)])
    seen = [0, 2, 4]
    nearest, margin = anchor_margins(features, anchors[seen])
    anchors[1], anchors[3, 0] = torch.nan, torch.nan
    with_unseen, same_margin = anchor_margins(features, anchors)
    assert torch.equal(with_unseen.long(), torch.tensor(seen)[nearest.long()])
    torch.testing.assert_close(same_margin, margin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen", [0, 1])
def test_fewer_than_two_anchors_are_refused(seen):
    anchors = torch.full((3, 2), torch.nan)
    anchors[:seen] = 1
    with pytest.raises(ValueError, match=f"at least two anchors, but {seen} of 3"):
        anchor_margins(torch.zeros(1, 2, 1, 1), anchors)


def test_another_feature_size_is_refused():
    with pytest.raises(ValueError, match="2 channels, the anchors 3"):
        by_anchor(torch.zeros(1, 2, 1, 1), torch.zeros(4, 3))


def test_distances_have_no_limit():
    features = line(0)[None, None, None]
    _, margin = anchor_margins(features, line(1000, 5000)[:, None])
    assert margin.item() == 4000


def test_pixels_of_nan_are_not_labelled():
    features = torch.full((1, 1, 1, 1), torch.nan)
    assert by_anchor(features, line(0, 10)[:, None]).item() == 255


def test_autocast_changes_nothing():
    features, expected = stored_maps()["features"], stored_maps()
    labels = by_anchor(features[:1], expected["anchors"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(by_anchor(features[:1], expected["anchors"]), labels)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_temporary_is_larger_than_the_features():
    features, anchors = torch.randn(2, 32, 20, 30), torch.randn(50, 32)
    with LargestTensor() as largest:
        by_anchor(features, anchors)
    assert largest.elements <= max(features.numel(), 2 * 50 * 20 * 30)


def test_probability_threshold_itself_is_not_enough():
    threshold = torch.tensor(0.95, dtype=torch.float32)
    above = torch.nextafter(threshold, torch.tensor(1.0))
    labels = confident(torch.tensor([3, 3]), torch.stack([threshold, above]), 0.95)
    assert labels.tolist() == [255, 3] and labels.dtype == torch.uint8


def test_probability_rule_equals_softmax_of_numpy():
    logits = 4 * torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(4))
    exponentials = np.exp(logits.double().numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = np.where(probabilities.max(axis=1) > 0.7, probabilities.argmax(axis=1), 255)
    np.testing.assert_array_equal(by_probability(logits, 0.7), expected)


def test_relative_margin_by_hand():
    first, second = line(1, 0, 2, 0), line(3, 5, 2, 0)
    assert relative_margins(first, second).tolist() == [0.5, 1, 0, 0]


def test_relative_margin_has_no_units():
    random = torch.Generator().manual_seed(5)
    features, anchors = (torch.randn(s, generator=random) for s in [(1, 8, 6, 7), (5, 8)])
    _, *distances = anchor_distances(features, anchors)
    _, *scaled = anchor_distances(features * 64, anchors * 64)
    torch.testing.assert_close(
        relative_margins(*distances), relative_margins(*scaled), rtol=1e-5, atol=1e-6
    )


def test_active_pixels_reach_every_threshold_given():
    nearest = torch.tensor([0, 1, 2, 0], dtype=torch.uint8)
    first, second = (
        line(1, 1, 4, 0),
        line(3, 2, 8, 0.5),
    )  # margins 2 1 4 0.5; relative 1/2 1/3 1/3 1
    thresholds = line(0.75, 0.25, 0)
    assert active(nearest, first, second, margin=2).tolist() == [0, 255, 2, 255]
    assert active(nearest, first, second, relative_margin=0.5).tolist() == [0, 255, 255, 0]
    by_class = active(nearest, first, second, quantile=thresholds)
    assert by_class.tolist() == [255, 1, 2, 0]
    both = active(nearest, first, second, margin=1, relative_margin=0.25)
    assert both.tolist() == [0, 1, 2, 255]
    every = active(nearest, first, second, margin=1, relative_margin=0.25, quantile=thresholds)
    assert every.tolist() == [255, 1, 2, 255] and every.dtype == torch.uint8


def test_active_without_a_threshold_is_refused():
    with pytest.raises(ValueError, match="at least one of margin"):
        active(torch.zeros(1, dtype=torch.uint8), line(0), line(1))


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_quantile_keeps_the_fraction_of_each_class(keep):
    random = torch.Generator().manual_seed(6)
    nearest = torch.randint(0, 3, (4, 30, 40), generator=random).to(torch.uint8)
    nearest[torch.rand(nearest.shape, generator=random) < 0.01] = 3  # a rare class
    power = nearest + 1  # each class has margins of another size
    relative = torch.rand(nearest.shape, generator=random) ** power
    histogram = MarginHistogram(5)
    for image in range(4):
        histogram.update(nearest[image], relative[image])
    thresholds = histogram.thresholds(keep)
    assert thresholds[4] == 0
    for c in range(4):
        own = relative[nearest == c].double().numpy()
        exact = np.sort(own)[::-1][int(np.ceil(keep * len(own) - 1e-9)) - 1]
        assert exact - 2**-14 <= thresholds[c] <= exact
        assert (own >= thresholds[c].item()).mean() >= keep


def test_quantile_by_hand():
    histogram = MarginHistogram(2, bins=4)
    histogram.update(torch.tensor([1, 1, 1, 1]), line(0.1, 0.3, 0.8, 1.0))
    assert histogram.counts.tolist() == [[0, 0, 0, 0], [1, 1, 0, 2]]
    assert [histogram.thresholds(keep)[1].item() for keep in (0.5, 0.75, 1.0)] == [0.75, 0.25, 0]


def test_quantile_does_not_ask_for_a_pixel_more():
    histogram = MarginHistogram(1, bins=128)
    histogram.update(torch.zeros(100, dtype=torch.uint8), torch.arange(100) / 128)
    assert histogram.thresholds(0.07).item() * 128 == 93  # 0.07 * 100 > 7 in floating point


@pytest.mark.parametrize("keep", [0, -0.1, 1.01])
def test_impossible_fractions_are_refused(keep):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        MarginHistogram(2).thresholds(keep)


def test_bins_are_a_power_of_two():
    with pytest.raises(ValueError, match="power of two, not 1000"):
        MarginHistogram(2, bins=1000)


def test_agreeing_keeps_labels_that_the_prediction_shares():
    labels = torch.tensor([0, 1, 255, 2], dtype=torch.uint8)
    prediction = torch.tensor([0, 2, 1, 2], dtype=torch.uint8)
    assert agreeing(labels, prediction).tolist() == [0, 255, 255, 2]


@pytest.mark.parametrize("passes", [torch.ge, torch.gt, torch.le, torch.lt])
def test_counts_of_passed_thresholds_are_those_of_each(passes):
    random = torch.Generator().manual_seed(7)
    thresholds = torch.rand(9, generator=random).sort().values
    values = torch.cat([torch.rand(200, generator=random), thresholds, line(-1, 2, torch.inf)])
    threshold = Threshold("margin", "", Pixels.margin, passes=passes)
    pixels = Pixels(torch.zeros(len(values)), torch.zeros(len(values)), values)
    each = torch.stack([threshold.passed(pixels, limit) for limit in thresholds])
    assert torch.equal(threshold.count_passed(values, thresholds), each.sum(dim=0))
    assert threshold.count_passed(line(torch.nan), thresholds).tolist() == [0]


def test_a_threshold_may_differ_between_the_classes():
    pixels = Pixels(torch.tensor([0, 1, 1], dtype=torch.uint8), line(0, 0, 0), line(2, 2, 4))
    passed = THRESHOLDS["margin"].passed(pixels, line(1, 3))
    assert passed.tolist() == [True, False, True]


def test_parameters_that_may_be_null_are_the_anchor_rules_thresholds():
    by_rule = {key for key, threshold in THRESHOLDS.items() if threshold.rule == "anchor"}
    fields = PseudoLabel.model_fields
    assert by_rule == {
        key for key, field in fields.items() if NoneType in get_args(field.annotation)
    }
    assert THRESHOLDS.keys() == fields.keys() - {"agreement"}


def test_labels_are_counted_by_class_and_by_agreement():
    nearest = torch.tensor([0, 0, 1, 2], dtype=torch.uint8)
    by_anchor = torch.tensor([0, 255, 1, 255], dtype=torch.uint8)
    by_probability = torch.tensor([0, 2, 0, 255], dtype=torch.uint8)
    counts = count_labels(nearest, by_anchor, by_probability, 3).tolist()
    assert dict(zip(COVERAGE, counts, strict=True)) == {
        "nearest": [2, 1, 1],
        "anchor": [1, 1, 0],
        "probability": [2, 0, 1],
        "agree": [1, 0, 0],
    }


@pytest.mark.parametrize(
    ("thresholds", "error", "says"),
    [
        ({"margin": 2.5}, 0.004, None),
        ({"margin": 2.5}, 0.006, "up to 0.006 of an anchor: .*margins by up to 0.012; raise"),
        ({"margin": 0.5}, 0.004, "margins by up to 0.008"),
        ({"relative_margin": 0.2}, 0.004, None),
        ({"relative_margin": 0.2}, 0.006, "margins by up to 0.012"),
        ({"quantile": 0.5}, 0.006, "margins by up to 0.012"),
        ({"margin": 0.0}, 9.0, None),  # each pixel passes
        ({"margin": 25.0, "quantile": 0.5}, 0.006, "margins by up to 0.012"),
    ],
)
def test_what_a_store_leaves_out_is_said_where_labels_may_differ(thresholds, error, says):
    """The nearest anchors are 5 apart, so a relative margin of theirs is wrong by 0.002 at 0.01."""
    anchors = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0], [torch.nan, torch.nan]])
    line = left_out(error, anchors, PseudoLabel(probability=0.9, **thresholds))
    assert line is None if says is None else re.search(says, line)
