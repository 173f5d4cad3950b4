"""What DVC's experiments changed and what came of it: coverage, precision, mIoU, time."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from rich.table import Table

from cag.config import RULES, dotted
from cag.errors import UserError
from cag.results import METRICS, PARAMS

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

WORKSPACE = "workspace"
LOCK, TIMES = "dvc.lock", "data/report/times.csv"
COVERAGE = "data/rounds/{}/coverage.csv"
PRECISION = "data/pseudo_label_evaluation/{}/metrics.json"
FINISHED = "finished"
_SHORT = {"coverage": "cover.", "precision": "precis.", "probability": "prob."}  # in a terminal
FIXED = ("experiment", "state")
TIME = ("seconds", "stages")


def sweep_table(all_commits: bool = False) -> pd.DataFrame:
    """Read the experiments and the workspace through DVC.

    A number that an experiment has only from an earlier run, because the stage or one before it did
    not run with its parameters, is left out.

    Args:
        all_commits: Also of earlier commits, not of the last one alone.

    Returns:
        A row for the workspace, then one for each experiment: experiment; state (finished, queued,
        running, failed); the parameters that differ between rows, by dotted names; for each round
        `round1.coverage.anchor` (share of the target training pixels) and `.probability`,
        `round1.precision.anchor` (on the labelled target validation images) and `.probability`;
        `round1.miou`, `pretrain.miou`, ...; seconds that its stages took, and which these were.
        NaN or None where something is not known.

    Raises:
        UserError: Not in the folder of a DVC repository, or it has no commit or cannot be read.
    """
    # DVC takes a second, which the other commands need not spend.
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            if not os.path.samefile(repo.root_dir, "."):  # DVC's paths are of the root
                raise UserError(f"run this in the project's folder, {repo.root_dir}")
            found = repo.experiments.show(all_commits=all_commits)
            found = [state.dumpd() for state in found]
            rows = [_row(name, state, data) for name, state, data in _experiments(found)]
    except DvcException as error:
        raise UserError(
            f"DVC cannot list the experiments: {' '.join(str(error).split())}"
        ) from None
    changed = _changed([row["params"] for row in rows])
    table = pd.DataFrame(
        [
            {
                **{key: row[key] for key in FIXED},
                **{key: row["params"].get(key) for key in changed},
                **row["results"],
                **{key: row[key] for key in TIME},
            }
            for row in rows
        ]
    )
    results = [key for key in table if key not in (*FIXED, *changed, *TIME)]
    return table[[*FIXED, *changed, *sorted(results, key=_order), *TIME]]


def changed_parameters(table: pd.DataFrame) -> list[str]:
    """The columns of `sweep_table` that are parameters."""
    fixed = len(FIXED)
    results = [i for i, key in enumerate(table) if _is_result(key)]
    end = results[0] if results else table.shape[1] - len(TIME)
    return list(table.columns[fixed:end])


def swept_parameter(table: pd.DataFrame, wanted: str | None = None) -> str:
    """The parameter to draw against: the given one, else the first threshold with two numbers.

    Raises:
        UserError: There is none, or the given one does not differ between experiments.
    """
    parameters = changed_parameters(table)
    numbers = [key for key in parameters if _numbers(table[key]).nunique() > 1]
    numbers.sort(key=lambda key: not key.startswith("pseudo_label."))  # stable
    if wanted is not None:
        if wanted not in numbers:
            known = ", ".join(numbers) or "none"
            raise UserError(f"{wanted} has not two values that are numbers; these have: {known}")
        return wanted
    if not numbers:
        raise UserError(
            "no parameter has two values that are numbers; a sweep makes them, e.g. "
            "`dvc exp run --queue -S 'pseudo_label.margin=1.5,2.0'`"
        )
    return numbers[0]


def swept_points(table: pd.DataFrame, parameter: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The experiments in groups that differ in this parameter alone, each sorted by it.

    Yields:
        The values of the other parameters as text, and the rows with numbers in `parameter`.
    """
    rows = table[table["state"] == FINISHED].copy()
    rows[parameter] = _numbers(rows[parameter])
    rows = rows.dropna(subset=[parameter])
    shown = rows[[key for key in changed_parameters(table) if key != parameter]].map(_text)
    others = [key for key in shown if shown[key].nunique() > 1]
    labels = [
        ", ".join(f"{key.split('.')[-1]} {value or 'null'}" for key, value in row.items())
        for row in shown[others].to_dict("records")
    ]
    for label, group in rows.groupby(pd.Series(labels, rows.index, dtype=str), sort=False):
        yield label, group.sort_values(parameter, kind="stable")


