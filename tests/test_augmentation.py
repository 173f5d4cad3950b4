"""Colours and blur of a step's images: ranges, draws, what stays."""

import pytest
import torch

from cag.augmentation import blur, change_colours
from cag.config.training import Photometric


def drawing(*numbers):
    """A `draw` that gives each image these numbers."""
    return lambda images, count, device: torch.tensor([numbers]).expand(images, count)


def image(*rgb):
    """An image of two pixels, the colour and black."""
    return torch.tensor([[rgb, (0.0, 0.0, 0.0)]]).permute(0, 2, 1)[:, :, None]


MIDDLE = 0.5  # the draw that changes nothing


def test_nothing_changes_without_a_range():
    images = torch.rand(2, 3, 4, 5)
    assert change_colours(images, None) is images
    torch.testing.assert_close(change_colours(images, Photometric()), images)
    assert blur(images, 0.0) is images


def test_the_middle_of_each_range_changes_nothing():
    images, most = (
        torch.rand(2, 3, 4, 5),
        Photometric(brightness=0.5, contrast=0.4, saturation=0.4, hue=0.1, gamma=1.0),
    )
    torch.testing.assert_close(change_colours(images, most, drawing(*[MIDDLE] * 5)), images)


@pytest.mark.parametrize(
    ("change", "draws", "expected"),
    [
        (Photometric(gamma=1.0), (1, 0.5, 0.5, 0.5, 0.5), (0.64, 0.16, 0.04)),  # power 2
        (Photometric(brightness=0.5), (0.5, 0, 0.5, 0.5, 0.5), (0.4, 0.2, 0.1)),
        # mean 1.4 / 6; twice as far from it
        (Photometric(contrast=1.0), (0.5, 0.5, 1, 0.5, 0.5), (1.0, 0.56666666, 0.16666666)),
        # mean 1.4 / 3; no colour is left
        (Photometric(saturation=1.0), (0.5, 0.5, 0.5, 0, 0.5), (0.46666666,) * 3),
        # a third of a turn: red becomes green
        (Photometric(hue=1 / 3), (0.5, 0.5, 0.5, 0.5, 1), (0.2, 0.8, 0.4)),
    ],
)
def test_each_change_at_the_end_of_its_range(change, draws, expected):
    colour = change_colours(image(0.8, 0.4, 0.2), change, drawing(*map(float, draws)))[0, :, 0, 0]
    torch.testing.assert_close(colour, torch.tensor(expected))


def test_a_factor_has_no_other_sign():
    """A change of 2 draws from 0 to 3: its least leaves no light, no contrast, no colour."""
    least = {"brightness": 0.0, "contrast": 0.1, "saturation": 0.2}  # of all three colours
    for number, (name, value) in enumerate(least.items(), 1):
        draws = [0.0 if i == number else MIDDLE for i in range(5)]
        changed = change_colours(image(0.3, 0.2, 0.1), Photometric(**{name: 2.0}), drawing(*draws))
        torch.testing.assert_close(changed[0, :, 0, 0], torch.full((3,), value))
    most = drawing(MIDDLE, 1.0, *[MIDDLE] * 3)
    changed = change_colours(image(0.3, 0.2, 0.1), Photometric(brightness=2.0), most)
    torch.testing.assert_close(changed[0, :, 0, 0], torch.tensor([0.9, 0.6, 0.3]))


def test_each_image_has_its_own_draws():
    torch.manual_seed(0)
    images = torch.full((4, 3, 2, 2), 0.5)
    means = change_colours(images, Photometric(brightness=0.5)).mean(dim=(1, 2, 3))
    assert len(means.unique()) == 4 and means.min() >= 0.25 and means.max() <= 0.75


def test_blur_spreads_a_point_and_keeps_its_sum():
    images = torch.zeros(2, 3, 15, 15)
    images[:, :, 7, 7] = 1
    blurred = blur(images, 0.5, lambda *_: torch.tensor([[0.4, 1.0], [0.6, 1.0]]))
    torch.testing.assert_close(blurred[1], images[1])  # 0.6 is not below the probability
    point = blurred[0, 0]
    torch.testing.assert_close(point.sum(), torch.tensor(1.0))
    torch.testing.assert_close(point[7, 8] / point[7, 7], torch.tensor(-1 / (2 * 1.5**2)).exp())
    torch.testing.assert_close(point, point.t())


def test_mixed_precision_rounds_no_image():
    images = torch.rand(2, 3, 8, 8)
    chances = lambda *_: torch.tensor([[0.4, 1.0], [0.6, 1.0]])  # noqa: E731
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = blur(images, 0.5, chances)
    assert found.dtype == torch.float32 and torch.equal(found, blur(images, 0.5, chances))
    assert torch.equal(found[1], images[1])


def test_blur_of_a_plain_image_changes_nothing():
    images = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(blur(images, 1.0), images)
