"""Tables of the commands show names as they are."""

import io
import json
from pathlib import Path

import numpy as np

from cag import commands
from cag.commands.terminal import print_json, print_rows


def test_names_are_text_whatever_they_spell(capsys):
    names = ["[red]car[/red]", "a [/b]", ":car: [1]"]
    print_rows([{"class": name} for name in names])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == names


def test_numbers_stand_to_the_right_and_text_to_the_left(capsys):
    rows = [
        {"name": "a", "share": "9.5 %", "left_out": 3, "note": ""},
        {"name": "long", "share": "10.5 %", "left_out": None, "note": True},
    ]
    print_rows(rows, "title")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "title"
    assert [line.rstrip() for line in lines] == [
        " name   share  left_out  note",
        " a      9.5 %         3",
        " long  10.5 %            yes",
    ]
    print_rows([])


def test_the_floats_of_a_column_have_equally_many_decimals(capsys):
    distances, rates = [5.21, 15.304, 5.0, None], [2e-05, 0.001]
    print_rows([{"distance": value, "n": 1} for value in distances])
    print_rows([{"rate": value} for value in rates])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:5] == ["5.21  1", "15.30  1", "5.00  1", "1"]
    assert lines[6:] == ["2e-05", "0.001"]


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": float("nan"), "b": np.arange(2), "c": ("é",)})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": None, "b": [0, 1], "c": ["é"]} and "é" in printed


def test_json_stays_json_where_stdout_lacks_its_letters(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", stream)
    print_json(["é", "道"])
    stream.flush()
    assert json.loads(stream.buffer.getvalue()) == ["é", "道"]


def test_there_is_one_way_to_print_a_table():
    modules = Path(commands.__file__).parent.parent.rglob("*.py")
    assert [path.name for path in modules if "Table(" in path.read_text()] == ["terminal.py"]
