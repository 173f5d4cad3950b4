"""The `cag` command."""

import click

from cag import __version__
from cag.commands import models, predict, project, pseudo, runs
from cag.stage import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Adapt a segmentation network to images of another world, without labels of it.

    In the order of use:

    \b
      cag init FOLDER   start a project of your own
      cag preset NAME   choose a parameter file (params.yaml)
      cag data check    read the raw data before they are used
      dvc repro         run the pipeline: data/report/index.html shows what came out
      cag summary       print the scores of the last run
      cag results       several seeds, and what true target labels would give
      cag pseudo export write a round's pseudo-labels for other programs to train on
      cag predict       label photographs with a model
      cag export        write a model as ONNX or pt2 for other programs

    \b
    Of the paper's authors:
      cag weights import RELEASED OUT   start from their warm-up
    """


COMMANDS = (
    project.init,
    project.preset,
    project.scenes,
    project.data,
    runs.summary,
    runs.results,
    pseudo.pseudo,
    predict.predict,
    models.export,
    models.weights,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's error is one line and exit status 1."""
    run(cli)
