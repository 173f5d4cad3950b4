"""Commands after and around runs: scores, seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cag.commands.terminal import print_table
from cag.config.parameters import load_all
from cag.runtime.errors import UserError

RESULTS = Path("data/results")


@click.command(short_help="Which stages are fresh, stale or missing.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one object a stage, in a list.")
def status(as_json: bool) -> None:
    """Say of each stage whether it is fresh, stale or missing, when it ran, and what it takes.

    Stale: `dvc repro` will run it, or fetch its outputs from DVC's cache, as something that it
    reads has changed. `ran`, `took` and `images/s` are those of its last run in this folder.

    \b
    Examples:
      cag status
      cag status --json | jq -r '.[] | select(.state != "fresh").stage'
    """
    from cag.project.status import FRESH, pipeline_status, status_table

    statuses = pipeline_status()
    if as_json:
        print(json.dumps([asdict(one) for one in statuses], indent=2))
        return
    print_table(status_table(statuses))
    behind = sum(one.state != FRESH for one in statuses)
    size = sum(one.bytes for one in statuses) / 1e9
    rest = f"{behind} not fresh: `dvc repro` sees to them" if behind else "all fresh"
    print(f"{len(statuses)} stages, {size:.2f} GB, {rest}")


@click.command(short_help="The scores of the last run.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: model -> mIoU, 0 to 1.")
def summary(as_json: bool) -> None:
    """Print the scores of the last `dvc repro`, and where to look.

    \b
    Example:
      cag summary
    """
    from cag.project.experiments import workspace_scores, workspace_table

    if as_json:
        print(json.dumps(workspace_scores(), indent=2))
        return
    print_table(workspace_table())
    for what, where in (
        ("pseudo-labels", "data/rounds/<round>/pseudo_labels/"),
        ("panels", "data/evaluation/<model>/panels.png"),
        ("plots, report", "data/report/index.html"),
    ):
        print(f"{what:<14}{where}")


@click.command(short_help="Several seeds, the oracle, grids of variants.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, with commas.")
@click.option("--set", "-S", "overrides", multiple=True, help="As `dvc exp run -S key=value`.")
@click.option("--grid", type=click.Path(path_type=Path), help="YAML file of variants to compare.")
@click.option("--jobs", default=1, show_default=True, help="Experiments at the same time.")
@click.option(
    "--oracle/--no-oracle", default=True, help="Also train with true target labels (not in a grid)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the scores as CSV too.")
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
    from cag.project.experiments import grid_table, read_grid, results_table, run_experiments
    from cag.report.seeds import write_seeds

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds is '{seeds}'; expected numbers with commas: 0,1,2") from None
    load_all()  # what is wrong with params.yaml is said before anything runs
    variants = {"": []} if grid is None else read_grid(grid)
    variants = {name: [*overrides, *entries] for name, entries in variants.items()}
    scores = run_experiments(variants, numbers, jobs, oracle and grid is None)
    if out is not None:
        from cag.runtime.files import write_csv

        write_csv(out, scores)
    print_table(results_table(scores) if grid is None else grid_table(scores))
    if grid is None:
        changed = {"changed parameters": ", ".join(overrides)} if overrides else {}
        write_seeds(scores.drop(columns="variant"), changed, RESULTS)
        print(f"page: {RESULTS}/index.html")
