"""Shapes alone give the FLOP, the images and the memory that a computation would take."""

from copy import deepcopy

import pytest
import torch
from project import ROOT
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import peak_bytes
from cag.config.parameters import load_all
from cag.networks import NetworkOutput, SegmentationNetwork, build
from cag.prediction import predict
from cag.project.dry_run import LABEL_MAPS, Shapes, Work, forward_pass, new_objective, training_step
from cag.runtime.errors import UserError
from cag.training.objectives import Batch, DomainBatch

CLASSES, HEIGHT, WIDTH = 19, 32, 64
PIXELS = HEIGHT * WIDTH
FULL = Shapes("32-true")
# Products of a pixel: a convolution of 3 to 4 channels, one of 4 groups, the classifier.
FIRST, GROUPED, CLASSIFIER = 9 * 3 * 4, 9 * 4, 4 * CLASSES
PRODUCTS = FIRST + GROUPED + CLASSIFIER


class Tiny(SegmentationNetwork):
    """Three convolutions at the images' size."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.classifier = nn.Conv2d(4, CLASSES, 1, bias=False)

    def forward(self, images):  # noqa: D102
        features = self.grouped(self.first(images))
        return NetworkOutput(features, self.classifier(features))


class Attentive(Tiny):
    """Adds attention among an image's pixels to their features."""

    def forward(self, images):  # noqa: D102
        features = self.grouped(self.first(images))
        pixels = features.flatten(2).transpose(1, 2)[:, None]  # (B, 1, H W, 4)
        seen = scaled_dot_product_attention(pixels, pixels, pixels)
        features = seen[:, 0].transpose(1, 2).view(features.shape)
        return NetworkOutput(features, self.classifier(features))


@pytest.fixture(scope="module")
def params():
    """The scenes preset with a network and crops that are quick to go through."""
    scenes = load_all(ROOT / "presets/scenes.yaml")
    small = {
        "encoder": "mobilenet_v2",
        "encoder_weights": None,
        "options": {"decoder_channels": 32},
    }
    changes = {"network": scenes.network.model_copy(update=small)}
    for name in LABEL_MAPS:
        section = getattr(scenes, name)
        crop = section.augmentation.model_copy(update={"crop": (HEIGHT, WIDTH)})
        changes[name] = section.model_copy(update={"augmentation": crop})
    return scenes.model_copy(update=changes)


def test_a_forward_pass_by_hand():
    work = forward_pass(predict, Tiny(), (2, HEIGHT, WIDTH), FULL)
    assert (work.forwarded, work.trained, work.training_flop) == (2, 0, 0)
    assert work.forward_flop == 2 * 2 * PIXELS * PRODUCTS
    # Of a pixel: the image, as floats, and again channels last; 4 features; the logits.
    assert work.memory == 4 * PRODUCTS + 2 * PIXELS * (3 + 3 * 4 + 3 * 4 + 4 * 4 + 4 * CLASSES)


def test_a_training_step_by_hand(params):
    """The images need no gradient, and the gradients of a grouped convolution are not dense."""
    work = training_step("pretrain", params, Tiny(), 2, FULL)
    assert (work.forwarded, work.trained, work.forward_flop) == (0, 2, 0)
    assert work.training_flop == 2 * 2 * PIXELS * (2 * FIRST + 3 * GROUPED + 3 * CLASSIFIER)


def test_attention_by_hand(params):
    """Forward two products of all pairs of pixels, in 4 channels; backward one of them and four."""
    pairs = 2 * 2 * PIXELS**2 * 4  # FLOP of such a product for two images
    shape = (2, HEIGHT, WIDTH)
    forward = [forward_pass(predict, kind(), shape, FULL) for kind in (Attentive, Tiny)]
    assert forward[0].forward_flop - forward[1].forward_flop == 2 * pairs
    step = [training_step("pretrain", params, kind(), 2, FULL) for kind in (Attentive, Tiny)]
    assert step[0].training_flop - step[1].training_flop == (2 + 5) * pairs


def test_the_teacher_only_forwards_and_sgd_has_one_state(params):
    step = {name: training_step(name, params, Tiny(), 2, FULL) for name in LABEL_MAPS}
    assert (step["adapt"].forwarded, step["adapt"].trained) == (4, 4)
    assert step["adapt"].forward_flop == 4 * 2 * PIXELS * PRODUCTS
    assert (step["warmup"].forwarded, step["warmup"].trained) == (0, 4)
    assert step["warmup"].training_flop > 2 * step["pretrain"].training_flop  # the discriminator's
    sgd = params.pretrain.model_copy(update={"optimizer": "sgd", "momentum": 0.9})
    plain = params.model_copy(update={"pretrain": sgd})
    saved = step["pretrain"].memory - training_step("pretrain", plain, Tiny(), 2, FULL).memory
    assert saved == 4 * PRODUCTS


def real_peak(objective, batch):
    """The memory of a real step at the worst moment, with what there is before it, in bytes."""
    states = sum(2 * parameter.nbytes for parameter in objective.network.parameters())
    known = sum(value.nbytes for value in [*objective.parameters(), *objective.buffers()])
    known += sum(tensor.nbytes for domain in batch.domains for tensor in domain)
    return known + states + peak_bytes(lambda: objective(batch)[0].backward())


def test_the_memory_is_that_of_a_real_step(params):
    network = build(params.network, CLASSES)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = training_step("adapt", params, network, 2, FULL).memory
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    objective = new_objective("adapt", params, deepcopy(network)).train()
    objective.to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    labels = [torch.zeros(2, n, HEIGHT, WIDTH, dtype=torch.uint8) for n in LABEL_MAPS["adapt"]]
    batch = Batch(*(DomainBatch(images.clone(), maps) for maps in labels))
    expected = real_peak(objective, batch)
    # With AVX2 the convolutions take less memory of their own.
    least = 1 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 0.99
    assert least * found <= expected < 1.1 * found


def test_a_frozen_encoder_takes_less_memory_and_fewer_flop(params):
    network = build(params.network, CLASSES)
    free, frozen = (
        training_step(
            "pretrain",
            params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)}),
            network,
            2,
            FULL,
        )
        for changes in ({}, {"freeze_encoder": True})
    )
    encoder = sum(parameter.nbytes for parameter in network.encoder.parameters())
    assert frozen.memory < free.memory - 3 * encoder  # its gradients and adamw's two states
    assert frozen.training_flop < 0.7 * free.training_flop
    assert frozen.trained == free.trained


def test_half_precision_takes_less_memory_and_the_same_flop(params):
    network = build(params.network, CLASSES)
    full, half = (
        training_step("adapt", params, network, 2, chosen)
        for chosen in (FULL, Shapes("bf16-mixed"))
    )
    assert half.memory < 0.9 * full.memory
    assert half[:-1] == full[:-1]


def test_a_network_that_looks_at_values_is_one_line(monkeypatch):
    network = Tiny()
    monkeypatch.setattr(Tiny, "forward", lambda self, images: bool(images.mean() > 0))
    with pytest.raises(UserError, match="^network: what it takes cannot be worked out "):
        forward_pass(predict, network, (1, HEIGHT, WIDTH), FULL)


def test_work_adds_up_and_memory_does_not():
    first, second = Work(1, 2, 3, 4, 50), Work(10, 20, 30, 40, 5)
    assert first.times(2).plus(second) == Work(12, 24, 36, 48, 50)
