"""Progress bars with rates, and what they count."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")
_END = object()
SAID_EVERY = 60.0  # seconds between the lines where no bar can be drawn, such as in a log
PERIODS = {"s": 1, "min": 60, "h": 3600}  # seconds
finished_bars: list[Progress] = []  # the progress bars of this process


def is_main_process() -> bool:
    """Whether this process writes files and speaks: rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """Counts units and the time spent waiting; called as advance(count, note)."""

    def __init__(self, update: Callable[[int, str], None], images: int = 0):
        self.done, self.images = 0, images  # units in this run, and images in a unit
        self.waited = None  # seconds that `waiting` waited
        self.began, self.seconds = time.monotonic(), 0.0  # the seconds until the end
        self._update = update

    def __call__(self, count: int = 1, note: str = "", resumed: bool = False) -> None:
        """Count units; those resumed from an earlier run do not count for the rate."""
        self.done += 0 if resumed else count
        self._update(count, note)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, and count the time of waiting for them."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            item = next(iterator, _END)
            self.waited = (self.waited or 0.0) + time.monotonic() - began
            if item is _END:
                return
            yield item

    def rate(self, unit: str) -> str:
        """The rate until now, and the share of the time spent waiting."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        speeds = {name: self.done / seconds * period for name, period in PERIODS.items()}
        name = next((name for name, speed in speeds.items() if speed >= 0.5), "s")
        rate = f"{speeds[name]:.1f} {unit}/{name}"
        if self.waited is None:
            return rate
        return f"{rate}, {100 * self.waited / seconds:.0f} % waiting for data"


@contextmanager
def progress(what: str, total: int, unit: str, images: int | None = None) -> Iterator[Progress]:
    """A progress bar with a rate, then one line that stays.

    Where no bar can be drawn there is a line every minute instead. `what` is the work, e.g.
    "pretrain", `unit` a plural, e.g. "images". `images` in a unit are for the record; None: 1 if
    the unit is images, else 0.
    """
    rate = "{task.fields[rate]} {task.fields[note]}"
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()
    console = Console(stderr=True)
    # rich prints an empty line where it cannot draw a bar
    console.quiet = not (console.is_interactive and is_main_process())
    said = time.monotonic()
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def update(count: int, note: str) -> None:
            nonlocal said
            rate = advance.rate(unit)
            bar.update(task, advance=count, rate=rate, note=note)
            in_log = is_main_process() and not console.is_interactive
            if in_log and time.monotonic() - said >= SAID_EVERY:
                said, done = time.monotonic(), bar.tasks[0].completed
                text = f"{what}: {done} of {total} {unit}, {rate} {note}"
                print(text.rstrip(), file=sys.stderr, flush=True)

        advance = Progress(update, int(unit == "images") if images is None else images)
        yield advance
    advance.seconds = time.monotonic() - advance.began
    finished_bars.append(advance)
    if is_main_process():
        print(f"{what}: {advance.done} {unit} in {advance.seconds:.1f} s, {advance.rate(unit)}")
