"""A model file labels images of any form and size, whole or in tiles, like the pipeline."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cag
from cag import prediction
from cag.config.networks import Network, Normalization
from cag.datasets.images import resize
from cag.datasets.labels import LabelSpace
from cag.deploy.segmenter import Segmenter, tiles
from cag.networks import build, save_model
from cag.runtime.errors import UserError

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
CONFIG = Network(
    architecture="DeepLabV3Plus",
    encoder="resnet18",
    encoder_weights="imagenet",  # which a model's file must not fetch
    options={"decoder_channels": 16},
    normalization=Normalization(mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3)),
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build(CONFIG, SPACE.num_classes)
    with torch.no_grad():
        network.train()(torch.rand(2, 3, 64, 96))
    return network.eval()


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network, CONFIG, SPACE)
    return path


@pytest.fixture(scope="module")
def segmenter(model):
    return cag.load(model, "cpu")


@torch.inference_mode()
def expected(network, image, size=None):
    """Logits [K, H, W] as `evaluate` computes them, one step after the other."""
    height, width = image.shape[:2]
    given = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None].float() / 255
    logits = network(given).logits
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)[0]


def test_import_is_light_and_a_model_needs_no_hub(model):
    code = f"""
import cag, socket, sys
assert not {{"torch", "numpy", "PIL"}} & set(sys.modules)
def refuse(*arguments):
    raise ConnectionError("no network")
socket.socket.connect = refuse
assert cag.load({str(model)!r}, "cpu").classes == ("road", "sky", "car")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_it_says_what_its_labels_mean(segmenter):
    assert segmenter.classes == SPACE.names and segmenter.num_classes == 3
    assert segmenter.palette.dtype == np.uint8 and segmenter.palette.tolist()[2] == [0, 0, 142]
    assert segmenter.device.type == "cpu"


@pytest.mark.parametrize("height, width", [(64, 96), (50, 71), (5, 40), (33, 1)])
def test_labels_are_those_of_the_network_at_the_images_size(segmenter, network, height, width):
    image = random(height, width, 3)
    labels = segmenter(image)
    assert labels.shape == (height, width) and labels.dtype == np.uint8
    assert np.array_equal(labels, expected(network, image).argmax(0))


def test_the_size_that_a_model_knows_is_the_default(model, network, tmp_path):
    save_model(tmp_path / "sized.safetensors", network, CONFIG, SPACE, (40, 60))
    sized, own = cag.load(tmp_path / "sized.safetensors", "cpu"), cag.load(model, "cpu")
    image = np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8)
    assert (sized.size, own.size) == ((40, 60), None)
    assert np.array_equal(sized(image), own(image, size=(40, 60)))
    assert np.array_equal(sized(image, size="own"), own(image))
    assert not np.array_equal(sized(image), own(image))


def test_another_size_to_predict_at_keeps_the_labels_size(segmenter, network):
    image = random(100, 90, 3)
    labels = segmenter(image, size=(40, 60))
    assert np.array_equal(labels, expected(network, image, (40, 60)).argmax(0))
    assert not np.array_equal(labels, segmenter(image))


def test_probabilities_are_a_distribution_whose_largest_is_the_label(segmenter, network):
    image = random(50, 70, 3)
    probabilities = segmenter.probabilities(image)
    assert probabilities.shape == (3, 50, 70) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(0), segmenter(image))
    assert np.allclose(probabilities, expected(network, image).softmax(0), atol=1e-5)


def test_every_form_of_an_image_is_the_same_image(segmenter, tmp_path):
    image = random(40, 60, 3)
    labels = segmenter(image)
    Image.fromarray(image).save(tmp_path / "a.png")
    with_alpha = np.dstack([image, random(40, 60)])
    forms = {
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "pillow": Image.fromarray(image),
        "pillow with alpha": Image.fromarray(with_alpha),
        "array with alpha": with_alpha,
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
    }
    for name, form in forms.items():
        assert np.array_equal(segmenter(form), labels), name
    grey = random(40, 60)
    for form in (grey, grey[..., None], Image.fromarray(grey)):
        assert np.array_equal(segmenter(form), segmenter(np.dstack([grey] * 3)))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((3, 4, 4, 3), np.uint8), torch.zeros(1, 3, 4, 4), 5]
)
def test_other_forms_are_refused(segmenter, image):
    with pytest.raises(ValueError, match="expected a path, a Pillow image"):
        segmenter(image)


def test_bad_files_and_devices_are_one_line(model, segmenter, tmp_path):
    with pytest.raises(UserError, match="no such model"):
        cag.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no such file"):
        segmenter(tmp_path / "none.jpg")
    with pytest.raises(UserError, match="device 'gpu' is none; expected cpu, cuda"):
        cag.load(model, "gpu")
    with pytest.raises(UserError, match="device 'cuda:99' is not here; there are cpu"):
        cag.load(model, "cuda:99")


