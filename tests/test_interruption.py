"""A run killed at any moment and run again ends with the bytes of an uninterrupted one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from project import (
    digests,
    dvc,
    environment,
    execute,
    make_project,
    merged,
    ran,
    read_params,
    write_params,
)

from cag.project.repository import repair

KILLS = 4
UNFINISHED = (".partial", ".previous")
DEADLINE = 300  # seconds after which something hangs
SAVE_OFTEN = {"CAG_CHECKPOINT_SECONDS": "0"}
PRETRAIN = ("-m", "stages.pretrain")
CHECKPOINT = ".scratch/pretrain/checkpoint.pt"
MODEL, CURVE = "data/models/pretrain.safetensors", "data/curves/pretrain.csv"


@dataclass(frozen=True)
class Whole:
    """A project after one run from beginning to end, and a copy from before it."""

    project: Path
    untouched: Path
    stages: list[str]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Whole:
    project = make_project(tmp_path_factory.mktemp("whole") / "project", rounds=1)
    untouched = shutil.copytree(project, project.with_name("untouched"))
    return Whole(project, untouched, ran(dvc(project, "repro")))


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start Python in its own process group; both streams are one, line by line."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder, PYTHONUNBUFFERED="1", **SAVE_OFTEN),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and so what they start, ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop(process: subprocess.Popen, number: signal.Signals) -> str:
    """Signal a process and its descendants, and wait for them; return their last output."""
    os.killpg(process.pid, number)
    # The pipe ends when the last descendant that inherited it is gone.
    said, _ = process.communicate(timeout=DEADLINE)
    return said


def kill_at(process: subprocess.Popen, stages: list[str], delay: float) -> list[str]:
    """Kill `dvc repro` some seconds after one of the stages started; the started stages."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if set(ran(line)) & set(stages):
            break
    time.sleep(delay)
    printed.append(stop(process, signal.SIGKILL))
    return ran("".join(printed))


def finished_files(data: Path) -> dict[str, str]:
    """Digests of the files below `data`, without those under a name of unfinished work."""
    return {
        path: digest
        for path, digest in digests(data).items()
        if not any(part.endswith(UNFINISHED) for part in Path(path).parts)
    }


def unfinished(folder: Path) -> list[Path]:
    """Files and folders under a name of unfinished work."""
    return [path for path in folder.rglob("*") if path.name.endswith(UNFINISHED)]


def test_killed_pipeline_ends_the_same(uninterrupted):
    expected = digests(uninterrupted.project / "data")
    stages = uninterrupted.stages
    project = uninterrupted.untouched
    moments = random.Random(0)
    interrupted = []
    for first in sorted(moments.sample(range(len(stages) - 2), KILLS)):
        process = start(project, "-m", "dvc", "repro")
        interrupted += kill_at(process, stages[first:], moments.uniform(0, 1))[-1:]
        repair(project)
        found = finished_files(project / "data")
        # Whatever has its final name is complete: exactly the uninterrupted run's file.
        assert {path: expected.get(path) for path in found} == found
    print("killed in", *interrupted)
    assert len(set(interrupted)) > KILLS // 2  # the moments are spread over the run

    printed = dvc(project, "repro", **SAVE_OFTEN)
    assert "index" in ran(printed)
    assert digests(project / "data") == expected
    assert not unfinished(project)
    left = [path for path in (project / ".scratch").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {"runs"}
    assert ran(dvc(project, "repro")) == ["index"]


def test_half_a_lock_file_costs_no_computation(uninterrupted, tmp_path):
    project = shutil.copytree(uninterrupted.project, tmp_path / "project", symlinks=True)
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: whole.index(b"cmd: ${LAUNCH:-python} -m stages.extract_source")])
    said = dvc(project, "repro", status=None)
    assert "'./dvc.lock' validation failed" in said and not ran(said)

    repair(project)
    assert ran(dvc(project, "repro")) == ["index"]
    assert lock.read_bytes() == whole
    assert digests(project / "data") == digests(uninterrupted.project / "data")


@pytest.fixture
def pretraining(uninterrupted, tmp_path) -> Path:
    """A folder in which pretraining runs by itself, for some time after its first checkpoint."""
    folder = tmp_path / "pretraining"
    for name in ("cag", "stages", "data/prepared/source", "data/index"):
        shutil.copytree(uninterrupted.project / name, folder / name)
    params = read_params(uninterrupted.project)
    write_params(folder, merged(params, {"pretrain": {"iterations": 80}}))
    return folder


def interrupt_pretraining(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start pretraining and signal it after its first checkpoint; exit status and output."""
    process = start(folder, *PRETRAIN)
    began = time.monotonic()
    while not (folder / CHECKPOINT).exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - began < DEADLINE
        time.sleep(0.002)
    said = stop(process, number)
    assert not (folder / MODEL).exists()
    assert not (folder / CURVE).exists()
    return process.returncode, said


def mark_history(folder: Path) -> int:
    """Set the losses in the checkpoint to -1; return the number of its iterations."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    state["history"][: state["iteration"]] = -1
    torch.save(state, folder / CHECKPOINT)
    return state["iteration"]


def test_killed_pretraining_resumes_and_ends_the_same(pretraining):
    whole, marked = (shutil.copytree(pretraining, pretraining.with_name(n)) for n in "ab")
    execute(whole, "python", *PRETRAIN)
    status, _ = interrupt_pretraining(pretraining, signal.SIGKILL)
    assert status == -signal.SIGKILL
    shutil.copytree(pretraining / ".scratch", marked / ".scratch")

    execute(pretraining, "python", *PRETRAIN, **SAVE_OFTEN)
    for name in (MODEL, CURVE):
        assert (pretraining / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (pretraining / CHECKPOINT).exists()

    # The iterations before the checkpoint are not done again: their losses come from it.
    done = mark_history(marked)
    execute(marked, "python", *PRETRAIN)
    losses = pd.read_csv(marked / CURVE).set_index("iteration")["loss"]
    assert 0 < done < len(losses)
    assert (losses.loc[:done] == -1).all()
    assert (losses.loc[done + 1 :] > 0).all()
    assert (marked / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_interrupt_says_so_and_other_parameters_start_afresh(pretraining):
    status, said = interrupt_pretraining(pretraining, signal.SIGINT)
    assert status == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not unfinished(pretraining)

    mark_history(pretraining)
    changed = merged(read_params(pretraining), {"pretrain": {"weight_decay": 0.001}})
    write_params(pretraining, changed)
    execute(pretraining, "python", *PRETRAIN)
    assert (pd.read_csv(pretraining / CURVE)["loss"] > 0).all()


def test_other_code_starts_afresh(pretraining):
    interrupt_pretraining(pretraining, signal.SIGKILL)
    mark_history(pretraining)
    with open(pretraining / "cag/training/loop.py", "a") as file:
        file.write("# edited\n")
    execute(pretraining, "python", *PRETRAIN)
    assert (pd.read_csv(pretraining / CURVE)["loss"] > 0).all()


def test_parameters_edited_meanwhile_cost_no_training_once_they_are_back(pretraining):
    before = read_params(pretraining)
    process = start(pretraining, *PRETRAIN)
    while not (pretraining / CHECKPOINT).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    write_params(pretraining, merged(before, {"pretrain": {"weight_decay": 0.001}}))
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "error: pretrain of params.yaml: changed while this stage ran" in said

    write_params(pretraining, before)
    assert mark_history(pretraining) == 80
    execute(pretraining, "python", *PRETRAIN)
    assert (pd.read_csv(pretraining / CURVE)["loss"] == -1).all()
    assert not (pretraining / CHECKPOINT).exists()
