"""Repair of the two files that a killed DVC may leave behind half-written or held."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file

LOCK, HOLDERS, DAMAGED = "dvc.lock", ".dvc/tmp/rwlock", ".dvc/tmp/dvc.lock.damaged"


def find_damage(root: Path) -> list[str]:
    """A line for each damaged file of a DVC project."""
    lines = []
    if _half_lock(root) is not None:
        lines.append(f"{LOCK}: half-written, as after a kill of DVC")
    if _is_stale(root / HOLDERS):
        lines.append(f"{HOLDERS}: half-written, or held by a process that has ended")
    return lines


def repair(root: Path) -> list[str]:
    """Mend the damaged files; a line for each. A UserError while DVC runs in the project.

    dvc.lock keeps the stages before the last one. The others cost no computation, as their outputs
    come back from DVC's cache.
    """
    if (process := _running(root)) is not None:
        raise UserError(f"DVC is running in {root} (process {process}); wait for its end")
    lines = []
    if (text := _half_lock(root)) is not None:
        shutil.copyfile(root / LOCK, root / DAMAGED)
        kept = _whole_stages(text)
        with atomic_file(root / LOCK) as partial:
            partial.write_text(kept, encoding="utf-8")
        count = len(_heads(kept))
        if not count:
            (root / LOCK).unlink()
        lines.append(f"{LOCK}: kept {count} whole stages; what it was is {DAMAGED}")
    if _is_stale(root / HOLDERS):
        (root / HOLDERS).unlink()
        lines.append(f"{HOLDERS}: deleted, as nobody holds it")
    return lines


def _half_lock(root: Path) -> str | None:
    """The text of a dvc.lock that DVC does not accept, unless git has marked conflicts in it."""
    with suppress(FileNotFoundError):
        text = (root / LOCK).read_text(encoding="utf-8", errors="replace")
        if not _accepted(text) and not re.search("^<{7} ", text, re.MULTILINE):
            return text
    return None


def _accepted(text: str) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (yaml.YAMLError, Invalid):
        return False
    return True


def _heads(text: str) -> list[int]:
    """Where the stages of a dvc.lock begin."""
    return [head.start() for head in re.finditer(r"^  \S", text, re.MULTILINE)]


def _whole_stages(text: str) -> str:
    beginnings = (text[:head] for head in reversed(_heads(text)))
    return next(filter(_accepted, beginnings), "")


def _is_stale(holders: Path) -> bool:
    """Whether DVC's list of holders is no list, or a holder's number is another program's by now.

    DVC itself passes over numbers that no process has.
    """
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        lock = SCHEMA(json.loads(holders.read_bytes()))
    except FileNotFoundError:
        return False
    except (ValueError, Invalid):
        return True
    infos = [*lock["write"].values(), *(info for many in lock["read"].values() for info in many)]
    return any(map(_is_another, infos))


def _is_another(holder: Mapping[str, Any]) -> bool:
    """Whether a process lives that has a holder's number, but not the arguments of its command."""
    with suppress(psutil.Error):
        words = " ".join(psutil.Process(holder["pid"]).cmdline()).split()
        arguments = holder["cmd"].split()[1:]
        return words[len(words) - len(arguments) :] != arguments
    return False


def _running(root: Path) -> int | None:
    """The number of a process of DVC in a folder, if there is one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = {os.path.basename(word) for word in process.cmdline()}
            if "dvc" in words and Path(process.cwd()).is_relative_to(root.resolve()):
                return process.pid
    return None
