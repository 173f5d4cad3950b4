"""How the processes of a launch share the images of a stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from cag.runtime.files import atomic_folder
from cag.runtime.progress import Progress, progress

T = TypeVar("T")


class Processes:
    """The processes of a launch, or the only one; small values pass between their CPUs.

    After a process has ended, the others' next call fails at once.
    """

    def __init__(self, fabric: Fabric):
        self.rank, self.count = fabric.global_rank, fabric.world_size
        self.main = self.rank == 0  # joins the parts
        self._group = None
        if self.count > 1:  # the others may need hours
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def wait(self) -> None:
        """Wait until every process is here."""
        self.total(torch.zeros(1, dtype=torch.int64))

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' integer tensors, on the CPU."""
        total = values.to("cpu", copy=True)
        if self._group is not None:
            _together(lambda: distributed.all_reduce(total, group=self._group))
        return total

    def from_main(self, make: Callable[[], T]) -> T:
        """Give every process what process 0 makes."""
        value = [make() if self.main else None]
        if self._group is not None:
            _together(lambda: distributed.broadcast_object_list(value, 0, self._group))
        return value[0]

    @contextmanager
    def progress(self, what: str, count: int, total: int) -> Iterator[Progress]:
        """A `progress` bar over this process's `count` images, then all processes' `total`."""
        with progress(what, count, "images") as advance:
            yield advance
            self.wait()
            advance(total - count)

    @contextmanager
    def folder(self, path: Path) -> Iterator[Path]:
        """An `atomic_folder` that all processes write to; it appears when all are done."""
        with ExitStack() as stack:
            yield self.from_main(lambda: stack.enter_context(atomic_folder(path)))
            self.wait()


def _together(operation: Callable[[], object]) -> None:
    try:
        operation()
    except RuntimeError:
        # Another process failed and has said why; the launcher's signal ends this one in silence.
        time.sleep(20)
        raise
