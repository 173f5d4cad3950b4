"""Devices and processes through Lightning Fabric."""

import warnings

import torch
from lightning_fabric import Fabric

from cag.runtime.environment import launch
from cag.runtime.errors import UserError
from cag.runtime.overlap import cores


def make_fabric(precision: str) -> Fabric:
    """A launched Fabric on the best device there is; under torchrun, one of its processes.

    The precision is "32-true", "bf16-mixed", "16-mixed", or "auto" for `best_precision`. On a GPU,
    float32 products use TF32 unless the code asks for `full_precision`.
    """
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "highest")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    _, world, local = launch()
    nodes, strategy = world // local, "ddp" if world > 1 else "auto"
    precision = best_precision(precision)
    fabric = Fabric(devices=local, num_nodes=nodes, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def one_device(name: str | None) -> Fabric:
    """A Fabric on one device in this process alone; changes no global setting.

    It is named as in PyTorch: cpu, cuda, cuda:1, mps; None: the best there is. A GPU computes in
    `best_precision`, other devices in float32. A UserError if there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"device '{name}' is none; expected cpu, cuda, cuda:1 or mps") from None
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    counts = {"cpu": 1, "cuda": gpus, "mps": int(mps)}
    if (device.index or 0) >= counts.get(device.type, 0):
        known = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
        raise UserError(f"device '{name}' is not here; there are {known}")
    on_gpu = device.type == "cuda"
    devices = [device.index or 0] if on_gpu else 1
    precision = best_precision("auto") if on_gpu else "32-true"
    with warnings.catch_warnings(action="ignore"):  # about devices that are left unused
        return Fabric(accelerator=device.type, devices=devices, precision=precision)


def best_precision(precision: str) -> str:
    """The precision that "auto" stands for: bf16-mixed on a GPU that has it, else 32-true."""
    if precision != "auto":
        return precision
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32-true"


def loader_workers(device: torch.device) -> int:
    """Loader processes: up to 8 beside a GPU; none on a CPU, where the training needs the cores."""
    return 0 if device.type == "cpu" else min(8, cores())
