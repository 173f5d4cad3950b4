"""Gather a run's tables and pictures in one HTML page that opens without a network."""

from pathlib import Path

import click

from cag.config.base import load_params
from cag.config.parameters import Experiment
from cag.report.gather import Folders, collect, write
from cag.runtime.program import run_stage

NAMES = ("models", "curves", "features", "rounds", "watch", "evaluation", "report")
FOLDERS = Folders(
    source=Path("data/prepared/source"),
    target=Path("data/prepared/target"),
    labelled=Path("data/pseudo_label_evaluation"),
    **{name: Path("data") / name for name in NAMES},
)


@click.command(help=__doc__)
def main() -> None:
    """Read the artifacts, write `data/report/`."""
    params = load_params(Experiment)
    write(collect(FOLDERS, params), FOLDERS.report)
    scores = "; `cag summary` prints the scores" if params.evaluated else ""
    print(f"report: {FOLDERS.report}/index.html{scores}")


if __name__ == "__main__":
    run_stage(main)
