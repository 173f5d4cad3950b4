"""Commands after and around runs: states, scores, seeds."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cag.commands.terminal import PATH, json_option, print_json, print_rows
from cag.runtime.errors import UserError

if TYPE_CHECKING:
    from cag.project.status import StageStatus

RESULTS = Path("data/results")
JOBS = click.IntRange(1, 1000)
WITH_ORACLE = "Also train with true target labels (not in a grid)."
REPAIR = "First mend what a killed DVC left: half a dvc.lock, a lock that nobody holds."
COLOURS = {"fresh": "green", "stale": "yellow", "missing": "red"}
SUMMARY = """\
pseudo-labels data/rounds/<round>/pseudo_labels/
panels        data/evaluation/<model>/panels.png
plots, report data/report/index.html"""


@click.command(short_help="Which stages are fresh, stale or missing; their times.")
@click.option("--times", is_flag=True, help="All that is recorded of the last runs, in order.")
@click.option("--repair", is_flag=True, help=REPAIR)
@json_option
def status(times: bool, repair: bool, as_json: bool) -> None:
    """Say of each stage whether it is fresh, stale or missing, when it ran, and what it takes.

    Stale: something that it reads has changed, so `dvc repro` will run it, or fetch its outputs
    from DVC's cache. Changed raw files and weights are not seen here, but by `dvc repro`. `ran`,
    `took` and `images/s` are of its last run in this folder; an output from a cache did not run.
    --json prints everything, also what --times adds.

    \b
    Examples:
      cag status
      cag status --times
      cag status --repair
      cag status --json | jq -r '.[] | select(.state != "fresh").stage'
    """
    from cag.project.repository import repaired
    from cag.project.status import FRESH, pipeline_status

    if repair:
        print(*(repaired() or ["nothing to repair"]), sep="\n", file=sys.stderr)
    statuses = pipeline_status()
    if as_json:
        print_json([stage.plain() for stage in statuses])
    elif times:
        _print_times(statuses)
    else:
        rows = []
        for stage in statuses:
            size = f"{stage.bytes / 1e6:.1f} MB" if stage.bytes else ""
            row = {"stage": stage.stage, "state": stage.state, **_times(stage)}
            rows.append({**row, "size": size, "why": stage.why})
        print_rows(rows, styles=COLOURS)
        behind = sum(stage.state != FRESH for stage in statuses)
        size = sum(stage.bytes for stage in statuses) / 1e9
        rest = f"{behind} not fresh: `dvc repro` sees to them" if behind else "all fresh"
        print(f"{len(statuses)} stages, {size:.2f} GB, {rest}")


def _times(stage: StageStatus) -> dict[str, str]:
    started, seconds = stage.record.get("started", ""), stage.record.get("seconds")
    rate = stage.record.get("images_per_second")
    took = "" if seconds is None else f"{seconds:.1f} s"
    rate = "" if rate is None else f"{rate:.1f}"
    return {"ran": started[:16].replace("T", " "), "took": took, "images/s": rate}


def _print_times(statuses: list[StageStatus]) -> None:
    ran, rows = [stage for stage in statuses if stage.record], []
    if not ran:
        raise UserError("no stage has run in this folder; `dvc repro` runs them")
    ran.sort(key=lambda stage: datetime.fromisoformat(stage.record["started"]))
    for stage in ran:
        record, share = stage.record, stage.record["waiting_share"]
        counts = {"images": record["images"], "waiting": "" if share is None else f"{share:.0%}"}
        machine = {key: record[key] for key in ("processes", "device")}
        rows.append({"stage": stage.stage, **_times(stage), **counts, **machine})
    print_rows(rows)
    versions = {" ".join(pair) for stage in ran for pair in stage.record["versions"].items()}
    seconds = sum(stage.record["seconds"] for stage in ran)
    print(f"{len(ran)} stages, {seconds:.0f} s; {', '.join(sorted(versions))}")


@click.command(short_help="The scores of the last run.")
@json_option
def summary(as_json: bool) -> None:
    """Print the scores of the last `dvc repro`, and where to look; as JSON mIoU from 0 to 1.

    \b
    Example:
      cag summary
    """
    from cag.project.experiments import TITLE, UNKNOWN, workspace_rows, workspace_scores

    if as_json:
        print_json(workspace_scores())
    else:
        print_rows(workspace_rows(), TITLE)
        if None in workspace_scores().values():
            print(UNKNOWN)
        print(SUMMARY)


@click.command(short_help="Several seeds, the oracle, grids of variants.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, with commas.")
@click.option("--set", "-S", "overrides", multiple=True, help="As `dvc exp run -S key=value`.")
@click.option("--grid", type=PATH, help="YAML file of variants to compare.")
@click.option("--jobs", type=JOBS, default=1, show_default=True, help="Experiments at a time.")
@click.option("--oracle/--no-oracle", default=True, help=WITH_ORACLE)
@click.option("--out", type=PATH, help="Write the scores as CSV too.")
def results(
    seeds: str,
    overrides: tuple[str, ...],
    grid: Path | None,
    jobs: int,
    oracle: bool,
    out: Path | None,
) -> None:
    """Run params.yaml with several seeds through DVC's queue and print the spread of the scores.

    With --grid, each variant of a file runs with each seed: its name, then a list of key=value.
    Without --grid, data/results/ shows the scores as a page, a picture and a table.

    \b
    Examples:
      cag results
      cag results --seeds 0,1,2,3,4 -S network.encoder_weights=null --jobs 2
      cag results --grid benchmarks/ablations.yaml --jobs 2 --out ablations.csv
    """
    from cag.config.base import load_params
    from cag.config.parameters import load_all
    from cag.project.experiments import (
        TITLE,
        UNKNOWN,
        grid_rows,
        read_grid,
        run_experiments,
        seed_rows,
    )
    from cag.project.oracle import OracleParams, require_labels
    from cag.report.seeds import write_seeds
    from cag.runtime.files import write_csv

    valid = re.fullmatch(r"\d{1,9}(,\d{1,9})*", seeds)
    numbers = list(map(int, seeds.split(","))) if valid else []
    if not valid or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds is '{seeds}'; expected different numbers with commas: 0,1,2")
    load_all()  # errors in params.yaml come before anything runs
    variants = {"": []} if grid is None else read_grid(grid)
    variants = {name: [*overrides, *entries] for name, entries in variants.items()}
    oracle = oracle and grid is None
    changed_keys = [re.split("[.=]", entry.lstrip("+~"))[0] for entry in overrides]
    if oracle and not {"target", "oracle"} & set(changed_keys):
        require_labels(load_params(OracleParams))
    scores = run_experiments(variants, numbers, jobs, oracle)
    if out is not None:
        write_csv(out, scores)
    print_rows(seed_rows(scores) if grid is None else grid_rows(scores), TITLE)
    if scores.isna().all().any():
        print(UNKNOWN)
    if grid is None:
        changed = {"changed parameters": ", ".join(overrides)} if overrides else {}
        write_seeds(scores.drop(columns="variant"), changed, RESULTS)
        print(f"page: {RESULTS}/index.html")
