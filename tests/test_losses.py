"""Losses and gradients against the released code, float64 loops and hand-computed values."""

import math

import numpy as np
import pytest
import torch
from golden_files import INPUTS, LOSSES, golden_arrays, golden_inputs, golden_losses, valid_classes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cag.losses
from cag.datasets.images import write_label
from cag.losses import (
    AdaptationLoss,
    AdaptationLosses,
    TargetLabels,
    adaptation_loss,
    distance_loss,
)
from cag.networks import NetworkOutput
from cag.pseudo_labels import by_anchor, by_probability
from cag.training import samples
from cag.training.cross_entropy import class_balance_weights, cross_entropy

K = 19
# METHOD of comparison: feature gradients are about 1e-6, where a default atol accepts zeros
TOLERANCES = {"features": {"rtol": 1e-4, "atol": 1e-10}, "logits": {"rtol": 1e-4, "atol": 1e-8}}


@pytest.fixture(scope="module", params=["golden_losses", "golden_losses_edge"])
def golden(request):
    return golden_arrays(request.param)


def test_released_losses(golden):
    losses, _ = golden_losses(golden)
    for value, name in zip(losses, LOSSES, strict=True):
        assert value.item() == pytest.approx(golden[name].item(), rel=1e-5), name
    weighted = 0.7 * (losses.source_distance + losses.target_distance)
    assert weighted.item() == pytest.approx(golden["loss_dist_weighted"].item(), rel=1e-5)


def test_released_gradients(golden):
    losses, inputs = golden_losses(golden)
    losses.total.backward()
    for name, tensor in inputs.items():
        tolerance = TOLERANCES[name.split("_")[1]]
        torch.testing.assert_close(tensor.grad, golden[f"grad_{name}"], **tolerance, msg=name)


def test_tolerance_tells_a_wrong_gradient_scale(golden):
    # 1 / count, 2 / count or 1 / (h w) in place of 2 / (h w) would be further off than this
    expected = golden["grad_source_features"]
    for factor in (0, 0.5, 0.999):
        assert not torch.allclose(factor * expected, expected, **TOLERANCES["features"])


def test_released_pseudo_label_losses_are_the_ablations(golden):
    for kind, name in (("anchor", "loss_cts_cluster"), ("probability", "loss_cts_prob")):
        losses, _ = golden_losses(golden, target_labels=kind)
        assert losses.target_ce.item() == pytest.approx(golden[name].item(), rel=1e-5)
        expected = losses.source_ce + losses.target_ce
        expected = expected + 0.7 * (losses.source_distance + losses.target_distance)
        torch.testing.assert_close(losses.total, expected)


def test_released_pseudo_labels_come_from_the_teacher(golden):
    labels = by_anchor(golden["teacher_features"], golden["anchors"])
    assert torch.equal(labels, golden["cluster_label"])
    assert torch.equal(by_probability(golden["teacher_logits"]), golden["prob_label"])


def test_edge_case_divides_terms_and_lacks_classes():
    edge = golden_arrays("golden_losses_edge")
    assert (edge["source_smoothl1_raw"] > 50).any()
    assert set(edge["source_ids"].tolist()) - set(edge["valid_classes"].tolist())


def test_autocast_keeps_float32_and_the_gradients(golden):
    losses, inputs = golden_losses(golden)
    losses.total.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_losses, cast_inputs = golden_losses(golden)
        cast_losses.total.backward()
    torch.testing.assert_close(list(cast_losses), list(losses))
    for name in INPUTS:
        torch.testing.assert_close(cast_inputs[name].grad, inputs[name].grad, rtol=1e-5, atol=1e-12)


def test_half_precision_inputs_get_half_precision_gradients(golden):
    features = golden["source_features"].clone().requires_grad_()
    labels = golden["source_labels"][:, ::4, ::4]
    loss = distance_loss(features, golden["source_logits"].half(), labels, golden["anchors"])
    (loss * 1024).backward()
    assert loss.dtype == torch.float32 and features.grad.dtype == torch.float16
    assert features.grad.isfinite().all() and (features.grad != 0).any()


