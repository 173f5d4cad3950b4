"""The `cag` command."""

import click

from cag import __version__
from cag.commands import inspection, models, planning, predict, project, pseudo, runs, sweeps
from cag.runtime.program import run

RUN = "Run (`dvc repro`) and look (data/report/index.html)"
TOUR = {
    "Start": (project.init, project.preset, project.data, planning.plan, project.scenes),
    RUN: (runs.status, runs.summary, inspection.inspect),
    "Compare": (sweeps.sweep, runs.results),
    "Use": (predict.predict, models.export, pseudo.pseudo, models.weights),
}


class Tour(click.Group):
    """A group whose help shows the commands, and those of groups, by topic in the order of use."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names in the order of use."""
        return [command.name for commands in TOUR.values() for command in commands]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list for each topic."""
        for topic, commands in TOUR.items():
            lines = {}
            for command in commands:
                if isinstance(command, click.Group):
                    subcommands = command.commands.values()
                    lines |= {f"{command.name} {sub.name}": sub.short_help for sub in subcommands}
                else:
                    lines[command.name] = command.short_help
            with formatter.section(topic):  # 16 characters, so that all topics line up
                formatter.write_dl([(name.ljust(16), about) for name, about in lines.items()])


@click.group(cls=Tour, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Adapt a segmentation network to images of another world, without labels of it.

    `cag COMMAND --help` explains a command and shows an example of it. Completion by the Tab key:
    put `eval "$(_CAG_COMPLETE=bash_source cag)"` into ~/.bashrc (zsh_source, fish_source likewise).
    """


for topic in TOUR.values():
    for command in topic:
        cli.add_command(command)


def main() -> None:
    """Entry point: a user's error is one line and exit status 1."""
    run(cli)
