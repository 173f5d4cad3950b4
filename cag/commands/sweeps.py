"""Commands about sweeps of parameters."""

from pathlib import Path

import click

from cag.commands.terminal import PATH, json_option, print_json, print_rows
from cag.runtime.files import write_csv


@click.group()
def sweep() -> None:
    """Compare experiments with other thresholds, or any other parameters."""


@sweep.command(short_help="Compare experiments with other thresholds.")
@click.option("--csv", type=PATH, help="Write CSV, all rounds.")
@click.option("--plot", type=PATH, help="Draw the scores against --x as PNG.")
@click.option("--x", help="Parameter to draw against; the first threshold that differs.")
@click.option("--all-commits", is_flag=True, help="Experiments of earlier commits, too.")
@json_option
def show(
    csv: Path | None, plot: Path | None, x: str | None, all_commits: bool, as_json: bool
) -> None:
    """Print what each of DVC's experiments changed and what came of it.

    The parameters that differ, the share of the target pixels that each rule labels, the precision
    of the labels where there are labelled validation images, the mIoU of each model, and how long
    it took here. The first row is the workspace. Queued and failed experiments are named. The
    table shows the last round's labels, --json and --csv those of all rounds.

    \b
    Example:
      dvc exp run --queue -S ++adapt.teacher=cached -S '++pseudo_label.relative_margin=0.1,0.2,0.3'
      dvc queue start --jobs 2
      cag sweep show --plot margins.png
    """
    from cag.project import sweep_table as sweeps

    table = sweeps.sweep_table(all_commits)
    if csv is not None:
        write_csv(csv, table)
    if plot is not None:
        from cag.analysis import plots

        parameter = sweeps.swept_parameter(table, x)
        figure = plots.sweep_figure(sweeps.swept_points(table, parameter), parameter)
        plots.save_png(figure, plot)
    if as_json:
        print_json(table.to_dict("records"))
    else:
        title, rows = sweeps.terminal_rows(table)
        print_rows(rows, title)
