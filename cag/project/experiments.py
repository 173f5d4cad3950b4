"""Scores of the last run, and of several seeds run through DVC's queue."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, Field

from cag.project.repository import (
    METRICS,
    PARAMS,
    command,
    fetch,
    queue,
    reader,
    require_experiments,
    start_workers,
)
from cag.runtime.errors import UserError, shortened
from cag.runtime.files import data_root, fingerprint
from cag.runtime.numbers import percent
from cag.runtime.progress import progress
from cag.runtime.validation import parse_yaml, read_yaml, readable

SCRATCH = Path(".scratch/oracle")
EVALUATED = "data/evaluation/models.csv"
ORACLE_METRICS = "data/oracle/metrics.json"
MODEL = "data/models/pretrain.safetensors"
ORACLE_NEEDS = (PARAMS, "classes", "data/prepared/source", "data/prepared/target", MODEL)
BASELINE, ORACLE = "pretrain", "oracle"
TITLE = "mIoU on the labelled target validation images, %"
UNKNOWN = (
    "none: no pixel of the validation labels has a class; `cag data check target` looks at them"
)
FINISHED = {"Success", "Failed"}
POLL_SECONDS = 10


def workspace_scores() -> dict[str, float | None]:
    """The last run's mIoU by model in [0, 1], None without known labels; UserError: no run.

    Of the models that `index` listed: scores of an earlier run's other models may lie beside them.
    """
    names = []
    if Path(EVALUATED).exists():
        with readable(EVALUATED, "a list of models", "run `dvc repro`", "run `dvc repro`"):
            names = pd.read_csv(EVALUATED, dtype=str)["model"].tolist()
    paths = [path for name in names if (path := Path(METRICS.format(name))).exists()]
    if not paths:
        raise UserError(
            f"{METRICS.format('<model>')}: no scores; `dvc repro` makes them where target "
            "validation images have labels and `evaluated` in params.yaml names models"
        )
    return {path.parent.name: read_miou(path) for path in paths}


class _Scores(BaseModel):
    """What is read of a file of scores."""

    miou: Annotated[float, Field(ge=0, le=1)] | None


def read_miou(path: Path, text: str | None = None) -> float | None:
    """The mIoU of a file of scores, or of its text; a UserError if it holds no such number."""
    remedy = "delete it, then run `dvc repro`"
    with readable(path, "a file of scores", "run `dvc repro`", remedy):
        text = path.read_text(encoding="utf-8") if text is None else text
        return _Scores.model_validate_json(text).miou


def workspace_rows() -> list[dict[str, str]]:
    """The same as text in %, with the change against source only."""
    scores = pd.Series(workspace_scores(), dtype=float)
    gained = (scores - scores.get(BASELINE, float("nan"))).map(_gain)
    table = pd.DataFrame({"mIoU": scores.map(percent), "against source only": gained})
    table.loc[table.index == BASELINE, "against source only"] = ""
    table = table.rename({BASELINE: "source only (pretrain)"}).reset_index(names="model")
    return table.to_dict("records")


def read_grid(path: Path) -> dict[str, list[str]]:
    """Read the variants of a YAML file: lists of changes by name; UserError for anything else.

    A change is "key=value", or "~key" to leave a key out, as after `dvc exp run -S`.
    """
    expected = "expected names of variants, each with a list of key=value"
    content = read_yaml(path, expected, expected)
    if not content:
        raise UserError(f"{path}: {expected}")
    for name, entries in content.items():
        if not isinstance(entries, list) or not all(
            isinstance(entry, str) and ("=" in entry or entry.startswith("~")) for entry in entries
        ):
            found = shortened(f"{name}: found {entries!r}", 300)
            raise UserError(f"{path}: {found}; expected a list of key=value")
    variants = {str(name): entries for name, entries in content.items()}
    if len(variants) < len(content):
        raise UserError(f"{path}: two variants have one name, but for quotes; rename one")
    return variants


def run_experiments(
    variants: Mapping[str, Sequence[str]], seeds: Sequence[int], jobs: int, oracle: bool = False
) -> pd.DataFrame:
    """Run the pipeline and, if wanted, the oracle once per variant (see `read_grid`) and seed.

    Each runs in a temporary copy, `jobs` at a time. The columns are variant, seed, then the mIoU in
    [0, 1] of each evaluated model and of the oracle. A UserError names a failed experiment's log,
    or says before any starts that DVC cannot run experiments here.
    """
    require_experiments()
    runs = {}
    # The first variant comes first, so that the others find its stages in DVC's run cache.
    for (variant, overrides), seed in product(variants.items(), seeds):
        name = f"seed{seed}-{fingerprint(overrides=sorted(overrides), time=time.time())[:6]}"
        settings = [f"-S{entry}" for entry in (f"seed={seed}", *overrides)]
        command("exp", "run", "--queue", "--name", name, *settings)
        runs[name] = {"variant": variant, "seed": seed}
    _work(list(runs), jobs)
    rows = [run | _scores(name) for name, run in runs.items()]
    if oracle:
        for row, score in zip(rows, _oracles(list(runs), jobs), strict=True):
            row[ORACLE] = score
    columns = dict.fromkeys([*max(rows, key=len), *(model for row in rows for model in row)])
    return pd.DataFrame(rows, columns=list(columns))


def _oracles(revisions: list[str], jobs: int) -> list[float]:
    if jobs == 1:
        return [run_oracle(revision) for revision in revisions]
    futures, bar = [], progress("oracles", len(revisions), "oracles")
    with ThreadPoolExecutor(jobs) as pool, bar as advance:
        for revision in revisions:
            _collect(revision)  # one at a time: DVC locks the repository
            futures.append(pool.submit(run_oracle, revision, jobs))
        for future in as_completed(futures):
            future.result()
            advance()
    return [future.result() for future in futures]


def run_oracle(revision: str, jobs: int = 1) -> float:
    """Train with true target labels from an experiment's source-only model; the mIoU in [0, 1].

    `stages.oracle` runs in a scratch folder with what it needs of the experiment. It is no stage of
    the pipeline, so that `dvc repro` never opens the label of a target training image. With several
    `jobs` at a time, each writes a log beside its scratch folder. UserError: it fails.
    """
    _collect(revision)
    folder, log = SCRATCH / revision, SCRATCH / f"{revision}.log"
    roots = {"CAG_DATA": str(data_root()), "PYTHONPATH": str(Path.cwd())}
    program, variables = [sys.executable, "-m", "stages.oracle"], {**environment(jobs), **roots}
    with nullcontext() if jobs == 1 else open(log, "w", encoding="utf-8") as file:
        streams = {"stdout": file, "stderr": file and subprocess.STDOUT}
        done = subprocess.run(program, cwd=folder, env=variables, **streams, check=False)
    if done.returncode:
        where = "see above" if jobs == 1 else f"{log} shows why"
        raise UserError(f"the oracle of experiment {revision} failed; {where}")
    score = read_miou(folder / ORACLE_METRICS)
    shutil.rmtree(folder)
    log.unlink(missing_ok=True)
    return score


def _collect(revision: str) -> None:
    """Copy the files of an experiment that the oracle needs to its scratch folder."""
    for path in ORACLE_NEEDS:
        goal = SCRATCH / revision / path
        if not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            fetch(revision, path, goal)


def environment(jobs: int) -> dict[str, str]:
    """The environment of a program beside `jobs` - 1 others, each with its share of the threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