# Tiles


@pytest.mark.parametrize("tile, grid", [(64, 32), (96, 32), (1024, 32), (70, 14), (1036, 14)])
@pytest.mark.parametrize("side", [1, 63, 64, 65, 100, 129, 500, 1023, 3001])
def test_tiles_cover_a_side_and_overlap(side, tile, grid):
    cut = tiles(side, tile, grid)
    assert cut[0].start == 0 and cut[-1].stop == side
    assert all(part.start % grid == 0 and 0 < part.stop - part.start <= tile for part in cut)
    for one, other in zip(cut, cut[1:], strict=False):
        least = max(grid, tile // 4 // grid * grid)
        assert one.start < other.start and one.stop - other.start >= least


def test_a_tile_that_covers_the_image_is_the_image_whole(segmenter):
    images = torch.from_numpy(random(2, 3, 70, 100))
    whole = segmenter.logits(images)
    assert torch.equal(segmenter.logits(images, tile=128), whole)
    assert torch.equal(segmenter.logits(images, tile=100), whole)  # rounded up
    assert torch.equal(segmenter.logits(images, tile=0), whole)


class Local(torch.nn.Module):
    """A network whose outputs each see only one step of the stride, so tiles change nothing."""

    num_classes = 3

    def __init__(self, input_multiple=32, stride=4):
        super().__init__()
        self.input_multiple, self.stride = input_multiple, stride

    def forward(self, images):
        """Logits are colours."""
        logits = 8 * F.avg_pool2d(images, self.stride, ceil_mode=True)
        return prediction.NetworkOutput(logits, logits)


@pytest.mark.parametrize("height, width", [(200, 300), (70, 300), (300, 50), (129, 131)])
@pytest.mark.parametrize("network", [Local(), Local(14, 14)], ids=["stride 4", "patches of 14"])
def test_where_tiles_agree_they_are_blended_to_the_whole(height, width, network):
    local = Segmenter(network, SPACE, "cpu")
    images = torch.from_numpy(random(2, 3, height, width))
    whole, tiled = (local.logits(images, tile).softmax(1) for tile in (0, 64))
    assert tiled.shape == whole.shape
    assert torch.allclose(tiled, whole, atol=1e-5)


def test_tiles_are_blended_without_a_seam(segmenter):
    """In the middle of an overlap the result is between those of the two tiles."""
    images = torch.from_numpy(random(1, 3, 64, 96))
    tiled = segmenter.logits(images, tile=64).softmax(1)
    left, right = (segmenter.logits(images[..., part]).softmax(1) for part in tiles(96, 64))
    assert torch.allclose(tiled[..., :8], left[..., :8], atol=1e-5)  # 32 pixels at stride 4
    assert torch.allclose(tiled[..., 16:], right[..., 8:], atol=1e-5)
    between = tiled[..., 8:16]
    lowest = torch.minimum(left[..., 8:], right[..., :8])
    highest = torch.maximum(left[..., 8:], right[..., :8])
    assert (between >= lowest - 1e-5).all() and (between <= highest + 1e-5).all()
    first, last = (between[..., 0] - left[..., 8]).abs(), (between[..., 0] - right[..., 0]).abs()
    assert first.mean() < last.mean()


def test_large_images_are_tiled_unless_told_otherwise(segmenter, monkeypatch):
    images = torch.from_numpy(random(1, 3, 96, 160))
    monkeypatch.setattr("cag.deploy.segmenter.WHOLE_PIXELS", 96 * 160 - 1)
    monkeypatch.setattr("cag.deploy.segmenter.TILE", 64)
    assert torch.equal(segmenter.logits(images), segmenter.logits(images, tile=64))
    assert not torch.equal(segmenter.logits(images), segmenter.logits(images, tile=0))
    with pytest.raises(ValueError, match="tile is 32 pixels; expected 0 or at least 64"):
        segmenter.logits(images, tile=32)


# A few classes at a time


@pytest.mark.parametrize("classes_at_a_time", [1, 2, 5, 7, 100])
def test_classes_upsampled_in_parts_give_the_same(monkeypatch, classes_at_a_time):
    logits = 5 * torch.randn(7, 6, 9, generator=torch.Generator().manual_seed(0))
    size = (20, 31)
    monkeypatch.setattr(prediction, "UPSAMPLED_VALUES", classes_at_a_time * 20 * 31)
    labels, confidence = prediction.full_resolution(logits, size, confidence=True)
    upsampled = F.interpolate(logits[None], size, mode="bilinear", align_corners=True)[0]
    assert torch.equal(labels, upsampled.argmax(0).byte())
    assert torch.allclose(confidence, upsampled.softmax(0).amax(0), atol=1e-6)
    assert torch.equal(prediction.full_resolution(logits, size)[0], labels)
