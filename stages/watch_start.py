"""Measure a model that the rounds start from on unlabelled target images, as `watch` does."""

import click

from cag.runtime.program import run_stage
from stages.watch import write_measures


@click.command(help=__doc__)
@click.argument("model")
def main(model: str) -> None:
    """Write `data/watch/<model>.json` and, for each class, `data/watch/<model>.csv`."""
    write_measures(model)


if __name__ == "__main__":
    run_stage(main)
