"""How the commands print: tables for people, JSON for programs."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cag.runtime.files import as_json

FILE_WIDTH = 200  # characters: a file is wide enough for every column
_PLAIN = re.compile(r"-?\d+(\.\d{1,6})?")
_NUMBER = re.compile(r"[+-]?(\d|nan|no gap)|$")


class FilePath(click.Path):
    """A path, but no empty one, which would be the current folder."""

    def convert(self, value, param, ctx):
        """Make a path of an argument."""
        if not os.fspath(value):
            self.fail("the name is empty, as of a variable that is not set", param, ctx)
        return super().convert(value, param, ctx)


PATH = FilePath(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_rows(
    rows: Sequence[Mapping[str, Any]], title: str | None = None, styles: Mapping[str, str] = {}
) -> None:
    """Print rows as a table; the first one's keys are the heads, numbers stand to the right.

    `styles` are colours of cells by their text. Cells are plain text, whatever they spell.
    """
    table, columns = Table(box=None, title=title, title_justify="left"), []
    for key in rows[0] if rows else ():
        texts = _texts([row[key] for row in rows])
        numbers = any(texts) and all(map(_NUMBER.match, texts))
        no_wrap = numbers or not any(" " in text for text in texts)
        justify = "right" if numbers else "left"
        table.add_column(key, justify=justify, no_wrap=no_wrap, overflow="fold")
        columns.append([Text(text, styles.get(text, "")) for text in texts])
    for cells in zip(*columns, strict=True):
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else FILE_WIDTH
    Console(width=width, markup=False, emoji=False).print(table)


def print_json(value: Any) -> None:
    """Print a value as JSON; its letters are escaped where stdout has another encoding."""
    text = as_json(value)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    print(text)


def stdout_for_json(as_json: bool) -> AbstractContextManager:
    """A context in which all that is printed goes to stderr, if stdout is for JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _texts(values: Sequence[Any]) -> list[str]:
    """A column's texts; its floats have equally many decimals, those of four significant digits."""
    texts = list(map(_text, values))
    floats = [isinstance(value, float) for value in values]
    shown = [text for text, is_float in zip(texts, floats, strict=True) if is_float]
    if not all(map(_PLAIN.fullmatch, shown)):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in shown), default=0)
    columns = zip(values, texts, floats, strict=True)
    return [f"{value:.{decimals}f}" if is_float else text for value, text, is_float in columns]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
