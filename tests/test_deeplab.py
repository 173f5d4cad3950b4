"""The paper's network: its size, its dilation, its output for images of any size."""

import pytest
import torch
from torch import nn

from cag.config.networks import Network, Normalization
from cag.datasets.labels import LabelSpace
from cag.deploy.released import RELEASED_NETWORK
from cag.networks import build, load_model, save_model
from cag.runtime.errors import UserError

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
WIDTH = 8


def config(encoder="resnet18", **options):
    """The paper's network with a small encoder and decoder."""
    return Network(
        architecture="DeepLabV3PlusPaper",
        encoder=encoder,
        encoder_weights=None,
        options={"decoder_channels": WIDTH} | options,
        normalization=Normalization(mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3)),
    )


def images(height=64, width=96):
    """Two random images in [0, 1]."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def size(module):
    """The number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def layout(encoder, stage):
    """Stride and dilation of each 3x3 convolution in a stage of a ResNet."""
    convolutions = [m for m in getattr(encoder, stage).modules() if isinstance(m, nn.Conv2d)]
    return [(m.stride[0], m.dilation[0]) for m in convolutions if m.kernel_size == (3, 3)]


@pytest.fixture(scope="module")
def network():
    """A small network in eval mode whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build(config(), SPACE.num_classes)
    with torch.no_grad():
        network.train()(images())
    return network.eval()


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        network = build(RELEASED_NETWORK, 19)
    assert size(network.encoder) == 42_500_160
    assert size(network.decoder.aspp) == 15_535_104
    assert size(network) == 42_500_160 + 15_535_104 + 1_308_531 == 59_343_795
    assert (network.width, network.num_classes) == (256, 19)
    assert [name for name, _ in network.named_parameters() if name.endswith("bias")][-1] == (
        "classifier.bias"
    )
    biased = [n for n, m in network.named_modules() if getattr(m, "bias", None) is not None]
    convolutions = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions & set(biased) == {"classifier"}


@pytest.mark.parametrize(
    ("encoder", "stride", "third", "fourth"),
    [
        ("resnet50", 16, [(2, 1)] + [(1, 1)] * 5, [(1, 2), (1, 4), (1, 8)]),
        ("resnet50", 8, [(1, 2)] * 6, [(1, 4), (1, 8), (1, 16)]),
        ("resnet18", 16, [(2, 1)] + [(1, 1)] * 3, [(1, 2), (1, 2), (1, 4), (1, 4)]),
    ],
)
def test_the_last_stage_is_dilated_by_the_multi_grid(encoder, stride, third, fourth):
    with torch.device("meta"):
        built = build(config(encoder, encoder_output_stride=stride), 3).encoder
    assert (layout(built, "layer3"), layout(built, "layer4")) == (third, fourth)


def test_a_timm_resnet_is_dilated_in_the_same_way():
    built = build(config("tu-resnet18"), 3).encoder
    assert layout(built.model, "layer4") == [(1, 2), (1, 2), (1, 4), (1, 4)]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("stride", [8, 16])
def test_the_encoder_ends_at_its_output_stride(encoder, stride):
    built = build(config(encoder, encoder_output_stride=stride), 3).eval()
    with torch.no_grad():
        assert built.encoder(images())[-1].shape[2:] == (64 // stride, 96 // stride)
        assert built(images()).logits.shape == (2, 3, 16, 24)


@pytest.mark.parametrize("height_width", [(64, 96), (33, 65), (50, 70), (5, 97), (100, 31)])
def test_an_image_of_any_size_is_taken_as_it_is(network, height_width):
    seen = []
    hook = network.encoder.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        features, logits = network(images(*height_width))
    hook.remove()
    small = tuple(-(-side // 4) for side in height_width)
    assert features.shape == (2, WIDTH, *small) and logits.shape == (2, 3, *small)
    assert features.min() == 0 < features.max()
    assert seen[0].shape[2:] == height_width


def test_no_pixel_is_lost_on_an_encoder_that_cuts_patches():
    built = build(config("tu-test_convnext"), 3).eval()
    with torch.no_grad():
        assert built(images(50, 71)).features.shape == (2, WIDTH, 13, 18)


def test_dropout_acts_in_training_alone(network):
    twice = []
    for training in (False, True):
        network.decoder.train(training)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            twice.append([network(images()).features for _ in range(2)])
    network.eval()
    assert torch.equal(*twice[0]) and not torch.equal(*twice[1])


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = build(config(), 3)
    network(images()).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_model_comes_back_bit_for_bit(tmp_path, network):
    save_model(tmp_path / "model.safetensors", network, config(), SPACE)
    loaded, loaded_config, classes, _ = load_model(tmp_path / "model.safetensors", SPACE)
    assert (loaded_config, classes) == (config(), SPACE)
    with torch.no_grad():
        found, expected = loaded(images(50, 70)), network(images(50, 70))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.features, expected.features)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"encoder_output_stride": 32}, "encoder_output_stride is 32; expected 8 or 16"),
        ({"decoder_chanels": 8}, "network.options.decoder_chanels is no option of DeepLabV3PlusP"),
        ({"classes": 7}, "network.options.classes is no option"),
    ],
)
def test_what_cannot_be_built_is_named_in_one_line(options, expected):
    with pytest.raises(UserError) as caught:
        build(config(**options), 3)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