def terminal_table(table: pd.DataFrame) -> Table:
    """What fits a terminal: changed parameters, the last round's labels, every mIoU, time."""
    rounds = [key.split(".")[0] for key in table if ".coverage." in key]
    last = rounds[-1] if rounds else ""
    shown = [key for key in table if key.startswith((f"{last}.coverage", f"{last}.precision"))]
    scores = [key for key in table if key.endswith(".miou")]
    labels = f"coverage and precision: {last}'s pseudo-labels; " if last else ""
    result = Table(title=f"{labels}all in %")
    parameters = changed_parameters(table)
    result.add_column("experiment", no_wrap=True)
    result.add_column("state", no_wrap=True)
    for key in parameters:
        result.add_column(key.split(".")[-1].replace("_", " "), overflow="fold")
    for key in shown:
        _, what, rule = key.split(".")
        result.add_column(
            f"{_SHORT[what]}\n{_SHORT.get(rule, rule)}", justify="right", no_wrap=True
        )
    for key in scores:
        result.add_column(f"mIoU\n{key.removesuffix('.miou')}", justify="right", no_wrap=True)
    result.add_column("minutes", justify="right", no_wrap=True)
    result.add_column("stages\nrun", justify="right", no_wrap=True)
    for _, row in table.iterrows():
        stages = _text(row["stages"]).split()
        result.add_row(
            *(_text(row[key]) for key in (*FIXED, *parameters)),
            *("" if pd.isna(row[key]) else f"{100 * row[key]:.1f}" for key in (*shown, *scores)),
            "" if pd.isna(row["seconds"]) else f"{row['seconds'] / 60:.1f}",
            str(len(stages) or ""),
        )
    return result


def _experiments(found: list[dict]) -> Iterator[tuple[str, str, dict | None]]:
    """Name, state and data of the workspace and of each experiment."""
    if not found:
        raise UserError("no commit yet, from which experiments start: `git add .`, `git commit`")
    workspace, *commits = found
    yield WORKSPACE, FINISHED, workspace["data"]
    for commit in commits:
        for one in commit["experiments"] or []:
            state = (one["executor"] or {}).get("state", "success")
            newest = one["revs"][0]  # of the checkpoints that older versions of DVC made
            name = one["name"] or newest["rev"][:7]
            yield name, FINISHED if state == "success" else state, newest["data"]


def _row(name: str, state: str, data: dict | None) -> dict[str, Any]:
    params = ((data or {}).get("params") or {}).get(PARAMS, {}).get("data") or {}
    row = {"experiment": name, "state": state, "params": dict(dotted(params)), "results": {}}
    row |= {"seconds": None, "stages": None}
    if state == FINISHED and params:
        metrics = {key: value.get("data") for key, value in (data["metrics"] or {}).items()}
        results, times = _results(None if name == WORKSPACE else data["rev"], params, metrics)
        row["results"] = results
        if times is not None:
            row["seconds"] = float(times["seconds"].sum())
            row["stages"] = " ".join(times["stage"])
    return row


