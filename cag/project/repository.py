"""The one window to DVC: stages and what changed, experiments and their files, the queue."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import yaml

from cag.runtime.errors import UserError, absent, in_one_line, refuse_special
from cag.runtime.files import atomic_file

if TYPE_CHECKING:  # DVC takes a second to import, which most commands need not spend
    from dvc.repo import Repo

# The files that a killed DVC may leave half-written or held, and where a damaged one is kept.
LOCK, HOLDERS, DAMAGED = "dvc.lock", ".dvc/tmp/rwlock", ".dvc/tmp/dvc.lock.damaged"
PIPELINE, PARAMS, METRICS = "dvc.yaml", "params.yaml", "data/evaluation/{}/metrics.json"
WORKSPACE, FINISHED = "workspace", "finished"


class Stage(NamedTuple):
    """A stage of the pipeline."""

    name: str  # as in extract@round1
    outputs: Sequence[Path]
    needs: frozenset[str]  # the stages that come before it
    changes: Sequence[str]  # that DVC finds


class Experiment(NamedTuple):
    """An experiment, or the workspace."""

    name: str
    state: str  # finished, queued, running or failed
    commit: str | None = None  # that it started from
    revision: str | None = None  # its own; None: the workspace, or not finished
    params: Mapping[str, Any] = {}  # of params.yaml; empty where they are not known
    metrics: Mapping[str, Mapping | None] = {}  # by file


@contextmanager
def opened(project: Path = Path()) -> Iterator[Repo]:
    """A project as DVC sees it; UserError: it is none, DVC is at work in it, or a file is bad."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from pygit2 import GitError

    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # the error below says it once
    for name in (PIPELINE, PARAMS, LOCK):
        refuse_special(project / name)  # for which DVC would wait
    try:
        with Repo(project) as repo:
            yield repo
    except LockError:
        _refuse_damage(Path(Repo.find_root(project)))
        problem = "DVC is running in this project, and its state is changing"
        raise UserError(f"{problem}; ask again when it is done") from None
    except NotDvcRepoError:
        hint = "no DVC project; run this in the folder of one (`cag init`)"
        raise UserError(f"{project.resolve()}: {hint}") from None
    except DvcException as error:
        _refuse_damage(Path(Repo.find_root(project)))
        raise UserError(f"DVC: {' '.join(str(error).split())}") from None
    except FileNotFoundError as error:  # of a link, whose goal DVC takes to be there
        raise absent(
            error.filename or project, "file", "restore it, as by `git checkout`"
        ) from None
    except (GitError, ValueError) as error:  # another user's repository, a damaged configuration
        problem = in_one_line(error)
        raise UserError(f"git's repository: {problem}; `git status` may say more") from error


def _refuse_damage(root: Path) -> None:
    if damage := find_damage(root):
        raise UserError(f"{'; '.join(damage)}; `cag status --repair` mends it") from None


def repaired() -> list[str]:
    """Repair the project of the working directory as `repair` does; UserError: it is none."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return repair(Path(Repo.find_root()))
    except NotDvcRepoError:
        raise UserError(f"{Path.cwd()}: no DVC project; run this in the folder of one") from None


def read_stages(project: Path = Path()) -> tuple[Path, list[Stage]]:
    """The folder of a project and its stages in the pipeline's order; errors as of `opened`."""
    import networkx

    with opened(project) as repo:
        if not repo.index.stages:
            raise UserError(f"{repo.root_dir}: has no {PIPELINE}; restore it, as by `git checkout`")
        changed, graph = repo.status(), repo.index.graph
        stages = []
        for stage in repo.index.stages:
            outputs = [Path(output.fs_path) for output in stage.outs]
            # An edge leads to what is needed.
            needs = frozenset(needed.name for needed in networkx.descendants(graph, stage))
            changes = _changes(changed.get(stage.addressing, []), stage.always_changed)
            stages.append(Stage(stage.name, outputs, needs, changes))
        return Path(repo.root_dir), stages


def stage_commands(project: Path = Path()) -> dict[str, str]:
    """The command of each stage of a project, in the pipeline's order; errors as of `opened`."""
    with opened(project) as repo:
        return {stage.name: stage.cmd for stage in repo.index.stages}


def _changes(entries: Sequence, always: bool) -> list[str]:
    """The changes that DVC finds about a stage, a line each.

    A stage that always runs (the listing of raw files) mostly writes what it wrote before. DVC then
    skips the stages after it, so that only a change of its outputs counts.
    """
    lines = []
    for entry in entries:
        if isinstance(entry, str):
            lines += [] if always else [entry]
            continue
        groups = [entry.get("changed outs", {})] if always else entry.values()
        for path, change in (pair for group in groups for pair in group.items()):
            changes = change if isinstance(change, Mapping) else {path: change}  # or of parameters
            lines += [f"{key} {state}" for key, state in changes.items()]
    return lines


