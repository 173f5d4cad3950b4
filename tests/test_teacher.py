"""The online teacher: it follows, its labels weigh as configured, its anchors move along."""

import pytest
import torch
from torch import nn

from cag.config.anchors import Anchors
from cag.teacher import (
    ClassShares,
    FollowingAnchors,
    anchor_probabilities,
    first_teacher,
    follow,
    inside,
    mean_inside,
    pixel_weights,
)


def normalised(seed):
    """A convolution with batch norm."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    network[1].running_mean.normal_()
    return network


def test_a_teacher_starts_as_a_copy_without_gradients():
    student = normalised(0)
    teacher = first_teacher(student)
    student[0].weight.data.zero_()
    assert torch.equal(teacher[0].weight, normalised(0)[0].weight)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_follows_weights_and_statistics():
    teacher, student, before = first_teacher(normalised(0)), normalised(1), normalised(0)
    student[1].num_batches_tracked += 7
    follow(teacher, student, 0.75)
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
        old, new = before.state_dict()[name], student.state_dict()[name]
        torch.testing.assert_close(teacher.state_dict()[name], 0.75 * old + 0.25 * new)
    assert teacher[1].num_batches_tracked == 7


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("share", [[0.75, 0.75], [0.75, 0.75]]),
        ("threshold", [[1.0, 1.0], [1.0, 0.0]]),
        ("pixel", [[0.95, 0.96], [1.0, 0.9]]),
    ],
)
def test_weights_of_pixels(weighting, expected):
    probability = torch.tensor([[[0.95, 0.96], [1.0, 0.9]], [[0.1, 0.1], [0.1, 0.1]]])
    weights = pixel_weights(probability, 0.9, weighting, torch.ones(2, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(weights[0], torch.tensor(expected))
    assert weights[1].max() == (0.1 if weighting == "pixel" else 0)


@pytest.mark.parametrize(
    ("weighting", "expected"), [("share", 0.5), ("threshold", 1.0), ("pixel", 0.95)]
)
def test_pixels_that_do_not_count_weigh_nothing_and_are_in_no_share(weighting, expected):
    probability = torch.tensor([[[0.95, 0.5, 0.99, 0.99]]])
    counted = torch.tensor([[[True, True, False, False]]])
    weights = pixel_weights(probability, 0.9, weighting, counted)
    assert weights[0, 0, 0] == pytest.approx(expected) and weights[0, 0, 2:].tolist() == [0, 0]


def test_a_crop_shows_its_image_where_no_whole_row_or_column_is_black():
    images = torch.full((2, 3, 4, 6), 0.5)
    images[0, :, :, :2] = images[0, :, 3:] = 0  # the image is 3 x 4
    images[1, :, 1, 1] = images[1, 1:] = 0  # a black pixel, and a red image
    seen = inside(images)
    assert seen[0].nonzero().amin(0).tolist() == [0, 2] and seen[0].sum() == 3 * 4
    assert seen[0, :3, 2:].all() and seen[1].all()
    assert not inside(torch.zeros(1, 3, 2, 2)).any()


def test_a_mean_over_the_counted_pixels_of_each_map():
    values = torch.tensor([[[1.0, 3.0, 9.0]], [[1.0, 1.0, 1.0]]])
    counted = torch.tensor([[[True, True, False]], [[False] * 3]])
    assert mean_inside(values, counted).flatten().tolist() == [2, 0]


def test_weights_of_an_unknown_kind():
    with pytest.raises(ValueError, match="share, pixel, threshold, not 'other'"):
        pixel_weights(torch.ones(1, 1, 1), 0.5, "other", torch.ones(1, 1, 1, dtype=torch.bool))


def test_probabilities_by_distance_to_the_anchors():
    features = torch.tensor([0.0, 3.0, 4.0]).view(1, 1, 1, 3)
    anchors = torch.tensor([[0.0], [4.0]])
    shares = anchor_probabilities(features, anchors, temperature=2.0)
    expected = torch.tensor([[0.0, -4.0], [-3.0, -1.0], [-4.0, 0.0]]).div(2).softmax(1)
    torch.testing.assert_close(shares[0, :, 0].t(), expected)


def test_a_class_without_an_anchor_keeps_its_part():
    features, anchors = torch.zeros(1, 1, 1, 1), torch.tensor([[0.0], [torch.nan], [0.0]])
    shares = anchor_probabilities(features, anchors, temperature=1.0)
    torch.testing.assert_close(shares.flatten(), torch.full((3,), 1 / 3))


def collected(anchors, images, momentum=0.5):
    """Anchors after one step on images, (feature, label, predicted class) of their pixels."""
    for pixels in images:
        features, labels, predicted = torch.tensor(pixels).t()
        logits = nn.functional.one_hot(predicted.long(), 2).float().t().view(1, 2, 1, -1)
        anchors.collect(features.view(1, 1, 1, -1), logits, labels.view(1, 1, -1).long())
    anchors.update()
    return anchors.values.flatten().tolist()


def means(min_pixels, average="images"):
    return Anchors(average=average, min_pixels=min_pixels)


def test_anchors_of_pixels_follow_the_mean_of_all_pixels():
    anchors = FollowingAnchors(torch.tensor([[1.0], [torch.nan]]), 0.5, means(2, "pixels"))
    first = [(2.0, 0, 0), (4.0, 0, 0), (9.0, 0, 1)]
    second = [(9.0, 0, 0), (8.0, 1, 1)]  # one pixel of a class is enough
    assert collected(anchors, [first, second]) == [0.5 * 1 + 0.5 * 5, 8.0]


def test_anchors_follow_the_images_class_means():
    anchors = FollowingAnchors(torch.tensor([[1.0], [torch.nan]]), 0.5, means(2))
    first = [(2.0, 0, 0), (4.0, 0, 0), (9.0, 0, 1)]  # mean 3: the last pixel is predicted wrongly
    second = [(5.0, 0, 0), (5.0, 0, 0), (8.0, 1, 1)]  # mean 5; class 1 has too few pixels
    values = collected(anchors, [first, second])
    assert values[0] == 0.5 * 1 + 0.5 * 4 and torch.isnan(torch.tensor(values[1]))
    third = [(6.0, 1, 1), (8.0, 1, 1)]  # the first mean of class 1; class 0 stays
    assert collected(anchors, [third]) == [2.5, 7.0]


def test_anchors_are_part_of_the_checkpoint():
    state = FollowingAnchors(torch.ones(2, 3), 0.9, means(1)).state_dict()
    assert torch.equal(state["values"], torch.ones(2, 3))


def aligned(shares, source, target, power, seen=None):
    """A target's probabilities, after a source and a target [B, K, H, W] of a step."""
    everywhere = torch.ones(target[:, 0].shape, dtype=torch.bool)
    shares.collect(0, source, everywhere)
    shares.collect(1, target, everywhere if seen is None else seen)
    result = shares.aligned(target, power)
    shares.update()
    return result


