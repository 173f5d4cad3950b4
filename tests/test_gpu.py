"""A GPU computes the results of the CPU and the released code; without one, the CPU runs.

TF32 is allowed for the method's own operations: they must keep full precision whatever the
network's convolutions may do.
"""

from collections.abc import Mapping

import pytest
import torch
from golden_files import LOSSES, generated_maps, golden_arrays, golden_losses, stored_maps
from torch import Tensor

from benchmarks import gpu
from benchmarks.measure import numerics
from benchmarks.steps import CLASSES, random_network
from cag.anchors import class_sums
from cag.pseudo_labels import active, anchor_distances, by_probability

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Relative to a tensor's L2 norm. Factors rounded to TF32's 11 bits make 4e-5 of the class sums,
# 2e-4 of the margins and of the features' gradients, and 7e-4 of the paper's network.
PRECISE = 1e-5
NETWORK_LIMITS = {"float32": 1e-4, "TF32": 5e-3}
# A golden file's label maps, and its map of the pixels that rounding may decide.
NEAR_TIES = {
    "nearest_id": "near_tie_cluster",
    "cluster_label": "near_tie_cluster",
    "prob_label": "near_tie_prob",
}


def distance(tensor: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over the norm of the expected tensor."""
    tensor, expected = tensor.detach().cpu().double(), expected.detach().cpu().double()
    return ((tensor - expected).norm() / expected.norm()).item()


def on_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.to(DEVICE) for key, tensor in tensors.items()}


def label_maps(golden):
    nearest, first, second = anchor_distances(golden["features"], golden["anchors"])
    return {
        "nearest_id": nearest,
        "margin": second - first,
        "cluster_label": active(nearest, first, second, margin=2.5),
        "prob_label": by_probability(golden["logits"], 0.95),
    }


@pytest.mark.parametrize("read", [stored_maps, generated_maps])
def test_label_maps(read):
    golden = read()
    with numerics(tf32=True):
        maps = label_maps(on_device(golden))
    for expected in (golden, label_maps(golden)):
        assert distance(maps["margin"], expected["margin"]) <= PRECISE
        for name, near_tie in NEAR_TIES.items():
            clear = golden[near_tie] == 0
            assert torch.equal(maps[name].cpu()[clear], expected[name][clear]), name


@pytest.mark.parametrize("name", ["golden_losses", "golden_losses_edge"])
def test_losses_and_gradients(name):
    golden = golden_arrays(name)

    def step(golden):
        losses, inputs = golden_losses(golden)
        losses.total.backward()
        gradients = {f"grad_{key}": tensor.grad for key, tensor in inputs.items()}
        return dict(zip(LOSSES, losses, strict=True)) | gradients

    with numerics(tf32=True):
        tensors = step(on_device(golden))
    for expected in (golden, step(golden)):
        distances = {key: distance(tensor, expected[key]) for key, tensor in tensors.items()}
        assert max(distances.values()) <= PRECISE, distances


def test_class_sums():
    # a third fills all of float32's digits; the golden features fit TF32's
    golden = golden_arrays("golden_losses")
    features, labels = golden["source_features"].float() / 3, golden["cluster_label"]
    with numerics(tf32=True):
        sums, _ = class_sums(features.to(DEVICE), labels.to(DEVICE), CLASSES)
    assert distance(sums, class_sums(features, labels, CLASSES)[0]) <= PRECISE


@pytest.mark.parametrize("precision", NETWORK_LIMITS)
def test_the_network(precision):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 128, 256)
    network = random_network(gpu.preset(small=DEVICE.type == "cpu").network, images)
    with torch.inference_mode(), numerics(tf32=precision == "TF32"):
        expected = network(images)
        output = network.to(DEVICE)(images.to(DEVICE))
    for tensor, reference in zip(output, expected, strict=True):
        assert distance(tensor, reference) <= NETWORK_LIMITS[precision]
