"""Scores of several seeds: their spread, their share of the oracle's, and their page."""

import pandas as pd
import pytest
from test_report import Page

from cag.analysis import plots
from cag.report.seeds import seeds_page, spread, write_seeds

SCORES = pd.DataFrame(
    {"seed": [0, 1], "pretrain": [0.2, 0.4], "round1": [0.5, 0.5], "oracle": [0.7, 0.8]}
)


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    monkeypatch.setattr(plots, "DPI", 20)


def test_spread_is_mean_deviation_and_change_from_the_first():
    table = spread(SCORES).set_index("model")
    assert table["miou"].tolist() == pytest.approx([0.3, 0.5, 0.75])
    assert table["deviation"].tolist() == pytest.approx([0.02**0.5, 0, 0.005**0.5])
    assert table["change"].iloc[1:].tolist() == pytest.approx([0.2, 0.45])
    assert pd.isna(table["change"].iloc[0])


def test_shares_are_of_the_oracles_gain_and_score():
    table = spread(SCORES).set_index("model")
    assert table["closed"].to_dict() == pytest.approx(
        {"pretrain": float("nan"), "round1": 0.2 / 0.45, "oracle": float("nan")}, nan_ok=True
    )
    assert table["share"].iloc[:2].tolist() == pytest.approx([0.4, 0.5 / 0.75])
    assert pd.isna(table.at["oracle", "share"])


@pytest.mark.parametrize("missing", ["oracle", "pretrain"])
def test_without_oracle_or_source_only_model_no_gap_is_closed(missing):
    table = spread(SCORES.drop(columns=missing))
    assert table["closed"].isna().all()
    assert table["share"].isna().all() == (missing == "oracle")


def test_page_has_means_seeds_and_shares():
    page = Page(seeds_page(SCORES, {"changed parameters": "<b>"}))
    head, *rows = page.tables[0]
    assert head[4:] == ["seed 0", "seed 1", "gap closed %", "of the oracle %"]
    assert rows[1] == ["round1", "50.0", "0.0", "+20.0", "50.0", "50.0", "44.4", "66.7"]
    assert rows[2][:6] == ["oracle", "75.0", "7.1", "+45.0", "70.0", "80.0"]
    assert page.open == [] and "b" not in {tag for tag, _ in page.tags}


def test_page_and_its_figure_and_table_are_written(tmp_path):
    write_seeds(SCORES, {}, tmp_path / "results")
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"index.html", "miou.png", "scores.csv"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results/scores.csv"), SCORES)
    page = (tmp_path / "results/index.html").read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page and "Mean over 2 seeds" in page
