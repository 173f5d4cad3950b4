"""The objective of a round's student (METHOD step 3c)."""

from __future__ import annotations

import torch
from torch import Tensor

from cag.anchors import resize_labels
from cag.config.adaptation import Adapt
from cag.losses import adaptation_loss
from cag.mixing import class_regions, paste
from cag.networks import SegmentationNetwork
from cag.training.objectives import Batch, TwoDomainObjective


class AdaptationObjective(TwoDomainObjective):
    """The loss of a round's student on a source and a target batch (METHOD step 3c)."""

    names = ("loss", "source_ce", "target_ce", "source_distance", "target_distance")

    def __init__(
        self,
        network: SegmentationNetwork,
        anchors: Tensor,
        config: Adapt,
        min_pixels: int,
        class_weights: Tensor | None = None,
    ):
        super().__init__(network, class_weights, config.batch_norm)
        self.register_buffer("anchors", anchors, persistent=False)
        self.config = config
        self.min_pixels = min_pixels

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a batch, whose target label maps are those of the two rules."""
        (source_images, source_labels), (target_images, target_labels) = batch
        pasted = None
        if self.config.class_mix > 0:
            pasted = class_regions(
                source_labels[:, 0], self.network.num_classes, self.config.class_mix, self.draw
            )
            target_images = paste(pasted, source_images, target_images)
            target_images = target_images.contiguous(memory_format=torch.channels_last)
            target_labels = paste(pasted, source_labels, target_labels)
        source = self.source_output(source_images)
        target = self.network(target_images)
        size = target.logits.shape[2:]
        anchor_labels, probability_labels = (
            resize_labels(labels, size, align_corners=True) for labels in target_labels.unbind(1)
        )  # (B, h, w) each
        if pasted is not None:
            pasted = resize_labels(pasted, size, align_corners=True)
        losses = adaptation_loss(
            source.features,
            source.logits,
            source_labels[:, 0],
            target.features,
            target.logits,
            anchor_labels,
            probability_labels,
            self.anchors,
            distance_weight=self.config.distance_weight,
            distance_kind=self.config.distance_kind,
            target_labels=self.config.target_labels,
            min_pixels=self.min_pixels,
            source_class_weights=self.class_weights,
            pasted=pasted,
            divisor=self.divisor,
        )
        return torch.stack([losses[0], *(value.detach() for value in losses[1:])])
