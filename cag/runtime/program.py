"""How a stage runs: one line for a user's error, and a record of the run."""

import io
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from errno import EACCES, EDQUOT, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import click
import psutil

from cag.runtime.errors import UserError
from cag.runtime.files import project_root, write_json
from cag.runtime.progress import finished_bars, is_main_process

# Refusals of the disk, not defects of the program.
UNUSABLE = {EACCES, EPERM, EROFS, ENOSPC, EDQUOT, ENOTDIR, EISDIR, EEXIST}
RECORDS = Path(".scratch/runs")


def run(main: Callable[..., None]) -> int | None:
    """Run a click command; a UserError or a refusal of the disk is one line and exit status 1.

    A termination raises too, so that half-written files are removed. 0 if it only printed its help.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in any script, on a terminal of any kind
        sys.stdout.reconfigure(errors="backslashreplace")
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return main.main(standalone_mode=False)
    except UserError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        where = "the disk" if error.filename is None else error.filename
        _fail(UserError(f"{where}: {error.strerror}; free space, or use another folder"))
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
    """Run a stage's command as `run` does, and leave a record of its success.

    `.scratch/runs/<stage>.json`, with DVC's name of the stage such as extract@round1, has `started`
    (ISO 8601), `seconds` since the program's start, `images`, `images_per_second` and
    `waiting_share` (0 to 1) of its progress bars, `device`, `processes`, `versions` and the
    `commit` that an experiment started from. An experiment's stage also leaves it in the project's
    `.scratch/runs/<experiment>/`, since DVC deletes the copy that it runs in. Nothing is computed
    from a record.
    """
    finished = run(main) is None  # not with --help
    if finished and is_main_process():
        stage = "@".join([Path(sys.argv[0]).stem, *sys.argv[1:2]])
        record = {"stage": stage, **_record()}
        write_json(RECORDS / f"{stage}.json", record)
        if experiment := os.environ.get("DVC_EXP_NAME"):
            write_json(project_root() / RECORDS / experiment / f"{stage}.json", record)


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
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions | ({"torch": torch.__version__} if torch else {}),
        "commit": os.environ.get("DVC_EXP_BASELINE_REV"),
    }


def read_records(folder: Path = RECORDS) -> dict[str, dict]:
    """The undamaged records of `run_stage`, by stage."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            records[record["stage"]] = record
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


def _fail(error: UserError) -> NoReturn:
    process = ""
    if not is_main_process():
        # Rank 0 mostly meets the same error and reports it; then the launcher ends this process.
        time.sleep(3)
        process = f" (process {os.environ['RANK']})"
    print(f"error{process}:", *str(error).splitlines(), file=sys.stderr)
    sys.exit(1)
