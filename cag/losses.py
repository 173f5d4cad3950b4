"""The losses of the adaptation step (paper section 3.4; docs/method.md, Adaptation)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cag.anchors import agreeing_labels, class_sums, resize_labels
from cag.networks import NetworkOutput, upsampled
from cag.runtime.precision import full_precision
from cag.training.cross_entropy import (
    Divisor,
    cross_entropy,
    labelled_pixels,
    own_count,
    pixel_losses,
    quotient,
)

TARGET_LABELS = ("both", "anchor", "probability")
DISTANCE_KINDS = ("class_mean", "pixel")


class AdaptationLosses(NamedTuple):
    """Scalars of an adaptation step; only `total` has the weights."""

    total: Tensor
    source_ce: Tensor
    target_ce: Tensor
    source_distance: Tensor
    target_distance: Tensor


class TargetLabels(NamedTuple):
    """The label maps of target images at the features' size, [B, h, w] each."""

    anchor: Tensor  # integer, pseudo-labels of the anchor rule, 255 = none
    probability: Tensor  # integer, those of the probability rule, 255 = none
    # bool, pixels pasted from the source with their labels (`cag.mixing`), which weigh as on the
    # source; pseudo-labels weigh 1. None: no pixel is pasted
    pasted: Tensor | None = None

    def used(self, rules: str) -> tuple[Tensor, ...]:
        """The label maps of the rules that `AdaptationLoss.target_labels` names."""
        return (self.anchor, self.probability) if rules == "both" else (getattr(self, rules),)


@dataclass(frozen=True)
class AdaptationLoss:
    """The loss of an adaptation step, with the settings of a training.

    total = CE(source) + CE(target) + distance_weight (distance(source) + distance(target)), where
    the target's distance uses the anchor labels. In float32, under autocast too. Nothing waits for
    the device. A part without labelled pixels is 0 with a zero gradient. Another `target_labels` or
    `distance_kind` is a ValueError.
    """

    distance_weight: float = 0.7  # lambda
    distance_kind: str = "class_mean"  # `kind` of `distance_loss`
    # "both": the mean of the two rules' cross-entropies (the released code); "anchor" (the paper's
    # text) or "probability": one of them
    target_labels: str = "both"
    min_pixels: int = 10  # like valid_classes, as for `distance_loss`
    valid_classes: Tensor | None = None
    source_class_weights: Tensor | None = None  # float [K], of the source's cross-entropy
    # Gives each mean's divisor from the count or weight of its pixels; with several processes,
    # `training.global_batch.mean_over_processes`.
    divisor: Divisor = own_count

    def __post_init__(self) -> None:
        if self.target_labels not in TARGET_LABELS:
            known = ", ".join(TARGET_LABELS)
            raise ValueError(f"target_labels must be one of {known}, not {self.target_labels!r}")
        if self.distance_kind not in DISTANCE_KINDS:
            raise ValueError(_wrong_kind(self.distance_kind))

    def __call__(
        self,
        source: NetworkOutput,
        source_labels: Tensor,
        target: NetworkOutput,
        target_labels: TargetLabels,
        anchors: Tensor,
    ) -> AdaptationLosses:
        """Compute the loss of a step.

        The source's labels are train ids integer [B, H, W] at full resolution; others are ignored.
        Its cross-entropy takes the logits at that size, bilinear, aligned corners. The target may
        have other sizes. In the anchors, float [K, D], rows of NaN take part in no loss.
        """
        maps, weights = target_labels.used(self.target_labels), self.source_class_weights
        divisor = self.divisor
        rest = (weights, target_labels.pasted, divisor)
        target_ce = sum(_target_cross_entropy(target.logits, m, *rest) for m in maps) / len(maps)
        logits = upsampled(source.logits, source_labels.shape[1:])
        source_ce = cross_entropy(logits, source_labels, weights, divisor)
        settings = {"kind": self.distance_kind, "min_pixels": self.min_pixels, "divisor": divisor}
        valid = self.valid_classes
        distance = partial(distance_loss, anchors=anchors, valid_classes=valid, **settings)
        source_distance = distance(*source, resize_labels(source_labels, source.logits.shape[2:]))
        target_distance = distance(*target, target_labels.anchor)
        total = source_ce + target_ce + self.distance_weight * (source_distance + target_distance)
        return AdaptationLosses(total, source_ce, target_ce, source_distance, target_distance)


def adaptation_loss(
    source_features: Tensor,
    source_logits: Tensor,
    source_labels: Tensor,
    target_features: Tensor,
    target_logits: Tensor,
    anchor_labels: Tensor,
    probability_labels: Tensor,
    anchors: Tensor,
    **settings: Any,
) -> AdaptationLosses:
    """`AdaptationLoss` as one function of tensors.

    Features float [B, D, h, w], logits float [B, K, h, w] and anchors float [K, D]. The source's
    labels are integer [B, H, W] at full resolution; the pseudo-labels of the two rules, integer
    [B', h', w'], 255 = none. `settings` are the attributes of `AdaptationLoss`, such as
    distance_weight (0.7); another `target_labels` or `distance_kind` is a ValueError.
    """
    return AdaptationLoss(**settings)(
        NetworkOutput(source_features, source_logits),
        source_labels,
        NetworkOutput(target_features, target_logits),
        TargetLabels(anchor_labels, probability_labels),
        anchors,
    )


