"""Half precision for what is stored, full precision for the few computations that need it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_half(values: Tensor) -> Tensor:
    """The nearest float16 values, at most 65,504: a larger one would be infinite."""
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in float32, without autocast, TF32 or bfloat16 on a device such as "cpu" or "cuda".

    TF32's 10 bits of mantissa are too few for the difference of two distances. Meanwhile other
    threads of the process are exact too.
    """
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(setting)
