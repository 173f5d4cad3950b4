"""One HTML page that shows a run: tables, figures and pictures, all inside the file.

Functions here and beside give each section's numbers and pictures as plain data. The templates say
how they look: `templates/sections/<key>.html` is that of the section with this key.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from cag import plots
from cag.config import dotted
from cag.report import explorer, feature_space, gallery
from cag.report.contents import Run
from cag.report.pictures import css_color, figure
from cag.report.tables import baseline_of, iou_of, per_class_table, results_table
from cag.report.texts import count, decimal, percent, points, text, yaml_text

Section = tuple[str, str, Any]  # key, title, data of its template

LEAD = (
    "How a segmentation network trained on labelled source images does on the target, before and "
    "after it learned from unlabelled target images."
)


def report_page(run: Run) -> str:
    """Write a run as one HTML page that needs no network and no other file.

    Args:
        run: tables, pictures and texts; every text is escaped.

    Returns:
        the HTML document. The same run gives the same text.
    """
    sections = [
        ("results", "Results", _results(run)),
        ("classes", "Per-class IoU", _classes(run)),
        ("predictions", "Predictions", gallery.predictions(run)),
        ("pseudo-labels", "Pseudo-labels", gallery.pseudo_labels(run)),
        ("thresholds", "Thresholds", explorer.section(run)),
        ("coverage", "Coverage", _coverage(run)),
        ("features", "Feature space", feature_space.section(run)),
        ("anchors", "Anchors", run.rounds),
        ("curves", "Learning curves", _curves(run)),
        ("confusion", "Confusion", _confusion(run)),
        ("run", "Run", _run(run)),
        ("files", "Files", run.locations),
    ]
    shown = [section for section in sections if section[2]]
    colors = dict(zip(run.label_space.names, map(css_color, run.label_space.palette), strict=True))
    return render(
        ("Adaptation report", "Category anchor-guided adaptation", LEAD),
        run.summary,
        shown,
        tiles=_tiles(run),
        rounds=len(run.rounds),
        colors=colors,
    )


def render(
    titles: tuple[str, str, str],
    summary: Mapping[str, str],
    sections: Sequence[Section],
    tiles: Sequence[Mapping[str, str]] | None = None,
    rounds: int = 0,
    colors: Mapping[str, str] | None = None,
) -> str:
    """Fill the templates in.

    Args:
        titles: the window's title, the heading, and the sentence below it.
        summary: facts about the run, in a line below the tiles.
        sections: key, title and data of each section; the key names its template.
        tiles: label, value and note of the numbers on top; an empty list says that there are none.
        rounds: number of rounds, of which a switch shows one.
        colors: class -> its colour in CSS.
    """
    script = _read("page.js")
    environment = Environment(
        loader=PackageLoader("cag.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["colors"] = colors or {}
    for text_filter in (count, decimal, percent, points, text):
        environment.filters[text_filter.__name__] = text_filter
    title, heading, lead = titles
    return environment.get_template("page.html").render(
        title=title,
        heading=heading,
        lead=lead,
        tiles=tiles,
        summary=summary,
        sections=sections,
        rounds=rounds,
        style=_read("page.css"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read(name: str) -> str:
    """Read a file of this package."""
    return resources.files("cag.report").joinpath(name).read_text(encoding="utf-8")


def _scores(run: Run) -> dict[str, Mapping]:
    return {name: evaluation.metrics for name, evaluation in run.evaluations.items()}


def _first_and_last(run: Run) -> tuple[str, str]:
    models = list(run.evaluations)
    return baseline_of(models), models[-1]


def _tiles(run: Run) -> list[dict[str, str]]:
    """State the outcome in four numbers."""
    if not run.evaluations:
        return []
    baseline, last = _first_and_last(run)
    scores = results_table(_scores(run)).set_index("model")
    changes = _class_changes(run)["change"]
    better, worse = int((changes > 0).sum()), int((changes < 0).sum())
    tiles = [
        ("source only", percent(scores.at[baseline, "miou"]), f"mIoU of {baseline}"),
        ("adapted", percent(scores.at[last, "miou"]), f"mIoU of {last}"),
        ("change", points(scores.at[last, "change"]), "points of mIoU"),
        ("classes improved", f"{better} of {changes.notna().sum()}", f"{worse} became worse"),
    ]
    return [dict(zip(("label", "value", "note"), tile, strict=True)) for tile in tiles]


def _results(run: Run) -> dict | None:
    if not run.evaluations:
        return None
    table = results_table(_scores(run))
    names = run.label_space.names
    iou = run.evaluations[_first_and_last(run)[1]].metrics["iou"]
    iterations = {name: curve["iteration"].max() for name, curve in run.curves.items()}
    return {
        "counted": sum(iou.get(name) is not None for name in names),
        "classes": len(names),
        "rows": table.assign(iterations=table["model"].map(iterations)).to_dict("records"),
        "figure": figure(
            "Bar chart of the mIoU of each model; the numbers are in the table above.",
            plots.miou_figure,
            table,
        ),
    }


def _class_changes(run: Run) -> pd.DataFrame:
    scores = _scores(run)
    iou = (scores[model]["iou"] for model in _first_and_last(run))
    return per_class_table(*iou, run.label_space.names)


def _classes(run: Run) -> dict | None:
    if not run.evaluations:
        return None
    pair, names, scores = _first_and_last(run), run.label_space.names, _scores(run)
    return {
        "first": pair[0],
        "last": pair[1],
        "rows": _class_changes(run).to_dict("records"),
        "figure": figure(
            f"Each class's IoU for {pair[0]} and {pair[1]}, sorted by change; the table has the "
            "numbers.",
            plots.per_class_figure,
            *(iou_of(scores[model], names) for model in pair),
            names,
            labels=pair,
        ),
    }


def _coverage(run: Run) -> dict | None:
    if not run.rounds:
        return None
    coverages = {name: part.coverage for name, part in run.rounds.items()}
    shares = [plots.coverage_shares(table).set_index("class") for table in coverages.values()]
    *rows, total = (
        {"class": name, "colored": True, "shares": [v for table in shares for v in table.iloc[i]]}
        for i, name in enumerate(shares[0].index)
    )
    return {
        "rounds": list(run.rounds),
        "heads": [f"{rule} %" for _ in shares for rule in plots.MARKERS],
        "rows": rows,
        "total": {**total, "colored": False},
        "figure": figure(
            "Share of each class's pixels kept by each rule, per round; the table has the numbers.",
            plots.coverage_figure,
            coverages,
        ),
    }


def _curves(run: Run) -> dict | None:
    curves = {name: curve for name, curve in run.curves.items() if len(curve)}
    if not curves:
        return None
    alt = f"Learning curves of {', '.join(curves)}."
    return {"figure": figure(alt, plots.curves_figure, curves)}


def _confusion(run: Run) -> dict | None:
    if not run.evaluations:
        return None
    names = run.label_space.names
    return {
        "models": [
            {
                "name": name,
                "open": name in _first_and_last(run),
                "figure": figure(
                    f"Confusion matrix of {name}: rows are the truth, columns the prediction.",
                    plots.confusion_figure,
                    evaluation.confusion,
                    names,
                ),
            }
            for name, evaluation in run.evaluations.items()
        ]
    }


def _run(run: Run) -> dict:
    parameters = [(key, yaml_text(value)) for key, value in dotted(run.parameters)]
    return {"fingerprints": run.fingerprints, "parameters": parameters}
