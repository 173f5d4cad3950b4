"""Commands after and around runs: scores, seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from cag.config import load_all
from cag.errors import UserError


@click.command()
def summary() -> None:
    """Print the scores of the last `dvc repro`, and where to look."""
    from cag.results import workspace_table

    Console().print(workspace_table())
    for what, where in (
        ("pseudo-labels", "data/rounds/<round>/pseudo_labels/"),
        ("panels", "data/evaluation/<model>/panels.png"),
        ("plots, report", "data/report/index.html"),
    ):
        print(f"{what:<14}{where}")


@click.command()
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

    \b
    Examples:
      cag results
      cag results --seeds 0,1,2,3,4 -S network.encoder_weights=null --jobs 2
      cag results --grid benchmarks/ablations.yaml --jobs 2 --out ablations.csv
    """
    from cag.results import grid_table, read_grid, results_table, run_experiments

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds is '{seeds}'; expected numbers with commas: 0,1,2") from None
    load_all()
    variants = {"": []} if grid is None else read_grid(grid)
    variants = {name: [*overrides, *entries] for name, entries in variants.items()}
    scores = run_experiments(variants, numbers, jobs, oracle and grid is None)
    if out is not None:
        from cag.files import write_csv

        write_csv(out, scores)
    # A file is wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(results_table(scores) if grid is None else grid_table(scores))
