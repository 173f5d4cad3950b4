"""Scores of the last run, and of several seeds run through DVC's queue."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
from rich.table import Table

from cag.errors import UserError
from cag.files import data_root
from cag.stage import progress

EVALUATION = Path("data/evaluation")
SCRATCH = Path(".scratch/oracle")
METRICS = "data/evaluation/{}/metrics.json"
ORACLE_METRICS = "data/oracle/metrics.json"
ORACLE_NEEDS = (
    "params.yaml",
    "classes",
    "data/prepared/source",
    "data/prepared/target",
    "data/models/pretrain.safetensors",
)
BASELINE, ORACLE = "pretrain", "oracle"
FINISHED = {"Success", "Failed"}
POLL_SECONDS = 10


def workspace_table() -> Table:
    """The mIoU of each model of the last run, as a table.

    Raises:
        UserError: There is no run.
    """
    paths = sorted(EVALUATION.glob("*/metrics.json"))
    if not paths:
        raise UserError(f"{EVALUATION}: no scores; `dvc repro` makes them")
    scores = {path.parent.name: json.loads(path.read_text())["miou"] for path in paths}
    table = Table("model", title="mIoU on the labelled target validation images, %")
    table.add_column("mIoU", justify="right")
    table.add_column("against source only", justify="right")
    for model, score in scores.items():
        difference = score - scores.get(BASELINE, float("nan"))
        change = "" if model == BASELINE else f"{100 * difference:+.1f}"
        name = "source only (pretrain)" if model == BASELINE else model
        table.add_row(name, f"{100 * score:.1f}", change)
    return table


def run_seeds(
    seeds: list[int], overrides: list[str], jobs: int, models: list[str], oracle: bool
) -> pd.DataFrame:
    """Run the pipeline once per seed, each in a temporary copy, and read the scores.

    Args:
        seeds: Values of `seed`.
        overrides: Further parameters, "key=value".
        jobs: Experiments at a time.
        models: The evaluated models.
        oracle: Also run the oracle.

    Returns:
        Columns seed, then the mIoU in [0, 1] of each model and of the oracle.

    Raises:
        UserError: An experiment fails; its log is named.
    """
    names = {seed: _experiment(seed, overrides) for seed in seeds}
    for seed, name in names.items():
        settings = [f"-Sseed={seed}", *(f"-S{entry}" for entry in overrides)]
        _dvc("exp", "run", "--queue", "--name", name, *settings)
    _work(list(names.values()), jobs)
    rows = [
        {"seed": seed, **{model: _score(name, METRICS.format(model)) for model in models}}
        for seed, name in names.items()
    ]
    if oracle:
        for row, score in zip(rows, _oracles(list(names.values()), jobs), strict=True):
            row[ORACLE] = score
    return pd.DataFrame(rows)


def _oracles(revisions: list[str], jobs: int) -> list[float]:
    """Scores of the oracles of experiments, some of them trained at the same time."""
    if jobs == 1:
        return [run_oracle(revision) for revision in revisions]
    with (
        ThreadPoolExecutor(jobs) as pool,
        progress("oracles", len(revisions), "oracles") as advance,
    ):
        futures = []
        for revision in revisions:
            _collect(revision)  # one at a time: DVC locks the repository
            futures.append(pool.submit(run_oracle, revision, jobs))
        for future in as_completed(futures):
            future.result()
            advance()
    return [future.result() for future in futures]


def run_oracle(revision: str, jobs: int = 1) -> float:
    """Train with true target labels from an experiment's source-only model; the mIoU in [0, 1].

    It is no stage of the pipeline, so that no `dvc repro` opens a label of a target training image:
    what it needs of the experiment is put in a scratch folder, where `stages.oracle` runs.

    Args:
        revision: The experiment.
        jobs: Oracles at the same time; of several, each writes a log beside its scratch folder.

    Raises:
        UserError: The experiment lacks what it needs, or the training fails.
    """
    _collect(revision)
    folder, log = SCRATCH / revision, SCRATCH / f"{revision}.log"
    roots = {"CAG_DATA": str(data_root()), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "stages.oracle"]
    options = {"cwd": folder, "env": {**_environment(jobs), **roots}, "check": False}
    if jobs == 1:
        done = subprocess.run(command, **options)
    else:
        with open(log, "w", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        where = "see above" if jobs == 1 else f"{log} shows why"
        raise UserError(f"the oracle of experiment {revision} failed; {where}")
    score = json.loads((folder / ORACLE_METRICS).read_text(encoding="utf-8"))["miou"]
    shutil.rmtree(folder)
    log.unlink(missing_ok=True)
    return score


def _collect(revision: str) -> None:
    """Put what the oracle needs of an experiment in its scratch folder."""
    folder = SCRATCH / revision
    for path in ORACLE_NEEDS:
        if not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _dvc("get", ".", path, "--rev", revision, "--out", str(folder / path))


def _environment(jobs: int) -> dict[str, str]:
    """The environment of one of several programs that share the cores."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


def results_table(scores: pd.DataFrame) -> Table:
    """Mean, standard deviation and each seed's mIoU in %, and the share of the gap closed.

    Args:
        scores: From `run_seeds`.
    """
    table = Table("model", title="mIoU on the labelled target validation images, %")
    columns = ["mean", "sd", *(f"seed {seed}" for seed in scores["seed"]), "gained", "gap closed"]
    for column in columns:
        table.add_column(column, justify="right")
    for model in scores.columns[1:]:
        values = 100 * scores[model]
        gained = values - 100 * scores[BASELINE] if BASELINE in scores else values * float("nan")
        closed = ""
        if ORACLE in scores and BASELINE in scores and model not in (BASELINE, ORACLE):
            gap = 100 * (scores[ORACLE] - scores[BASELINE]).mean()
            closed = f"{100 * gained.mean() / gap:.0f} %" if gap > 0 else "no gap"
        table.add_row(
            "source only (pretrain)" if model == BASELINE else model,
            f"{values.mean():.1f}",
            f"{values.std():.1f}" if len(values) > 1 else "",
            *(f"{value:.1f}" for value in values),
            "" if model == BASELINE else f"{gained.mean():+.1f}",
            closed,
        )
    return table


def _experiment(seed: int, overrides: list[str]) -> str:
    text = json.dumps([sorted(overrides), time.time()])
    return f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _work(names: list[str], jobs: int) -> None:
    # The workers keep their parent's streams open: to capture them would wait for the last one.
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    if subprocess.run(command, env=_environment(jobs), **silent, check=False).returncode:
        raise UserError("`dvc queue start` failed; run it to see why")
    finished: set[str] = set()
    with progress("experiments", len(names), "experiments") as advance:
        while len(finished) < len(names):
            time.sleep(POLL_SECONDS)
            states = _states()
            for name in names:
                if name not in finished and states.get(name) in FINISHED:
                    finished.add(name)
                    advance()
                    if states[name] == "Failed":
                        raise UserError(
                            f"experiment {name} failed; `dvc queue logs {name}` shows why"
                        )


def _states() -> dict[str, str]:
    lines = _dvc("queue", "status").splitlines()
    rows = [line.split() for line in lines]
    return {row[1]: row[-1] for row in rows if len(row) >= 4 and row[0] != "Task"}


def _score(revision: str, path: str) -> float:
    import dvc.api  # takes a second, which the other commands need not spend

    return json.loads(dvc.api.read(path, repo=".", rev=revision))["miou"]


def _dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise UserError(f"`dvc {' '.join(arguments)}` failed: {reason[-1]}")
    return done.stdout
