"""How a stage runs: one line for a user's error, progress with rates, one summary line."""

from __future__ import annotations

import os
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


def is_main_process() -> bool:
    """Whether this process writes files and speaks: rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[..., None]) -> None:
    """Run a click command; a UserError becomes one line on stderr and exit status 1."""
    try:
        main.main(standalone_mode=False)
    except UserError as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted; the next run goes on where it can", file=sys.stderr)
        sys.exit(130)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar with a rate, then one line that stays.

    Args:
        what: What is being done, e.g. "pretrain".
        total: Number of units in all.
        unit: Name of a unit, e.g. "images".

    Yields:
        A function `advance(count=1, note="", resumed=False)`; resumed units are those that an
        earlier run has done, which count for the bar and not for the rate.
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
    began, done = time.monotonic(), 0
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(count: int = 1, note: str = "", resumed: bool = False) -> None:
            nonlocal done
            done += 0 if resumed else count
            rate = done / max(time.monotonic() - began, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s", note=note)

        yield advance
    seconds = time.monotonic() - began
    if is_main_process():
        print(f"{what}: {done} {unit} in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} {unit}/s")


def tracked(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Pass items on while a progress bar counts them."""
    with progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance()
