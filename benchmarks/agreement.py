"""Whether a device computes what the CPU and the released code do, on the tests' golden files.

TF32 is allowed throughout, except where a check says otherwise: the method's own operations must
keep full precision whatever the network's convolutions may do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import numerics
from cag.anchors import class_sums
from cag.config.networks import Network
from cag.deploy.released import RELEASED_CLASSES, RELEASED_NETWORK, convert_released_weights
from cag.losses import adaptation_loss
from cag.networks import SegmentationNetwork, build
from cag.pseudo_labels import active, anchor_distances, by_probability

GOLDEN = Path(__file__).resolve().parents[1] / "tests/golden"
MARGIN, PROBABILITY = 2.5, 0.95
NEAR = 1e-4  # this close to a threshold rounding may decide
# Relative to a tensor's L2 norm. Factors rounded to TF32's 11 bits make 4e-5 of the class sums,
# 2e-4 of the margins and of the features' gradients, and 7e-4 of the paper's network.
PRECISE = 1e-5
NETWORK_LIMITS = {"float32": 1e-4, "TF32": 5e-3}
INPUTS = ("source_features", "source_logits", "target_features", "target_logits")


class Check(NamedTuple):
    """A comparison: differences from the CPU and from the released code's output, None without one.

    Label maps differ by pixels, other tensors by the L2 norm of the difference over the norm.
    """

    name: str
    from_cpu: float | None
    from_released: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Whether each difference is at most the limit; NaN is not."""
        found = [x for x in (self.from_cpu, self.from_released) if x is not None]
        return all(x <= self.limit for x in found)


def checks(device: torch.device, small: Network | None = None) -> Iterator[Check]:
    """All checks of a device; a small network takes the place of the paper's if one is given."""
    with numerics(tf32=True):
        for name, golden in (("stored", stored_maps()), ("128 x 224", generated_maps())):
            yield from check_labels(name, golden, device)
        for name in ("golden_losses", "golden_losses_edge"):
            yield from check_losses(name, device)
        yield check_class_sums(device)
    network, images, golden = paper_network() if small is None else untrained_network(small)
    yield from check_network(network, images, golden, device)


def load(name: str) -> dict[str, Tensor]:
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].ndim}


def program(name: str) -> ModuleType:
    """One of the programs beside the golden files."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored_maps() -> dict[str, Tensor]:
    """Features and logits with their labels."""
    return load("golden_pseudo")


def generated_maps() -> dict[str, Tensor]:
    """The same at the released code's map size; features and logits are made anew."""
    golden = load("golden_pseudo_full")
    with np.load(GOLDEN / "golden_pseudo_full.npz") as arrays:
        seed = int(arrays["seed"])
    anchors = golden["anchors"].numpy()
    inputs = program("gen_inputs").pseudo_inputs(seed, anchors, 2, 128, 224)
    return {
        **golden,
        "features": torch.from_numpy(inputs[0]),
        "logits": torch.from_numpy(inputs[1]),
    }


def check_labels(name: str, golden: dict[str, Tensor], device: torch.device) -> Iterator[Check]:
    """Nearest anchors, margins and both rules' labels, but for pixels near a threshold."""
    found = _label_maps(golden, device)
    ours = _label_maps(golden, torch.device("cpu"))
    released = {
        "nearest anchor": golden["nearest_id"],
        "margin": golden["margin"],
        "anchor label": golden["cluster_label"],
        "probability label": golden["prob_label"],
    }
    margin = ours["margin"]
    probability = golden["logits"].softmax(dim=1).amax(dim=1)
    tied = margin < NEAR
    near = {
        "nearest anchor": tied,
        "anchor label": tied | ((margin - MARGIN).abs() < NEAR),
        "probability label": (probability - PROBABILITY).abs() < NEAR,
    }
    for what, values in found.items():
        references = (ours[what], released[what])
        if what == "margin":
            differences = [relative_difference(values, other) for other in references]
        else:
            differences = [((values != o) & ~near[what]).sum().item() for o in references]
        yield Check(f"{what}, {name}", *differences, PRECISE if what == "margin" else 0)


