"""Output-space alignment (AdaptSegNet, Tsai et al., CVPR 2018; docs/method.md, Warm-up)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cag.config.training import Training
from cag.config.warmup import Warmup
from cag.networks import SegmentationNetwork, upsampled
from cag.training.cross_entropy import cross_entropy
from cag.training.objectives import Batch, TwoDomainObjective

CHANNELS = (64, 128, 256, 512, 1)
BETAS = (0.9, 0.99)  # of the discriminator's Adam


class Discriminator(nn.Sequential):
    """Distinguishes the source's predictions from the target's.

    Five 4 x 4 convolutions of stride 2 and padding 1, with leaky ReLU of slope 0.2 between them and
    no normalisation. Maps class probabilities float [B, K, H, W], H and W >= 32, to logits of
    "source", float [B, 1, H // 32, W // 32].
    """

    def __init__(self, num_classes: int):
        layers: list[nn.Module] = []
        for inputs, outputs in zip((num_classes, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def domain_loss(scores: Tensor, source: bool, objective: str = "vanilla") -> Tensor:
    """The discriminator's loss for one domain, float32: the mean over its scores [B, 1, h, w].

    `objective` is "vanilla", binary cross-entropy of the sigmoid, or "least_squares", the squared
    distance to 1 for the source and 0 for the target; any other is a ValueError.
    """
    if objective not in ("vanilla", "least_squares"):
        raise ValueError(f"objective must be 'vanilla' or 'least_squares', not {objective!r}")
    scores = scores.float()
    truth = torch.full_like(scores, float(source))
    if objective == "vanilla":
        return F.binary_cross_entropy_with_logits(scores, truth)
    return F.mse_loss(scores, truth)


def adversarial_loss(
    discriminator: Discriminator, target: Tensor, objective: str = "vanilla"
) -> Tensor:
    """The network's loss, low where the discriminator mistakes the target for the source.

    float32, without its weight. `target` are class probabilities float [B, K, H, W]; no gradient
    reaches the discriminator's parameters. `objective` as for `domain_loss`.
    """
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    return domain_loss(functional_call(discriminator, frozen, (target,)), True, objective)


def discriminator_loss(
    discriminator: Discriminator, source: Tensor, target: Tensor, objective: str = "vanilla"
) -> Tensor:
    """The discriminator's loss, low where it distinguishes the domains.

    float32, the mean of the two domains' losses, as in the released code. No gradient reaches the
    class probabilities float [B, K, H, W] and [B', K, H, W]. `objective` as for `domain_loss`.
    """
    of_source = domain_loss(discriminator(source.detach()), True, objective)
    of_target = domain_loss(discriminator(target.detach()), False, objective)
    return (of_source + of_target) / 2


class AdversarialObjective(TwoDomainObjective):
    """Source cross-entropy, and target predictions that a discriminator mistakes for the source's.

    The first loss is source_ce + weight x adversarial + discriminator. Its terms train disjoint
    parameters, because `adversarial` freezes the discriminator, and `discriminator` detaches the
    predictions. So one backward pass gives both sides the gradients of AdaptSegNet's alternating
    update, which also computes both before either side steps.

    As in AdaptSegNet, the discriminator sees the softmax of logits at the images' size (bilinear,
    aligned corners): five halvings of 64 x 128 pixels leave 2 x 4 scores, of 16 x 32 feature pixels
    none.
    """

    names = ("loss", "source_ce", "adversarial", "discriminator")

    def __init__(
        self, network: SegmentationNetwork, config: Warmup, class_weights: Tensor | None = None
    ):
        super().__init__(network, class_weights, config.batch_norm)
        self.discriminator = Discriminator(network.num_classes)
        self.config = config

    def optimizers(self, config: Training) -> list[torch.optim.Optimizer]:
        """The network's optimizers as configured, and Adam for the discriminator."""
        parameters = self.discriminator.parameters()
        rate = self.config.discriminator_learning_rate
        return [*super().optimizers(config), torch.optim.Adam(parameters, lr=rate, betas=BETAS)]

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a batch, whose target images have no label maps: uint8 [B, 0, H, W]."""
        source_logits = self.source_output(batch.source.images).logits
        target_logits = self.network(batch.target.images).logits
        source = upsampled(source_logits, batch.source.images.shape[2:])
        target = upsampled(target_logits, batch.target.images.shape[2:])
        source_labels = batch.source.labels[:, 0]  # (B, H, W)
        source_ce = cross_entropy(source, source_labels, self.class_weights, self.divisor)
        source, target = source.softmax(dim=1), target.softmax(dim=1)  # (B, K, H, W)
        kind = self.config.objective
        adversarial = adversarial_loss(self.discriminator, target, kind)
        discriminator = discriminator_loss(self.discriminator, source, target, kind)
        total = source_ce + self.config.adversarial_weight * adversarial + discriminator
        parts = (source_ce, adversarial, discriminator)
        return torch.stack([total, *(part.detach() for part in parts)])
