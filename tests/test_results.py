"""The table of several seeds."""

import io
import json

import pandas as pd
import pytest
from rich.console import Console

from cag import results


def text(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def row(table, model):
    (line,) = [line for line in text(table).splitlines() if model in line]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_spread_gain_and_share_of_the_gap_by_hand():
    scores = pd.DataFrame(
        {
            "seed": [0, 1, 2],
            "pretrain": [0.20, 0.30, 0.40],
            "round1": [0.26, 0.35, 0.44],
            "oracle": [0.40, 0.50, 0.60],
        }
    )
    table = results.results_table(scores)
    assert row(table, "pretrain")[1:] == ["30.0", "10.0", "20.0", "30.0", "40.0", "", ""]
    assert row(table, "round1")[1:] == ["35.0", "9.0", "26.0", "35.0", "44.0", "+5.0", "25 %"]
    assert row(table, "oracle")[1:] == ["50.0", "10.0", "40.0", "50.0", "60.0", "+20.0", ""]


def test_one_seed_has_no_spread_and_no_oracle_no_gap():
    table = results.results_table(pd.DataFrame({"seed": [3], "pretrain": [0.5], "round1": [0.4]}))
    assert row(table, "round1")[1:] == ["40.0", "", "40.0", "-10.0", ""]


def test_workspace_table_shows_the_change_against_source_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, miou in (("pretrain", 0.25), ("round1", 0.301)):
        path = tmp_path / "data/evaluation" / model / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"miou": miou}))
    assert row(results.workspace_table(), "round1")[1:] == ["30.1", "+5.1"]


def test_a_failing_dvc_command_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(results.UserError, match="`dvc exp show` failed: .*"):
        results._dvc("exp", "show")
