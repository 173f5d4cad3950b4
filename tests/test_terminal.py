"""Tables of the commands show names as they are."""

from pathlib import Path

from rich.table import Table

from cag import commands
from cag.commands.terminal import print_table


def test_names_are_text_whatever_they_spell(capsys):
    names = ["[red]car[/red]", "a [/b]", ":car: [1]"]
    table = Table("class", box=None)
    for name in names:
        table.add_row(name)
    print_table(table)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == names


def test_there_is_one_way_to_print_a_table():
    modules = Path(commands.__file__).parent.glob("*.py")
    assert [path.name for path in modules if "Console(" in path.read_text()] == ["terminal.py"]
