"""Times, rates and tables of the benchmarks."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from cag.runtime.program import cpu_name

PRECISIONS = ("float32", "TF32", "bf16")


def seconds(
    function: Callable[[], object], device: torch.device, count: int, warm_up: int
) -> float:
    """Median duration of a call in seconds, over `count` calls after `warm_up` others.

    On a GPU the calls follow one another without waiting: marks in its stream tell them apart.
    """
    for _ in range(warm_up):
        function()
    if device.type == "cpu":
        return statistics.median(_elapsed(function) for _ in range(count))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    pairs = zip(marks, marks[1:], strict=False)
    return statistics.median(start.elapsed_time(end) / 1000 for start, end in pairs)


def alternating_seconds(
    functions: Sequence[Callable[[], object]], count: int, warm_up: int
) -> list[float]:
    """Median duration of each function on the CPU, called in turn: what else runs slows all."""
    times = [[_elapsed(function) for function in functions] for _ in range(warm_up + count)]
    return [statistics.median(own) for own in zip(*times[warm_up:], strict=True)]


def _elapsed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@contextmanager
def numerics(tf32: bool, cudnn_benchmark: bool = False):
    """Allow TF32 in matrix products and convolutions, or not; choose convolutions by trial or not.

    These settings are the process's; they are put back.
    """
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
        return 2 * size**3 / seconds(lambda: a @ b, device, 10, 3)


def copy_rate(source: Tensor, target: Tensor, device: torch.device) -> float:
    """Bytes that are copied in a second from one tensor to another of its size."""
    duration = seconds(lambda: target.copy_(source, non_blocking=True), device, 10, 3)
    return source.nbytes / duration


def memory_rate(device: torch.device, size: int) -> float:
    """Bytes read and written in a second by a copy of `size` bytes within the device's memory."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    return 2 * copy_rate(source, torch.empty_like(source), device)


def disk_rate(folder: Path, size: int) -> float:
    """Bytes that reach the disk in a second, written to a temporary file in `folder`."""
    data = os.urandom(min(size, 2**24))
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell() / (time.perf_counter() - began)


def host_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised host memory, page-locked where there is a GPU to copy to or from."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def machine(device: torch.device) -> str:
    """Device, driver and torch in one line."""
    if device.type == "cpu":
        return f"{cpu_name()}, {cores()} cores, torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    return f"{properties.name}, {memory}, driver {_driver()}, torch {torch.__version__}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return "unknown"
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else "unknown"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns line up; all but the first are aligned to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])