def one_channel(values, labels, anchors, **options):
    """Distance loss of one image, one row, one channel whose prediction is `labels`."""
    features = torch.tensor(values, dtype=torch.float32)[None, None, None].requires_grad_()
    labels = torch.tensor(labels, dtype=torch.uint8)[None, None]
    num_classes = len(anchors)
    own = labels.long().clamp(max=num_classes)
    logits = torch.nn.functional.one_hot(own, num_classes + 1)[..., :num_classes]
    logits = logits.movedim(-1, 1).float()
    anchors = torch.tensor(anchors, dtype=torch.float32)[:, None]
    loss = distance_loss(features, logits, labels, anchors, **{"min_pixels": 1, **options})
    loss.backward()
    return loss.item(), features.grad.flatten().tolist()


def test_class_means_by_hand():
    # class 0: mean 2, anchor 0, smooth L1 1.5; class 1: mean 0.5, anchor 0, smooth L1 0.125
    loss, gradient = one_channel([1, 2, 3, 0.5, 9], [0, 0, 0, 1, 255], [0, 0])
    assert loss == pytest.approx(10 * (1.5 + 0.125) / 2)
    # of the mean 10 / 2 * (1, 0.5), for each pixel times 2 / 5
    assert gradient == pytest.approx([2, 2, 2, 1, 0])


def test_a_pixel_is_pushed_alike_in_rare_and_common_classes():
    few = one_channel([3] * 2 + [0] * 8, [0] * 2 + [255] * 8, [0])[1]
    many = one_channel([3] * 9 + [0] * 1, [0] * 9 + [255] * 1, [0])[1]
    assert few[0] == pytest.approx(many[0]) == pytest.approx(10 * 2 / 10)


@pytest.mark.parametrize(
    ("distance", "term", "divisor"),
    [(5.5, 5, 1), (5.6, 0.51, 10), (50.5, 5, 10), (51, 0.505, 100), (60000.5, 0.6, 1e5)],
)
def test_terms_above_five_are_divided_until_they_are_not(distance, term, divisor):
    loss, gradient = one_channel([distance], [0], [0])
    assert loss == pytest.approx(10 * term, rel=1e-5)
    assert gradient == pytest.approx([10 * 2 / divisor])  # times 2 / (h w) = 2


@pytest.mark.parametrize(("min_pixels", "expected"), [(2, 15), (3, 0)])
def test_too_few_pixels_are_left_out(min_pixels, expected):
    loss, gradient = one_channel([2, 2], [0, 0], [0], min_pixels=min_pixels)
    assert loss == pytest.approx(expected)
    assert (max(map(abs, gradient)) > 0) == (expected > 0)


def test_class_means_need_agreement_with_the_prediction():
    features = torch.tensor([[[[1.0, 3.0]]]])
    logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # predicts 0, 1
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    anchors = torch.zeros(2, 1)
    loss = distance_loss(features, logits, labels, anchors, min_pixels=1)
    assert loss.item() == pytest.approx(10 * 0.5)
    assert distance_loss(features, logits, labels, anchors, "pixel").item() == pytest.approx(2)


@pytest.mark.parametrize("kind", ["class_mean", "pixel"])
def test_classes_without_an_anchor_take_part_in_nothing(kind):
    with_unseen = one_channel([1, 4, 2], [0, 1, 1], [0, math.nan], kind=kind)
    without = one_channel([1, 4, 2], [0, 255, 255], [0, math.nan], kind=kind)
    assert with_unseen[0] == pytest.approx(without[0]) and with_unseen[0] > 0
    assert with_unseen[1] == pytest.approx(without[1]) and with_unseen[1][1:] == [0, 0]


@pytest.mark.parametrize(("kind", "expected"), [("class_mean", 10 * 0.5 / 2), ("pixel", 1 / 3)])
def test_classes_that_are_not_valid_still_count_in_the_mean(kind, expected):
    valid = torch.tensor([True, False])
    loss, gradient = one_channel([1, 4, 2], [0, 1, 1], [0, 0], kind=kind, valid_classes=valid)
    assert loss == pytest.approx(expected)
    assert gradient[0] > 0 and gradient[1:] == [0, 0]


def random_case(seed=0):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 6, 5, 7, generator=random)
    logits = torch.randn(2, 4, 5, 7, generator=random)
    labels = torch.randint(0, 5, (2, 5, 7), generator=random).to(torch.uint8)
    labels[labels == 4] = 255
    return features, logits, labels, torch.randn(4, 6, generator=random)


