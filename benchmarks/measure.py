"""Times, rates and tables of the benchmarks."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils import collect_env

from cag.runtime.program import cpu_name

PRECISIONS = ("float32", "TF32", "bf16")
Function, Clock = Callable[[], object], Callable[[], float]


def seconds(function: Function, count: int, warm_up: int) -> float:
    """Mean duration of `count` calls after `warm_up` calls; a GPU is waited for at the end only."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(warm_up):
        function()
    wait()
    began = time.perf_counter()
    for _ in range(count):
        function()
    wait()
    return (time.perf_counter() - began) / count


def alternating_seconds(
    functions: Sequence[Function], count: int, warm_up: int, clock: Clock = time.perf_counter
) -> list[float]:
    """Median duration of each function on the CPU, called in turn: other load slows all alike."""

    def elapsed(function: Function) -> float:
        began = clock()
        function()
        return clock() - began

    times = [[elapsed(function) for function in functions] for _ in range(warm_up + count)]
    return [statistics.median(column) for column in zip(*times[warm_up:], strict=True)]


def peak_bytes(function: Function) -> int:
    """The most memory that a call holds at a moment beyond what there was before, on the CPU.

    PyTorch's profiler sees it. What a kernel takes and at once gives back is its working memory,
    which is left out; what remains of it is some percent.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    changes = []
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            if changes and changes[-1] == -event.nbytes() > 0:
                changes.pop()
            else:
                changes.append(event.nbytes())
    return max(accumulate(changes))


@contextmanager
def numerics(tf32: bool, cudnn_benchmark: bool = False):
    """Allow or forbid TF32 and cuDNN's choice by trial, until the settings are restored."""
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32, cudnn.benchmark = tf32, cudnn_benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32, cudnn.benchmark = before


def matrix_rate(precision: str, device: torch.device, size: int) -> float:
    """FLOP/s of a product of two square matrices in one of `PRECISIONS`."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with numerics(tf32=precision == "TF32"):
        return 2 * size**3 / seconds(lambda: a @ b, 10, 3)


def copy_rate(source: Tensor, target: Tensor) -> float:
    """Bytes per second of a copy between two tensors of one size."""
    return source.nbytes / seconds(lambda: target.copy_(source, non_blocking=True), 10, 3)


def memory_rate(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a copy of `size` bytes in the device's memory."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    return 2 * copy_rate(source, torch.empty_like(source))


def disk_rate(folder: Path, size: int) -> float:
    """Bytes per second that reach the disk from a temporary file in `folder`."""
    data = os.urandom(min(size, 2**24))
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell() / (time.perf_counter() - began)


def host_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised host memory, page-locked for copies to or from a GPU."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def host_like(tensor: Tensor) -> Tensor:
    """A `host_tensor` for copies of a tensor, with its strides, so that its bytes stay in order."""
    pinned = tensor.device.type == "cuda"
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=pinned)


def machine(device: torch.device) -> str:
    """Device, driver and torch in one line."""
    if device.type == "cpu":
        return f"{cpu_name()}, {cores()} cores, torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    driver = collect_env.get_nvidia_driver_version(collect_env.run) or "unknown"
    return f"{properties.name}, {memory}, driver {driver}, torch {torch.__version__}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A markdown table; all columns but the first are aligned to the right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)
