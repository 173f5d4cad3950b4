"""One HTML page that shows a run: tables, figures and pictures, all inside the file."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from cag import plots
from cag.images import colorize
from cag.labels import LabelSpace

THUMBNAIL = 384  # widest picture of the gallery, in pixels
BASELINE = "pretrain"  # the model that never saw a target image
NOTHING, MINUS, THIN_SPACE = "\u2013", "\u2212", "\u202f"  # an en dash stands for no value


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` wrote about one model."""

    metrics: (
        Mapping  # miou, pixel_accuracy, mean_accuracy: 0..1; images; iou: class -> 0..1 or None
    )
    confusion: np.ndarray  # [K, K] pixel counts, rows = truth


@dataclass(frozen=True)
class Round:
    """The tables of one round."""

    teacher: str  # the model that made the pseudo-labels
    anchor_teacher: str  # the model whose source features the anchors are means of
    coverage: pd.DataFrame  # class, nearest, anchor, probability, agree: pixel counts
    anchors: pd.DataFrame  # class, images, pixels, norm, nearest_anchor, distance


@dataclass(frozen=True)
class TrainingSample:
    """A target training image with each round's pseudo-labels."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    pseudo_labels: Mapping[str, tuple[np.ndarray, np.ndarray]]  # round -> anchor, probability


@dataclass(frozen=True)
class ValidationSample:
    """A labelled target image with the first and the last model's prediction."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    before: np.ndarray  # uint8 [H, W] train ids
    after: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Run:
    """Everything the page shows, in the order it is shown."""

    label_space: LabelSpace
    summary: Mapping[str, str]  # parameter -> value, as text
    evaluations: Mapping[str, Evaluation]  # model -> evaluation, in the order of training
    rounds: Mapping[str, Round]
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    training: Sequence[TrainingSample] = ()
    validation: Sequence[ValidationSample] = ()
    locations: Sequence[tuple[str, str]] = ()  # what, path


# --------------------------------------------------------------------------------------- tables


def baseline_of(models: Sequence[str]) -> str:
    """Name the model the others are compared with: the source-only one, else the first."""
    return BASELINE if BASELINE in models else next(iter(models))


def results_table(metrics: Mapping[str, Mapping]) -> pd.DataFrame:
    """Tabulate the models' accuracy.

    Args:
        metrics: model -> miou, pixel_accuracy, mean_accuracy (0..1, or None), images.

    Returns:
        columns model, miou, change (from the source-only model; NaN in its own row),
        pixel_accuracy, mean_accuracy, images.
    """
    baseline = baseline_of(list(metrics))
    columns = ["miou", "pixel_accuracy", "mean_accuracy", "images"]
    table = pd.DataFrame.from_dict(
        {model: [values.get(name) for name in columns] for model, values in metrics.items()},
        orient="index",
        columns=columns,
    ).astype(np.float64)
    change = (table["miou"] - table.at[baseline, "miou"]).where(table.index != baseline)
    table.insert(1, "change", change)
    return table.rename_axis("model").reset_index()


def iou_of(metrics: Mapping, names: Sequence[str]) -> np.ndarray:
    """Return a model's IoU as float64 [K], NaN where a class occurs in neither map."""
    return np.array([_number(metrics["iou"].get(name)) for name in names])


def per_class_table(before: Mapping, after: Mapping, names: Sequence[str]) -> pd.DataFrame:
    """Compare two models class by class.

    Args:
        before: class -> IoU (0..1), None where the class occurs in neither map.
        after: the same of the other model.
        names: the classes, in label-space order.

    Returns:
        columns class, before, after, change; greatest gain first, undefined changes last.
    """
    table = pd.DataFrame(
        {
            "class": list(names),
            "before": [_number(before.get(name)) for name in names],
            "after": [_number(after.get(name)) for name in names],
        }
    )
    table["change"] = table["after"] - table["before"]
    return table.sort_values("change", ascending=False, kind="stable", ignore_index=True)


def evenly_spaced(items: Sequence, count: int) -> list:
    """Pick `count` items spread over the whole sequence, the first and the last among them."""
    count = min(count, len(items))
    picks = np.linspace(0, len(items) - 1, count).round().astype(int) if count else []
    return [items[index] for index in picks]


