"""Kill the pipeline at random moments, over all its stages: python -m benchmarks.kills.

A tiny project runs by `dvc repro`. At a random moment SIGKILL, SIGTERM or Ctrl-C hits DVC and its
stage together, or DVC alone, whose stage then goes on beside the next run. After each kill every
file under a final name must have the bytes of an uninterrupted run, and the next `dvc repro` must
go on without a hand: only `cag status --repair` may help. A finished project starts anew. Runs on
the CPU, in a temporary folder; 200 kills take some hours.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from benchmarks.measure import table
from benchmarks.miniature import copy_project, tiny_params
from cag.project.repository import repair
from cag.runtime.errors import UserError
from cag.runtime.files import sha256
from cag.runtime.program import run

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
UNFINISHED = (".partial", ".previous")
DEADLINE = 1800  # seconds after which something hangs
GROUPS: list[int] = []  # of processes that may still run


class Failed(Exception):
    """Bytes differ, or a run does not go on by itself."""


def start(project: Path, until: Sequence[str] = ()) -> subprocess.Popen:
    """`dvc repro` in a group of processes of its own; its output is in a file."""
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CAG_CHECKPOINT_SECONDS": "0"}
    variables |= {"DVC_SITE_CACHE_DIR": str(project.with_name("site")), "PYTHONPATH": str(project)}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with open(project.with_name("log.txt"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *until],
            cwd=project,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background jobs, and so what they start, ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    GROUPS.append(process.pid)
    return process


def said(project: Path) -> str:
    """The output of the last run."""
    return project.with_name("log.txt").read_text(errors="replace")


def digests(project: Path) -> dict[str, str]:
    """SHA-256 of each file under a final name below `data/`; a stage may be at work meanwhile."""
    found = {}
    for path in sorted((project / "data").rglob("*")):
        relative = path.relative_to(project)
        if not any(part.endswith(UNFINISHED) for part in relative.parts):
            with suppress(FileNotFoundError, IsADirectoryError):
                found[relative.as_posix()] = sha256(path)
    return found


def check(project: Path, expected: dict[str, str], whole: bool) -> None:
    """Raise Failed if a file differs or, where the run is `whole`, is missing."""
    found = digests(project)
    wrong = [path for path, digest in found.items() if expected.get(path) != digest]
    missing = sorted(expected.keys() - found.keys()) if whole else []
    if wrong or missing:
        raise Failed(f"other bytes: {wrong[:5]}, missing: {missing[:5]}\n{said(project)}")


def kill_once(
    project: Path, until: Sequence[str], moments: random.Random, longest: float
) -> Counter:
    """Run the project and kill it within `longest` seconds; what happened.

    Raises Failed if it ended by itself with an error, but for the refusal of a second run.
    """
    number, alone = moments.choice(SIGNALS), moments.random() < 0.5
    process = start(project, until)
    try:
        status = process.wait(moments.uniform(0, longest))
    except subprocess.TimeoutExpired:
        (os.kill if alone else os.killpg)(process.pid, number)
        process.wait(DEADLINE)
        stage = ["before", *re.findall(r"Running stage '(\w+)", said(project))][-1]
        target = "DVC alone" if alone else "the group"
        return Counter({"kills": 1, f"{number.name} of {target}": 1, f"in {stage}": 1})
    if status == 0:
        return Counter(ended=1)
    if "is running already" not in said(project):
        raise Failed(f"exit status {status}\n{said(project)}")
    time.sleep(1)
    return Counter(refused=1)


def mended(project: Path) -> int:
    """Repair the project; the number of mended files."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return len(repair(project))
        except UserError:  # DVC alone has got the signal, and is about to end
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@click.command(help=__doc__)
@click.option("--kills", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of moments.")
@click.option("--until", multiple=True, help="The last stage; else the whole pipeline.")
def main(kills: int, seed: int, until: tuple[str, ...]) -> None:
    """Print what happened; exit status 1 if a byte differs or a run needs a hand."""
    moments, tally = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        untouched, project = Path(temporary) / "untouched", Path(temporary) / "runs/project"
        copy_project(untouched, tiny_params(rounds=1))
        subprocess.run(["git", "init", "--quiet"], cwd=untouched, check=True)
        shutil.copytree(untouched, project)
        began = time.monotonic()
        if start(project, until).wait(DEADLINE):
            raise click.ClickException(said(project))
        seconds, expected = time.monotonic() - began, digests(project)
        print(f"uninterrupted: {len(expected)} files, {seconds:.0f} s", flush=True)
        try:
            tally["ended"] = 1
            while tally["kills"] < kills or not tally["ended"]:
                if tally["ended"] and tally["kills"] < kills:
                    shutil.rmtree(project)
                    shutil.copytree(untouched, project)
                    tally["whole runs"] += tally.pop("ended")
                longest = seconds / 4 if tally["kills"] < kills else DEADLINE
                tally += kill_once(project, until, moments, longest)
                check(project, expected, whole=bool(tally["ended"]))
                tally["repaired files"] += mended(project)
                print(dict(tally), flush=True)
        except Failed as failure:
            raise click.ClickException(str(failure)) from None
        finally:
            for group in GROUPS:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
    print(table([{"what": what, "times": str(times)} for what, times in sorted(tally.items())]))


if __name__ == "__main__":
    run(main)
