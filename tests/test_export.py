"""Exported models give the network's logits for any number and size of images."""

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import RotaryEmbeddingDinoV3

from cag import cli
from cag.config.networks import Network, Normalization
from cag.datasets.labels import LabelSpace
from cag.deploy import export
from cag.networks import build, save_model
from cag.prediction import upsampled
from cag.runtime.errors import UserError

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
CONFIG = Network(
    architecture="DeepLabV3Plus",
    encoder="tu-test_efficientnet",  # of few layers, each of which takes time to trace
    encoder_weights=None,
    options={"decoder_channels": 16},
    normalization=Normalization(mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3)),
)
SIZES = [(1, 64, 96), (2, 50, 71), (3, 40, 33), (1, 97, 130)]


def made(**changes):
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build(CONFIG.model_copy(update=changes), SPACE.num_classes)
    with torch.no_grad():
        network.train()(torch.rand(2, 3, 64, 96))
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return made()


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network, CONFIG, SPACE, (48, 64))
    return path


@pytest.fixture(scope="module")
def program(network):
    return export.trace(network)


@pytest.fixture
def traced(monkeypatch, program):
    """The traced model, made once: tracing takes seconds."""
    monkeypatch.setattr(export, "trace", lambda network: program)


def images(count, height, width):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def expected(network, given):
    return torch.stack([upsampled(one, given.shape[2:]) for one in network(given).logits])


def same_at_every_size(program, network):
    for size in SIZES:
        given = images(*size)
        with torch.inference_mode():
            assert torch.allclose(program(given), expected(network, given), atol=1e-5), size


def cag_export(*arguments):
    cli.cli.main(["export", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "mobilenet_v2", "options": {"encoder_depth": 3, "decoder_channels": 16}},
        {"encoder": "tu-tf_efficientnet_lite0"},  # which pads by what its sizes lack
        {"architecture": "DeepLabV3PlusPaper", "encoder": "resnet18"},
        # whose classifier sees neighbours
        {"architecture": "Unet", "encoder": "resnet18", "options": {}},
        {"architecture": "Linear", "encoder": "tu-test_vit", "options": {"patch_size": 14}},
        {"architecture": "Segformer", "encoder": "mit_b0", "options": {}},
    ],
    ids=lambda changes: changes.get("architecture", changes.get("encoder", "DeepLabV3Plus")),
)
def test_a_trace_is_the_network_at_every_size(changes):
    network = made(**changes)
    same_at_every_size(export.trace(network).module(), network)


class Rotated(torch.nn.Module):
    """Has the position embeddings of DINOv3."""

    def __init__(self):
        super().__init__()
        self.rope = RotaryEmbeddingDinoV3(8)

    def forward(self, maps):
        """The embeddings of maps [B, C, h, w]."""
        return self.rope.get_embed(shape=maps.shape[2:])


def test_dinov3s_positions_are_traced_for_all_sizes():
    sizes, network = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC), Rotated()
    given = (torch.rand(1, 1, 5, 7),)
    program = torch.export.export(export.traceable(network), given, dynamic_shapes=[sizes])
    for shape in [(5, 7), (3, 11), (20, 2)]:
        found = program.module()(torch.rand(1, 1, *shape))
        assert torch.allclose(found, network(torch.rand(1, 1, *shape)), atol=1e-5)


def test_a_program_that_pt2_cannot_hold_is_one_line(tmp_path):
    network = made(encoder="tu-test_resnet")  # has a pooling that rounds up
    with pytest.raises(UserError, match="cannot be written as pt2 .*; try the other --format"):
        export.write_pt2(tmp_path / "m.pt2", export.trace(network), {})


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_full_disk_is_an_error_of_the_system(form):
    program = torch.export.export(torch.nn.ReLU(), (torch.rand(1, 3, 8, 8),))
    if form == "onnx":
        pytest.importorskip("onnxscript")
    with pytest.raises(OSError) as caught:
        getattr(export, f"write_{form}")(Path("/dev/full"), program, {})
    assert caught.value.errno == errno.ENOSPC


