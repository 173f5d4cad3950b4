"""The objective of a round's student: its losses, and the target images and labels it sees."""

import torch
from torch import Tensor

from cag.anchors import resize_labels
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.losses import AdaptationLoss, AdaptationLosses, TargetLabels
from cag.mixing import class_regions, paste
from cag.networks import SegmentationNetwork
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


def _at_feature_size(labels: Tensor, pasted: Tensor | None, size: tuple[int, int]) -> TargetLabels:
    """Label maps [B, 2, H, W] and pasted regions [B, H, W] at the features' size."""
    maps = [*labels.unbind(1), *([] if pasted is None else [pasted])]
    return TargetLabels(*(resize_labels(part, size, align_corners=True) for part in maps))