# ----------------------------------------------------------------------------------------- page


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
        ("predictions", "Predictions", _predictions(run)),
        ("pseudo-labels", "Pseudo-labels", _pseudo_labels(run)),
        ("coverage", "Coverage", _coverage(run)),
        ("anchors", "Anchors", _anchors(run)),
        ("curves", "Learning curves", _curves(run)),
        ("confusion", "Confusion", _confusion(run)),
        ("files", "Files", _files(run)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{title}</h2>\n{content}</section>'
        for key, title, content in shown
    )
    return _PAGE.substitute(style=_STYLE, links=links, header=_header(run), body=body)


def _header(run: Run) -> str:
    """State the outcome in four numbers, and what was run."""
    summary = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>"
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
        ("source only", _percent(start), f"mIoU of {baseline}"),
        ("adapted", _percent(last["miou"]), f"mIoU of {last['model']}"),
        ("change", _points(last["change"]), "points of mIoU"),
        (
            "classes improved",
            f"{int((classes['change'] > 0).sum())} of {int(classes['change'].notna().sum())}",
            f"{int((classes['change'] < 0).sum())} became worse",
        ),
    ]
    blocks = "".join(
        f'<div class="tile"><dt>{_text(label)}</dt><dd><strong>{_text(value)}</strong>'
        f"<span>{_text(note)}</span></dd></div>"
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
            _th(row["model"]),
            _td(_percent(row["miou"]), "strong"),
            _change(row["change"]),
            _td(_percent(row["pixel_accuracy"])),
            _td(_percent(row["mean_accuracy"])),
            _td(_count(iterations.get(row["model"]))),
            _td(_count(row["images"])),
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
    figure = _figure(
        lambda theme: plots.miou_figure(table, theme),
        "Bar chart of the mIoU of each model; the numbers are in the table above.",
        "plot small",
    )
    return f"<p>{note}</p>" + _table("mIoU by model", heads, rows) + figure


def _classes(run: Run) -> str:
    if not run.evaluations:
        return ""
    before, after = _first_and_last_iou(run)
    names = run.label_space.names
    models = list(run.evaluations)
    first, last = baseline_of(models), models[-1]
    rows = [
        [
            _class_th(row["class"], run.label_space),
            _td(_percent(row["before"])),
            _td(_percent(row["after"]), "strong"),
            _change(row["change"]),
        ]
        for row in per_class_table(before, after, names).to_dict("records")
    ]
    figure = _figure(
        lambda theme: plots.per_class_figure(
            *(iou_of(run.evaluations[model].metrics, names) for model in (first, last)),
            names,
            theme,
            (first, last),
        ),
        f"Each class's IoU for {first} and {last}, sorted by change; the table has the numbers.",
    )
    table = _table(
        f"IoU of {first} and {last}, greatest gain first",
        ["class", f"{first} %", f"{last} %", "change"],
        rows,
    )
    return f'<div class="beside">{table}{figure}</div>'


def _predictions(run: Run) -> str:
    if not run.validation or not run.evaluations:
        return ""
    first, last = baseline_of(list(run.evaluations)), list(run.evaluations)[-1]
    cards = []
    for sample in run.validation:
        maps = (
            (f"{first} prediction", sample.before),
            (f"{last} prediction", sample.after),
            ("truth", sample.truth),
        )
        pictures = [_photo(sample.image, "image", sample.name)]
        pictures += [
            _label_map(labels, word, sample.name, run.label_space) for word, labels in maps
        ]
        cards.append(_card(sample.name, "four", pictures))
    note = (
        "Validation images of the target, before and after adaptation. Black in the truth: ignored."
    )
    return f"<p>{note}</p>{_legend(run.label_space)}" + "".join(cards)


def _pseudo_labels(run: Run) -> str:
    if not run.training:
        return ""
    cards = []
    for sample in run.training:
        pictures = [_photo(sample.image, "image", sample.name)]
        for name, maps in sample.pseudo_labels.items():
            for rule, labels in zip(("anchor", "probability"), maps, strict=True):
                kept = _percent(float((labels != 255).mean()))
                pictures.append(
                    _label_map(labels, f"{name} · {rule} · {kept} %", sample.name, run.label_space)
                )
        cards.append(_card(sample.name, "rounds", pictures))
    note = (
        "Target training images and what each rule labels in them, with the share of the "
        "picture that it labels. Black: left unlabelled."
    )
    return f"<p>{note}</p>{_legend(run.label_space)}" + "".join(cards)


def _coverage(run: Run) -> str:
    if not run.rounds:
        return ""
    shares = {name: plots.coverage_shares(one.coverage) for name, one in run.rounds.items()}
    classes = next(iter(shares.values()))["class"]
    rows = []
    for index, name in enumerate(classes):
        total = index == len(classes) - 1
        cells = [_th(name) if total else _class_th(name, run.label_space)]
        for table in shares.values():
            cells += [_td(_percent(table.at[index, rule])) for rule in plots.RULES]
        rows.append(cells)
    figure = _figure(
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
    groups = [("", 1), *((name, len(plots.RULES)) for name in shares)]
    heads = ["class", *(f"{rule} %" for _ in shares for rule in plots.RULES)]
    table = _table("Pseudo-label coverage by class and round", heads, rows[:-1], groups, rows[-1])
    return f"<p>{note}</p>{figure}{table}"


def _anchors(run: Run) -> str:
    blocks = []
    for name, one in run.rounds.items():
        rows = [
            [
                _class_th(row["class"], run.label_space),
                _td(_count(row["images"])),
                _td(_count(row["pixels"])),
                _td(_decimal(row["norm"])),
                _td(
                    NOTHING if pd.isna(row["nearest_anchor"]) else str(row["nearest_anchor"]),
                    "word",
                ),
                _td(_decimal(row["distance"])),
            ]
            for row in one.anchors.to_dict("records")
        ]
        heads = ["class", "images", "pixels", "norm", "nearest other", "distance"]
        table = _table(
            f"Anchors of {name}, from source features of {one.anchor_teacher}", heads, rows
        )
        opened = " open" if not blocks else ""
        blocks.append(
            f"<details{opened}><summary>{_text(name)} "
            f"<span>source features of {_text(one.anchor_teacher)}</span></summary>"
            f"{table}</details>"
        )
    if not blocks:
        return ""
    note = (
        "Norms and distances are in the units of the features, as is the anchor rule's margin: "
        "a margin near the distance between two anchors leaves few pixels of either class."
    )
    return f"<p>{note}</p>" + "".join(blocks)


def _curves(run: Run) -> str:
    curves = {name: curve for name, curve in run.curves.items() if len(curve)}
    if not curves:
        return ""
    return "<p>Running means over a thirtieth of each training, raw values behind.</p>" + _figure(
        lambda theme: plots.curves_figure(curves, theme),
        f"Learning curves of {', '.join(curves)}.",
    )


def _confusion(run: Run) -> str:
    if not run.evaluations:
        return ""
    first, last = baseline_of(list(run.evaluations)), list(run.evaluations)[-1]
    blocks = []
    for name, one in run.evaluations.items():
        figure = _figure(
            lambda theme, one=one: plots.confusion_figure(
                one.confusion, run.label_space.names, theme
            ),
            f"Confusion matrix of {name}: rows are the truth, columns the prediction.",
        )
        opened = " open" if name in (first, last) else ""
        blocks.append(f"<details{opened}><summary>{_text(name)}</summary>{figure}</details>")
    note = "Each row shows where a class's pixels went, in percent of the row."
    return f"<p>{note}</p>" + "".join(blocks)


def _files(run: Run) -> str:
    if not run.locations:
        return ""
    rows = [
        [_th(what), f'<td class="word"><code>{_text(path)}</code></td>']
        for what, path in run.locations
    ]
    return _table("Where each artifact lies", ["what", "path"], rows)


# --------------------------------------------------------------------------------------- pieces


def _first_and_last_iou(run: Run) -> tuple[Mapping, Mapping]:
    models = list(run.evaluations)
    return (
        run.evaluations[baseline_of(models)].metrics["iou"],
        run.evaluations[models[-1]].metrics["iou"],
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(value: float | None) -> str:
    value = _number(value)
    return f"{100 * value:.1f}" if np.isfinite(value) else NOTHING


def _points(value: float) -> str:
    # A true minus sign is as wide as the plus, so that the columns align.
    return f"{100 * value:+.1f}".replace("-", MINUS) if np.isfinite(value) else NOTHING


def _decimal(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else NOTHING


def _count(value: float | None) -> str:
    value = _number(value)
    return f"{int(value):,}".replace(",", THIN_SPACE) if np.isfinite(value) else NOTHING


def _th(value: object) -> str:
    return f'<th scope="row">{_text(value)}</th>'


def _class_th(name: str, label_space: LabelSpace) -> str:
    return f'<th scope="row">{_swatch(name, label_space)}{_text(name)}</th>'


def _td(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{_text(text)}</td>"


def _change(value: float) -> str:
    kind = "gain" if value > 0 else "loss" if value < 0 else ""
    return _td(_points(value), kind)


def _swatch(name: str, label_space: LabelSpace) -> str:
    if name not in label_space.names:
        return ""
    red, green, blue = (int(part) for part in label_space.palette[label_space.names.index(name)])
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def _legend(label_space: LabelSpace) -> str:
    items = "".join(
        f"<li>{_swatch(name, label_space)}{_text(name)}</li>" for name in label_space.names
    )
    black = '<li><i class="swatch" style="background:#000"></i>unlabelled</li>'
    return f'<ul class="legend" aria-label="Class colours">{items}{black}</ul>'


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Sequence[tuple[str, int]] = (),
    total: Sequence[str] = (),
) -> str:
    """Build a table that scrolls sideways on a narrow screen; cells are HTML, the rest is text."""
    first = rows[0] if rows else [""] * len(heads)
    kinds = [' class="word"' if 'class="word"' in cell else "" for cell in first]
    columns = "".join(
        f'<th scope="col"{kind}>{_text(head)}</th>' for head, kind in zip(heads, kinds, strict=True)
    )
    upper = "".join(
        f'<th scope="colgroup" colspan="{width}">{_text(name)}</th>' if name else "<td></td>"
        for name, width in groups
    )
    upper = f'<tr class="groups">{upper}</tr>' if upper else ""
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    foot = f'<tfoot><tr class="total">{"".join(total)}</tr></tfoot>' if total else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f"<table><caption>{_text(caption)}</caption><thead>{upper}<tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def _figure(draw: Callable[[plots.Theme], Figure], alt: str, kind: str = "plot") -> str:
    """Embed a figure twice, for a light and for a dark screen."""
    light, dark = (_uri(_reduced(draw(theme))) for theme in (plots.LIGHT, plots.DARK))
    return (
        f'<figure class="scroll {kind}" tabindex="0" role="region" '
        f'aria-label="{_text(alt)}"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_text(alt)}"></picture></figure>'
    )


def _reduced(figure: Figure) -> bytes:
    """Encode a figure in 256 colours: a third of the size, and none of its hues is lost."""
    picture = Image.open(io.BytesIO(plots.png_bytes(figure))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG")
    return buffer.getvalue()


def _card(name: str, kind: str, pictures: Sequence[str]) -> str:
    return (
        f'<article class="card"><h3>{_text(name)}</h3>'
        f'<div class="pictures {kind}">{"".join(pictures)}</div></article>'
    )


def _photo(image: np.ndarray, caption: str, name: str) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return _picture(_uri(buffer.getvalue(), "jpeg"), caption, name, picture.size, "photo")


def _label_map(labels: np.ndarray, caption: str, name: str, label_space: LabelSpace) -> str:
    scale = min(1.0, THUMBNAIL / max(labels.shape))
    size = tuple(max(1, round(side * scale)) for side in labels.shape[::-1])
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    colors = Image.fromarray(colorize(small, np.asarray(label_space.palette, dtype=np.uint8)))
    buffer = io.BytesIO()
    colors.save(buffer, format="PNG", optimize=True)
    return _picture(_uri(buffer.getvalue()), caption, name, size, "labels")


def _picture(uri: str, caption: str, name: str, size: tuple[int, int], kind: str) -> str:
    width, height = size
    return (
        f'<figure><img class="{kind}" src="{uri}" width="{width}" height="{height}" '
        f'alt="{_text(f"{name}: {caption}")}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1b1f24; --muted: #5b6470;
  --line: #e3e6ea; --accent: #0b62a3; --gain: #0b62a3; --loss: #b34a00; --stripe: #f8f9fa; }
@media (prefers-color-scheme: dark) { :root { --page: #121519; --card: #1b1f25; --ink: #e8eaed;
  --muted: #a3abb6; --line: #333942; --accent: #7cc4f2; --gain: #7cc4f2; --loss: #f5a468;
  --stripe: #20252c; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui,
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; z-index: 3; padding: .5rem 1rem; background: var(--card); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0; letter-spacing: -.01em; }
.lead { color: var(--muted); margin: .4rem 0 1.25rem; max-width: 62ch; }
h2 { font-size: 1.3rem; margin: 0 0 .5rem; }
h3 { font-size: .9rem; margin: 0 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 .9rem; max-width: 72ch; color: var(--muted); }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid
  var(--line); margin-top: 1.25rem; }
nav div { max-width: 76rem; margin: 0 auto; padding: .35rem .75rem; display: flex; gap: .1rem;
  overflow-x: auto; }
nav a { padding: .35rem .55rem; color: var(--ink); text-decoration: none; white-space: nowrap;
  font-size: .9rem; border-radius: 6px; }
nav a:hover { background: var(--line); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.25rem; margin: 1.25rem 0; }
dl { margin: 0; } dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: .8rem 1rem; }
.tile dt, .tile span { color: var(--muted); font-size: .85rem; }
.tile strong { display: block; font-size: 1.9rem; line-height: 1.2; font-weight: 650; }
.summary { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin-top: 1rem; font-size: .9rem; }
.summary dt { color: var(--muted); } .summary dd { font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .85rem; padding-bottom: .4rem; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; border-bottom: 2px solid var(--line); }
tbody th, tfoot th { font-weight: 500; } th:first-child { text-align: left; padding-left: .25rem; }
.groups th { text-align: center; color: var(--ink); border-bottom: 0; }
.groups td { border-bottom: 0; }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody tr:hover { background: var(--line); }
td.strong { font-weight: 650; } td.word, th.word { text-align: left; }
td.gain { color: var(--gain); } td.loss { color: var(--loss); }
code { font-size: .85rem; overflow-wrap: anywhere; white-space: normal; }
.swatch { display: inline-block; width: .85em; height: .85em; border-radius: 3px;
  margin-right: .5em; vertical-align: -.06em; box-shadow: inset 0 0 0 1px rgba(128,128,128,.55);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0;
  margin: 0 0 1rem; font-size: .85rem; }
.plot img { display: block; width: 100%; max-width: 56rem; min-width: 36rem; height: auto; }
.plot.small img { min-width: 0; }
.total > * { border-top: 2px solid var(--line); font-weight: 650; }
.beside { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 1.5rem;
  align-items: start; }
.card { border-top: 1px solid var(--line); padding: .8rem 0 .4rem; break-inside: avoid; }
.pictures { display: grid; gap: .6rem; }
.pictures.four { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.pictures.rounds { grid-template-rows: auto auto; grid-auto-flow: column;
  grid-auto-columns: minmax(0, 20rem); }
.pictures.rounds figure:first-child { grid-row: span 2; }
.pictures figure { margin: 0; }
.pictures img { width: 100%; height: auto; display: block; border-radius: 4px; }
.pictures .labels { image-rendering: pixelated; }
figcaption { font-size: .8rem; color: var(--muted); padding-top: .2rem; }
details { margin-bottom: .6rem; }
summary { cursor: pointer; font-weight: 600; padding: .35rem 0; }
summary span { color: var(--muted); font-weight: 400; font-size: .9rem; }
@media (max-width: 60rem) { .beside { grid-template-columns: minmax(0, 1fr); }
  .pictures.four { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 40rem) { header, main { padding-left: .75rem; padding-right: .75rem; }
  section { padding: .9rem; } .tiles { grid-template-columns: 1fr 1fr; }
  .pictures.rounds { grid-auto-flow: row; grid-template: none; grid-template-columns: 1fr 1fr; }
  .pictures.rounds figure:first-child { grid-row: auto; grid-column: span 2; }
  th, td { padding: .3rem .5rem; } }
@media print { nav, .skip { display: none; } section { border: 0; } }
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
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
</body>
</html>
""")
