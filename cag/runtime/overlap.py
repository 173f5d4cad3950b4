"""Reading, computing and writing at the same time, with few items under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from cag.runtime.environment import launch

if TYPE_CHECKING:
    from torch import Tensor

    from cag.runtime.progress import Progress

S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
MOST_THREADS = 16  # already decode photographs faster than a GPU predicts
_END = object()


def cores() -> int:
    """This process's share of the machine's cores, at least one."""
    return max(1, (os.cpu_count() or 1) // launch().local)


def threads() -> int:
    """Threads for this process's reading and writing."""
    return min(MOST_THREADS, cores())


def overlapped(
    items: Iterator[S],
    compute: Callable[[S], Iterable[T]],
    advance: Progress,
    finish: Callable[[T], U] | None = None,
) -> Iterator[T | U]:
    """Read items in one thread, `compute` outputs in another, `finish` each in several.

    The outputs come in the items' order, and an error of any thread in its place. Its end, or
    closing it, ends all threads and closes `items`. `advance` counts the waiting for items.
    """

    def outputs() -> Iterator[T]:
        with closing(ahead(items)) as read:
            for item in advance.waiting(read):
                yield from compute(item)

    results = ahead(outputs(), depth=1)
    finished = results if finish is None else in_order(finish, results, threads())
    with closing(results), closing(finished):
        yield from finished


def in_order(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Map over threads; results and errors come in the items' order.

    The calling thread takes the items; at most 2 * workers + 1 are under way. Closing it waits for
    those that have begun and drops the others.
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
    """Run an iterator in another thread, at most `depth` items ahead.

    Its error comes in place of its next item. Closing it waits for the item in the making, and
    closes the iterator.
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
    """Start to copy tensors to the CPU; the result waits for the copies, in any thread."""
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