def distance_loss(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    anchors: Tensor,
    kind: str = "class_mean",
    *,
    min_pixels: int = 10,
    valid_classes: Tensor | None = None,
    divisor: Divisor = own_count,
) -> Tensor:
    """Draw features towards the anchors of their classes; float32, 0 if no pixel takes part.

    Args:
        features: float [B, D, h, w].
        logits: float [B, K, h, w], the current prediction.
        labels: integer [B, h, w]; others than 0..K-1 ignored.
        anchors: float [K, D], constants; a class with a row of NaN takes no part.
        kind: "class_mean" (the released code): smooth L1 (mean over D, divided by 10 while above 5)
            between the anchor and the mean feature of each image and class, over the pixels
            predicted as labelled; 10 times the mean over these pairs. A pixel's gradient is the
            mean feature's times 2 / (h w), whatever the number of pixels. "pixel" (the paper): the
            mean L2 distance of labelled pixels to their anchors. Any other is a ValueError.
        min_pixels: fewer pixels give no class mean; "class_mean" only.
        valid_classes: bool [K]; the others add no term, but their pairs still count in the mean,
            as in the released code. None: all.
        divisor: as for `AdaptationLoss`.
    """
    if kind not in DISTANCE_KINDS:
        raise ValueError(_wrong_kind(kind))
    anchors = anchors.detach().float()
    seen = ~anchors.isnan().any(dim=1)  # [K]
    anchors = anchors.masked_fill(~seen[:, None], 0)
    valid = seen if valid_classes is None else seen & valid_classes
    with full_precision(features.device.type):
        if kind == "pixel":
            return _pixel_distance(features.float(), labels, anchors, seen, valid, divisor)
        labels = agreeing_labels(labels, logits.detach())
        terms, pairs = _class_mean_terms(features, labels, anchors, seen, valid, min_pixels)
        return quotient(10 * terms.sum(), pairs.sum(), divisor)


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, divisor: Divisor = own_count
) -> Tensor:
    """Cross-entropy times the pixels' weights, over the number of labelled pixels; float32.

    Takes logits float [B, K, h, w], labels integer [B, h, w], others than 0..K-1 ignored, and
    weights float [B, h, w]. So the loss is small where a teacher is unsure (DACS). `divisor` as for
    `AdaptationLoss`.
    """
    losses, labelled = pixel_losses(logits, labels)
    return quotient((losses * weights).sum(), labelled.sum(), divisor)


def _wrong_kind(kind: str) -> str:
    return f"kind must be 'class_mean' or 'pixel', not {kind!r}"


def _target_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, pasted: Tensor | None, divisor: Divisor
) -> Tensor:
    """Mean over the labelled pixels; those pasted from the source weigh by their class."""
    if weights is None or pasted is None:
        return cross_entropy(logits, labels, None, divisor)
    losses, labelled = pixel_losses(logits, labels)
    weights = weights[labels.long().masked_fill(~labelled, 0)].masked_fill(~pasted, 1) * labelled
    return quotient((losses * weights).sum(), weights.sum(), divisor)


def _class_mean_terms(
    features: Tensor, labels: Tensor, anchors: Tensor, seen: Tensor, valid: Tensor, min_pixels: int
) -> tuple[Tensor, Tensor]:
    """The released code's terms [B, K] of agreeing labels [B, h, w], and which of them count."""
    sums, counts = class_sums(features, labels, len(anchors))  # [B, K, D], [B, K]
    means = sums / counts.clamp(min=1)[..., None]
    # Each pixel gets 1 / count of a mean's gradient; the released code scales that by
    # 2 count / (h w), so that a rare class's pixels are pushed no harder than a common one's.
    scale = 2 * counts / labels[0].numel()
    means = means.detach() + (means - means.detach()) * scale[..., None]
    pairs = (counts >= max(min_pixels, 1)) & seen  # [B, K]
    terms = F.smooth_l1_loss(means, anchors.expand_as(means), reduction="none").mean(dim=-1)
    return _divided_while_above_five(terms).masked_fill(~(pairs & valid), 0), pairs


def _divided_while_above_five(terms: Tensor) -> Tensor:
    """Divide each term by 10 until it is at most 5; the division is part of the gradient."""
    powers = 10.0 ** torch.arange(39, dtype=torch.float64, device=terms.device)  # float32's range
    divisions = torch.bucketize(terms.detach().double(), 5 * powers)
    divisions = divisions.clamp(max=len(powers) - 1)  # NaN and infinity, which the loop reports
    return terms / powers[divisions].float()


def _pixel_distance(
    features: Tensor, labels: Tensor, anchors: Tensor, seen: Tensor, valid: Tensor, divisor: Divisor
) -> Tensor:
    """The paper's loss: mean L2 distance of labelled pixels to their anchors."""
    labelled = labelled_pixels(labels, len(anchors)).flatten()
    classes = labels.flatten().long().masked_fill(~labelled, 0)
    counted = labelled & seen[classes]  # [B h w]
    goals = anchors.t().contiguous().index_select(1, classes)  # [D, B h w]
    goals = goals.unflatten(1, labels.shape).transpose(0, 1)  # [B, D, h, w]
    squares = (features - goals).square().sum(dim=1).flatten()  # [B h w]
    # the root has no gradient at 0: a pixel on its anchor stays
    pulled = counted & valid[classes] & (squares > 0)
    distances = squares.masked_fill(~pulled, 1).sqrt().masked_fill(~pulled, 0)
    return quotient(distances.sum(), counted.sum(), divisor)
