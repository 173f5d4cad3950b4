"""Reading, computing and writing at the same time, with few items under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")
MOST_THREADS = 16  # as many decode photographs faster than a GPU predicts them
_END = object()


def threads() -> int:
    """Threads for this process's reading and writing: its share of the machine's cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // processes))


def in_order(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Map over threads; results, and so the first error, come in the order of the items.

    Pillow, numpy and torch release the interpreter lock. The items are taken in the calling thread,
    and at most 2 * workers + 1 of them are under way. Closing it waits for those that have begun
    and drops the others.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Run an iterator in another thread, at most `depth` items before they are asked for.

    Its error comes where its next item would have come. Closing it waits for the item that is being
    made, and closes the iterator.
    """
    with closing(items), ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, items, _END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def to_cpu(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Start to copy tensors to the CPU.

    Returns:
        A function that waits for the copies, from whichever thread, and returns them.
    """
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return lambda: tuple(tensor.cpu() for tensor in tensors)
    import torch  # not at the top: preparing images needs threads but no torch

    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)  # in pinned memory
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))

    def arrived() -> tuple[Tensor, ...]:
        copied.synchronize()
        return copies

    return arrived
