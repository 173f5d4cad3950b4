"""How a stage runs: one line for a user's error, progress with rates, and a record of the run."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import click
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cag.errors import UserError
from cag.files import write_json

# What the disk refuses, rather than what a program does wrong.
UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}
RECORDS = Path(".scratch/runs")
T = TypeVar("T")
_END = object()
_finished: list[Advance] = []  # the progress bars of this process


def is_main_process() -> bool:
    """Whether this process writes files and speaks: rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[..., None]) -> int | None:
    """Run a click command; a UserError becomes one line on stderr and exit status 1.

    So does what the disk refuses: no space, no permission, a file where a folder should be.

    A termination is an exception too, so that what is half written is removed.

    Returns:
        0 if the command only printed its help, else None.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return main.main(standalone_mode=False)
    except UserError as error:
        _print_error(error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        where = "the disk" if error.filename is None else error.filename
        _print_error(UserError(f"{where}: {error.strerror}; free space, or use another folder"))
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


def run_stage(main: Callable[..., None]) -> None:
    """Run a stage's command as `run` does, and leave a record of it if it succeeds.

    The record is `.scratch/runs/<stage>.json`, where the stage has DVC's name: the program's, with
    its first argument as in extract@round1. It has `started` (ISO 8601), `seconds` from the
    program's start, `images` and `images_per_second` of its progress bars, `waiting_share` (of
    their time, 0 to 1), `device`, `processes` and `versions`. It depends on the moment, so it is no
    artifact: nothing is computed from it.
    """
    finished = run(main) is None  # and not, say, --help
    if finished and is_main_process():
        program, argument = Path(sys.argv[0]).stem, sys.argv[1:2]
        stage = "@".join([program, *argument])
        write_json(RECORDS / f"{stage}.json", {"stage": stage, **_record()})


def _record() -> dict:
    started = psutil.Process().create_time()
    images = sum(advance.done * advance.images for advance in _finished)
    working = sum(advance.seconds for advance in _finished)
    waited = [advance.waited for advance in _finished if advance.waited is not None]
    torch = sys.modules.get("torch")
    versions = {"cag": metadata.version("cag"), "python": platform.python_version()}
    return {
        "started": datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "images": images or None,
        "images_per_second": round(images / working, 2) if images else None,
        "waiting_share": round(sum(waited) / working, 3) if waited else None,
        "device": device_name(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions | ({"torch": torch.__version__} if torch else {}),
    }


def read_records(folder: Path = RECORDS) -> dict[str, dict]:
    """The records that `run_stage` left, by stage; a damaged one is left out."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            records[record["stage"]] = record
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return records


def device_name() -> str:
    """The GPU that this process has used, or else the processor, its cores and torch's threads."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    threads = f", {torch.get_num_threads()} threads" if torch else ""
    return f"{cpu_name()}, {os.cpu_count()} cores{threads}"


def cpu_name() -> str:
    """The processor's model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


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
        images: Images in a unit.
        seconds: Until the end.
    """

    def __init__(self, update: Callable[[int, str], None], images: int = 0):
        self.done, self.waited, self.began = 0, None, time.monotonic()
        self.images, self.seconds = images, 0.0
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
def progress(what: str, total: int, unit: str, images: int | None = None) -> Iterator[Advance]:
    """A progress bar with a rate, then one line that stays.

    Args:
        what: What is being done, e.g. "pretrain".
        total: Number of units in all.
        unit: Name of a unit, e.g. "images".
        images: Images in a unit, for the record; None for 1 if the unit is images, and else 0.

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

        advance = Advance(update, int(unit == "images") if images is None else images)
        yield advance
    advance.seconds = time.monotonic() - advance.began
    _finished.append(advance)
    if is_main_process():
        print(f"{what}: {advance.done} {unit} in {advance.seconds:.1f} s, {advance.rate(unit)}")
