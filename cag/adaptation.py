"""The objectives of a round's student: its losses, and the target images and labels it sees."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cag.anchors import resize_labels
from cag.augmentation import blur, change_colours
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE
from cag.losses import (
    AdaptationLoss,
    AdaptationLosses,
    TargetLabels,
    distance_loss,
    weighted_cross_entropy,
)
from cag.mixing import class_regions, paste
from cag.networks import NetworkOutput, SegmentationNetwork, upsampled
from cag.pseudo_labels import Pixels, anchor_rule
from cag.teacher import (
    ClassShares,
    FollowingAnchors,
    anchor_probabilities,
    distances_to_anchors,
    first_teacher,
    follow,
    inside,
    mean_inside,
    pixel_weights,
)
from cag.training.cross_entropy import cross_entropy
from cag.training.objectives import Batch, DomainBatch, TwoDomainObjective


class AdaptationObjective(TwoDomainObjective):
    """The loss of a round's student on a source and a target batch (paper section 3.4).

    The label maps of the target batch are the pseudo-labels of the two rules: [B, 2, H, W].
    """

    names = ("loss", *AdaptationLosses._fields[1:])

    def __init__(
        self,
        network: SegmentationNetwork,
        anchors: Tensor,
        config: Adapt,
        class_weights: Tensor | None,
        anchors_config: Anchors,
    ):
        super().__init__(network, class_weights, config.batch_norm)
        self.register_buffer("anchors", anchors, persistent=False)
        self.config = config
        self.min_pixels = anchors_config.min_pixels

    def forward(self, batch: Batch) -> Tensor:
        """The losses of a batch."""
        target, pasted = self._mixed(batch)
        source_output = self.source_output(batch.source.images)
        target_output = self.network(target.images)
        losses = self._loss()(
            source_output,
            batch.source.labels[:, 0],
            target_output,
            _at_feature_size(target.labels, pasted, target_output.logits.shape[2:]),
            self.anchors,
        )
        return torch.stack([losses.total, *(value.detach() for value in losses[1:])])

    def _mixed(self, batch: Batch) -> tuple[DomainBatch, Tensor | None]:
        """The target batch with pieces of the source pasted in; where they are, bool [B, H, W]."""
        (source_images, source_labels), (target_images, target_labels) = batch
        if self.config.class_mix == 0:
            return batch.target, None
        regions = class_regions(
            source_labels[:, 0], self.network.num_classes, self.config.class_mix, self.draw
        )
        images = paste(regions, source_images, target_images)
        images = images.contiguous(memory_format=torch.channels_last)
        return DomainBatch(images, paste(regions, source_labels, target_labels)), regions

    def _loss(self) -> AdaptationLoss:
        return AdaptationLoss(
            distance_weight=self.config.distance_weight,
            distance_kind=self.config.distance_kind,
            target_labels=self.config.target_labels,
            min_pixels=self.min_pixels,
            source_class_weights=self.class_weights,
            divisor=self.divisor,
        )


def student_objective(
    network: SegmentationNetwork,
    anchors: Tensor,
    config: Adapt,
    class_weights: Tensor | None,
    anchors_config: Anchors,
    rules: PseudoLabel,
) -> TwoDomainObjective:
    """The objective of the configured teacher, for the round's anchors float [K, D]."""
    inputs = network, anchors, config, class_weights, anchors_config
    return (
        OnlineTeacherObjective(*inputs, rules)
        if config.teacher == "ema"
        else AdaptationObjective(*inputs)
    )


