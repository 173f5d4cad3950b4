"""Whether a device computes what the CPU and the released code do, on the tests' golden files.

TF32 is allowed for the method's own operations: they must keep full precision whatever the
network's convolutions may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.golden import (
    CLASSES,
    LOSSES,
    generated_maps,
    golden_arrays,
    golden_losses,
    stored_maps,
)
from benchmarks.measure import numerics
from benchmarks.steps import random_network
from cag.anchors import class_sums
from cag.config import Network
from cag.networks import SegmentationNetwork
from cag.pseudo_labels import active, anchor_distances, by_probability

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
Tensors = Mapping[str, Tensor]


class Check(NamedTuple):
    """A comparison: differences from the CPU and from the released code's output, None without one.

    Label maps differ by pixels, other tensors by the L2 norm of the difference over the norm.
    """

    name: str
    from_cpu: float
    from_released: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Whether each difference is at most the limit; NaN is not."""
        differences = (self.from_cpu, self.from_released)
        return all(value <= self.limit for value in differences if value is not None)


def checks(device: torch.device, config: Network, height: int, width: int) -> Iterator[Check]:
    """All checks of a device; the network's are on random weights and images of the given size."""
    with numerics(tf32=True):
        for name, golden in (("stored", stored_maps()), ("128 x 224", generated_maps())):
            yield from compare(label_maps, golden, device, name)
        for name in ("golden_losses", "golden_losses_edge"):
            yield from compare(losses, golden_arrays(name), device, name.removeprefix("golden_"))
        yield from compare(full_sums, golden_arrays("golden_losses"), device, "full float32")
    torch.manual_seed(0)
    images = torch.rand(2, 3, height, width)
    compute = partial(network_output, random_network(config, images))
    for precision, limit in NETWORK_LIMITS.items():
        with numerics(tf32=precision == "TF32"):
            yield from compare(compute, {"images": images}, device, precision, limit)


def compare(
    compute: Callable[[Tensors], Tensors],
    golden: Tensors,
    device: torch.device,
    name: str,
    limit: float = PRECISE,
) -> Iterator[Check]:
    """Compare what a function computes on a device with the CPU's and the released code's output.

    The function takes the tensors of a golden file and gives others under that file's names. Label
    maps must be equal, but for near ties; other tensors within the limit.
    """
    on_cpu = compute(golden)
    on_device = compute({key: tensor.to(device) for key, tensor in golden.items()})
    for key, tensor in on_device.items():
        tensor, expected = tensor.detach().cpu(), (on_cpu[key].detach(), golden.get(key))
        if key in NEAR_TIES:
            clear = golden[NEAR_TIES[key]] == 0
            differences, most = [((tensor != e) & clear).sum().item() for e in expected], 0
        else:
            differences, most = [e if e is None else distance(tensor, e) for e in expected], limit
        yield Check(f"{key}, {name}", *differences, most)


def label_maps(golden: Tensors) -> Tensors:
    """Nearest anchors, margins and both rules' labels."""
    nearest, first, second = anchor_distances(golden["features"], golden["anchors"])
    return {
        "nearest_id": nearest,
        "margin": second - first,
        "cluster_label": active(nearest, first, second, margin=2.5),
        "prob_label": by_probability(golden["logits"], 0.95),
    }


def losses(golden: Tensors) -> Tensors:
    """The losses of a step and their gradients."""
    values, inputs = golden_losses(golden)
    values.total.backward()
    gradients = {f"grad_{key}": tensor.grad for key, tensor in inputs.items()}
    return {**dict(zip(LOSSES, values, strict=True)), **gradients}


def full_sums(golden: Tensors) -> Tensors:
    """Class sums of features that fill all of float32's digits; the golden ones fit TF32's."""
    features = golden["source_features"].float() / 3
    return {"class sums": class_sums(features, golden["cluster_label"], CLASSES)[0]}


def network_output(network: SegmentationNetwork, inputs: Tensors) -> Tensors:
    """Features and logits, on the images' device."""
    with torch.inference_mode():
        return network.to(inputs["images"].device)(inputs["images"])._asdict()


def distance(tensor: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over the norm of the expected tensor."""
    tensor, expected = tensor.double(), expected.double()
    return ((tensor - expected).norm() / expected.norm()).item()
