"""Scores of several seeds: kept with their parameters, shown with these alone."""

import dataclasses

import pandas as pd
import pytest
from cag.seed_scores import read_seed_scores, spread, write_seed_scores
from test_report import make_run

from cag import report

SCORES = pd.DataFrame(
    {"seed": [0, 1], "pretrain": [0.2, 0.4], "round1": [0.5, 0.5], "oracle": [0.7, 0.8]}
)
PARAMETERS = {"seed": 0, "source": {"size": (4, 8)}, "oracle": {"folds": 2}, "evaluated": ()}


def test_what_was_kept_is_read_with_the_same_parameters_but_the_seed(tmp_path):
    path = tmp_path / "kept/results.json"
    path.parent.mkdir()
    write_seed_scores(SCORES, PARAMETERS, path)
    pd.testing.assert_frame_equal(read_seed_scores(PARAMETERS | {"seed": 7}, path), SCORES)
    assert read_seed_scores(PARAMETERS | {"source": {"size": (8, 8)}}, path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parameters": {}}', None])
def test_nothing_is_shown_of_a_damaged_file_or_none(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert read_seed_scores({}, path) is None


def test_spread_is_mean_deviation_and_change_from_the_first():
    table = spread(SCORES).set_index("model")
    assert table["miou"].tolist() == pytest.approx([0.3, 0.5, 0.75])
    assert table["deviation"].tolist() == pytest.approx([0.02**0.5, 0, 0.005**0.5])
    assert table["change"].iloc[1:].tolist() == pytest.approx([0.2, 0.45])
    assert pd.isna(table["change"].iloc[0])


def test_report_shows_them_where_there_are_some():
    run = make_run()
    assert "Several seeds" not in report.page(run)
    page = report.page(dataclasses.replace(run, seeds=SCORES))
    assert "Mean over 2 seeds" in page and "oracle" in page and "75.0" in page
