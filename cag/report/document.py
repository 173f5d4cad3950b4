"""One HTML page that shows a run: tables, figures and pictures, all inside the file."""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from string import Template

import pandas as pd

from cag.analysis import plots
from cag.report import explorer, feature_space, gallery, pieces, run_card
from cag.report.contents import Run
from cag.report.seeds import spread
from cag.report.tables import baseline_of, iou_of, per_class_table, results_table


def page(run: Run) -> str:
    """Write the run as one HTML page that needs no network and no other file.

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
        ("anchors", "Anchors", _anchors(run)),
        ("curves", "Learning curves", _curves(run)),
        ("confusion", "Confusion", _confusion(run)),
        ("run", "Run", run_card.section(run)),
        ("files", "Files", _files(run)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{title}</h2>\n{content}</section>'
        for key, title, content in shown
    )
    script = _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _PAGE.substitute(
        style=_own("page.css") + pieces.switch_style(len(run.rounds)),
        digest=digest,
        links=links,
        header=_header(run),
        body=body,
        script=script,
    )


def _own(name: str) -> str:
    """Read a file of this package."""
    return resources.files("cag.report").joinpath(name).read_text(encoding="utf-8")


def _header(run: Run) -> str:
    """State the outcome in four numbers, and what was run."""
    summary = "".join(
        f"<div><dt>{pieces.escape(key)}</dt><dd>{pieces.escape(value)}</dd></div>"
        for key, value in run.summary.items()
    )
    return f'{_tiles(run)}<dl class="summary">{summary}</dl>'


def _tiles(run: Run) -> str:
    if not run.evaluations:
        return "<p>No model was evaluated: the target has no labelled validation images.</p>"
    table = results_table({name: one.metrics for name, one in run.evaluations.items()})
    baseline = baseline_of(list(run.evaluations))
    last = table.iloc[-1]
    start = table.set_index("model").at[baseline, "miou"]
    classes = per_class_table(*_first_and_last_iou(run), run.label_space.names)
    tiles = [
        ("source only", pieces.percent(start), f"mIoU of {baseline}"),
        ("adapted", pieces.percent(last["miou"]), f"mIoU of {last['model']}"),
        ("change", pieces.points(last["change"]), "points of mIoU"),
        (
            "classes improved",
            f"{int((classes['change'] > 0).sum())} of {int(classes['change'].notna().sum())}",
            f"{int((classes['change'] < 0).sum())} became worse",
        ),
    ]
    blocks = "".join(
        f'<div class="tile"><dt>{pieces.escape(label)}</dt>'
        f"<dd><strong>{pieces.escape(value)}</strong>"
        f"<span>{pieces.escape(note)}</span></dd></div>"
        for label, value, note in tiles
    )
    return f'<dl class="tiles">{blocks}</dl>'


def _results(run: Run) -> str:
    if not run.evaluations:
        return ""
    table = results_table({name: one.metrics for name, one in run.evaluations.items()})
    iterations = {name: curve["iteration"].max() for name, curve in run.curves.items()}
    rows = [
        [
            pieces.th(row["model"]),
            pieces.td(pieces.percent(row["miou"]), "strong"),
            pieces.change(row["change"]),
            pieces.td(pieces.percent(row["pixel_accuracy"])),
            pieces.td(pieces.percent(row["mean_accuracy"])),
            pieces.td(pieces.count(iterations.get(row["model"]))),
            pieces.td(pieces.count(row["images"])),
        ]
        for row in table.to_dict("records")
    ]
    heads = [
        "model",
        "mIoU %",
        "change",
        "pixel accuracy %",
        "mean accuracy %",
        "iterations",
        "images",
    ]
    last = list(run.evaluations.values())[-1].metrics["iou"]
    counted = sum(last.get(name) is not None for name in run.label_space.names)
    note = (
        f"mIoU is the mean over {counted} of {len(run.label_space.names)} classes, on labelled "
        "target validation images at the labels' own size. Change is in points from the "
        "source-only model."
    )
    figure = pieces.figure(
        lambda theme: plots.miou_figure(table, theme),
        "Bar chart of the mIoU of each model; the numbers are in the table above.",
        "plot small",
    )
    return f"<p>{note}</p>" + pieces.table("mIoU by model", heads, rows) + figure + _seeds(run)


def _seeds(run: Run) -> str:
    """What `cag results` found with several seeds, the oracle among it."""
    if run.seeds is None:
        return ""
    table = spread(run.seeds)
    rows = [
        [
            pieces.th(row["model"]),
            pieces.td(pieces.percent(row["miou"]), "strong"),
            pieces.td(pieces.percent(row["deviation"])),
            pieces.change(row["change"]),
            *(pieces.td(pieces.percent(score)) for score in run.seeds[row["model"]]),
        ]
        for row in table.to_dict("records")
    ]
    heads = ["model", "mean mIoU %", "± deviation", "change"]
    heads += [f"seed {seed}" for seed in run.seeds["seed"]]
    note = (
        "With several seeds, by `cag results`. The oracle has trained on true target labels; where "
        "they are those of validation images, on one half for the other."
    )
    figure = pieces.figure(
        lambda theme: plots.miou_figure(table, theme),
        "Bar chart of the mean mIoU of each model; the numbers are in the table above.",
        "plot small",
    )
    title = f"Mean over {len(run.seeds)} seeds"
    head = f'<h3 class="part">Several seeds</h3><p>{note}</p>'
    return head + pieces.table(title, heads, rows) + figure


def _classes(run: Run) -> str:
    if not run.evaluations:
        return ""
    before, after = _first_and_last_iou(run)
    names = run.label_space.names
    models = list(run.evaluations)
    first, last = baseline_of(models), models[-1]
    rows = [
        [
            pieces.class_th(row["class"], run.label_space),
            pieces.td(pieces.percent(row["before"])),
            pieces.td(pieces.percent(row["after"]), "strong"),
            pieces.change(row["change"]),
        ]
        for row in per_class_table(before, after, names).to_dict("records")
    ]
    figure = pieces.figure(
        lambda theme: plots.per_class_figure(
            *(iou_of(run.evaluations[model].metrics, names) for model in (first, last)),
            names,
            theme,
            (first, last),
        ),
        f"Each class's IoU for {first} and {last}, sorted by change; the table has the numbers.",
    )
    table = pieces.table(
        f"IoU of {first} and {last}, greatest gain first",
        ["class", f"{first} %", f"{last} %", "change"],
        rows,
    )
    return f'<div class="beside">{table}{figure}</div>'


def _coverage(run: Run) -> str:
    if not run.rounds:
        return ""
    shares = {name: plots.coverage_shares(one.coverage) for name, one in run.rounds.items()}
    classes = next(iter(shares.values()))["class"]
    rows = []
    for index, name in enumerate(classes):
        total = index == len(classes) - 1
        cells = [pieces.th(name) if total else pieces.class_th(name, run.label_space)]
        for table in shares.values():
            cells += [pieces.td(pieces.percent(table.at[index, rule])) for rule in plots.MARKERS]
        rows.append(cells)
    figure = pieces.figure(
        lambda theme: plots.coverage_figure(
            {name: one.coverage for name, one in run.rounds.items()}, theme
        ),
        "Share of each class's pixels kept by each rule, per round; the table has the numbers.",
    )
    note = (
        "anchor and probability: pixels that the rule labels as the class, relative to the pixels "
        "nearest to the class's anchor (above 100 % where the classifier "
        "names the class more often). "
        "agreement: of the pixels labelled by either rule, those that both label alike."
    )
    groups = [("", 1), *((name, len(plots.MARKERS)) for name in shares)]
    heads = ["class", *(f"{rule} %" for _ in shares for rule in plots.MARKERS)]
    table = pieces.table(
        "Pseudo-label coverage by class and round", heads, rows[:-1], groups, rows[-1]
    )
    return f"<p>{note}</p>{figure}{table}"


def _anchors(run: Run) -> str:
    blocks = []
    for name, one in run.rounds.items():
        rows = [
            [
                pieces.class_th(row["class"], run.label_space),
                pieces.td(pieces.count(row["images"])),
                pieces.td(pieces.count(row["pixels"])),
                pieces.td(pieces.percent(row["recall"])),
                pieces.td(pieces.decimal(row["norm"])),
                pieces.td(
                    pieces.NOTHING
                    if pd.isna(row["nearest_anchor"])
                    else str(row["nearest_anchor"]),
                    "word",
                ),
                pieces.td(pieces.decimal(row["distance"])),
            ]
            for row in one.anchors.to_dict("records")
        ]
        heads = ["class", "images", "pixels", "recall %", "norm", "nearest other", "distance"]
        table = pieces.table(
            f"Anchors of {name}, from source features of {one.anchor_teacher}", heads, rows
        )
        opened = " open" if not blocks else ""
        blocks.append(
            f"<details{opened}><summary>{pieces.escape(name)} "
            f"<span>source features of {pieces.escape(one.anchor_teacher)}</span></summary>"
            f"{table}</details>"
        )
    if not blocks:
        return ""
    note = (
        "Norms and distances are in the units of the features, as is the anchor rule's margin: "
        "a margin near the distance between two anchors leaves few pixels of either class. "
        "Recall is the share of a class's source pixels that the teacher finds; below "
        "anchors.min_recall the class has no anchor."
    )
    return f"<p>{note}</p>" + "".join(blocks)


def _curves(run: Run) -> str:
    curves = {name: curve for name, curve in run.curves.items() if len(curve)}
    if not curves:
        return ""
    return (
        "<p>Running means over a thirtieth of each training, raw values behind.</p>"
        + pieces.figure(
            lambda theme: plots.curves_figure(curves, theme),
            f"Learning curves of {', '.join(curves)}.",
        )
    )


def _confusion(run: Run) -> str:
    if not run.evaluations:
        return ""
    first, last = baseline_of(list(run.evaluations)), list(run.evaluations)[-1]
    blocks = []
    for name, one in run.evaluations.items():
        figure = pieces.figure(
            lambda theme, one=one: plots.confusion_figure(
                one.confusion, run.label_space.names, theme
            ),
            f"Confusion matrix of {name}: rows are the truth, columns the prediction.",
        )
        opened = " open" if name in (first, last) else ""
        blocks.append(
            f"<details{opened}><summary>{pieces.escape(name)}</summary>{figure}</details>"
        )
    note = "Each row shows where a class's pixels went, in percent of the row."
    return f"<p>{note}</p>" + "".join(blocks)


def _files(run: Run) -> str:
    if not run.locations:
        return ""
    rows = [
        [pieces.th(what), f'<td class="word"><code>{pieces.escape(path)}</code></td>']
        for what, path in run.locations
    ]
    return pieces.table("Where each artifact lies", ["what", "path"], rows)


def _first_and_last_iou(run: Run) -> tuple[Mapping, Mapping]:
    models = list(run.evaluations)
    return (
        run.evaluations[baseline_of(models)].metrics["iou"],
        run.evaluations[models[-1]].metrics["iou"],
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'sha256-$digest'; base-uri 'none'; form-action 'none'">
<title>Adaptation report</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>Category anchor-guided adaptation</h1>
<p class="lead">How a segmentation network trained on labelled source images does on the target,
before and after it learned from unlabelled target images.</p>
$header
</header>
<nav aria-label="Sections"><div>$links</div></nav>
<main id="main">
$body
</main>
<dialog id="viewer" aria-labelledby="viewer-caption">
<img id="viewer-picture" alt="">
<div><button type="button" id="viewer-previous" aria-label="previous picture">\u2190</button>
<p id="viewer-caption"></p>
<button type="button" id="viewer-next" aria-label="next picture">\u2192</button>
<button type="button" id="viewer-close" aria-label="close">\u00d7</button></div>
</dialog>
<script>$script</script>
</body>
</html>
""")
