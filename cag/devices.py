"""Devices and processes through Lightning Fabric."""

from __future__ import annotations

import os
import warnings

import torch
from lightning_fabric import Fabric


def make_fabric(precision: str) -> Fabric:
    """A Fabric on the best device there is; under torchrun, one of its processes.

    Args:
        precision: "32-true", "bf16-mixed" or "16-mixed".

    Returns:
        A launched Fabric.
    """
    warnings.filterwarnings("ignore", module="lightning_fabric")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def loader_workers(device: torch.device) -> int:
    """Loader processes: none on a CPU, whose cores the training needs; beside a GPU up to 8."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