def test_an_onnx_file_runs_and_says_what_it_is(model, network, traced, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "m.onnx"
    cag_export(model, "--format", "onnx", "--out", path)
    assert list(tmp_path.iterdir()) == [path]  # the weights are in it
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in SIZES:
        given = images(*size)
        (found,) = session.run(["logits"], {"images": given.numpy()})
        assert np.abs(found - expected(network, given).numpy()).max() < 1e-4, size
    (given,), (logits,) = session.get_inputs(), session.get_outputs()
    assert given.name == "images" and given.shape == ["batch", 3, "height", "width"]
    assert logits.name == "logits" and logits.shape == ["batch", 3, "height", "width"]
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(SPACE.names)
    assert json.loads(properties["size"]) == [48, 64]
    assert json.loads(properties["palette"]) == [list(color) for color in SPACE.palette]
    assert "[0, 1]" in properties["input"] and "logits" in properties["output"]
    (opset,) = [o.version for o in onnx.load(path).opset_import if o.domain in ("", "ai.onnx")]
    assert opset == export.OPSET
    printed = capsys.readouterr().out
    assert f"opset {opset}" in printed and "100.000%" in printed
    assert "1x3x96x160" in printed and "2x3x125x203" in printed and "1x3x128x256" in printed


def test_a_pt2_file_runs_and_says_what_it_is(model, network, traced, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(photos / "street.png")
    (photos / "street.heic").touch()
    path = tmp_path / "m.pt2"
    cag_export(model, "--format", "pt2", "--out", path, "--images", photos)
    said = capsys.readouterr()
    assert "street.png" in said.out
    assert said.err == f"left out, no images: 1 .heic ({photos / 'street.heic'})\n"
    extra = {"cag.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    same_at_every_size(program, network)
    said = json.loads(extra["cag.json"])
    assert said["size"] == [48, 64]
    assert said["classes"] == list(SPACE.names) and len(said["palette"]) == 3


def test_a_file_that_differs_is_not_kept(model, network, traced, tmp_path, monkeypatch, capsys):
    def wrong(given):
        return expected(network, given) * 1.001

    monkeypatch.setattr(export, "load_pt2", lambda path: wrong)
    with pytest.raises(UserError, match="m.pt2: not kept: its logits differ from those of"):
        cag_export(model, "--format", "pt2", "--out", tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
    assert "random" in capsys.readouterr().out  # the table says by how much


def test_comparison_measures_differences():
    network = made()
    given = [("some", images(1, 40, 50))]
    logits = expected(network, given[0][1])
    flipped = logits.clone()
    flipped[0, :, 0, 0] = flipped[0, :, 0, 0].flip(0)
    (same,) = export.compare(network, lambda _: logits, given)
    (other,) = export.compare(network, lambda _: flipped, given)
    (less,) = export.compare(network, lambda _: logits - 0.5, given)
    assert same.passed and same.difference == 0 and same.agreement == 1
    assert not other.passed and other.agreement in (1, pytest.approx(1 - 1 / 2000))
    assert not less.passed and less.difference == pytest.approx(0.5) and less.agreement == 1
    assert 0 < less.rounding < 1e-4
    assert less.scale == pytest.approx(logits.abs().max().item())


def test_what_is_missing_or_wrong_is_one_line(model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--out is .*m.bin; the name of a pt2 file ends in .pt2"):
        cag_export(model, "--format", "pt2", "--out", tmp_path / "m.bin")
    with pytest.raises(UserError, match="no such model"):
        cag_export(tmp_path / "none", "--format", "pt2", "--out", tmp_path / "m.pt2")
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(tmp_path / "tiny.png")
    with pytest.raises(UserError, match="tiny.png: is too small"):
        cag_export(
            model, "--format", "pt2", "--out", tmp_path / "m.pt2", "--images", tmp_path / "tiny.png"
        )
    (tmp_path / "tiny.png").unlink()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs the package onnx.*; run: pip install 'cag\[exp"):
        cag_export(model, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cells", [2, 3, (6, 4)])
def test_adaptive_pooling_is_a_product_of_matrices(cells):
    pooling = torch.nn.AdaptiveAvgPool2d(cells)
    copied = export.traceable(torch.nn.Sequential(pooling, torch.nn.AdaptiveAvgPool2d(1)))
    assert copied[0].__class__ is not pooling.__class__ is copied[1].__class__
    for shape in ((1, 3, 8, 13), (2, 1, 6, 4), (1, 2, 5, 7)):
        images = torch.rand(shape)
        torch.testing.assert_close(copied[0](images), pooling(images))


def test_a_swin_transformer_is_refused_at_once(monkeypatch):
    """Its trace does not end."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("it is traced"))
    encoder = "tu-swin_tiny_patch4_window7_224"
    network = build(
        CONFIG.model_copy(update={"architecture": "FPN", "encoder": encoder, "options": {}}), 3
    )
    with pytest.raises(UserError, match=r"Swin transformer cannot be traced .* network\.encoder"):
        export.trace(network)


def test_a_file_that_no_runtime_can_run_is_one_line(monkeypatch):
    def broken(images):
        raise RuntimeError("invalid\nindex")

    network = torch.nn.Conv2d(3, 2, 1)
    monkeypatch.setattr(network, "forward", lambda images: SimpleNamespace(logits=images))
    with pytest.raises(UserError, match="cannot run on images of 1 x 3 x 4 x 4 .*invalid index"):
        list(export.compare(network, broken, [("a", torch.rand(1, 3, 4, 4))]))
