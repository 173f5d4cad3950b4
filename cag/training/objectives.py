"""Objectives: a network with the losses that train it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cag.config.training import Training
from cag.networks import NetworkOutput, SegmentationNetwork, upsampled
from cag.training.cross_entropy import Divisor, class_balance_weights, cross_entropy, own_count
from cag.training.global_batch import Uniform, uniform
from cag.training.samples import Sample, class_pixels


class DomainBatch(NamedTuple):
    """Augmented images of a domain with their label maps."""

    images: Tensor  # float [B, 3, H, W] in [0, 1]
    labels: Tensor  # uint8 [B, n, H, W], n label maps of each image; n can be 0


class Batch(NamedTuple):
    """The images of a training step."""

    source: DomainBatch
    target: DomainBatch | None = None  # None: a training on the source alone

    @property
    def domains(self) -> tuple[DomainBatch, ...]:
        """The domains that are there, the source first."""
        return (self.source,) if self.target is None else (self.source, self.target)


class Objective(nn.Module):
    """A network with the losses of a batch that train it.

    Calling it with a `Batch` gives the losses float32 [n] in the order of `names`; the first is to
    be minimised. What an objective must remember from step to step (a teacher, say) is a module or
    a persistent buffer of it: the checkpoint holds its state.
    """

    names: tuple[str, ...]
    divisor: Divisor = staticmethod(own_count)  # of a mean, from the count of its labelled pixels
    draw: Uniform = staticmethod(uniform)  # the random numbers for each image

    def __init__(self, network: SegmentationNetwork, class_weights: Tensor | None):
        super().__init__()
        self.network = network
        self.register_buffer("class_weights", class_weights, persistent=False)

    def optimizers(self, config: Training) -> list[torch.optim.Optimizer]:
        """The optimizers that minimise the first loss, each with its own parameters."""
        return [make_optimizer(self.network, config)]

    def after_step(self) -> None:
        """Called after each step of the optimizers; does nothing here."""

    @property
    def kept(self) -> SegmentationNetwork:
        """The network that the training is for, and that its stage saves."""
        return self.network


class SupervisedObjective(Objective):
    """Cross-entropy on labelled images at the labels' resolution: the pretraining, the oracle."""

    def __init__(
        self,
        network: SegmentationNetwork,
        class_weights: Tensor | None = None,
        domains: tuple[str, ...] = ("source",),
    ):
        super().__init__(network, class_weights)
        self.names = ("loss", *(f"{domain}_ce" for domain in domains))

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a batch; the first is the sum of the others."""
        losses = torch.stack([self._cross_entropy(*domain) for domain in batch.domains])
        return torch.cat([losses.sum()[None], losses.detach()])

    def _cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        labels = labels[:, 0]  # (B, H, W)
        logits = upsampled(self.network(images).logits, labels.shape[1:])
        return cross_entropy(logits, labels, self.class_weights, self.divisor)


class TwoDomainObjective(Objective):
    """An objective that sees the target too: whose batch-norm statistics its network keeps.

    `batch_norm` is "mixed" for those of both domains, "target", or "frozen" for the ones it has.
    """

    def __init__(self, network: SegmentationNetwork, class_weights: Tensor | None, batch_norm: str):
        super().__init__(network, class_weights)
        self.batch_norm = batch_norm

    def train(self, mode: bool = True) -> TwoDomainObjective:
        """Training mode, in which frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in batch_norms(self.network):
                module.eval()
        return self

    def source_output(self, images: Tensor) -> NetworkOutput:
        """The network's output on source images [B, 3, H, W]."""
        if self.batch_norm != "target":
            return self.network(images)
        # The source batch is normalised by its own statistics and leaves no trace in the kept ones.
        modules = batch_norms(self.network)
        momenta = [module.momentum for module in modules]
        for module in modules:
            module.momentum = 0.0
        output = self.network(images)
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        return output


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The network's batch-norm layers."""
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def source_class_weights(
    samples: Sequence[Sample], num_classes: int, config: Training
) -> Tensor | None:
    """Weights float32 [K] of the source's cross-entropy; None: plain."""
    if config.class_balance == 0:
        return None
    return class_balance_weights(class_pixels(samples, num_classes), config.class_balance)


def make_optimizer(network: SegmentationNetwork, config: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that need a gradient, as the `training` parameters say.

    It is fused on a GPU.
    """
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    options["fused"] = on_gpu(network) or None
    groups = _parameter_groups(network, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return torch.optim.AdamW(groups, betas=(config.momentum, 0.999), **options)


def _parameter_groups(network: SegmentationNetwork, config: Training) -> list[dict]:
    """One group, or the encoder's and the rest's with their own learning rate."""
    parts = {"all": network}
    if config.learning_rate_decoder is not None:
        parts = {
            "encoder": network.encoder,
            "rest": nn.ModuleList([network.decoder, network.classifier]),
        }
    rates = {"rest": {"lr": config.learning_rate_decoder}}
    trained = {
        name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()
    }
    return [{"params": ps} | rates.get(name, {}) for name, ps in trained.items() if ps]


def on_gpu(network: nn.Module) -> bool:
    """Whether its parameters lie on a GPU."""
    return next(network.parameters()).is_cuda
