"""The page of several seeds that `cag results` writes: scores, their spread, and the oracle."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cag.analysis import plots
from cag.report.page import render
from cag.report.pictures import figure
from cag.report.tables import BASELINE
from cag.runtime.files import atomic_folder, write_csv

ORACLE = "oracle"
LEAD = "The spread of the scores over seeds, and the score with true target labels."


def spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation of each model's mIoU over the seeds.

    The scores have a row for each seed: `seed` and the models, in order, with mIoU in [0, 1]. The
    result has a row for each model: model, miou, deviation (NaN for one seed), change (from the
    first model; NaN for it), closed (gain over the source-only model / the oracle's gain) and
    share (mIoU / the oracle's); NaN without an oracle.
    """
    models = scores.drop(columns="seed").astype(float)
    table = pd.DataFrame({"miou": models.mean(), "deviation": models.std()})
    table["change"] = (table["miou"] - table["miou"].iloc[0]).where(table.index != table.index[0])
    nan, miou = float("nan"), table["miou"]
    gain = miou - miou.get(BASELINE, nan)
    gap = gain.get(ORACLE, nan)
    table["closed"] = (gain / gap).drop(BASELINE, errors="ignore") if gap > 0 else nan
    table["share"] = miou / miou.get(ORACLE, nan)
    table.loc[table.index == ORACLE, ["closed", "share"]] = nan
    return table.rename_axis("model").reset_index()


def seeds_page(scores: pd.DataFrame, summary: Mapping[str, str]) -> str:
    """The scores, as for `spread`, and facts about the runs as a self-contained HTML page."""
    table = spread(scores)
    rows = table.assign(scores=[scores[model].tolist() for model in table["model"]])
    alt = "Bar chart of the mean mIoU of each model; the numbers are in the table above."
    data = {
        "seeds": [f"seed {seed}" for seed in scores["seed"]],
        "rows": rows.to_dict("records"),
        "figure": figure(alt, plots.miou_figure, table),
    }
    titles = ("Several seeds", "Category anchor-guided adaptation: several seeds", LEAD)
    return render(titles, summary, [("seeds", "Several seeds", data)])


def write_seeds(scores: pd.DataFrame, summary: Mapping[str, str], folder: Path) -> None:
    """Write the page, its figure and a table of the scores: all or none."""
    with atomic_folder(folder) as partial:
        page = seeds_page(scores, summary)
        (partial / "index.html").write_text(page, encoding="utf-8", newline="\n")
        plots.save_png(plots.miou_figure(spread(scores)), partial / "miou.png")
        write_csv(partial / "scores.csv", scores)
