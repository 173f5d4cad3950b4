"""Joint transforms: image and labels stay aligned, the seed decides, values stay in range."""

import colorsys

import pytest
import torch
import torch.nn.functional as F

from cag.config.training import Augmentation, Photometric
from cag.datasets.labels import IGNORE
from cag.training.transforms import RandomGamma, RandomResize, apply_seeded, training_transform

# Each class is one colour, far from the others and from the black of padding.
COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
PHOTOMETRIC = Photometric(brightness=0.5, contrast=0.4, saturation=0.4, hue=0.1, gamma=1.0)


def config(scale=(1.0, 1.0), crop=(64, 96), flip=0.0, photometric=None):
    """An augmentation that changes a 64 x 96 image only by the named changes."""
    return Augmentation(scale=scale, crop=crop, flip=flip, photometric=photometric)


def blocks(height=64, width=96, block=16, seed=0):
    """An image of large blocks of random classes, each in its colour, and the label map."""
    generator = torch.Generator().manual_seed(seed)
    size = (height // block, width // block)
    small = torch.randint(0, len(COLORS), size, generator=generator, dtype=torch.uint8)
    labels = small.repeat_interleave(block, 0).repeat_interleave(block, 1)  # (H, W)
    return COLORS[labels.long()].permute(2, 0, 1), labels[None]


def nearest_class(image):
    """The class whose colour is nearest, black being none, for an image [3, h, w] in [0, 1]."""
    colors = torch.cat([COLORS.float() / 255, torch.zeros(1, 3)])  # (K + 1, 3)
    found = (image[None] - colors[:, :, None, None]).square().sum(1).argmin(0)
    return found.where(found < len(COLORS), torch.tensor(IGNORE)).byte()


def inner(labels, radius=3):
    """The pixels where a label map [h, w] is constant within `radius` and colours do not blend.

    Without pixels near the border, because another class may begin beyond it.
    """
    size = 2 * radius + 1
    padded = F.pad(labels[None, None].float(), (radius,) * 4, value=-1)
    largest = F.max_pool2d(padded, size, stride=1)
    return (largest == -F.max_pool2d(-padded, size, stride=1))[0, 0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("crop", [(48, 64), (96, 128)], ids=["crop", "pad"])
def test_image_and_labels_stay_aligned(seed, crop):
    transform = training_transform(config((0.75, 1.5), crop, flip=0.5))
    image, labels = apply_seeded(transform, *blocks(), seed)
    assert image.shape == (3, *crop) and labels.shape == (1, *crop)
    checked = inner(labels[0])
    assert checked.float().mean() > 0.3
    assert torch.equal(nearest_class(image)[checked], labels[0][checked])


def test_the_edges_of_image_and_labels_lie_within_a_pixel():
    transform = training_transform(config((0.75, 1.5), (48, 64)))
    for seed in range(6):
        image, labels = apply_seeded(transform, *blocks(block=32), seed)
        checked = inner(labels[0], radius=1)
        assert torch.equal(nearest_class(image)[checked], labels[0][checked])


def test_every_label_map_goes_through_the_same_geometry():
    image, labels = blocks()
    transform = training_transform(config((0.5, 2.0), (40, 40), flip=0.5, photometric=PHOTOMETRIC))
    for seed in range(8):
        _, both = apply_seeded(transform, image, torch.cat([labels, 3 - labels]), seed)
        known = both[0] != IGNORE
        assert torch.equal(both[0] == IGNORE, both[1] == IGNORE)
        assert torch.equal(3 - both[0][known], both[1][known])


def test_no_label_is_invented():
    image, labels = blocks(block=2)
    labels = labels * 80  # 0, 80, 160, 240: a blend of any two would be another value
    transform = training_transform(config((0.5, 2.0), (64, 96), flip=0.5))
    for seed in range(8):
        found = apply_seeded(transform, image, labels, seed)[1].unique().tolist()
        assert set(found) <= {0, 80, 160, 240, IGNORE}


def test_what_the_image_does_not_cover_is_black_and_ignored():
    transform = training_transform(config((0.5, 0.5)))
    image, labels = apply_seeded(transform, *blocks(), 0)
    outside = labels[0] == IGNORE
    assert int((~outside).sum()) == 32 * 48
    assert (image[:, outside] == 0).all()
    assert (image[:, ~outside] > 0).any(0).all()


def test_nothing_to_do_gives_the_image_back():
    image, labels = blocks()
    out, maps = apply_seeded(training_transform(config()), image, labels, 0)
    assert type(out) is type(maps) is torch.Tensor
    assert out.dtype == torch.float32 and maps.dtype == torch.uint8
    assert torch.equal((out * 255).round().byte(), image)
    assert torch.equal(maps, labels)


def test_a_flip_mirrors_both():
    image, labels = blocks()
    out, maps = apply_seeded(training_transform(config(flip=1.0)), image, labels, 0)
    assert torch.equal((out * 255).round().byte(), image.flip(-1))
    assert torch.equal(maps, labels.flip(-1))


def test_a_flip_comes_as_often_as_asked():
    image, labels = blocks(16, 16, 8)
    transform = training_transform(config(crop=(16, 16), flip=0.25))
    flips = [
        not torch.equal(apply_seeded(transform, image, labels, seed)[1], labels)
        for seed in range(400)
    ]
    assert 0.15 < sum(flips) / 400 < 0.35  # 0.25 and 4.6 standard deviations


def test_scales_fill_their_range_and_keep_the_aspect():
    resize = RandomResize((0.5, 2.0))
    torch.manual_seed(0)
    sizes = [resize.make_params([torch.zeros(3, 100, 200)])["size"] for _ in range(200)]
    heights = [height for height, _ in sizes]
    assert min(heights) < 60 and max(heights) > 190
    assert all(50 <= h <= 200 and abs(w - 2 * h) <= 1 for h, w in sizes)


def test_a_crop_moves_over_the_image():
    image = torch.arange(96, dtype=torch.uint8).expand(3, 64, 96).contiguous()
    transform = training_transform(config(crop=(64, 32)))
    lefts = {
        round(float(apply_seeded(transform, image, image[:1], seed)[0][0, 0, 0]) * 255)
        for seed in range(200)
    }
    assert min(lefts) <= 5 and max(lefts) >= 59 and max(lefts) <= 64


def test_the_draws_are_the_seeds_alone():
    transform = training_transform(config((0.5, 2.0), (40, 40), 0.5, PHOTOMETRIC))
    torch.manual_seed(1)
    first = apply_seeded(transform, *blocks(), 7)
    torch.manual_seed(2)
    second = apply_seeded(transform, *blocks(), 7)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], apply_seeded(transform, *blocks(), 8)[0])