def _label_maps(golden: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    features, logits, anchors = (golden[k].to(device) for k in ("features", "logits", "anchors"))
    nearest, first, second = anchor_distances(features, anchors)
    maps = {
        "nearest anchor": nearest,
        "margin": second - first,
        "anchor label": active(nearest, first, second, margin=MARGIN),
        "probability label": by_probability(logits, PROBABILITY),
    }
    return {key: value.cpu() for key, value in maps.items()}


def check_losses(name: str, device: torch.device) -> Iterator[Check]:
    """The losses of a step and their gradients."""
    golden = load_losses(name)
    found, ours = (_losses(golden, d) for d in (device, torch.device("cpu")))
    released = {
        "losses": golden["losses"],
        **{f"gradient of {key}": golden[f"grad_{key}"] for key in INPUTS},
    }
    for what, values in found.items():
        differences = [relative_difference(values, o[what]) for o in (ours, released)]
        yield Check(f"{what}, {name.removeprefix('golden_')}", *differences, PRECISE)


def load_losses(name: str) -> dict[str, Tensor]:
    """The arrays of a golden file of losses; those of a step as one, in our order, at `losses`."""
    golden = load(name)
    names = ["loss_total", "loss_source_ce", "loss_cts", "loss_source_dist", "loss_target_dist"]
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        golden["losses"] = torch.tensor([float(arrays[key]) for key in names])
    return golden


def _losses(golden: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    golden = {key: value.to(device) for key, value in golden.items()}
    inputs = {key: golden[key].float().clone().requires_grad_() for key in INPUTS}
    valid = torch.zeros(RELEASED_CLASSES, dtype=torch.bool, device=device)
    losses = adaptation_loss(
        inputs["source_features"],
        inputs["source_logits"],
        golden["source_labels"],
        inputs["target_features"],
        inputs["target_logits"],
        golden["cluster_label"],
        golden["prob_label"],
        golden["anchors"],
        valid_classes=valid.index_fill(0, golden["valid_classes"].long(), True),
    )
    losses.total.backward()
    gradients = {f"gradient of {key}": value.grad.cpu() for key, value in inputs.items()}
    return {"losses": torch.stack(losses).detach().cpu(), **gradients}


def check_class_sums(device: torch.device) -> Check:
    """Class sums of features that fill all of float32's digits; the golden ones fit TF32's."""
    golden = load("golden_losses")
    features = golden["source_features"].float() / 3
    labels = golden["cluster_label"]
    found, ours = (
        class_sums(features.to(d), labels.to(d), RELEASED_CLASSES)[0].cpu() for d in (device, "cpu")
    )
    return Check("class sums of full float32", relative_difference(found, ours), None, PRECISE)


def paper_network() -> tuple[SegmentationNetwork, Tensor, dict[str, Tensor]]:
    """The paper's network, an image [1, 3, H, W], and what the released network says of it."""
    weights = program("network_weights")
    state = {key: torch.from_numpy(value) for key, value in weights.weights().items()}
    network = build(RELEASED_NETWORK, RELEASED_CLASSES)
    network.load_state_dict(convert_released_weights(state))
    golden = load("golden_network")
    return network.eval(), torch.from_numpy(weights.image()), golden


def untrained_network(config: Network) -> tuple[SegmentationNetwork, Tensor, dict[str, Tensor]]:
    """A network of random weights, of which the released code has nothing to say, and an image."""
    torch.manual_seed(0)
    return build(config, RELEASED_CLASSES).eval(), torch.rand(1, 3, 64, 96), {}


def check_network(
    network: SegmentationNetwork, images: Tensor, golden: dict[str, Tensor], device: torch.device
) -> Iterator[Check]:
    """Features and logits of a network, without and with TF32."""
    with torch.inference_mode():
        ours = network(images)._asdict()
        network, images = network.to(device), images.to(device)
        for precision, limit in NETWORK_LIMITS.items():
            with numerics(tf32=precision == "TF32"):
                found = network(images)._asdict()
            for what, values in found.items():
                values, released = values.cpu(), None
                if what in golden:
                    stored = values[:, ::8] if what == "features" else values
                    released = relative_difference(stored, golden[what])
                name = f"network's {what}, {precision}"
                yield Check(name, relative_difference(values, ours[what]), released, limit)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over the norm of what is expected."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()
