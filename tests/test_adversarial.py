"""Adversarial alignment: the losses' values, and the parameters that each loss reaches."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from project import TRAINING
from torch import nn

from cag.adversarial import (
    AdversarialObjective,
    Discriminator,
    adversarial_loss,
    discriminator_loss,
    domain_loss,
)
from cag.config.warmup import Warmup
from cag.networks import NetworkOutput
from cag.training.objectives import Batch, DomainBatch

CLASSES, WEIGHT = 3, 0.5
HEIGHT, WIDTH = 32, 64


def configuration(**changes):
    """Parameters of a warm-up whose adversarial gradient is large enough to be seen."""
    values = TRAINING | {
        "weights": None,
        "objective": "vanilla",
        "adversarial_weight": WEIGHT,
        "discriminator_learning_rate": 1e-4,
        "batch_norm": "mixed",
    }
    return Warmup(**values | changes)


class TinyNetwork(nn.Module):
    """One convolution to the features and one to the logits, at stride 4."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 4, stride=4)
        self.classifier = nn.Conv2d(4, CLASSES, 1)

    def forward(self, images):
        """Features [B, 4, h, w] and logits [B, K, h, w] of images."""
        features = self.features(images).relu()
        return NetworkOutput(features, self.classifier(features))


def tiny_objective(seed=0, **changes):
    """An objective on a tiny network."""
    torch.manual_seed(seed)
    return AdversarialObjective(TinyNetwork(), configuration(**changes))


def random_batch(seed=0):
    """Two labelled source images, and three target images without a label map."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(5, 3, HEIGHT, WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 1, HEIGHT, WIDTH), generator=generator).byte()
    unlabelled = DomainBatch(images[2:] ** 2, labels.new_empty(3, 0, HEIGHT, WIDTH))
    return Batch(DomainBatch(images[:2], labels), unlabelled)


def gradients(module):
    """The gradients of a module's parameters."""
    return [parameter.grad for parameter in module.parameters()]


def assert_close(found, expected):
    """Whether two lists of gradients agree, none of them missing or zero."""
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