def test_pixel_distances_equal_a_loop():
    features, logits, labels, anchors = random_case()
    anchors[2, 3] = torch.nan
    features.requires_grad_()
    loss = distance_loss(features, logits, labels, anchors, kind="pixel")
    loss.backward()
    f, a = features.detach().double().numpy(), anchors.double().numpy()
    gradient, distances = np.zeros_like(f), []
    for n, y, x in np.ndindex(2, 5, 7):
        c = int(labels[n, y, x])
        if c < 4 and c != 2:
            offset = f[n, :, y, x] - a[c]
            distances.append(np.sqrt((offset**2).sum()))
            gradient[n, :, y, x] = offset / distances[-1]
    assert loss.item() == pytest.approx(np.mean(distances), rel=1e-6)
    np.testing.assert_allclose(features.grad, gradient / len(distances), rtol=1e-5, atol=1e-8)


def test_class_mean_distances_equal_a_loop():
    features, logits, labels, anchors = random_case()
    loss = distance_loss(features, logits, labels, anchors, min_pixels=2).item()
    f, prediction = features.double().numpy(), logits.argmax(dim=1)
    terms = []
    for n, c in np.ndindex(2, 4):
        own = ((labels[n] == c) & (prediction[n] == c)).numpy()
        if own.sum() >= 2:
            d = np.abs(f[n][:, own].mean(axis=1) - anchors[c].double().numpy())
            terms.append(np.where(d < 1, d * d / 2, d - 0.5).mean())
    assert len(terms) > 3
    assert loss == pytest.approx(10 * np.mean(terms), rel=1e-5)


def test_a_pixel_on_its_anchor_has_no_gradient():
    loss, gradient = one_channel([0, 3], [0, 0], [0], kind="pixel")
    assert loss == pytest.approx(1.5) and gradient == pytest.approx([0, 0.5])


@pytest.mark.parametrize("kind", ["class_mean", "pixel"])
@pytest.mark.parametrize("case", ["no labels", "no anchors"])
def test_nothing_to_learn_from_is_zero_with_a_zero_gradient(kind, case):
    features, logits, labels, anchors = random_case()
    if case == "no labels":
        labels = torch.full_like(labels, 255)
    else:
        anchors = torch.full_like(anchors, torch.nan)
    none = torch.full_like(labels, 255)
    features.requires_grad_()
    logits.requires_grad_()
    losses = adaptation_loss(
        features, logits, none, features, logits, labels, none, anchors, distance_kind=kind
    )
    assert losses.source_ce == 0
    assert losses.source_distance == 0 and losses.target_distance == 0
    losses.total.backward()
    assert (features.grad == 0).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad == 0).all() == (case == "no labels")


def test_cross_entropy_by_hand():
    # softmax (3/4, 1/4); the third label is no class
    logits = torch.tensor([math.log(3), 0.0])[None, :, None, None].expand(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, 2]]])
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert cross_entropy(logits, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("ignored", [255, 250, 19])
def test_every_label_outside_the_classes_is_ignored(golden, ignored):
    golden = dict(golden)
    labels = golden["source_labels"]
    golden["source_labels"] = labels.masked_fill(labels >= K, ignored)
    losses, _ = golden_losses(golden)
    assert losses.total.item() == pytest.approx(golden["loss_total"].item(), rel=1e-5)


def test_logits_get_no_gradient_from_the_distance():
    features, logits, labels, anchors = random_case()
    features.requires_grad_()
    logits.requires_grad_()
    distance_loss(features, logits, labels, anchors, min_pixels=1).backward()
    assert logits.grad is None and (features.grad != 0).any()


def test_without_weight_the_distance_is_only_reported():
    features, logits, labels, anchors = random_case()
    features.requires_grad_()
    losses = adaptation_loss(
        *(features, logits, labels, features, logits, labels, labels, anchors),
        distance_weight=0,
        min_pixels=1,
    )
    losses.total.backward()
    assert losses.source_distance > 0 and (features.grad == 0).all()
    assert AdaptationLosses._fields[0] == "total"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"target_labels": "all"}, "both, anchor, probability, not 'all'"),
        ({"distance_kind": "mean"}, "'class_mean' or 'pixel', not 'mean'"),
    ],
)
def test_unknown_options_are_refused(golden, option, message):
    with pytest.raises(ValueError, match=message):
        golden_losses(golden, **option)


class Watch(TorchDispatchMode):
    """Records the names of operations and the size of the largest tensor that they return."""

    def __init__(self):
        super().__init__()
        self.names, self.elements = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("kind", ["class_mean", "pixel"])