def _results(
    revision: str | None, params: Mapping[str, Any], metrics: Mapping[str, dict | None]
) -> tuple[dict[str, float], pd.DataFrame | None]:
    """Coverage, precision and mIoU by column, and which stages took how long."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(repo=".", rev=revision)
    lock = _read(files, LOCK)
    if lock is None:
        return {}, None
    fresh = fresh_stages(yaml.safe_load(lock), params)
    results = {}
    for name in params.get("rounds", {}):
        text = _read(files, COVERAGE.format(name)) if f"pseudo_label@{name}" in fresh else None
        if text is not None:
            coverage = pd.read_csv(io.StringIO(text), keep_default_na=False)
            for rule in RULES:
                share = coverage[rule].sum() / coverage["nearest"].sum()
                results[f"{name}.coverage.{rule}"] = float(share)
        scores = metrics.get(PRECISION.format(name))
        if f"evaluate_pseudo_labels@{name}" in fresh and scores:
            for rule in RULES:
                results[f"{name}.precision.{rule}"] = scores.get(rule, {}).get("precision")
    for model in params.get("evaluated", []):
        scores = metrics.get(METRICS.format(model))
        if f"evaluate@{model}" in fresh and scores:
            results[f"{model}.miou"] = scores["miou"]
    text = _read(files, TIMES) if "report" in fresh else None
    return results, None if text is None else stages_run(pd.read_csv(io.StringIO(text)))


def _read(files: DVCFileSystem, path: str) -> str | None:
    """A file's text; None where there is no such file, or DVC's cache has lost it."""
    try:
        return files.read_text(path, encoding="utf-8")
    except FileNotFoundError:
        return None


def fresh_stages(lock: Mapping[str, Any], params: Mapping[str, Any]) -> set[str]:
    """The stages of a dvc.lock that ran with these parameters and on what is there.

    An experiment that ran a part of the pipeline has the other results of an earlier run.
    """
    stages = lock.get("stages") or {}
    producer = {
        out["path"]: name for name, stage in stages.items() for out in stage.get("outs", [])
    }
    made = {out["path"]: out for stage in stages.values() for out in stage.get("outs", [])}
    known: dict[str, bool] = {}

    def is_fresh(name: str) -> bool:
        if name not in known:
            stage = stages[name]
            used = stage.get("params", {}).get(PARAMS, {})
            known[name] = all(params.get(key) == value for key, value in used.items()) and all(
                _same(dependency, made) and is_fresh(producer[out])
                for dependency in stage.get("deps", [])
                if (out := _output(dependency["path"], producer)) is not None
            )
        return known[name]

    return {name for name in stages if is_fresh(name)}


def _output(path: str, producer: Mapping[str, str]) -> str | None:
    """The output that a dependency is, or lies in."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in producer), None)


def _same(dependency: Mapping[str, Any], made: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a dependency is what the lock's other stages made; a part of a folder may differ."""
    out = made.get(dependency["path"])
    return out is None or out.get("md5") == dependency.get("md5")


def stages_run(times: pd.DataFrame) -> pd.DataFrame:
    """The rows of the stages that ran together with `index`, which always runs first.

    Args:
        times: Columns stage, started (ISO) and seconds.
    """
    started = pd.to_datetime(times["started"], format="ISO8601", utc=True)
    first = started[times["stage"] == "index"]
    return times[started >= first.iloc[0]] if len(first) else times


def _changed(params: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ, of the rows whose parameters are known."""
    known = [one for one in params if one]
    keys = dict.fromkeys(key for one in known for key in one)
    return [key for key in keys if len({json.dumps(one.get(key)) for one in known}) > 1]


def _is_result(key: str) -> bool:
    return key.endswith(".miou") or ".coverage." in key or ".precision." in key


def _order(key: str) -> int:
    return next(i for i, part in enumerate((".coverage.", ".precision.", ".miou")) if part in key)


def _numbers(values: pd.Series) -> pd.Series:
    """NaN where a value is no number."""
    numbers = values.map(
        lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    )
    return values.where(numbers).astype(float)


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and pd.isna(value))
    return "" if missing else f"{value:g}" if isinstance(value, float) else str(value)
