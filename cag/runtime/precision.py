"""Full precision for the few computations that half precision or TF32 would spoil."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in float32 inside: autocast off, and matrix products neither in TF32 nor bfloat16.

    `torch.set_float32_matmul_precision("high")` speeds a network up, but 10 bits of mantissa are
    too few for the difference of two distances. What was set holds again afterwards. The setting
    is the process's: other threads' products are exact too meanwhile.

    Args:
        device_type: where the tensors are, such as "cpu" or "cuda".
    """
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(setting)
