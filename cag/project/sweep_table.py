"""Changes and results of DVC's experiments: coverage, precision, mIoU, time."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from cag.config.base import RULES, dotted, validated
from cag.config.parameters import Parameters
from cag.project import repository
from cag.project.repository import FINISHED, METRICS, PARAMS, WORKSPACE, Experiment
from cag.project.status import STALE
from cag.runtime.errors import UserError
from cag.runtime.program import RECORDS, read_records
from cag.runtime.validation import parse_yaml, readable

LOCK, COVERAGE = "dvc.lock", "data/rounds/{}/coverage.csv"
PRECISION = "data/pseudo_label_evaluation/{}/metrics.json"
REPRO = "run `dvc repro`"
FIXED, TIME = ("experiment", "state"), ("seconds", "stages")
_RESULTS = (".coverage.", ".precision.", ".miou")  # parts of columns, in their order
_SHORT = {"coverage": "cover.", "precision": "precis.", "probability": "prob."}  # in a terminal


def sweep_table(all_commits: bool = False) -> pd.DataFrame:
    """A row for the workspace, then one for each experiment of the last commit, or of all.

    Columns: experiment; state (finished, queued, running, failed, and stale of a workspace whose
    results are none of its parameters' or not there yet); the parameters that differ, by
    dotted names; for each round `round1.coverage.anchor` (share of the target training pixels) and
    `.probability`, `round1.precision.anchor` (on the labelled target validation images) and
    `.probability`; `round1.miou`, `pretrain.miou`, ...; seconds that its stages took here, and
    their names. What is not known is NaN or None. So is a number whose stage, or one before it, did
    not run with the row's parameters: it is of an earlier run. Errors as of `read_experiments`.
    """
    rows = [_row(experiment) for experiment in repository.read_experiments(all_commits)]
    changed = _changed([row["params"] for row in rows])
    results = dict.fromkeys(key for row in rows for key in row["results"])
    columns = [*FIXED, *changed, *sorted(results, key=_order), *TIME]
    return pd.DataFrame([row["params"] | row["results"] | row for row in rows], columns=columns)


def changed_parameters(table: pd.DataFrame) -> list[str]:
    """The columns of `sweep_table` that are parameters."""
    others = (*FIXED, *TIME)
    return [key for key in table if key not in others and _order(key) == len(_RESULTS)]


def swept_parameter(table: pd.DataFrame, wanted: str | None = None) -> str:
    """The parameter to draw against: the wanted one, else the first threshold with two numbers.

    UserError: there is none, or the wanted one has not two.
    """
    numbers = [key for key in changed_parameters(table) if _numbers(table[key]).nunique() > 1]
    numbers.sort(key=lambda key: not key.startswith("pseudo_label."))  # stable
    if wanted is not None and wanted not in numbers:
        known = ", ".join(numbers) or "none"
        raise UserError(f"{wanted} has not two values that are numbers; these have: {known}")
    if not numbers:
        hint = "a sweep makes them, e.g. `dvc exp run --queue -S '++pseudo_label.margin=1.5,2.0'`"
        raise UserError(f"no parameter has two values that are numbers; {hint}")
    return wanted or numbers[0]


def swept_points(table: pd.DataFrame, parameter: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Groups of experiments that differ in this parameter alone, each sorted by it.

    Yields the values of the other parameters as text, and the rows with numbers in `parameter`.
    """
    rows = table[table["state"] == FINISHED].copy()
    rows[parameter] = _numbers(rows[parameter])
    rows = rows.dropna(subset=[parameter])
    shown = rows[[key for key in changed_parameters(table) if key != parameter]].map(_text)
    others = shown.loc[:, shown.nunique() > 1].to_dict("records")
    labels = [
        ", ".join(f"{key.split('.')[-1]} {value or 'null'}" for key, value in row.items())
        for row in others
    ]
    for label, group in rows.groupby(pd.Series(labels, rows.index, dtype=str), sort=False):
        yield label, group.sort_values(parameter, kind="stable")


def terminal_rows(table: pd.DataFrame) -> tuple[str, list[dict[str, str]]]:
    """A title and rows of text, by heads, that fit a terminal: only the last round's labels."""
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
    cells = {head: table[key].map(_text) for head, key in settings.items()}
    cells |= {head: _rounded(100 * table[key].astype(float)) for head, key in shares.items()}
    cells["minutes"] = _rounded(table["seconds"].astype(float) / 60)
    cells["stages\nrun"] = table["stages"].map(lambda names: str(len(_text(names).split()) or ""))
    labels = f"coverage and precision: {last}'s pseudo-labels; " if last else ""
    return f"{labels}all in %", pd.DataFrame(cells).to_dict("records")


def _row(experiment: Experiment) -> dict[str, Any]:
    params, results, times = experiment.params, {}, pd.DataFrame()
    if experiment.state == FINISHED and params:
        results, fresh = _results(experiment)
        times = stages_run(_times(experiment, fresh))
    with suppress(UserError):  # parameters of another version of cag have no defaults
        params = validated(Parameters, params, PARAMS).model_dump(mode="json")
    seconds = float(times["seconds"].sum()) if len(times) else None
    stages = " ".join(times["stage"]) if len(times) else None
    stale = experiment.name == WORKSPACE and not results
    state = STALE if stale else experiment.state
    row = {"experiment": experiment.name, "state": state, "params": dict(dotted(params))}
    return row | {"results": results, "seconds": seconds, "stages": stages}


def _results(experiment: Experiment) -> tuple[dict[str, float], set[str]]:
    """Coverage, precision and mIoU by column, and the stages that ran with its parameters."""
    read = repository.reader(experiment.revision)
    params, metrics = experiment.params, experiment.metrics
    lock = read(LOCK)
    if lock is None:
        return {}, set()
    fresh = fresh_stages(parse_yaml(lock), params)
    results = {}
    for name in params.get("rounds", {}):
        text = read(COVERAGE.format(name)) if f"pseudo_label@{name}" in fresh else None
        if text is not None:
            with readable(COVERAGE.format(name), "a table of pixels", REPRO, f"delete it; {REPRO}"):
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
            results[f"{model}.miou"] = scores.get("miou")  # DVC leaves out what is not known
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
    """The stages of a dvc.lock that ran with these parameters and on the outputs listed there."""
    stages = lock.get("stages") or {}
    made = {out["path"]: (name, out) for name in stages for out in stages[name].get("outs", [])}

    @cache
    def is_fresh(name: str) -> bool:
        used = stages[name].get("params", {}).get(PARAMS, {})
        same = all(_at(params, key) == value for key, value in used.items())
        return same and all(map(is_current, stages[name].get("deps", [])))

    def is_current(dependency: Mapping[str, Any]) -> bool:
        path = PurePosixPath(dependency["path"])
        place = next((place for place in (path, *path.parents) if str(place) in made), None)
        if place is None:
            return True
        name, out = made[str(place)]
        # What lies in an output has a hash of its own.
        return (place != path or out.get("md5") == dependency.get("md5")) and is_fresh(name)

    return set(filter(is_fresh, stages))


def _at(params: Any, key: str) -> Any:
    """The value or the section of a dotted key; None if it is missing."""
    for part in key.split("."):
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


def stages_run(times: pd.DataFrame) -> pd.DataFrame:
    """The stages (columns stage, started in ISO form, seconds) since `index`, which runs first."""
    started = pd.to_datetime(times["started"], format="ISO8601", utc=True)
    times = times.assign(started=started).sort_values("started", kind="stable")
    first = times.loc[times["stage"] == "index", "started"]
    return times[times["started"] >= first.iloc[0]] if len(first) else times


def _changed(params: list[dict[str, Any]]) -> list[str]:
    known = [values for values in params if values]
    keys = dict.fromkeys(key for values in known for key in values)
    return [key for key in keys if len({json.dumps(values.get(key)) for values in known}) > 1]


def _order(key: str) -> int:
    return next((i for i, part in enumerate(_RESULTS) if part in key), len(_RESULTS))


def _numbers(values: pd.Series) -> pd.Series:
    return values.where(values.map(type).isin((int, float))).astype(float)


def _rounded(values: pd.Series) -> pd.Series:
    return values.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