def test_probabilities_are_aligned_with_the_shares_in_the_source():
    source = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)  # at the features' size
    probabilities = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    for power, expected in ((1.0, [0.75, 0.25]), (0.5, [0.5, 0.5])):
        shares = ClassShares(2, momentum=0.5)
        first = aligned(shares, source, probabilities, power)
        torch.testing.assert_close(first, probabilities)  # nothing is known yet
        second = aligned(shares, source, probabilities, power)
        torch.testing.assert_close(second[0, :, 0, 0], torch.tensor(expected))


def test_pixels_outside_the_image_are_in_no_share():
    target = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).view(1, 2, 1, 2)
    shares, seen = ClassShares(2, momentum=0.5), torch.tensor([[[True, False]]])
    aligned(shares, torch.full((1, 2, 1, 1), 0.5), target, 1.0, seen)
    assert shares.totals[1].tolist() == [1, 0]


def test_shares_are_exact_in_half_precision():
    """Sums of more pixels than float16 can count, 65,504."""
    probabilities = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1).expand(1, 2, 400, 400)
    totals = []
    for enabled in (False, True):
        shares = ClassShares(2, momentum=0.5)
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            aligned(shares, probabilities, probabilities, 1.0)
        totals.append(shares.totals)
    assert torch.equal(*totals) and totals[0].isfinite().all()


def test_shares_run_over_the_steps():
    shares = ClassShares(2, momentum=0.5)
    even = torch.full((1, 2, 1, 1), 0.5)
    for source in ([1.0, 0.0], [0.0, 1.0]):
        aligned(shares, torch.tensor(source).view(1, 2, 1, 1), even, 1.0)
    torch.testing.assert_close(shares.totals, torch.tensor([[0.5, 1.0], [0.75, 0.75]]))