class OnlineTeacherObjective(TwoDomainObjective):
    """The loss of a student whose teacher, the mean of its weights, labels each target batch.

    Mean teacher with class mixing as in DACS (Tranheden et al., WACV 2021), and the paper's
    distance losses. The batch's images have their own colours: the teacher sees the target's as
    they are, the student those of both domains changed. The target's label maps [B, 2, H, W] are
    the round's pseudo-labels.

    loss = CE(source) + weighted CE(mixed target) + distance_weight (distance(source) +
    distance(mixed target)). The last two names are the target pixels' mean weight, and the share of
    them where the student predicts the teacher's label: means over the crops, of which one that is
    pasted over wholly counts 0. No pixel counts where a crop is larger than its image.
    """

    names = ("loss", *AdaptationLosses._fields[1:], "target_weight", "agreement")

    def __init__(
        self,
        network: SegmentationNetwork,
        anchors: Tensor,
        config: Adapt,
        class_weights: Tensor | None,
        anchors_config: Anchors,
        rules: PseudoLabel,
    ):
        super().__init__(network, class_weights, config.batch_norm)
        self.teacher = first_teacher(network)
        self.anchors = FollowingAnchors(anchors, config.anchor_momentum or 0.0, anchors_config)
        self.shares = ClassShares(network.num_classes, config.teacher_momentum)
        self.config, self.min_pixels, self.rules = config, anchors_config.min_pixels, rules
        uses = config.distance_weight > 0, config.anchor_temperature is not None, config.active_only
        self.anchors_follow = config.anchor_momentum is not None and any(uses)

    def train(self, mode: bool = True) -> OnlineTeacherObjective:
        """Training mode, in which the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def kept(self) -> SegmentationNetwork:
        """The network that the stage saves, by `adapt.kept`."""
        return self.teacher if self.config.kept == "teacher" else self.network

    def after_step(self) -> None:
        """Let the teacher follow the student, and the anchors the teacher."""
        follow(self.teacher, self.network, self.config.teacher_momentum)
        if self.anchors_follow:
            self.anchors.update(self.divisor)
        if self.config.share_alignment > 0:
            self.shares.update(self.divisor)

    def forward(self, batch: Batch) -> Tensor:
        """The losses of a batch."""
        config, divisor = self.config, self.divisor
        (source_images, source_labels), (target_images, cached_labels) = batch
        source_labels = source_labels[:, 0]  # [B, H, W]
        with torch.no_grad():
            if self.anchors_follow or config.share_alignment > 0:
                self._collect(source_images, source_labels)
            labels, weights = self._labels(target_images, cached_labels)  # [B, H, W]
            regions = class_regions(
                source_labels, self.network.num_classes, config.class_mix, self.draw
            )
            mixed_images = self._changed(paste(regions, source_images, target_images), config.blur)
            mixed_labels = torch.where(regions, source_labels, labels)
            mixed_weights = weights.masked_fill(regions, 1)
            source_images = self._changed(source_images)
        source, mixed = self.source_output(source_images), self.network(mixed_images)
        mixed_logits = upsampled(mixed.logits, labels.shape[1:])  # [B, K, H, W]
        source_logits = upsampled(source.logits, labels.shape[1:])
        source_ce = cross_entropy(source_logits, source_labels, self.class_weights, divisor)
        target_ce = weighted_cross_entropy(mixed_logits, mixed_labels, mixed_weights, divisor)
        total = source_ce + target_ce
        distances = source_ce.new_zeros(2)
        if config.distance_weight > 0:
            counted = mixed_labels.masked_fill(mixed_weights == 0, IGNORE)
            distances = self._distances(source, source_labels, mixed, counted)
            total = total + config.distance_weight * distances.sum()
        seen = labels != IGNORE  # [B, H, W]
        agreed = mixed_logits.detach().max(dim=1).indices == labels
        means = mean_inside(weights, seen).mean(), mean_inside(agreed, seen & ~regions).mean()
        parts = source_ce, target_ce, *distances, *means
        return torch.stack([total, *(part.detach() for part in parts)])

    def _collect(self, images: Tensor, labels: Tensor) -> None:
        """Let the anchors and the shares see the teacher's output for a batch of the source."""
        output = self.teacher(images)
        if self.anchors_follow:
            self.anchors.collect(*output, resize_labels(labels, output.logits.shape[2:]))
        if self.config.share_alignment > 0:
            probabilities = self._probabilities(output, output.logits.shape[2:])
            self.shares.collect(0, probabilities, inside(images))

    def _labels(self, images: Tensor, cached_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's labels uint8 [B, H, W] of target images, and their pixels' weights.

        They are 255 and 0 where a crop shows nothing.
        """
        config, size = self.config, images.shape[2:]
        output, seen = self.teacher(images), inside(images)  # seen: [B, H, W]
        probabilities = self._probabilities(output, size)
        if config.share_alignment > 0:
            self.shares.collect(1, probabilities, seen)
            probabilities = self.shares.aligned(probabilities, config.share_alignment)
        probability, labels = probabilities.max(dim=1)  # [B, H, W]
        labels = labels.to(torch.uint8).masked_fill(~seen, IGNORE)
        weights = pixel_weights(probability, config.teacher_probability, config.target_weight, seen)
        if config.active_only:
            active = resize_labels(self._active(output), size, align_corners=True)
            weights = weights * (active == labels)
        if config.second_opinion:
            cached = cached_labels[:, 0]
            weights = weights * ((cached == labels) | (cached == IGNORE))
        return labels, weights

    def _probabilities(self, output: NetworkOutput, size: torch.Size) -> Tensor:
        """The teacher's probabilities [B, K, H, W] at a size, weighted by the anchors if set."""
        probabilities = upsampled(output.logits, size).softmax(dim=1)
        if self.config.anchor_temperature is None:
            return probabilities
        near = anchor_probabilities(
            output.features, self.anchors.values, self.config.anchor_temperature
        )
        probabilities = probabilities * upsampled(near, size)
        return probabilities / probabilities.sum(dim=1, keepdim=True)

    def _active(self, output: NetworkOutput) -> Tensor:
        """The anchor rule's labels uint8 [B, h, w] of the teacher's output."""
        distances = distances_to_anchors(output.features, self.anchors.values)
        (first, second), (nearest, _) = (x.unbind(1) for x in distances.topk(2, 1, largest=False))
        prediction = output.logits.max(dim=1).indices.to(torch.uint8)
        pixels = Pixels(nearest.to(torch.uint8), first, second, prediction)
        return anchor_rule(pixels, self.rules, None)

    def _changed(self, images: Tensor, blurred: float = 0.0) -> Tensor:
        """Images as the student sees them."""
        images = change_colours(images, self.config.augmentation.photometric, self.draw)
        images = blur(images, blurred, self.draw)
        return images.contiguous(memory_format=torch.channels_last)

    def _distances(
        self, source: NetworkOutput, source_labels: Tensor, mixed: NetworkOutput, labels: Tensor
    ) -> Tensor:
        """The distance losses of the source and the mixed target, [2]."""
        distance = partial(
            distance_loss,
            anchors=self.anchors.values,
            kind=self.config.distance_kind,
            min_pixels=self.min_pixels,
            divisor=self.divisor,
        )
        size = source.logits.shape[2:]
        return torch.stack(
            [
                distance(*source, resize_labels(source_labels, size)),
                distance(*mixed, resize_labels(labels, size, align_corners=True)),
            ]
        )


def _at_feature_size(labels: Tensor, pasted: Tensor | None, size: tuple[int, int]) -> TargetLabels:
    """Label maps [B, 2, H, W] and pasted regions [B, H, W] at the features' size."""
    maps = [*labels.unbind(1), *([] if pasted is None else [pasted])]
    return TargetLabels(*(resize_labels(part, size, align_corners=True) for part in maps))