def read_experiments(all_commits: bool = False) -> list[Experiment]:
    """The workspace and the experiments of the last commit, or of all commits.

    UserError: as of `opened`, or this is not the project's folder, or there is no commit.
    """
    with opened() as repo:
        if not os.path.samefile(repo.root_dir, "."):  # DVC's paths are of the root
            raise UserError(f"run this in the project's folder, {repo.root_dir}")
        shown = repo.experiments.show(all_commits=all_commits)
        return list(_experiments([state.dumpd() for state in shown]))


def _experiments(shown: Sequence[Mapping]) -> Iterator[Experiment]:
    if not shown:
        raise UserError("no commit yet, from which experiments start: `git add .`, `git commit`")
    workspace, *commits = shown
    if error := workspace.get("error"):
        raise UserError(f"DVC: {error['msg']}")
    yield _experiment(WORKSPACE, FINISHED, None, workspace["data"])._replace(revision=None)
    for commit in commits:
        for entry in commit["experiments"] or []:
            state = (entry["executor"] or {}).get("state", "success")
            state = FINISHED if state == "success" else state
            newest = entry["revs"][0]  # of the checkpoints that older versions of DVC made
            name = entry["name"] or newest["rev"][:7]
            yield _experiment(name, state, commit.get("rev"), newest["data"])


def _experiment(name: str, state: str, commit: str | None, data: Mapping | None) -> Experiment:
    data = data or {}
    params = (data.get("params") or {}).get(PARAMS, {}).get("data") or {}
    metrics = {path: file.get("data") for path, file in (data.get("metrics") or {}).items()}
    return Experiment(name, state, commit, data.get("rev"), params, metrics)


def git_root(folder: Path = Path()) -> Path | None:
    """The git repository that a folder is, or lies in; it need not exist yet."""
    places = (folder.resolve(), *folder.resolve().parents)
    return next((place for place in places if (place / ".git").exists()), None)


def _in_git(path: str) -> tuple[Path, str]:
    """The git repository, and a file's path in it: a project may be a folder of a larger one."""
    here = Path.cwd().resolve()
    root = git_root(here) or here
    return root, (here.relative_to(root) / path).as_posix()


def reader(revision: str | None) -> Callable[[str], str | None]:
    """A reader of an experiment's text files (None: the workspace's); None for a lost file."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(repo=".", rev=revision, subrepos=revision is not None)

    def read(path: str) -> str | None:
        with suppress(FileNotFoundError):
            place = path if revision is None else _in_git(path)[1]
            return files.read_text(place, encoding="utf-8")
        return None

    return read


def fetch(revision: str, path: str, goal: Path) -> None:
    """Copy a file or folder of an experiment to a new place; errors as of `command`."""
    root, place = _in_git(path)
    command("get", str(root), place, "--rev", revision, "--out", str(goal))


def require_experiments() -> None:
    """Raise a UserError where DVC cannot set up an experiment: it copies some text as ASCII."""
    with opened() as repo:
        cache = repo.cache.local_cache_dir
    problem = "DVC's experiments cannot copy letters beyond ASCII"
    if not cache.isascii():
        hint = "move the project, or `dvc cache dir --local FOLDER` with a path of plain letters"
        raise UserError(f"{cache}: {problem} in the path of the cache; {hint}")
    config = (git_root() or Path()) / ".git/config"
    if config.is_file() and not config.read_bytes().isascii():
        hint = "such names can be in git's global configuration: `git config --global`"
        raise UserError(f"{config}: {problem}; {hint}")


def command(*arguments: str) -> str:
    """Run a command of DVC in a process of its own; its output, or a UserError if it fails."""
    done = _run(arguments, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        # What follows the error may be where to ask for help.
        reason = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1])
        raise UserError(f"`dvc {' '.join(arguments)}` failed: {reason.removeprefix('ERROR: ')}")
    return done.stdout


def _run(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, **options
) -> subprocess.CompletedProcess:
    # Names in any script pass through DVC's streams, whatever the terminal can show.
    variables = {**environment, "PYTHONIOENCODING": "utf-8"}
    # -P: a file such as random.py in this folder is no library of DVC's.
    program = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(program, env=variables, check=False, **options)


def queue() -> tuple[dict[str, str], int]:
    """The state of each experiment in DVC's queue by name, and the number of workers."""
    printed = command("queue", "status")
    rows = [line.split() for line in printed.splitlines()]
    states = {row[1]: row[-1] for row in rows if len(row) >= 4 and row[0] not in ("Task", "Worker")}
    workers = re.search(r"(\d+) active, (\d+) idle", printed)
    return states, sum(map(int, workers.groups())) if workers else 0


def start_workers(jobs: int, environment: Mapping[str, str]) -> None:
    """Start as many workers as are missing; one of several may end before the queue is empty."""
    # The workers keep their parent's streams open: to capture them would wait for the last one.
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if _run(("queue", "start", "--jobs", str(jobs)), environment, **silent).returncode:
        raise UserError("`dvc queue start` failed; run it to see why")


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
    refuse_special(root / LOCK)
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
    except (yaml.YAMLError, Invalid, RecursionError):
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
