"""Scores of the last run, and of several seeds run through DVC's queue."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import yaml
from rich.table import Table

from cag.runtime.errors import UserError
from cag.runtime.files import data_root
from cag.runtime.progress import progress

EVALUATION = Path("data/evaluation")
SCRATCH = Path(".scratch/oracle")
METRICS = "data/evaluation/{}/metrics.json"
ORACLE_METRICS = "data/oracle/metrics.json"
PARAMS = "params.yaml"
ORACLE_NEEDS = (
    PARAMS,
    "classes",
    "data/prepared/source",
    "data/prepared/target",
    "data/models/pretrain.safetensors",
)
BASELINE, ORACLE = "pretrain", "oracle"
TITLE = "mIoU on the labelled target validation images, %"
FINISHED = {"Success", "Failed"}
POLL_SECONDS = 10


def workspace_scores() -> dict[str, float | None]:
    """The mIoU of each model of the last run, in [0, 1]; None where no pixel has a known label.

    Raises:
        UserError: There is no run.
    """
    paths = sorted(EVALUATION.glob("*/metrics.json"))
    if not paths:
        raise UserError(
            f"{EVALUATION}: no scores; `dvc repro` makes them where target validation images have "
            "labels and `evaluated` in params.yaml names models"
        )
    return {path.parent.name: json.loads(path.read_text())["miou"] for path in paths}


def workspace_table() -> Table:
    """The same as a table."""
    scores = {
        model: float("nan") if score is None else score
        for model, score in workspace_scores().items()
    }
    table = Table("model", title=TITLE)
    table.add_column("mIoU", justify="right")
    table.add_column("against source only", justify="right")
    for model, score in scores.items():
        difference = score - scores.get(BASELINE, float("nan"))
        change = "" if model == BASELINE else f"{100 * difference:+.1f}"
        name = "source only (pretrain)" if model == BASELINE else model
        table.add_row(name, f"{100 * score:.1f}", change)
    return table


def read_grid(path: Path) -> dict[str, list[str]]:
    """Read variants of the parameters: a YAML mapping of each one's name to a list of changes.

    A change is "key=value", or "~key" to leave a key out, as after `dvc exp run -S`.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected names of variants, each with a list of key=value")
    for name, entries in content.items():
        if not isinstance(entries, list) or not all(
            isinstance(entry, str) and ("=" in entry or entry.startswith("~")) for entry in entries
        ):
            raise UserError(f"{path}: {name}: found {entries!r}; expected a list of key=value")
    return {str(name): entries for name, entries in content.items()}


def run_experiments(
    variants: Mapping[str, Sequence[str]], seeds: Sequence[int], jobs: int, oracle: bool = False
) -> pd.DataFrame:
    """Run the pipeline once per variant and seed, each in a temporary copy, and read the scores.

    Args:
        variants: Name -> what differs from params.yaml: "key=value" or "~key".
        seeds: Values of `seed`.
        jobs: Experiments at a time.
        oracle: Also run the oracle.

    Returns:
        Columns variant and seed, then the mIoU in [0, 1] of each evaluated model and of the oracle.

    Raises:
        UserError: An experiment fails; its log is named.
    """
    # The first variant comes first, so that the others find its stages in DVC's run cache.
    runs = {
        _experiment(seed, overrides): (variant, seed, overrides)
        for variant, overrides in variants.items()
        for seed in seeds
    }
    for name, (_, seed, overrides) in runs.items():
        settings = [f"-Sseed={seed}", *(f"-S{entry}" for entry in overrides)]
        _dvc("exp", "run", "--queue", "--name", name, *settings)
    _work(list(runs), jobs)
    rows = [
        {"variant": variant, "seed": seed, **_scores(name)}
        for name, (variant, seed, _) in runs.items()
    ]
    if oracle:
        for row, score in zip(rows, _oracles(list(runs), jobs), strict=True):
            row[ORACLE] = score
    columns = dict.fromkeys([*max(rows, key=len), *(model for row in rows for model in row)])
    return pd.DataFrame(rows, columns=list(columns))


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
    """Mean, standard deviation and each seed's mIoU in %, and what that is beside the oracle's.

    "gap closed" is the mean gain over source only as a share of the oracle's, "of the oracle" the
    mean mIoU as a share of the oracle's.

    Args:
        scores: From `run_experiments`, of one variant.
    """
    table = Table("model", title=TITLE)
    seeds = [f"seed {seed}" for seed in scores["seed"]]
    for column in ["mean", "sd", *seeds, "gained", "gap closed", "of the oracle"]:
        table.add_column(column, justify="right")
    for model in scores.columns[2:]:
        values = 100 * scores[model]
        gained = values - 100 * scores[BASELINE] if BASELINE in scores else values * float("nan")
        closed = share = ""
        if ORACLE in scores and model != ORACLE:
            share = f"{100 * scores[model].mean() / scores[ORACLE].mean():.0f} %"
        if ORACLE in scores and BASELINE in scores and model not in (BASELINE, ORACLE):
            gap = 100 * (scores[ORACLE] - scores[BASELINE]).mean()
            closed = f"{100 * gained.mean() / gap:.0f} %" if gap > 0 else "no gap"
        table.add_row(
            "source only" if model == BASELINE else model,
            f"{values.mean():.1f}",
            f"{values.std():.1f}" if len(values) > 1 else "",
            *(f"{value:.1f}" for value in values),
            "" if model == BASELINE else f"{gained.mean():+.1f}",
            closed,
            share,
        )
    return table


