"""How a stage runs: one line for a user's error, progress with rates, one summary line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cag.errors import UserError

T = TypeVar("T")
_END = object()


def is_main_process() -> bool:
    """Whether this process writes files and speaks: rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[..., None]) -> None:
    """Run a click command; a UserError becomes one line on stderr and exit status 1.

    A termination is an exception too, so that what is half written is removed.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main.main(standalone_mode=False)
    except UserError as error:
        _print_error(error)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if is_main_process():
            print("interrupted; the next run goes on where it can", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _print_error(error: UserError) -> None:
    process = ""
    if not is_main_process():
        # Rank 0 mostly meets the same error, says so, and the launcher ends this process.
        time.sleep(3)
        process = f" (process {os.environ['RANK']})"
    print(f"error{process}:", *str(error).splitlines(), file=sys.stderr)


class Advance:
    """Counts what is done and how long it was waited for; called as advance(count, note).

    Attributes:
        done: Units done in this run.
        waited: Seconds in which `waiting` waited; None where nothing was waited for.
    """

    def __init__(self, update: Callable[[int, str], None]):
        self.done, self.waited, self.began = 0, None, time.monotonic()
        self._update = update

    def __call__(self, count: int = 1, note: str = "", resumed: bool = False) -> None:
        """Count units; resumed ones, which an earlier run has done, do not count for the rate."""
        self.done += 0 if resumed else count
        self._update(count, note)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, and count the time that each is waited for."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            item = next(iterator, _END)
            self.waited = (self.waited or 0.0) + time.monotonic() - began
            if item is _END:
                return
            yield item

    def rate(self, unit: str) -> str:
        """The rate until now, and the share of the time that was spent in waiting."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = (
            "" if self.waited is None else f", {100 * self.waited / seconds:.0f} % waiting for data"
        )
        return f"{self.done / seconds:.1f} {unit}/s{share}"


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar with a rate, then one line that stays.

    Args:
        what: What is being done, e.g. "pretrain".
        total: Number of units in all.
        unit: Name of a unit, e.g. "images".

    Yields:
        A function `advance(count=1, note="", resumed=False)`, whose method `waiting(iterable)`
        passes items on and counts the time that is spent in waiting for them.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where it cannot draw a bar, rich would still print an empty line.
    console.quiet = not (console.is_interactive and is_main_process())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def update(count: int, note: str) -> None:
            bar.update(task, advance=count, rate=advance.rate(unit), note=note)

        advance = Advance(update)
        yield advance
    if is_main_process():
        seconds = time.monotonic() - advance.began
        print(f"{what}: {advance.done} {unit} in {seconds:.1f} s, {advance.rate(unit)}")


def tracked(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Pass items on while a progress bar counts them."""
    with progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance()
