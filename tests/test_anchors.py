"""Class sums and anchors against the released code, loops and hand-computed values."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cag.anchors import (
    AnchorMean,
    agreeing_labels,
    anchors,
    class_recall,
    class_sums,
    nearest_other_anchor,
    reliable,
    resize_labels,
)

GOLDEN = Path(__file__).parent / "golden"
K = 19


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden_centroids.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def golden_sums(golden):
    """Sums [12, K, D] and counts [12, K] of the 6 batches of 2 images."""
    labels = agreeing_labels(golden["labels"].flatten(0, 1), golden["logits"].flatten(0, 1))
    return class_sums(golden["features"].flatten(0, 1), labels, K)


def random_maps(seed, num_classes=5, shape=(3, 4, 6, 7)):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=random)
    labels = torch.randint(0, num_classes, (shape[0], *shape[2:]), generator=random)
    return features, labels.to(torch.uint8)


def test_class_means_are_the_released_vectors(golden, golden_sums):
    sums, counts = golden_sums
    image, ids = (counts >= 10).nonzero(as_tuple=True)  # images in order, then classes ascending
    vectors = sums[image, ids] / counts[image, ids, None]
    assert torch.equal(ids, golden["ids"].long())
    assert torch.equal(image, golden["batch_index"].long() * 2 + golden["image_index"].long())
    torch.testing.assert_close(vectors, golden["vectors"], rtol=1e-5, atol=2e-6)


def test_anchors_follow_the_released_running_mean(golden, golden_sums):
    sums, counts = (values.unflatten(0, (6, 2)) for values in golden_sums)
    mean = AnchorMean("images", min_pixels=10)
    for batch in range(6):
        mean.update(sums[batch], counts[batch])
        expected = golden["anchors_cold_after_batch"][batch]
        expected = expected.masked_fill(mean.images[:, None] == 0, torch.nan)
        torch.testing.assert_close(
            mean.compute().double(), expected, rtol=1e-5, atol=2e-6, equal_nan=True
        )
    assert torch.equal(mean.images.double(), golden["counts_cold"])
    assert torch.equal(anchors(*golden_sums).isnan(), mean.compute().isnan())


def test_sums_equal_a_loop_over_images_and_classes():
    features, labels = random_maps(0)
    labels[0, :2] = 255
    sums, counts = class_sums(features, labels, 5)
    for n in range(3):
        for c in range(5):
            chosen = features[n].double().numpy()[:, labels[n].numpy() == c]
            np.testing.assert_allclose(sums[n, c], chosen.sum(axis=1), rtol=1e-5, atol=1e-5)
            assert counts[n, c] == chosen.shape[1]
    assert sums.dtype == torch.float32 and counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(255, torch.uint8), (250, torch.uint8), (5, torch.uint8), (5, torch.int64), (-1, torch.int64)],
)
def test_labels_outside_the_classes_are_ignored(value, dtype):
    features, labels = random_maps(1)
    labels = labels.to(dtype)
    labels[:, 2:] = value
    sums, counts = class_sums(features, labels, 5)
    expected = class_sums(features[:, :, :2], labels[:, :2], 5)
    torch.testing.assert_close((sums, counts), expected)


def test_half_precision_is_summed_in_float32():
    features = torch.ones(1, 1, 64, 64, dtype=torch.float16)  # float16 would stop at 2048
    sums, _ = class_sums(features, torch.zeros(1, 64, 64, dtype=torch.uint8), 1)
    assert sums.item() == 64 * 64


def test_autocast_does_not_round_the_sums():
    features, labels = random_maps(2)
    expected = class_sums(features, labels, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(class_sums(features, labels, 5)[0], expected[0])


def test_gradient_of_the_sums_is_handed_to_every_pixel_of_the_class():
    features, labels = random_maps(3)
    labels[1] = 255
    upstream = torch.randn(3, 5, 4)
    features.requires_grad_()
    class_sums(features, labels, 5)[0].backward(upstream)
    own = F.one_hot(labels.long().clamp(max=5), 6)[..., :5].float()  # [B, h, w, K]
    torch.testing.assert_close(features.grad, torch.einsum("bhwk,bkd->bdhw", own, upstream))
    assert features.grad.is_contiguous()


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        class_sums(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), 3)


def test_agreement_is_with_the_lowest_class_on_ties():
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, :, 0, 1] = torch.tensor([0.0, 2.0, 2.0])
    logits[0, :, 0, 2] = torch.tensor([0.0, 0.0, 1.0])
    labels = torch.tensor([[[0, 2, 2]]], dtype=torch.uint8)
    assert agreeing_labels(labels, logits).tolist() == [[[0, 255, 2]]]


def test_agreeing_labels_leaves_its_input():
    labels = torch.tensor([[[1]]], dtype=torch.uint8)
    agreeing_labels(labels, torch.tensor([[[[1.0]], [[0.0]]]]))
    assert labels.item() == 1


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (16, 24), (3, 24)])
def test_resized_labels_are_those_of_nearest_interpolation(size):
    labels = torch.randint(0, 256, (2, 16, 24)).to(torch.uint8)
    expected = F.interpolate(labels[:, None], size, mode="nearest")[:, 0]
    assert torch.equal(resize_labels(labels, size), expected)
    assert torch.equal(resize_labels(labels.long(), size), expected.long())


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (9, 33)])
@pytest.mark.parametrize("shape", [(4, 1), (1, 6)])
def test_labels_aligned_at_the_corners_lie_where_bilinear_interpolation_puts_them(size, shape):
    labels = torch.randperm(6)[: shape[0] * shape[1]].view(1, *shape).expand(1, 4, 6)
    one_hot = F.one_hot(labels, 6).permute(0, 3, 1, 2).double()
    enlarged = F.interpolate(one_hot, size, mode="bilinear", align_corners=True)
    share, expected = enlarged.max(dim=1)
    clear = share > 0.5 + 1e-6
    assert clear.float().mean() > 0.8
    assert torch.equal(resize_labels(labels, size, align_corners=True)[clear], expected[clear])


def test_labels_aligned_at_the_corners_keep_them_both_ways():
    labels = torch.arange(16 * 24).view(1, 16, 24)
    small = resize_labels(labels, (4, 6), align_corners=True)
    assert small[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 23, 360, 383]
    large = resize_labels(small, (16, 24), align_corners=True)
    assert torch.equal(resize_labels(large, (4, 6), align_corners=True), small)
    assert torch.equal(resize_labels(labels, (1, 1), align_corners=True), labels[:, :1, :1])


def two_images():
    """Two images, one channel, two classes: class 0 with means 2 and 8 from 10 and 30 pixels."""
    sums = torch.tensor([[[20.0], [9.0]], [[240.0], [0.0]]])
    counts = torch.tensor([[10, 9], [30, 0]])
    return sums, counts


def test_average_over_images_weighs_images_alike():
    # class 1 has 9 pixels, one too few
    torch.testing.assert_close(
        anchors(*two_images()), torch.tensor([[5.0], [torch.nan]]), equal_nan=True
    )


def test_average_over_pixels_weighs_pixels_alike():
    result = anchors(*two_images(), average="pixels")
    torch.testing.assert_close(result, torch.tensor([[260 / 40], [1.0]]))


@pytest.mark.parametrize(("min_pixels", "expected"), [(9, 1.0), (10, torch.nan), (0, 1.0)])
def test_min_pixels_is_enough(min_pixels, expected):
    result = anchors(*two_images(), min_pixels=min_pixels)[1]
    torch.testing.assert_close(result, torch.tensor([expected]), equal_nan=True)


def test_zero_class_mean_is_not_counted():
    sums, counts = two_images()
    sums, counts = torch.cat([sums, torch.zeros(1, 2, 1)]), torch.cat([counts, counts[:1] + 50])
    torch.testing.assert_close(anchors(sums, counts), anchors(*two_images()), equal_nan=True)


@pytest.mark.parametrize("average", ["images", "pixels"])
def test_piecewise_mean_equals_the_mean_of_all(average):
    features, labels = random_maps(4)
    sums, counts = class_sums(features, labels, 6)  # class 5 never occurs
    mean = AnchorMean(average, min_pixels=5)
    for n in range(3):
        mean.update(sums[n : n + 1], counts[n : n + 1])
    expected = anchors(sums, counts, average, min_pixels=5)
    torch.testing.assert_close(mean.compute(), expected, equal_nan=True)
    assert expected.dtype == torch.float32
    assert expected[5].isnan().all() and not expected[:5].isnan().any()


def test_counts_of_what_the_anchors_are_made_of():
    mean = AnchorMean("images")
    mean.update(*two_images())
    assert mean.images.tolist() == [2, 0] and mean.pixels.tolist() == [40, 0]
    mean = AnchorMean("pixels")
    mean.update(*two_images())
    assert mean.images.tolist() == [2, 1] and mean.pixels.tolist() == [40, 9]


def test_unknown_average_is_refused():
    with pytest.raises(ValueError, match="'images' or 'pixels', not 'median'"):
        anchors(*two_images(), average="median")


def test_class_recall_by_hand():
    correct, counts = torch.tensor([[1, 0, 0], [2, 0, 0]]), torch.tensor([[4, 0, 3], [8, 0, 1]])
    recall = class_recall(correct, counts)
    assert recall[[0, 2]].tolist() == [0.25, 0] and recall[1].isnan()


def test_nearest_other_anchor_passes_over_classes_without():
    line = torch.tensor([[0.0], [3.0], [torch.nan], [4.0]])
    nearest, distance = nearest_other_anchor(line)
    assert nearest.tolist() == [1, 3, -1, 1]
    assert distance[[0, 1, 3]].tolist() == [3, 1, 1] and distance[2].isnan()
    alone, nothing = nearest_other_anchor(line[1:3])
    assert alone.tolist() == [-1, -1] and nothing.isnan().all()


def test_reliable_leaves_out_classes_of_low_recall_only():
    kept = reliable(torch.ones(4, 2), torch.tensor([0.19, 0.2, 1.0, torch.nan]), 0.2)
    assert kept.isnan().all(1).tolist() == [True, False, False, False]
    assert reliable(torch.ones(1, 2), torch.tensor([0.0]), 0.0).tolist() == [[1, 1]]