# The discriminator


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 128), (95, 97)])
def test_scores_are_at_a_32nd_of_the_size(height, width):
    scores = Discriminator(CLASSES)(torch.rand(2, CLASSES, height, width))
    assert scores.shape == (2, 1, height // 32, width // 32)


def test_the_discriminator_is_the_papers():
    discriminator = Discriminator(19)
    # 4 x 4 x inputs x outputs + outputs of each convolution
    expected = [19_520, 131_200, 524_544, 2_097_664, 8_193]
    convolutions = [m for m in discriminator if isinstance(m, nn.Conv2d)]
    assert [sum(p.numel() for p in m.parameters()) for m in convolutions] == expected
    assert sum(p.numel() for p in discriminator.parameters()) == 2_781_121
    assert [type(m) for m in discriminator] == 4 * [nn.Conv2d, nn.LeakyReLU] + [nn.Conv2d]
    assert {m.negative_slope for m in discriminator if isinstance(m, nn.LeakyReLU)} == {0.2}


# The objectives


def test_vanilla_is_the_cross_entropy_of_the_sigmoid():
    scores = torch.tensor([[[[0.0, math.log(3)]]]])  # sigmoid: 1/2, 3/4
    as_source = -(math.log(1 / 2) + math.log(3 / 4)) / 2
    as_target = -(math.log(1 / 2) + math.log(1 / 4)) / 2
    assert domain_loss(scores, True).item() == pytest.approx(as_source)
    assert domain_loss(scores, False).item() == pytest.approx(as_target)


def test_least_squares_is_the_squared_distance_to_the_domains_number():
    scores = torch.tensor([[[[0.0, 3.0]]]])
    assert domain_loss(scores, True, "least_squares").item() == (1 + 4) / 2
    assert domain_loss(scores, False, "least_squares").item() == (0 + 9) / 2


@pytest.mark.parametrize("objective", ["vanilla", "least_squares"])
def test_losses_are_float32_whatever_the_scores_are(objective):
    scores = torch.tensor([[[[-40.0, 40.0]]]])
    low = domain_loss(scores.bfloat16(), True, objective)
    assert low.dtype == torch.float32
    assert torch.equal(low, domain_loss(scores, True, objective))
    assert torch.isfinite(low)


def test_another_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be 'vanilla' or 'least_squares'"):
        domain_loss(torch.zeros(1, 1, 1, 1), True, "wasserstein")


@pytest.mark.parametrize("objective", ["vanilla", "least_squares"])
def test_the_two_sides_want_the_opposite(objective):
    """If the discriminator always says "source", the network has no loss, and half is wrong."""
    discriminator = Discriminator(CLASSES)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
        discriminator[-1].bias.fill_(20.0 if objective == "vanilla" else 1.0)
        source, target = torch.rand(2, 2, CLASSES, 32, 32)
        assert adversarial_loss(discriminator, target, objective) < 1e-6
        wrong = domain_loss(discriminator(target), False, objective)
        assert torch.isclose(
            discriminator_loss(discriminator, source, target, objective), wrong / 2
        )


# Gradients


@pytest.mark.parametrize("objective", ["vanilla", "least_squares"])
def test_gradients_are_those_of_two_passes(objective):
    """One backward pass gives the gradients of an alternating update with frozen parameters."""
    batch, trained = random_batch(), tiny_objective(objective=objective)
    trained(batch)[0].backward()

    network, discriminator = (copy.deepcopy(m) for m in (trained.network, trained.discriminator))
    network.zero_grad()
    discriminator.zero_grad()
    score = F.binary_cross_entropy_with_logits if objective == "vanilla" else F.mse_loss
    (images, labels), (target_images, _) = batch
    source, target = (
        F.interpolate(network(i).logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
        for i in (images, target_images)
    )
    discriminator.requires_grad_(False)
    scores = discriminator(target.softmax(1))
    loss = F.cross_entropy(source, labels[:, 0].long()) + WEIGHT * score(
        scores, torch.ones_like(scores)
    )
    loss.backward()
    discriminator.requires_grad_(True)
    for logits, truth in ((source, 1.0), (target, 0.0)):
        scores = discriminator(logits.detach().softmax(1))
        (score(scores, torch.full_like(scores, truth)) / 2).backward()

    assert_close(gradients(trained.network), gradients(network))
    assert_close(gradients(trained.discriminator), gradients(discriminator))


def test_each_loss_reaches_one_side_alone():
    trained = tiny_objective()
    (images, _), (target_images, _) = random_batch()
    size = (HEIGHT, WIDTH)
    source, target = (
        F.interpolate(trained.network(i).logits, size).softmax(1) for i in (images, target_images)
    )
    adversarial_loss(trained.discriminator, target).backward(retain_graph=True)
    assert all(gradient is None for gradient in gradients(trained.discriminator))
    assert all(gradient.abs().max() > 0 for gradient in gradients(trained.network))
    trained.network.zero_grad()
    discriminator_loss(trained.discriminator, source, target).backward()
    assert all(gradient is None for gradient in gradients(trained.network))
    assert all(gradient.abs().max() > 0 for gradient in gradients(trained.discriminator))


def test_the_first_loss_is_the_weighted_sum():
    losses = tiny_objective()(random_batch())
    assert AdversarialObjective.names == ("loss", "source_ce", "adversarial", "discriminator")
    total, source_ce, adversarial, discriminator = losses.tolist()
    assert total == pytest.approx(source_ce + WEIGHT * adversarial + discriminator)
    # Nobody knows anything yet: each side's loss is near that of a toss.
    assert adversarial == pytest.approx(math.log(2), abs=0.1)
    assert discriminator == pytest.approx(math.log(2), abs=0.1)


def test_the_source_cross_entropy_can_be_weighted():
    torch.manual_seed(0)
    network, batch = TinyNetwork(), random_batch()
    plain, weighted = (
        AdversarialObjective(network, configuration(), weights)(batch)[1]
        for weights in (None, torch.tensor([0.0, 0.0, 1.0]))
    )
    (images, labels), _ = batch
    only = labels.where(labels == 2, 255)
    part = Batch(DomainBatch(images, only), batch.target)
    expected = AdversarialObjective(network, configuration())(part)[1]
    assert torch.isclose(weighted, expected) and not torch.isclose(weighted, plain)


def test_autocast_keeps_the_losses_near_those_of_float32():
    trained, batch = tiny_objective(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = trained(batch)
    low[0].backward()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, trained(batch), rtol=0.02, atol=0.01)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(trained))


# Training


def test_each_side_has_an_optimizer_of_its_own():
    trained = tiny_objective()
    of_network, of_discriminator = trained.optimizers(trained.config)
    assert type(of_network) is torch.optim.SGD and type(of_discriminator) is torch.optim.Adam
    assert of_discriminator.defaults["lr"] == 1e-4
    assert of_discriminator.defaults["betas"] == (0.9, 0.99)
    assert of_discriminator.defaults["weight_decay"] == 0
    for optimizer, module in (
        (of_network, trained.network),
        (of_discriminator, trained.discriminator),
    ):
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in module.parameters()}


def test_a_discriminator_learns_what_a_network_then_hides():
    """It tells domains by their class frequencies; then the network makes them alike."""
    torch.manual_seed(0)
    discriminator = Discriminator(CLASSES)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    source = torch.rand(2, CLASSES, 32, 64).mul(4).softmax(1)
    logits = nn.Parameter(
        torch.rand(2, CLASSES, 32, 64) * 4 + torch.tensor([3.0, 0, 0])[:, None, None]
    )
    for _ in range(10):
        discriminator_loss(discriminator, source, logits.softmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert discriminator_loss(discriminator, source, logits.softmax(1)) < 0.3
    assert logits.grad is None
    before = adversarial_loss(discriminator, logits.softmax(1))
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(20):
        adversarial_loss(discriminator, logits.softmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert adversarial_loss(discriminator, logits.softmax(1)) < before / 2
