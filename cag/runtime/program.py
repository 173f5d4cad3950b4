"""How a stage runs: one line for a user's error, and a record of the run."""

import io
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import psutil
from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, FiniteFloat

from cag.runtime import interrupts
from cag.runtime.environment import launch
from cag.runtime.errors import UserError, in_one_line, refusal
from cag.runtime.files import project_root, write_json
from cag.runtime.progress import finished_bars, is_main_process
from cag.runtime.provenance import noted, require_unchanged

RECORDS = Path(".scratch/runs")


def run(main: click.Command) -> int | None:
    """Run a click command; a UserError or a refusal of the system is one line and exit status 1.

    An interruption and a termination raise, so that half-written files are removed; a second Ctrl-C
    does not wait for that. 0 if it only printed its help.
    """
    for stream in ("stdin", "stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started this program
            setattr(sys, stream, open(os.devnull, "r" if stream == "stdin" else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in any script, on a terminal of any kind
        sys.stdout.reconfigure(errors="backslashreplace")
    received = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        signal.signal(number, interrupts.end)
        raise KeyboardInterrupt

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda n, frame: sys.exit(128 + n))}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a shell's background jobs
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        _check_folder()
        return main.main(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        _interrupted()
    except UserError as error:
        _fail(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if received:  # a library made another error of it
            _interrupted()
        refused = refusal(error)
        if refused is None:
            raise
        _fail(refused)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_stage(main: click.Command) -> None:
    """Run a stage's command as `run` does, alone, and leave a record of its success.

    `.scratch/runs/<stage>.json`, with DVC's name of the stage such as extract@round1, is a
    `Record`. An experiment's stage also leaves it in the project's `.scratch/runs/<experiment>/`,
    since DVC deletes the copy that it runs in. Nothing is computed from a record, and a stage that
    cannot write it has still succeeded.

    Two runs of one stage would write the same files. So the second ends with a UserError that says
    which process is at work. A stage whose code or parameters were changed while it ran fails too,
    since DVC would record it with the changed ones.
    """
    stage = "@".join([Path(sys.argv[0]).stem, *sys.argv[1:2]])

    def alone(*given: Any, **named: Any) -> None:
        launch()  # checks its variables
        with _held(stage) if is_main_process() else ExitStack(), noted():
            main.callback(*given, **named)
            if is_main_process():
                require_unchanged()

    locked = copy(main)
    locked.callback = alone
    finished = run(locked) is None  # not with --help
    if finished and is_main_process():
        record = {"stage": stage, **_record()}
        try:
            write_json(RECORDS / f"{stage}.json", record)
            if experiment := os.environ.get("DVC_EXP_NAME"):
                write_json(project_root() / RECORDS / experiment / f"{stage}.json", record)
        except OSError as error:
            print(f"note: no record of this run ({in_one_line(error)})", file=sys.stderr)


@contextmanager
def _held(stage: str) -> Iterator[None]:
    """Hold the lock of a stage; a UserError says which process holds it.

    Without a lock where the file system grants none. The system frees the lock of a killed process.
    """
    with ExitStack() as stack:
        holder = RECORDS / f"{stage}.holder"
        try:
            RECORDS.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(RECORDS / f"{stage}.lock", blocking=False))
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        except Timeout:
            known = "another process"
            with suppress(OSError):
                known = holder.read_text(errors="replace")
            raise UserError(
                f"{stage} is running already ({known}); wait for its end, or end that process"
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = in_one_line(error)
            print(f"note: no lock ({reason}); start {stage} only once at a time", file=sys.stderr)
        yield


class Record(BaseModel, strict=True):
    """What is known of a stage's last run."""

    stage: str
    started: AwareDatetime
    seconds: FiniteFloat  # since the program's start
    images: int | None = None  # of its progress bars, as the next two
    images_per_second: FiniteFloat | None = None
    waiting_share: FiniteFloat | None = None  # 0 to 1
    device: str
    processes: int
    versions: dict[str, str]
    commit: str | None = None  # that an experiment started from


def _record() -> dict:
    started = psutil.Process().create_time()
    images = sum(advance.done * advance.images for advance in finished_bars)
    working = sum(advance.seconds for advance in finished_bars)
    waited = [advance.waited for advance in finished_bars if advance.waited is not None]
    torch = sys.modules.get("torch")
    versions = {"cag": metadata.version("cag"), "python": platform.python_version()}
    return {
        "started": datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "images": images or None,
        "images_per_second": round(images / working, 2) if images else None,
        "waiting_share": round(sum(waited) / working, 3) if waited else None,
        "device": device_name(),
        "processes": launch().world,
        "versions": versions | ({"torch": torch.__version__} if torch else {}),
        "commit": os.environ.get("DVC_EXP_BASELINE_REV"),
    }


def read_records(folder: Path = RECORDS) -> dict[str, dict]:
    """The undamaged records of `run_stage` in the form of JSON, by stage."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            record = Record.model_validate_json(path.read_bytes())
            records[record.stage] = record.model_dump(mode="json")
    return records


def device_name() -> str:
    """The GPU in use, or else the processor, its cores and torch's threads."""
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


def _check_folder() -> None:
    """Raise a UserError if the working directory is gone: libraries in C would end the process."""
    try:
        os.getcwd()
    except OSError:
        hint = "`cd` to one that is there, then run it again"
        raise UserError(f"the current folder has been deleted; {hint}") from None


def _interrupted() -> NoReturn:
    if is_main_process():
        print(interrupts.MESSAGE, file=sys.stderr)
    sys.exit(130)


def _fail(error: UserError) -> NoReturn:
    process = ""
    if not is_main_process():
        # Rank 0 mostly meets the same error and reports it; then the launcher ends this process.
        time.sleep(3)
        process = f" (process {os.environ['RANK']})"
    print(f"error{process}:", *str(error).splitlines(), file=sys.stderr)
    sys.exit(1)