def test_a_step_never_waits_for_the_device_nor_grows_with_classes_times_features(kind):
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2, 32, 12, 20, generator=random).requires_grad_()
    logits = torch.randn(2, 16, 12, 20, generator=random).requires_grad_()
    labels = torch.randint(0, 16, (2, 12, 20), generator=random).to(torch.uint8)
    anchors = torch.randn(16, 32, generator=random)
    with Watch() as watch:
        losses = adaptation_loss(
            features, logits, labels, features, logits, labels, labels, anchors, distance_kind=kind
        )
        losses.total.backward()
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "item"}
    assert not watch.names & waiting
    assert watch.elements <= features.numel()


def test_pasted_pixels_weigh_as_on_the_source_and_pseudo_labels_one(golden):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(K, generator=generator) * 3
    pasted = torch.rand(golden["cluster_label"].shape, generator=generator) < 0.5
    inputs, valid = golden_inputs(golden), valid_classes(golden)

    def target_ce(pasted):
        return AdaptationLoss(valid_classes=valid, source_class_weights=weights)(
            NetworkOutput(inputs["source_features"], inputs["source_logits"]),
            golden["source_labels"],
            NetworkOutput(inputs["target_features"], inputs["target_logits"]),
            TargetLabels(golden["cluster_label"], golden["prob_label"], pasted),
            golden["anchors"],
        ).target_ce.item()

    logits = inputs["target_logits"].detach()
    expected = []
    for labels in (golden["cluster_label"], golden["prob_label"]):
        each = torch.nn.functional.cross_entropy(
            logits, labels.long(), ignore_index=255, reduction="none"
        )
        labelled = labels < K
        own = weights[labels.long().clamp(max=K - 1)].where(pasted, torch.tensor(1.0)) * labelled
        expected.append((each * own).sum() / own.sum())
    assert target_ce(pasted) == pytest.approx(sum(expected).item() / 2, rel=1e-5)
    assert target_ce(pasted & False) == pytest.approx(target_ce(None), rel=1e-6)


def test_class_balance_weights_by_hand():
    pixels = torch.tensor([100, 25, 0, 400])
    assert class_balance_weights(pixels, 0.5).tolist() == [1, 2, 2, 0.5]
    assert class_balance_weights(pixels, 0).tolist() == [1, 1, 1, 1]
    assert class_balance_weights(0 * pixels, 0.5).tolist() == [1, 1, 1, 1]


def test_a_class_that_was_not_counted_is_learnt():
    weights = class_balance_weights(torch.tensor([100, 25, 0]), 0.5)
    logits = torch.zeros(1, 3, 1, 2, requires_grad=True)
    cross_entropy(logits, torch.tensor([[[2, 0]]]), weights).backward()
    assert logits.grad[0, 2, 0, 0] < 0


def test_classes_are_counted_in_maps_that_are_drawn_not_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "COUNTED_LABELS", 30)
    palette, maps = np.zeros((3, 3), np.uint8), []
    for number in range(60):  # two cameras by turns: the second alone sees class 2
        maps.append(tmp_path / f"{number}.png")
        write_label(maps[-1], np.full((1, 4), 2 * (number % 2), np.uint8), palette)
    given = [samples.Sample(path, (path,), 3) for path in maps]
    front, none, rear = samples.class_pixels(given, 3).tolist()
    assert (none, front + rear) == (0, 120) and min(front, rear) >= 32
    assert samples.class_pixels(given[:30], 3).tolist() == [60, 0, 60]  # all of few


def test_weighted_cross_entropy_is_the_weighted_mean():
    logits = torch.tensor([[0.0, 2.0, -1.0], [1.0, 0.0, 3.0]]).T.reshape(1, 3, 1, 2)
    labels = torch.tensor([[[1, 2]]])
    each = [cross_entropy(logits[..., [i]], labels[..., [i]]) for i in range(2)]
    weights = torch.tensor([1.0, 3.0, 1.0])
    expected = (3 * each[0] + each[1]) / 4
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)
    nothing = cross_entropy(logits.requires_grad_(), torch.full((1, 1, 2), 255), weights)
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


def test_terms_that_are_no_numbers_stay_so():
    """The training loop reports them."""
    terms = torch.tensor([torch.nan, torch.inf, 3e38, 50.1, 5.0])
    divided = cag.losses._divided_while_above_five(terms)
    expected = torch.tensor([torch.nan, torch.inf, 3.0, 0.501, 5.0])
    torch.testing.assert_close(divided, expected, equal_nan=True)
