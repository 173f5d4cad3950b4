"""Outputs for views of an image are averaged over corresponding pixels."""

import warnings
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cag.config.extract import Views
from cag.prediction import predict, predict_views
from cag.runtime.devices import make_fabric

IMAGES = torch.randint(0, 256, (2, 3, 16, 24), generator=torch.Generator().manual_seed(0)).byte()


class Output(NamedTuple):
    """As a network's."""

    features: Tensor
    logits: Tensor


class Pooling(nn.Module):
    """Features are the image at half its size; logits two channels of them."""

    def forward(self, images: Tensor) -> Output:
        """Features [B, 3, H/2, W/2] and logits [B, 2, H/2, W/2]."""
        features = F.avg_pool2d(images, 2)
        return Output(features, 4 * features[:, :2])


@pytest.fixture(scope="module")
def fabric():
    with warnings.catch_warnings():
        return make_fabric("32-true")


def outputs(fabric, **views):
    """Mean features and probabilities for views; the default is the plain view."""
    plain = {"scales": (1.0,), "gammas": (1.0,), "flip": False}
    features, logits = predict_views(Pooling(), IMAGES, Views(**plain | views), fabric)
    return features, logits.softmax(1)


def test_the_plain_view_is_the_prediction_itself(fabric):
    views = Views(scales=(1.0,), gammas=(1.0,), flip=False)
    for one, other in zip(
        predict_views(Pooling(), IMAGES, views, fabric),
        predict(Pooling(), IMAGES, fabric),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_mirrored_outputs_are_mirrored_back(fabric):
    # this network's output for a mirror image is the mirrored output: the mean is the output
    for one, other in zip(outputs(fabric, flip=True), outputs(fabric), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_gammas_are_averaged_as_probabilities(fabric):
    features, probabilities = outputs(fabric, gammas=(0.5, 2.0))
    singles = [outputs(fabric, gammas=(gamma,)) for gamma in (0.5, 2.0)]
    assert torch.allclose(features, (singles[0][0] + singles[1][0]) / 2, atol=1e-6)
    assert torch.allclose(probabilities, (singles[0][1] + singles[1][1]) / 2, atol=1e-6)
    light = F.avg_pool2d((IMAGES / 255) ** 0.5, 2)
    assert torch.allclose(singles[0][0], light, atol=1e-6)
    assert singles[0][0].mean() > singles[1][0].mean()


@pytest.mark.parametrize("scales", [(1.0, 1.5), (1.5, 1.0), (0.5,), (2.0,)])
def test_scaled_outputs_come_at_the_unscaled_size(fabric, scales):
    features, probabilities = outputs(fabric, scales=scales)
    assert features.shape == (2, 3, 8, 12)
    assert probabilities.shape == (2, 2, 8, 12)
    assert torch.allclose(probabilities.sum(1), torch.ones(2, 8, 12), atol=1e-5)
    assert features.mean().item() == pytest.approx(IMAGES.float().mean().item() / 255, abs=0.03)


def test_a_gradient_of_brightness_stays_in_place(fabric, monkeypatch):
    ramp = torch.linspace(0, 255, 24).byte().expand(2, 3, 16, 24)
    monkeypatch.setitem(globals(), "IMAGES", ramp)
    together, _ = outputs(fabric, scales=(1.0, 2.0), flip=True)
    alone, _ = outputs(fabric)
    assert (together - alone).abs().max() < 0.06
