"""A tiny copy of the project in its own repository, in which DVC runs as for a user."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import preloaded
import pytest
import yaml
from filelock import FileLock

from benchmarks import ROOT  # noqa: F401  for the tests, as the next
from benchmarks.miniature import copy_project, merged, tiny_params, write_params  # noqa: F401
from cag.config.training import Augmentation
from cag.runtime.files import sha256


def launched(monkeypatch, processes: int) -> None:
    """As if a launcher had started this process as the first of some on this machine."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")


TRAINING = {  # a section's values, of a training that is over at once
    "iterations": 5,
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "power": 0.9,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "class_balance": 0.0,
    "augmentation": Augmentation(scale=(1.0, 1.0), crop=(32, 64), flip=0.0, photometric=None),
}
# Variables with which each program is a process of its own from its start.
SEPARATE = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    "PYTHON_EXEC": sys.executable,  # torchrun's choice
}
OUTSIDE = ("CAG_", "DVC_", "GIT_", "LAUNCH", "PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_")
# A python that is such a process, or one that has imported LARGE alone, unless its stage ran before
# with other arguments.
FIRST_SEPARATE = """#!/bin/sh
case "$*" in
  *dvc*|*round2*|*"prepare target"*) exec {} "$@" ;;
  *stages.index*|*stages.prepare*) exec {} "$@" ;;
  *) exec {} "$@" ;;
esac
"""
LARGE = ("torch", "torchvision", "segmentation_models_pytorch")  # which take most of the time


def fresh() -> dict[str, str]:
    """Variables with which each program is a process that has imported LARGE alone."""
    python = preloaded.python(LARGE)
    path = os.pathsep.join([str(python.parent), SEPARATE["PATH"]])
    return {"PATH": path, "PYTHON_EXEC": str(python)}


def make_project(folder: Path, rounds: int = 2, replace: Mapping = {}, **changes) -> Path:  # noqa: B006
    """Copy the project to a new folder with tiny parameters and commit it.

    Args:
        folder: Where to; it must not exist.
        rounds: Number of rounds.
        replace: Whole sections of the parameters.
        **changes: Sections to merge into the tiny parameters.

    Returns:
        The folder.
    """
    copy_project(folder, merged(tiny_params(rounds), changes) | dict(replace))
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=tiny project")
    return folder


def finished_project(folders: pytest.TempPathFactory) -> Path:
    """A project after `dvc repro`, the same for all tests, which change only copies.

    The first caller makes it. It has two rounds and a short warm-up. Each program's first run is a
    process that has imported nothing but LARGE before.
    """
    shared = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    record = shared / "finished"
    with FileLock(shared / "finished.lock"):
        if not record.exists():
            python, folder = (folders.mktemp("finished") / name for name in ("python", "project"))
            kinds = preloaded.python(), sys.executable, preloaded.python(LARGE)
            python.write_text(FIRST_SEPARATE.format(*kinds))
            python.chmod(0o755)
            path = os.pathsep.join([str(python.parent), SEPARATE["PATH"]])
            project = make_project(folder, warmup={"iterations": 2})
            dvc(project, "repro", **SEPARATE | {"PATH": path})
            record.write_text(str(folder))
    return Path(record.read_text())


def read_params(folder: Path) -> dict:
    """Read a folder's params.yaml."""
    return yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables for a program in a project: this interpreter, one thread, no GPU, none of OUTSIDE.

    `python` has imported its libraries already, unless `variables` has those of SEPARATE. Files of
    DVC and git outside a repository go beside the project or are not read.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OUTSIDE)}
    path = os.pathsep.join([str(preloaded.python().parent), SEPARATE["PATH"]])
    apart = folder.with_name(f"{folder.name}-site")
    return inherited | {
        "PATH": path,
        "PYTHON_EXEC": str(preloaded.python()),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DVC_SITE_CACHE_DIR": str(apart / "cache"),
        "DVC_GLOBAL_CONFIG_DIR": str(apart / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(apart / "system"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **variables,
    }


def git(folder: Path, *arguments: str) -> str:
    """Run git with a test identity; return its output."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", *identity, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), check=True, capture_output=True, text=True
    )
    return done.stdout


def execute(folder: Path, *command: str, status: int | None = 0, **variables: str) -> str:
    """Run a program in a project; return its output on both streams.

    Args:
        folder: The working directory.
        *command: The program and its arguments; for "python" see `environment`.
        status: The expected exit status; None: any.
        **variables: Additions to the environment.
    """
    variables = environment(folder, **variables)
    done = subprocess.run(
        (shutil.which(command[0], path=variables["PATH"]), *command[1:]),
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert status is None or done.returncode == status, (
        f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}"
    )
    return done.stdout


def dvc(folder: Path, *arguments: str, status: int | None = 0, **variables: str) -> str:
    """Run DVC in a project; see `execute`."""
    return execute(folder, "python", "-m", "dvc", *arguments, status=status, **variables)


def ran(output: str) -> list[str]:
    """The stages that DVC reports as run, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by relative posix path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