def seed_rows(scores: pd.DataFrame) -> list[dict[str, str]]:
    """Mean, standard deviation and each seed's mIoU in %, of one variant of `run_experiments`.

    "gap closed" is the share of the oracle's gain over source only, "of the oracle" of its mIoU.
    """
    models = scores[scores.columns[2:]].astype(float)
    gained = models.sub(models.get(BASELINE, float("nan")), axis=0).mean()  # of each model
    rows = []
    for model, values in models.items():
        closed = share = ""
        if ORACLE in models and model != ORACLE:
            share = f"{percent(values.mean() / models[ORACLE].mean(), '.0f')} %"
            if BASELINE in models and model != BASELINE:
                gap = gained[ORACLE]
                closed = f"{percent(gained[model] / gap, '.0f')} %" if gap > 0 else "no gap"
        name = "source only" if model == BASELINE else model
        row = {"model": name, "mean": percent(values.mean())}
        row["sd"] = percent(values.std()) if len(values) > 1 else ""
        row |= {f"seed {scores['seed'][i]}": percent(score) for i, score in values.items()}
        row["gained"] = "" if model == BASELINE else _gain(gained[model])
        rows.append({**row, "gap closed": closed, "of the oracle": share})
    return rows


def grid_rows(scores: pd.DataFrame) -> list[dict[str, str]]:
    """Mean ± standard deviation over the seeds of the mIoU in %, for `run_experiments`' variants.

    NaN: a variant lacks a model. "gained" is its last model's mean gain over source only.
    """
    rows, models = [], 100 * scores[scores.columns[2:]].astype(float)
    for variant, values in models.groupby(scores["variant"], sort=False):
        known, gained = values.columns[values.notna().all()], ""
        if BASELINE in known:
            gained = _gain((values[known[-1]] - values[BASELINE]).mean() / 100)
        spreads = {model: spread(values[model]) for model in values}
        rows.append({"variant": str(variant), **spreads, "gained": gained})
    return rows


def _gain(share: float) -> str:
    return "" if pd.isna(share) else percent(share, "+.1f")


def spread(values: pd.Series) -> str:
    """Mean ± standard deviation; the mean alone of one value, "" of none."""
    mean, deviation = values.mean(), values.std()
    if pd.isna(mean):
        return ""
    return f"{mean:.1f}" if pd.isna(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def _work(names: list[str], jobs: int) -> None:
    """Have DVC's workers run the queued experiments, until none is left."""
    finished: dict[str, str] = {}
    with progress("experiments", len(names), "experiments") as advance:
        while len(finished) < len(names):
            states, workers = queue()
            if workers < min(jobs, sum(state not in FINISHED for state in states.values())):
                start_workers(jobs, environment(jobs))
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


def _scores(revision: str) -> dict[str, float]:
    read = reader(revision)
    models = parse_yaml(read(PARAMS))["evaluated"]
    texts = {model: read(METRICS.format(model)) for model in models}
    if None in texts.values():
        raise UserError(f"experiment {revision}: DVC's cache has lost its scores; run it again")
    return {model: read_miou(Path(METRICS.format(model)), text) for model, text in texts.items()}