def grid_table(scores: pd.DataFrame) -> Table:
    """Mean ± standard deviation over the seeds of each variant's models, mIoU in %.

    "gained" is the mean gain of a variant's last model over source only.

    Args:
        scores: From `run_experiments`; NaN where a variant did not evaluate a model.
    """
    table = Table("variant", title=TITLE)
    models = list(scores.columns[2:])
    for column in [*models, "gained"]:
        table.add_column(column, justify="right", no_wrap=True)
    for variant, rows in scores.groupby("variant", sort=False):
        values = 100 * rows[models]
        cells = [
            "" if pd.isna(mean) else f"{mean:.1f}" if pd.isna(sd) else f"{mean:.1f} ± {sd:.1f}"
            for mean, sd in zip(values.mean(), values.std(), strict=True)
        ]
        last = values.columns[values.notna().all()][-1]
        gained = f"{(values[last] - values[BASELINE]).mean():+.1f}" if BASELINE in models else ""
        table.add_row(str(variant), *cells, gained)
    return table


def _experiment(seed: int, overrides: Sequence[str]) -> str:
    text = json.dumps([sorted(overrides), time.time()])
    return f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _work(names: list[str], jobs: int) -> None:
    """Have DVC's workers run the queued experiments, until none is left."""
    finished: dict[str, str] = {}
    with progress("experiments", len(names), "experiments") as advance:
        while len(finished) < len(names):
            states, workers = _queue()
            if workers < min(jobs, sum(state not in FINISHED for state in states.values())):
                _start_workers(jobs)
            time.sleep(POLL_SECONDS)
            for name in names:
                if name not in finished and states.get(name) in FINISHED:
                    finished[name] = states[name]
                    advance()
    failed = [name for name, state in finished.items() if state == "Failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} experiments failed; `dvc queue logs {failed[0]}` shows "
            "why; what the others did comes from DVC's cache when this is run again"
        )


def _start_workers(jobs: int) -> None:
    """Start as many workers as are missing; one of several may end before the queue is empty."""
    # The workers keep their parent's streams open: to capture them would wait for the last one.
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    if subprocess.run(command, env=_environment(jobs), **silent, check=False).returncode:
        raise UserError("`dvc queue start` failed; run it to see why")


def _queue() -> tuple[dict[str, str], int]:
    """The state of each experiment in DVC's queue by name, and the number of workers."""
    said = _dvc("queue", "status")
    rows = [line.split() for line in said.splitlines()]
    states = {row[1]: row[-1] for row in rows if len(row) >= 4 and row[0] not in ("Task", "Worker")}
    found = re.search(r"(\d+) active, (\d+) idle", said)
    return states, sum(map(int, found.groups())) if found else 0


def _scores(revision: str) -> dict[str, float]:
    """The mIoU of each model that an experiment evaluated."""
    import dvc.api  # takes a second, which the other commands need not spend

    models = yaml.safe_load(dvc.api.read(PARAMS, repo=".", rev=revision))["evaluated"]
    metrics = {m: dvc.api.read(METRICS.format(m), repo=".", rev=revision) for m in models}
    return {model: json.loads(text)["miou"] for model, text in metrics.items()}


def _dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise UserError(f"`dvc {' '.join(arguments)}` failed: {reason[-1]}")
    return done.stdout
