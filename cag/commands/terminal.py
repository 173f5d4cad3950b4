"""How the commands print tables."""

import sys

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 200  # characters: a file is wide enough for every column


def print_table(table: Table) -> None:
    """Print a table; names of classes, files and variants are text, whatever they spell."""
    table.box, table.title_justify = None, "left"
    width = None if sys.stdout.isatty() else FILE_WIDTH
    Console(width=width, markup=False, emoji=False).print(table)