def test_the_global_generator_is_left_alone():
    transform = training_transform(config((0.5, 2.0), (40, 40), 0.5, PHOTOMETRIC))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    apply_seeded(transform, *blocks(), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_photometric_changes_colours_within_range_and_no_label():
    image, labels = blocks()
    changed = 0
    transform = training_transform(config(photometric=PHOTOMETRIC))
    for seed in range(10):
        out, maps = apply_seeded(transform, image, labels, seed)
        assert torch.equal(maps, labels)
        assert out.min() >= 0 and out.max() <= 1
        changed += int(not torch.equal((out * 255).round().byte(), image))
    assert changed == 10


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "gamma"])
def test_each_change_can_act_alone(name):
    off = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "gamma"), 0.0)
    image = torch.tensor([200, 120, 60], dtype=torch.uint8)[:, None, None].repeat(1, 8, 8)
    image[:, :4] //= 2
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)

    def colours(strength):
        photometric = Photometric(**off | {name: strength})
        transform = training_transform(config(crop=(8, 8), photometric=photometric))
        return [apply_seeded(transform, image, labels, seed)[0] for seed in range(5)]

    for out in colours(0.0):
        assert torch.allclose(out, image / 255, atol=1e-6)
    for out in colours(0.3):
        assert (out - image / 255).abs().max() > 1e-3


def test_a_hue_shift_keeps_saturation_and_value():
    photometric = Photometric(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5, gamma=0.0)
    image = torch.tensor([200, 120, 60], dtype=torch.uint8)[:, None, None].repeat(1, 4, 4)
    transform = training_transform(config(crop=(4, 4), photometric=photometric))
    out, _ = apply_seeded(transform, image, image[:1], 3)
    hue, saturation, value = colorsys.rgb_to_hsv(*out[:, 0, 0].tolist())
    hue_before, *rest = colorsys.rgb_to_hsv(200 / 255, 120 / 255, 60 / 255)
    assert abs(hue - hue_before) > 0.01
    assert (saturation, value) == pytest.approx(rest, abs=1e-4)


def test_gamma_is_a_power_from_its_range():
    gamma = RandomGamma(1.0)
    torch.manual_seed(0)
    powers = torch.tensor([gamma.make_params([])["gamma"] for _ in range(500)])
    assert 0.5 <= powers.min() < 0.52 and 1.92 < powers.max() <= 2
    assert abs(powers.log2().mean()) < 0.1  # as often brighter as darker
    image = torch.rand(3, 4, 4)
    assert torch.equal(gamma.transform(image, {"gamma": 2.0}), image**2)
