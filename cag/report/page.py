"""One HTML page that shows a run: tables, figures and pictures, all inside the file.

Functions here and beside give the sections' numbers and pictures as plain data, which the template
`templates/sections/<key>.html` of a section lays out.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from cag.analysis import plots
from cag.config.base import as_yaml, dotted
from cag.config.watch import MEASURES
from cag.report import explorer, feature_space, figures, gallery
from cag.report.contents import Run
from cag.report.pictures import css_color, figure
from cag.report.tables import iou_of, per_class_table, results_table
from cag.report.texts import count, decimal, percent, points, text

LEAD = (
    "How a segmentation network trained on labelled source images does on the target, before and "
    "after it learned from unlabelled target images."
)


def report_page(run: Run) -> str:
    """A run as a self-contained HTML page, with every text escaped; the same run, the same page."""
    sections = [
        ("results", "Results", _results(run)),
        ("classes", "Per-class IoU", _classes(run)),
        ("predictions", "Predictions", gallery.predictions(run)),
        ("pseudo-labels", "Pseudo-labels", gallery.pseudo_labels(run)),
        ("thresholds", "Thresholds", explorer.section(run)),
        ("coverage", "Coverage", _coverage(run)),
        ("watch", "Without labels", _watch(run)),
        ("features", "Feature space", feature_space.section(run)),
        ("anchors", "Anchors", run.rounds),
        ("curves", "Learning curves", _curves(run)),
        ("confusion", "Confusion", _confusion(run)),
        ("run", "Run", _run(run)),
        ("files", "Files", run.locations),
    ]
    shown = [section for section in sections if section[2]]
    colors = dict(zip(run.label_space.names, map(css_color, run.label_space.palette), strict=True))
    titles = ("Adaptation report", "Category anchor-guided adaptation", LEAD)
    return render(titles, run.summary, shown, _tiles(run), len(run.rounds), colors)


def render(
    titles: tuple[str, str, str],
    summary: Mapping[str, str],
    sections: Sequence[tuple[str, str, Any]],
    tiles: Sequence[tuple[str, str, str]] | None = None,
    rounds: int = 0,
    colors: Mapping[str, str] | None = None,
) -> str:
    """Fill the templates in.

    The titles are the window's, the heading, and the sentence below it. A section is its key, which
    names its template, title and data. A tile is label, value and note of a number on top; an empty
    list of tiles means that nothing was evaluated. Of `rounds` a switch shows one. Colours are in
    CSS, by class.
    """
    script, spaces = _read("page.js"), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(
        loader=PackageLoader("cag.report"), autoescape=True, undefined=StrictUndefined, **spaces
    )
    environment.globals["colors"] = colors or {}
    for text_filter in (count, decimal, percent, points, text):
        environment.filters[text_filter.__name__] = text_filter
    return environment.get_template("page.html").render(
        **dict(zip(("title", "heading", "lead"), titles, strict=True)),
        tiles=tiles,
        summary=summary,
        sections=sections,
        rounds=rounds,
        style=_read("page.css"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read(name: str) -> str:
    return resources.files("cag.report").joinpath(name).read_text(encoding="utf-8")


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    if not run.evaluations:
        return []
    baseline, last = run.compared
    scores = results_table(run.scores).set_index("model")
    changes = _class_changes(run)["change"]
    better, worse = int((changes > 0).sum()), int((changes < 0).sum())
    return [
        ("source only", percent(scores.at[baseline, "miou"]), f"mIoU of {baseline}"),
        ("adapted", percent(scores.at[last, "miou"]), f"mIoU of {last}"),
        ("change", points(scores.at[last, "change"]), "points of mIoU"),
        ("classes improved", f"{better} of {changes.notna().sum()}", f"{worse} became worse"),
    ]


def _results(run: Run) -> dict | None:
    if not run.evaluations:
        return None
    table = results_table(run.scores)
    names, last = run.label_space.names, run.compared[1]
    iterations = {name: curve["iteration"].max() for name, curve in run.curves.items()}
    alt = "Bar chart of the mIoU of each model; the numbers are in the table above."
    return {
        "counted": sum(run.scores[last]["iou"].get(name) is not None for name in names),
        "classes": len(names),
        "rows": table.assign(iterations=table["model"].map(iterations)).to_dict("records"),
        "figure": figure(alt, figures.miou, run),
    }


def _class_changes(run: Run) -> pd.DataFrame:
    names = run.label_space.names
    return per_class_table(*(iou_of(run.scores[model], names) for model in run.compared), names)


def _classes(run: Run) -> dict | None:
    if not run.evaluations:
        return None
    first, last = run.compared
    alt = f"Each class's IoU for {first} and {last}, sorted by change; the table has the numbers."
    return {
        "models": run.compared,
        "rows": _class_changes(run).to_dict("records"),
        "figure": figure(alt, figures.per_class, run),
    }


def _coverage(run: Run) -> dict | None:
    if not run.rounds:
        return None
    tables = (plots.coverage_shares(part.coverage) for part in run.rounds.values())
    shares = pd.concat([table.set_index("class") for table in tables], axis=1)
    *rows, total = shares.itertuples(name=None)
    alt = "Share of each class's pixels kept by each rule, per round; the table has the numbers."
    return {
        "rounds": list(run.rounds),
        "heads": [f"{column} %" for column in shares],
        "rows": rows,
        "total": total,
        "figure": figure(alt, figures.coverage, run),
    }


def _watch(run: Run) -> dict | None:
    rows = [
        (key.replace("_", " "), one, [numbers.get(key) for numbers in run.watched.values()])
        for key, one in MEASURES.items()
    ]
    verdicts = {name: one for name, one in run.verdicts.items() if one["measure"] is not None}
    data = {"models": list(run.watched), "rows": rows, "verdicts": list(verdicts.items())}
    return data if run.watched else None


def _curves(run: Run) -> dict | None:
    alt = f"Learning curves of {', '.join(run.curves)}."
    return {"figure": figure(alt, figures.curves, run)} if run.curves else None


def _confusion(run: Run) -> list[dict]:
    models, names = [], run.label_space.names
    for name, evaluation in run.evaluations.items():
        alt = f"Confusion matrix of {name}: rows are the truth, columns the prediction."
        drawn = figure(alt, plots.confusion_figure, evaluation.confusion, names)
        models.append({"name": name, "open": name in run.compared, "figure": drawn})
    return models


def _run(run: Run) -> dict:
    parameters = [(key, as_yaml(value)) for key, value in dotted(run.parameters)]
    return {"fingerprints": run.fingerprints, "parameters": parameters}
