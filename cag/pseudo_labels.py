"""Pseudo-labels for target pixels: by distance to the anchors, and by the predicted probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cag.anchors import agreeing, nearest_other_anchor
from cag.config.base import RULES
from cag.datasets.labels import IGNORE
from cag.runtime.precision import full_precision

if TYPE_CHECKING:
    from cag.config.pseudo_labels import PseudoLabel

_CPU_BLOCK, _GPU_BLOCK = 4096, 2**18  # pixels at once: a temporary must fit into a CPU's cache
_SUM_CHANNELS = 32  # a few short float32 sums round less than a long one
COVERAGE = ("nearest", *RULES, "agree")  # the rows of `count_labels`
# Errors that may change labels: of a margin as a share of the threshold, 0.01 of the paper's 2.5;
# and of a relative margin.
NOTEWORTHY, NOTEWORTHY_RELATIVE = 1 / 250, 0.002


def anchor_distances(features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find each pixel's nearest anchor, and the distances to it and to the second nearest.

    Args:
        features: float [B, D, h, w].
        anchors: float [K, D], K <= 255; a row with NaN is never nearest.

    Returns:
        nearest uint8 [B, h, w], the lowest class on ties; and the L2 distances d1 <= d2, float32
        [B, h, w], in units of the features, accurate to about 1e-6 of the features' distance from
        the anchors' centre. Fewer than two anchors, or another D, are a ValueError.
    """
    if features.shape[1] != anchors.shape[1]:
        widths = f"the features have {features.shape[1]} channels, the anchors {anchors.shape[1]}"
        raise ValueError(widths)
    seen = ~anchors.isnan().any(dim=1)  # [K]
    count = int(seen.sum())
    if count < 2:
        raise ValueError(
            f"a margin needs at least two anchors, but {count} of {len(anchors)} classes have been "
            "seen (the others are rows of NaN)"
        )
    anchors = anchors.detach().float().masked_fill(~seen[:, None], torch.inf)
    pixels = features.detach().flatten(2)  # [B, D, hw]
    with full_precision(features.device.type):
        scores, size = _scores(pixels, anchors, seen)
        nearest, first, second = _nearest_two(pixels, anchors, scores, size)
    shape = features.shape[:1] + features.shape[2:]
    return nearest.view(shape), first.view(shape), second.view(shape)


