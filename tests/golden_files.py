"""Outputs of the released code as golden files: see tests/golden/README.md."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import ROOT
from cag.losses import AdaptationLosses, adaptation_loss

GOLDEN = ROOT / "tests/golden"
CLASSES = 19
INPUTS = ("source_features", "source_logits", "target_features", "target_logits")
LOSSES = ("loss_total", "loss_source_ce", "loss_cts", "loss_source_dist", "loss_target_dist")


def golden_arrays(name: str) -> dict[str, Tensor]:
    """The numbers in a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        numbers = {key: arrays[key] for key in arrays.files if arrays[key].dtype.kind != "U"}
    return {key: torch.from_numpy(array) for key, array in numbers.items()}


def golden_program(name: str) -> dict[str, Any]:
    """The functions of a program in the golden files' folder."""
    return runpy.run_path(str(GOLDEN / f"{name}.py"))


def stored_maps() -> dict[str, Tensor]:
    """Features and logits with their labels."""
    return golden_arrays("golden_pseudo")


def generated_maps() -> dict[str, Tensor]:
    """The same at the released code's map size; features and logits are generated again."""
    golden = golden_arrays("golden_pseudo_full")
    make_inputs = golden_program("gen_inputs")["pseudo_inputs"]
    inputs = make_inputs(golden["seed"].item(), golden["anchors"].numpy(), 2, 128, 224)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in inputs)).hexdigest()
    with np.load(GOLDEN / "golden_pseudo_full.npz") as arrays:
        assert digest == str(arrays["inputs_sha256"])
    features, logits, _ = map(torch.from_numpy, inputs)
    return {**golden, "features": features, "logits": logits}


def golden_inputs(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features and logits `INPUTS` of a golden file's step, as leaves with gradients."""
    return {key: golden[key].float().clone().requires_grad_() for key in INPUTS}


def valid_classes(golden: Mapping[str, Tensor]) -> Tensor:
    """The classes that take part in the distance loss of a golden file's step, bool [K]."""
    valid = golden["anchors"].new_zeros(CLASSES, dtype=torch.bool)
    return valid.index_fill(0, golden["valid_classes"], True)


def golden_losses(golden: Mapping[str, Tensor], **options) -> tuple[AdaptationLosses, dict]:
    """The losses of a golden file's step, with other options if given, and the leaves `INPUTS`."""
    inputs = golden_inputs(golden)
    losses = adaptation_loss(
        inputs["source_features"],
        inputs["source_logits"],
        golden["source_labels"],
        inputs["target_features"],
        inputs["target_logits"],
        golden["cluster_label"],
        golden["prob_label"],
        golden["anchors"],
        **{"valid_classes": valid_classes(golden), **options},
    )
    return losses, inputs
