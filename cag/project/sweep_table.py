"""What DVC's experiments changed and what came of it: coverage, precision, mIoU, time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import yaml

from cag.config.base import RULES, dotted, validated
from cag.config.parameters import Parameters
from cag.project.repository import (
    COVERAGE,
    FINISHED,
    LOCK,
    METRICS,
    PARAMS,
    PRECISION,
    WORKSPACE,
    Experiment,
    read_experiments,
    reader,
)
from cag.runtime.errors import UserError
from cag.runtime.program import RECORDS, read_records

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
        `round1.miou`, `pretrain.miou`, ...; seconds that its stages took here, and which these
        were. NaN or None where something is not known.

    Raises:
        UserError: Not in the folder of a DVC repository, or it has no commit or cannot be read.
    """
    rows = [_row(experiment) for experiment in read_experiments(all_commits)]
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


def terminal_rows(table: pd.DataFrame) -> tuple[str, list[dict[str, str]]]:
    """What fits a terminal: changed parameters, the last round's labels, every mIoU, time.

    Returns:
        A title, and a row of text for each experiment, by the columns' heads.
    """
    rounds = [key.split(".")[0] for key in table if ".coverage." in key]
    last = rounds[-1] if rounds else ""
    shares = {}  # columns by their heads
    for key in table:
        if key.startswith((f"{last}.coverage", f"{last}.precision")):
            _, quantity, rule = key.split(".")
            shares[f"{_SHORT[quantity]}\n{_SHORT.get(rule, rule)}"] = key
    shares |= {f"mIoU\n{key.removesuffix('.miou')}": key for key in table if key.endswith(".miou")}
    parameters = changed_parameters(table)
    ends = [key.split(".")[-1] for key in parameters]
    settings = {key: key for key in FIXED}
    for end, key in zip(ends, parameters, strict=True):
        settings[(end if ends.count(end) == 1 else key).replace("_", " ")] = key
    rows = [
        {
            **{head: _text(row[key]) for head, key in settings.items()},
            **{
                head: "" if pd.isna(row[key]) else f"{100 * row[key]:.1f}"
                for head, key in shares.items()
            },
            "minutes": "" if pd.isna(row["seconds"]) else f"{row['seconds'] / 60:.1f}",
            "stages\nrun": str(len(_text(row["stages"]).split()) or ""),
        }
        for row in table.to_dict("records")
    ]
    labels = f"coverage and precision: {last}'s pseudo-labels; " if last else ""
    return f"{labels}all in %", rows


def _row(experiment: Experiment) -> dict[str, Any]:
    row = {"experiment": experiment.name, "state": experiment.state, "results": {}}
    row |= {"params": dict(dotted(_effective(experiment.params))), "seconds": None, "stages": None}
    if experiment.state == FINISHED and experiment.params:
        row["results"], fresh = _results(experiment)
        times = stages_run(_times(experiment, fresh))
        if len(times):
            row |= {"seconds": float(times["seconds"].sum()), "stages": " ".join(times["stage"])}
    return row


def _effective(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters with their defaults; those of another version of cag stay as they are."""
    try:
        return validated(Parameters, params, PARAMS).model_dump(mode="json")
    except UserError:
        return params


def _results(experiment: Experiment) -> tuple[dict[str, float], set[str]]:
    """Coverage, precision and mIoU by column, and the stages that ran with its parameters."""
    read, params, metrics = reader(experiment.revision), experiment.params, experiment.metrics
    lock = read(LOCK)
    if lock is None:
        return {}, set()
    fresh = fresh_stages(yaml.safe_load(lock), params)
    results = {}
    for name in params.get("rounds", {}):
        text = read(COVERAGE.format(name)) if f"pseudo_label@{name}" in fresh else None
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
    return results, fresh


def _times(experiment: Experiment, fresh: set[str]) -> pd.DataFrame:
    """When the fresh stages of an experiment, or of the workspace, ran here and how long."""
    folder = RECORDS if experiment.name == WORKSPACE else RECORDS / experiment.name
    records = [
        record
        for stage, record in (read_records(folder) if "index" in fresh else {}).items()
        # An experiment of another commit may have had the same name.
        if stage in fresh and experiment.commit in (None, record.get("commit"))
    ]
    return pd.DataFrame(records, columns=["stage", "started", "seconds"])


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
    """The stages that ran together with `index`, which always runs first, in their order.

    Args:
        times: Columns stage, started (ISO) and seconds.
    """
    started = pd.to_datetime(times["started"], format="ISO8601", utc=True)
    times = times.assign(started=started).sort_values("started", kind="stable")
    first = times.loc[times["stage"] == "index", "started"]
    return times[times["started"] >= first.iloc[0]] if len(first) else times


def _changed(params: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ, of the rows whose parameters are known."""
    known = [values for values in params if values]
    keys = dict.fromkeys(key for values in known for key in values)
    return [key for key in keys if len({json.dumps(values.get(key)) for values in known}) > 1]


def _is_result(key: str) -> bool:
    return key.endswith(".miou") or ".coverage." in key or ".precision." in key


def _order(key: str) -> int:
    return next(i for i, part in enumerate((".coverage.", ".precision.", ".miou")) if part in key)


def _numbers(values: pd.Series) -> pd.Series:
    """NaN where a value is no number."""
    return values.where(values.map(type).isin((int, float))).astype(float)


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and pd.isna(value))
    return "" if missing else f"{value:g}" if isinstance(value, float) else str(value)