def anchor_margins(features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Find each pixel's nearest anchor and the margin d2 - d1 by which it is nearest.

    Gives uint8 and float32 >= 0 [B, h, w]; arguments, units and errors are those of
    `anchor_distances`. The released code's limit of 100 to distances is left out.
    """
    nearest, first, second = anchor_distances(features, anchors)
    return nearest, second - first


def relative_margins(nearest_distance: Tensor, second_distance: Tensor) -> Tensor:
    """Return the margin without units, (d2 - d1) / (d2 + d1) in [0, 1]; 0 where both are 0."""
    total = nearest_distance + second_distance
    return (second_distance - nearest_distance) / total.masked_fill(total == 0, 1)


class Pixels(NamedTuple):
    """The rules' inputs, [...] each; a rule needs those that its thresholds compare."""

    nearest: Tensor | None = None  # uint8, the class of the nearest anchor
    nearest_distance: Tensor | None = None  # float32, d1
    second_distance: Tensor | None = None  # float32, d2
    prediction: Tensor | None = None  # uint8, the predicted class
    probability: Tensor | None = None  # float32, its probability

    def margin(self) -> Tensor:
        """d2 - d1, float32 [...] in units of the features."""
        return self.second_distance - self.nearest_distance

    def relative_margin(self) -> Tensor:
        """The margin without units, float32 [...] in [0, 1]."""
        return relative_margins(self.nearest_distance, self.second_distance)

    def classes(self, rule: str) -> Tensor:
        """A rule's class for each pixel, before any threshold, uint8 [...]."""
        return self.nearest if rule == "anchor" else self.prediction

    def chosen(self, mask: Tensor) -> Pixels:
        """The pixels of a mask bool [...], [n] each."""
        return Pixels(*(values[mask] for values in self))


@dataclass(frozen=True)
class Threshold:
    """A threshold of a rule; a pixel that passes all of a rule's thresholds is labelled."""

    key: str  # the parameter of `pseudo_label` that sets it
    label: str  # the compared number, in words
    value: Callable[[Pixels], Tensor]  # the compared number of each pixel, float32 [...]
    scale: Sequence[float] | None = None  # of its curve; None: up to the anchors' largest distance
    rule: str = "anchor"  # one of RULES
    passes: Callable[[Tensor, Tensor], Tensor] = torch.ge  # or gt, le, lt of pixel and threshold
    # The parameter is a share of each class's pixels; the class's threshold is what they reach.
    per_class: bool = False

    @property
    def title(self) -> str:
        """Its key as words."""
        return self.key.replace("_", " ")

    @property
    def at_most(self) -> bool:
        """Whether small numbers pass: the largest threshold is the loosest."""
        return self.passes in (torch.le, torch.lt)

    def passed(self, pixels: Pixels, threshold: float | Tensor) -> Tensor:
        """Whether pixels pass a number or one per class, float [K], in float32; bool [...]."""
        limit = torch.as_tensor(threshold, dtype=torch.float32)
        if limit.dim():
            classes = pixels.classes(self.rule)
            limit = limit.to(classes.device)[classes.long()]
        return self.passes(self.value(pixels), limit)

    def count_passed(self, values: Tensor, thresholds: Tensor) -> Tensor:
        """Count the thresholds that each value passes, integer [...]; NaN passes none.

        Both are float32: `values` [...] as `value` gives them, `thresholds` [T] without duplicates.
        """
        sign = -1 if self.at_most else 1
        reaches = self.passes in (torch.ge, torch.le)  # a value that equals its threshold passes
        values = (sign * values).nan_to_num(nan=-math.inf)
        return torch.bucketize(values, (sign * thresholds).sort().values, right=reaches)


_HUNDREDTHS = tuple(i / 100 for i in range(100))
_SHARES = tuple(i / 50 for i in range(1, 51))
# In the order of tables, figures and the page.
THRESHOLDS = {
    threshold.key: threshold
    for threshold in (
        Threshold("margin", "d2 - d1, in units of the features", Pixels.margin),
        Threshold("relative_margin", "(d2 - d1) / (d2 + d1)", Pixels.relative_margin, _HUNDREDTHS),
        Threshold(
            "quantile", "share kept of each class", Pixels.relative_margin, _SHARES, per_class=True
        ),
        Threshold(
            "probability",
            "probability of the predicted class",
            attrgetter("probability"),
            (*_HUNDREDTHS, 0.995, 0.999),
            rule="probability",
            passes=torch.gt,
        ),
    )
}


def label_pixels(
    rule: str, pixels: Pixels, thresholds: Mapping[str, float | Tensor | None]
) -> Tensor:
    """Give the pixels that pass all thresholds the rule's class, uint8 [...], the others 255.

    `thresholds` maps keys of THRESHOLDS to a number, or one per class, float [K]; None: not asked.
    """
    classes = pixels.classes(rule)
    keep = torch.ones_like(classes, dtype=torch.bool)
    for key, threshold in thresholds.items():
        if threshold is not None:
            keep &= THRESHOLDS[key].passed(pixels, threshold)
    return classes.to(torch.uint8).masked_fill(~keep, IGNORE)


def active(
    nearest: Tensor,
    nearest_distance: Tensor,
    second_distance: Tensor,
    **thresholds: float | Tensor | None,
) -> Tensor:
    """Give the active pixels, which pass all thresholds, their class, uint8 [...]; 255 elsewhere.

    Takes the class of the nearest anchor uint8 [...], d1 and d2 float32 [...], and at least one of
    these thresholds, else a ValueError; the threshold itself passes. margin is the least d2 - d1,
    in units of the features (the paper's and the released code's rule); relative_margin the least
    (d2 - d1) / (d2 + d1), in [0, 1]; quantile float [K], each class's least relative margin, from
    `MarginHistogram.thresholds`.
    """
    if all(threshold is None for threshold in thresholds.values()):
        keys = (key for key, threshold in THRESHOLDS.items() if threshold.rule == "anchor")
        raise ValueError(f"give at least one of {', '.join(keys)}")
    return label_pixels("anchor", Pixels(nearest, nearest_distance, second_distance), thresholds)


def by_anchor(features: Tensor, anchors: Tensor, margin: float = 2.5) -> Tensor:
    """Label the pixels whose nearest anchor is nearest by `margin` or more (paper section 3.3).

    Gives the class of the nearest anchor, or 255, uint8 [B, h, w]. Arguments, units and errors are
    those of `anchor_distances`.
    """
    return active(*anchor_distances(features, anchors), margin=margin)


def by_probability(logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Label the pixels whose predicted class has a probability above `threshold`, in [0, 1].

    Takes logits float [B, K, h, w], compares in float32, and gives the predicted class, or 255,
    uint8 [B, h, w]. The threshold itself does not pass.
    """
    probability, prediction = logits.detach().float().softmax(dim=1).max(dim=1)
    return confident(prediction, probability, threshold)


def confident(prediction: Tensor, probability: Tensor, threshold: float = 0.95) -> Tensor:
    """Apply `by_probability`, uint8 [...], to integer predictions and their float32 probability."""
    pixels = Pixels(prediction=prediction, probability=probability)
    return label_pixels("probability", pixels, {"probability": threshold})


def configured(
    rule: str, config: PseudoLabel, class_thresholds: Tensor | None
) -> dict[str, float | Tensor]:
    """The configured `thresholds` of `label_pixels`, where the quantile's are float [K] or None."""
    values = {
        key: class_thresholds if threshold.per_class else getattr(config, key)
        for key, threshold in THRESHOLDS.items()
        if threshold.rule == rule
    }
    return {key: value for key, value in values.items() if value is not None}


def left_out(error: float, anchors: Tensor, config: PseudoLabel) -> str | None:
    """A line on distances that are wrong by up to `error`, or None if no label depends on it.

    A margin is the difference of two distances, so it is wrong by up to twice as much. A relative
    margin is that by the sum of the distances, which is no less than the distance of the anchors,
    float [K, D].
    """
    wrong = 2 * error
    least = nearest_other_anchor(anchors)[1].nan_to_num(math.inf).min()
    relative = config.relative_margin or config.quantile
    if not (config.margin and wrong > NOTEWORTHY * config.margin) and not (
        relative and wrong > NOTEWORTHY_RELATIVE * least
    ):
        return None
    return (
        f"the store's directions leave out up to {error:.2g} of an anchor: distances may be wrong "
        f"by up to that, margins by up to {wrong:.2g}; raise extract.directions, or set it to null"
    )


def measure(features: Tensor, prediction: Tensor, probability: Tensor, anchors: Tensor) -> Pixels:
    """Collect the rules' inputs of images, maps [B, h, w] on the anchors' device.

    Features, anchors and errors are those of `anchor_distances`.
    """
    features, *predicted = (part.to(anchors.device) for part in (features, prediction, probability))
    return Pixels(*anchor_distances(features, anchors), *predicted)


def apply_rules(
    pixels: Pixels, config: PseudoLabel, class_thresholds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Label pixels by both rules at the configured thresholds.

    Gives the labels of `anchor_rule` and those by the probability rule, uint8 [...], 255 = none.
    """
    thresholds = configured("probability", config, class_thresholds)
    probability = label_pixels("probability", pixels, thresholds)
    return anchor_rule(pixels, config, class_thresholds), probability


def anchor_rule(pixels: Pixels, config: PseudoLabel, class_thresholds: Tensor | None) -> Tensor:
    """Label pixels by the anchor rule at the configured thresholds, uint8 [...], 255 = none.

    `class_thresholds` are those of the quantile, float [K], or None. With `agreement` the label
    must also be the predicted class. This is not in the paper: where the network knows a class
    badly, its anchor is often wrongly the nearest.
    """
    labels = label_pixels("anchor", pixels, configured("anchor", config, class_thresholds))
    return agreeing(labels, pixels.prediction) if config.agreement else labels


def count_labels(
    nearest: Tensor, by_anchor: Tensor, by_probability: Tensor, num_classes: int
) -> Tensor:
    """Count each class's pixels in uint8 maps [...], 255 = none, as int64 [4, K].

    The rows are those of COVERAGE; counts of images add up.
    """
    maps = (nearest, by_anchor, by_probability, agreeing(by_anchor, by_probability))
    counts = (torch.bincount(labels.flatten().long(), minlength=IGNORE + 1) for labels in maps)
    return torch.stack([count[:num_classes] for count in counts])


class MarginHistogram:
    """Per-class quantiles of the relative margin over a whole data set, in flat memory.

    One margin for all classes silences rare ones; a threshold per class keeps them. Two passes:
    `update` with every image, then `active(..., quantile=histogram.thresholds(keep))`. `counts`,
    int64 [K, bins], are pixels by nearest class and relative margin; those of parts of a data set
    add up.
    """

    def __init__(
        self, num_classes: int, bins: int = 2**14, device: torch.device | str | None = None
    ) -> None:
        if bins < 1 or bins & (bins - 1):
            # else relative * bins and edge / bins are inexact, and the passes may disagree
            raise ValueError(f"bins must be a power of two, not {bins}")
        self.counts = torch.zeros(num_classes, bins, dtype=torch.int64, device=device)

    def update(self, nearest: Tensor, relative: Tensor) -> None:
        """Count pixels: nearest uint8 [...] and their relative margin float32 [...] in [0, 1]."""
        bins = self.counts.shape[1]
        cell = (relative.flatten() * bins).long().clamp(0, bins - 1)
        cell = (nearest.flatten().long() * bins + cell).to(self.counts.device)
        self.counts.view(-1).scatter_add_(0, cell, torch.ones_like(cell))

    def thresholds(self, keep: float) -> Tensor:
        """Find the relative margin that the most confident fraction `keep` of each class reaches.

        float32 [K]: the highest bin edge that at least `keep` of the class's pixels reach (at most
        one bin's pixels too many); 0 for a class without pixels. `keep` is in (0, 1], else a
        ValueError.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
        reaching = self.counts.flip(1).cumsum(dim=1).flip(1)  # [K, bins], non-increasing
        # a product such as 0.07 * 100 = 7.000000000000001 must not ask for an eighth pixel
        needed = (reaching[:, :1].double() * keep - 1e-6).ceil().clamp(min=1)
        edges = (reaching >= needed).sum(dim=1) - 1
        return edges.clamp(min=0).float() / self.counts.shape[1]


def _scores(pixels: Tensor, anchors: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of pixels [B, D, p] to anchors [K, D], infinite where not seen.

    Gives the part that differs between the anchors, [B, K, p], and the rest, [B, p].
    """
    # Distances are differences of products. Around the anchors' centre the products are smallest,
    # and a centre of few digits leaves short numbers exact.
    centre = anchors[seen].mean(dim=0).bfloat16().float()  # [D]
    offsets = (anchors - centre).masked_fill(~seen[:, None], 0)  # [K, D]
    # ||f||^2 is the same for all anchors, which differ in ||a||^2 - 2 f.a
    weights = (-2 * offsets).expand(len(pixels), -1, -1).split(_SUM_CHANNELS, dim=2)
    scores = offsets.square().sum(dim=1).masked_fill(~seen, torch.inf)[:, None]  # [K, 1]
    scores = scores.repeat(len(pixels), 1, pixels.shape[2])  # [B, K, p]
    size = scores.new_empty(len(pixels), pixels.shape[2])
    # channels a power of two apart would displace one another in a CPU's cache
    block_pixels = _block_pixels(pixels)
    stride = min(block_pixels, pixels.shape[2]) + 16
    block = scores.new_empty(*pixels.shape[:2], stride)
    splits = (tensor.split(block_pixels, dim=-1) for tensor in (pixels, scores, size))
    for part, score, square in zip(*splits, strict=True):
        centred = torch.sub(part, centre[:, None], out=block[:, :, : part.shape[2]])
        for weight, channels in zip(weights, centred.split(_SUM_CHANNELS, dim=1), strict=True):
            score.baddbmm_(weight, channels)
        torch.sum(centred.square_(), dim=1, out=square)
    return scores, size


def _nearest_two(
    pixels: Tensor, anchors: Tensor, scores: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest uint8, d1 and d2, [B, p] each; `scores` loses the smallest."""
    best, second, nearest = _two_smallest(scores)  # [B, p]
    first_distance = (best + size).clamp_(min=0).sqrt_()
    second_distance = (second + size).clamp_(min=0).sqrt_()

    block_pixels = _block_pixels(pixels)
    # Cancellation leaves too few digits close to an anchor or a tie: compute these few again.
    for chosen in (best + size < size / 64).nonzero().split(block_pixels):
        image, pixel = chosen.unbind(dim=1)
        vectors = pixels[image, :, pixel].float()  # [n, D]
        runner_up = scores[image, :, pixel].argmin(dim=1)
        closest = nearest[image, pixel].long()
        for distance, classes in ((first_distance, closest), (second_distance, runner_up)):
            squares = (vectors - anchors[classes]).square_()
            distance[image, pixel] = squares.sum(dim=1).sqrt_()
    for chosen in (second - best <= size * 2.0**-20).nonzero().split(block_pixels):
        image, pixel = chosen.unbind(dim=1)
        vectors, mode = pixels[image, :, pixel].float(), "donot_use_mm_for_euclid_dist"
        exact = _two_smallest(torch.cdist(vectors, anchors, compute_mode=mode))  # [n] each
        first_distance[image, pixel], second_distance[image, pixel], nearest[image, pixel] = exact
    return nearest, first_distance, second_distance


def _block_pixels(pixels: Tensor) -> int:
    return _CPU_BLOCK if pixels.device.type == "cpu" else _GPU_BLOCK


def _two_smallest(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest, second smallest and uint8 index of the smallest (lowest on ties) along dimension 1.

    The smallest values are overwritten with infinity.
    """
    smallest = values.amin(dim=1, keepdim=True)
    # min also finds the index, but takes several times as long on a CPU
    last = values.shape[1] - 1
    rank = torch.arange(last, -1, -1, dtype=torch.uint8, device=values.device)
    ranks = (values == smallest) * rank.view(-1, *[1] * (values.dim() - 2))
    index = last - ranks.amax(dim=1, keepdim=True)
    values.scatter_(1, index.long(), math.inf)
    return smallest.squeeze(1), values.amin(dim=1), index.squeeze(1)
