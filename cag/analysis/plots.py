"""Figures and picture panels of a run, drawn without a display and the same bytes each time."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

from cag.runtime.files import atomic_file

DPI = 144
MARKERS = {"anchor": "o", "probability": "s", "agreement": "D"}  # each with its own marker
# Rules of the threshold curves: what their thresholds are, and how their lines are drawn.
THRESHOLDS = {
    "margin": ("d2 - d1, in units of the features", "-"),
    "relative_margin": ("(d2 - d1) / (d2 + d1)", "--"),
    "quantile": ("share kept of each class", ":"),
    "probability": ("probability of the predicted class", "-."),
}
LARGEST_ANNOTATED = 24  # classes; beyond it numbers in a confusion matrix are too small to read


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; hues are Okabe and Ito's, told apart by colour-blind readers."""

    surface: str
    ink: str
    muted: str
    grid: str
    missing: str
    cycle: tuple[str, ...]
    ramp: tuple[str, str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """Matplotlib's settings for a figure in these colours."""
        ticks = {"color": self.muted, "labelcolor": self.ink, "labelsize": 9, "major.size": 0}
        return {
            **{f"{axis}tick.{key}": value for axis in "xy" for key, value in ticks.items()},
            "axes.axisbelow": True,
            "axes.edgecolor": self.grid,
            "axes.facecolor": self.surface,
            "axes.labelcolor": self.muted,
            "axes.labelsize": 9,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": self.ink,
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.facecolor": self.surface,
            "figure.labelsize": 9,
            "grid.color": self.grid,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "legend.labelcolor": self.ink,
            "text.color": self.ink,
            "text.parse_math": False,  # a name is text, whatever it spells
        }


LIGHT = Theme(
    surface="#ffffff",
    ink="#1b1f24",
    muted="#5b6470",
    grid="#e3e6ea",
    missing="#f1f2f4",
    cycle=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b88600", "#3f9fd8"),
    ramp=("#ffffff", "#6aaedb", "#08306b"),
)
DARK = Theme(
    surface="#1b1f25",
    ink="#e8eaed",
    muted="#a3abb6",
    grid="#333942",
    missing="#262b32",
    cycle=("#56b4e9", "#f08a3c", "#2fbf94", "#e19cc4", "#e6b422", "#8fd0f7"),
    ramp=("#1b1f25", "#2b74a8", "#cfe9fb"),
)


def themed(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function draw its figure with the settings of `theme`, a keyword.

    The figure keeps them, as matplotlib makes ticks when it draws: see `png_bytes`.
    """

    @wraps(draw)
    def drawn(*contents, theme: Theme = LIGHT, **options) -> Figure:
        with matplotlib.rc_context(theme.settings):
            figure = draw(*contents, theme=theme, **options)
        figure.settings = theme.settings
        return figure

    return drawn


def panel(
    rows: Sequence[Sequence[np.ndarray]], column_titles: Sequence[str], gap: int = 6
) -> np.ndarray:
    """Lay pictures out in a grid under a line of column titles.

    Args:
        rows: for each row one picture per column, uint8 [H, W, 3] RGB; every picture is scaled to
            the size of the first one.
        column_titles: one title per column.
        gap: space around each picture, in pixels.

    Returns:
        uint8 [H', W', 3] RGB.

    Raises:
        ValueError: no row, or a row whose length is not the number of titles.
    """
    if not rows or any(len(row) != len(column_titles) for row in rows):
        raise ValueError(
            f"a panel needs at least one row, and {len(column_titles)} pictures in each"
        )
    height, width = rows[0][0].shape[:2]
    size = max(11, min(28, height // 8))
    top = size + 2 * gap
    grid = (len(rows) * (height + gap) + top, len(column_titles) * (width + gap) + gap)
    canvas = Image.new("RGB", grid[::-1], "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for column, title in enumerate(column_titles):
        left = gap + column * (width + gap)
        draw.text((left, top / 2), title, fill="black", font=font, anchor="lm")
        for row, pictures in enumerate(rows):
            cell = _scaled(pictures[column], width, height)
            canvas.paste(cell, (left, top + row * (height + gap)))
    return np.asarray(canvas)


@themed
def confusion_figure(
    confusion: np.ndarray, names: Sequence[str], theme: Theme = LIGHT, title: str = ""
) -> Figure:
    """Draw a confusion matrix as shares of the true class's pixels.

    Args:
        confusion: [K, K] pixel counts, rows = truth.
        names: K class names.
        theme: colours.
        title: line above the matrix.

    Returns:
        the figure; a class without a labelled pixel has an empty row.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = 2.6 + 0.34 * len(names)
    figure, (axes,) = _figure((side, side - 0.8))
    figure.get_layout_engine().set(w_pad=0.15)  # or the square axes push "truth" off the edge
    ramp = LinearSegmentedColormap.from_list("share", theme.ramp).with_extremes(bad=theme.missing)
    picture = axes.imshow(share, cmap=ramp, vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="prediction", ylabel="truth", title=title)
    axes.spines[:].set_visible(False)
    if len(names) <= LARGEST_ANNOTATED:
        _annotate(axes, share, theme)
    bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(1), fraction=0.045, pad=0.02)
    bar.set_label("share of the true class's pixels", fontsize=10)
    bar.ax.tick_params(labelcolor=theme.muted, labelsize=8)
    bar.outline.set_visible(False)
    return figure


@themed
def miou_figure(table: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Draw the mIoU of each model as bars, the source-only model in grey.

    Args:
        table: columns model, miou (0..1) and change (from the source-only model; NaN for it).
        theme: colours.

    Returns:
        the figure.
    """
    figure, (axes,) = _figure((8, 0.9 + 0.46 * len(table)))
    miou = table["miou"].to_numpy(dtype=np.float64)
    baseline = table["change"].isna().to_numpy()
    colors = [theme.muted if first else theme.cycle[0] for first in baseline]
    positions = np.arange(len(table))
    axes.barh(positions, np.nan_to_num(miou), color=colors, height=0.62)
    for y, value, change in zip(positions, miou, table["change"], strict=True):
        text = f"{100 * value:.1f}" if np.isfinite(value) else "none"
        text += "" if pd.isna(change) else f"   ({100 * change:+.1f})"
        axes.annotate(
            text,
            (np.nan_to_num(value), y),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(positions, table["model"])
    axes.invert_yaxis()
    axes.set_xlim(0, min(1.0, max(0.1, 1.3 * np.nanmax(miou, initial=0.0))))
    axes.set_xlabel("mIoU on the target validation images (change in points)")
    _share_axis(axes)
    return figure


@themed
def per_class_figure(
    before: np.ndarray,
    after: np.ndarray,
    names: Sequence[str],
    theme: Theme = LIGHT,
    labels: tuple[str, str] = ("before", "after"),
) -> Figure:
    """Draw each class's IoU before and after as two joined dots, greatest gain first.

    Args:
        before: [K] IoU, 0..1; NaN where a class occurs in neither map.
        after: [K] IoU of the other model.
        names: K class names.
        theme: colours.
        labels: names of the two models.

    Returns:
        the figure; classes whose change is not defined stand last.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (before, after))
    change = after - before
    order = np.argsort(-change, kind="stable")  # NaN sorts last
    before, after, change = before[order], after[order], change[order]
    figure, (axes,) = _figure((8, 1.2 + 0.29 * len(names)))
    positions = np.arange(len(names))
    gain, loss = theme.cycle[0], theme.cycle[1]
    colors = np.where(change < 0, loss, gain)
    axes.hlines(positions, before, after, colors=colors, linewidth=2.5, alpha=0.55)
    axes.scatter(
        before,
        positions,
        color=theme.surface,
        edgecolor=theme.muted,
        zorder=3,
        s=38,
        linewidth=1.5,
        label=labels[0],
    )
    for mask, color, marker, word in (
        (change < 0, loss, "v", "lower"),
        (~(change < 0), gain, "o", "higher"),
    ):
        if mask.any():
            axes.scatter(
                after[mask],
                positions[mask],
                color=color,
                marker=marker,
                zorder=4,
                s=44,
                label=f"{labels[1]} ({word})",
            )
    axes.set_yticks(positions, [names[index] for index in order])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first class on top; room for one without a dot
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("IoU")
    _share_axis(axes)
    _legend(figure, [axes])
    return figure


def coverage_shares(coverage: pd.DataFrame) -> pd.DataFrame:
    """Turn a round's pixel counts into shares.

    Args:
        coverage: columns class, nearest, anchor, probability, agree: pixels whose nearest anchor
            is the class, that each rule labels so, and that both label so.

    Returns:
        columns class, anchor, probability, agreement, with a last row "all classes". The first two
        are relative to the pixels nearest to the class's anchor, so `probability` can exceed 1
        where the classifier names the class more often than its anchor is nearest; agreement is
        the share of the pixels labelled by either rule that both label alike. NaN for 0 / 0.
    """
    counts = coverage[["nearest", "anchor", "probability", "agree"]].astype(np.float64)
    counts = pd.concat([counts, counts.sum().to_frame().T], ignore_index=True)
    either = counts["anchor"] + counts["probability"] - counts["agree"]
    shares = pd.DataFrame(
        {
            "anchor": counts["anchor"] / counts["nearest"],
            "probability": counts["probability"] / counts["nearest"],
            "agreement": counts["agree"] / either,
        }
    ).replace([np.inf, -np.inf], np.nan)
    shares.insert(0, "class", [*coverage["class"].astype(str), "all classes"])
    return shares


@themed
def coverage_figure(coverages: Mapping[str, pd.DataFrame], theme: Theme = LIGHT) -> Figure:
    """Draw how much of each class the pseudo-labels keep, one column of dots per round.

    Args:
        coverages: round name -> the round's pixel counts, as for `coverage_shares`.
        theme: colours.

    Returns:
        the figure; shares above 1.1 are drawn as arrows at the edge.
    """
    shares = {name: coverage_shares(table) for name, table in coverages.items()}
    classes = list(next(iter(shares.values()))["class"])
    size = (max(8, 1.6 + 2.6 * len(shares)), 1.6 + 0.27 * len(classes))
    figure, columns = _figure(size, 1, len(shares), sharey=True)
    for axes, (name, table) in zip(columns, shares.items(), strict=True):
        _coverage_column(axes, table, theme)
        axes.set_title(name)
        axes.set_xlim(-0.03, 1.13)
        _share_axis(axes)
    columns[0].set_yticks(range(len(classes)), classes)
    columns[0].set_ylim(len(classes) - 0.4, -0.6)
    _legend(figure, columns[:1])
    figure.supxlabel(
        "share (anchor, probability: of the pixels nearest to the class's anchor)",
        color=theme.muted,
    )
    return figure


@themed
def curves_figure(curves: Mapping[str, pd.DataFrame], theme: Theme = LIGHT) -> Figure:
    """Draw the learning curves, one small plot per quantity and one line per model.

    Args:
        curves: model name -> columns iteration and any of learning_rate, loss, source_ce, ...
        theme: colours.

    Returns:
        the figure: running means over a thirtieth of the run, with the raw values behind them.
    """
    quantities = list(
        dict.fromkeys(
            column for table in curves.values() for column in table.columns if column != "iteration"
        )
    )
    quantities.sort(key="learning_rate".__eq__)  # a stable sort that puts it last
    columns = min(3, max(1, len(quantities)))
    lines = max(1, -(-len(quantities) // columns))
    figure, grid = _figure((8.4, 0.7 + 2.1 * lines), lines, columns)
    for axes, quantity in zip(grid, quantities, strict=False):
        for index, (model, table) in enumerate(curves.items()):
            if quantity in table:
                _curve(axes, table, quantity, model, index, theme)
        axes.set_title(quantity.replace("_", " "), fontsize=10)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in grid[len(quantities) :]:
        axes.set_axis_off()
    _legend(figure, grid)
    figure.supxlabel("iteration", color=theme.muted)
    return figure


@themed
def threshold_curves_figure(
    curves: pd.DataFrame,
    names: Sequence[str],
    palette: np.ndarray,
    configured: Mapping[str, float | None],
    theme: Theme = LIGHT,
) -> Figure:
    """Draw what each rule alone labels at each threshold: a plot per rule, a line per class.

    Args:
        curves: columns rule, threshold, class, pixels, share and class_threshold, as
            `pseudo_label` writes them.
        names: K class names.
        palette: uint8 [K, 3], their colours.
        configured: rule -> the threshold in use, which is marked, or None.
        theme: colours.

    Returns:
        the figure; the thick line is all classes together. Of the rule quantile it shows the
        relative margin that each class's quantile comes to.
    """
    figure, grid = _figure((10.5, 7), 2, 2)
    colors = dict(zip(names, np.asarray(palette) / 255, strict=True))
    drawn = {}  # by name, as matplotlib hides the labels that begin with "_"
    for axes, (rule, (unit, _)) in zip(grid, THRESHOLDS.items(), strict=True):
        rows = curves[curves["rule"] == rule]
        # A quantile's share is the quantile itself: what it comes to is the question.
        height = "class_threshold" if rule == "quantile" else "share"
        for name, line in rows.groupby("class", sort=False):
            (drawn[name],) = axes.plot(line["threshold"], line[height], color=colors[name], lw=1.2)
        if rule == "quantile":
            axes.set(ylabel="least relative margin of the class", ylim=(0, None))
        else:
            pixels = rows.groupby("threshold")["pixels"].sum()
            whole = pixels / max(pixels.max(), 1)
            (whole_line,) = axes.plot(whole.index, whole, color=theme.ink, linewidth=2.6)
            axes.set(ylabel="share of the class's pixels", ylim=(0, 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _mark_threshold(axes, configured.get(rule), theme)
        last = rows.loc[rows["pixels"] > 0, "threshold"].max()
        axes.set(xlabel=unit, title=rule.replace("_", " "), xlim=(0, last if last > 0 else 1))
        axes.grid()
    entries = [*drawn.items(), ("all classes", whole_line)]
    _place_legend(figure, entries, "outside right center", columns=1)
    return figure


@themed
def pseudo_label_quality_figure(
    curves: pd.DataFrame, configured: Mapping[str, float | None], theme: Theme = LIGHT
) -> Figure:
    """Draw the precision of each rule against the share that it labels, a small plot per class.

    Args:
        curves: columns rule, threshold, class, share and precision, as `evaluate_pseudo_labels`
            writes them; classes in their order, the last one all of them together.
        configured: rule -> the threshold in use, which gets a dot, or None.
        theme: colours.

    Returns:
        the figure; a class that is never labelled has an empty plot.
    """
    # By their places in the blocks of a threshold: a class may be called "all", too.
    places = curves.groupby(["rule", "threshold"], sort=False).cumcount()
    classes = [rows for _, rows in curves.groupby(places)]
    classes = [*classes[-1:], *classes[:-1]]
    columns = 5 if len(classes) > 4 else max(1, len(classes))
    lines = max(1, -(-len(classes) // columns))
    size = (max(6, 2.3 * columns), 1.1 + 1.9 * lines)
    figure, grid = _figure(size, lines, columns, sharex=True, sharey=True)
    for i, (axes, rows) in enumerate(zip(grid, classes, strict=False)):
        _quality(axes, rows, configured, theme)
        title = rows["class"].iloc[0] if i else "all classes"
        axes.set_title(title, fontsize=10)
    for axes in grid[len(classes) :]:
        axes.set_axis_off()
    if not classes:
        text = "no labelled validation images"
        figure.text(0.5, 0.5, text, ha="center", va="center")
    _legend(figure, grid)
    what = "share of the pixels nearest to (probability: predicted as) the class that is labelled"
    figure.supxlabel(what, color=theme.muted)
    figure.supylabel("precision", color=theme.muted)
    return figure


@themed
def sweep_figure(
    groups: Iterable[tuple[str, pd.DataFrame]], parameter: str, theme: Theme = LIGHT
) -> Figure:
    """Draw mIoU, precision and coverage of experiments against a parameter.

    Args:
        groups: what else differs, as text, and the experiments: columns `parameter` and those of
            results, such as round1.miou, round1.precision.anchor, round1.coverage.anchor.
        parameter: the column on the horizontal axis.
        theme: colours.

    Returns:
        the figure: a plot for each kind of result, a line for each result and group; groups differ
        in their kind of line, results in their colour.
    """
    kinds = {"mIoU": ".miou", "precision": ".precision.", "coverage": ".coverage."}
    figure, grid = _figure((11.5, 5), 1, len(kinds))
    for number, (group, rows) in enumerate(groups):
        for axes, (title, part) in zip(grid, kinds.items(), strict=True):
            for i, key in enumerate(key for key in rows if part in key):
                values = rows[key].astype(float)
                if values.notna().any():
                    name = key.replace(part, " ").strip() if part != ".miou" else key[: -len(part)]
                    axes.plot(
                        rows[parameter],
                        values,
                        marker="os^Dv"[number % 5],
                        color=theme.cycle[i % len(theme.cycle)],
                        linestyle=("-", "--", ":", "-.")[number % 4],
                        label=f"{name} ({group})" if group else name,
                    )
            axes.set(title=title, xlabel=parameter)
    for axes in grid:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid()
        if axes.get_legend_handles_labels()[0]:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
            axes.legend(fontsize=8, **below)
    return figure


@themed
def inspection_figure(
    pictures: Mapping[str, np.ndarray],
    legend: Mapping[str, Sequence[int]],
    point: tuple[int, int] | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw an image's maps beside it.

    Args:
        pictures: title -> uint8 [H, W, 3] RGB, or float [H, W] in [0, 1], drawn as a heat map.
        legend: class name -> its colour (red, green, blue) in 0..255.
        point: column and row of a pixel to mark in each picture.
        title: line above.
        theme: colours.

    Returns:
        the figure.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    lines = -(-len(pictures) // 2)
    side = min(6.0, 3.2 * width / height)  # inches
    size = (2 * side + 2.2, lines * (side * height / width + 0.45) + 0.5)
    figure, grid = _figure(size, lines, 2)
    ramp = LinearSegmentedColormap.from_list("share", theme.ramp)
    for axes, (name, picture) in zip(grid, pictures.items(), strict=False):
        shown = axes.imshow(picture, cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.spines[:].set_visible(False)
        if picture.ndim == 2:
            bar = figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.01)
            bar.ax.tick_params(labelcolor=theme.muted, labelsize=8)
            bar.outline.set_visible(False)
        if point is not None:
            for color, marker, weight in (("white", 13, 3.4), (theme.cycle[1], 12, 1.6)):
                style = {"markersize": marker, "markeredgewidth": weight}
                axes.plot(*point, "+", color=color, **style)
    for axes in grid[len(pictures) :]:
        axes.set_axis_off()
    patches = [
        Patch(facecolor=np.array(color) / 255, edgecolor=theme.grid, label=name)
        for name, color in legend.items()
    ]
    figure.legend(
        handles=[*patches, Patch(facecolor="black", edgecolor=theme.grid, label="no label")],
        loc="outside right upper",
    )
    figure.suptitle(title, fontsize=11)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Encode a figure as PNG: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(figure.settings):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically: the same figure gives the same bytes."""
    with atomic_file(path) as partial:
        partial.write_bytes(png_bytes(figure))


def _scaled(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """Scale with a box filter: averages when shrinking, invents no colour when enlarging."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image if image.size == (width, height) else image.resize((width, height), Image.BOX)


def _figure(
    size: tuple[float, float], lines: int = 1, columns: int = 1, **shared: bool
) -> tuple[Figure, list[Axes]]:
    """A figure of a size in inches, and its plots line by line."""
    figure = Figure(figsize=size)
    return figure, list(figure.subplots(lines, columns, squeeze=False, **shared).flat)


def _share_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """Put one legend above the plots; a name drawn in several of them is listed once."""
    entries: dict[str, Artist] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    _place_legend(figure, list(entries.items()), "outside upper left", columns=6)


def _place_legend(
    figure: Figure, entries: Sequence[tuple[str, Artist]], place: str, columns: int
) -> None:
    if entries:
        names, handles = zip(*entries, strict=True)
        figure.legend(handles, names, loc=place, ncols=columns)


def _annotate(axes: Axes, share: np.ndarray, theme: Theme) -> None:
    # A number stands in each cell of at least 1 %, in whichever ink reads on the cell's colour.
    for row, column in zip(*np.nonzero(np.nan_to_num(share) >= 0.01), strict=True):
        value = share[row, column]
        ink = theme.surface if value > 0.55 else theme.ink
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=ink
        )


def _coverage_column(axes: Axes, shares: pd.DataFrame, theme: Theme) -> None:
    positions = np.arange(len(shares))
    axes.axhline(len(shares) - 1.5, color=theme.muted, linewidth=0.8)  # above "all classes"
    for color, (rule, marker) in zip(theme.cycle, MARKERS.items(), strict=False):
        values = shares[rule].to_numpy()
        beyond = values > 1.1
        axes.scatter(
            values[~beyond],
            positions[~beyond],
            color=color,
            marker=marker,
            s=26,
            alpha=0.9,
            label=rule,
            zorder=3,
        )
        axes.scatter(
            np.full(beyond.sum(), 1.1), positions[beyond], color=color, marker=">", s=30, zorder=3
        )


def _curve(
    axes: Axes, table: pd.DataFrame, quantity: str, model: str, index: int, theme: Theme
) -> None:
    color = theme.cycle[index % len(theme.cycle)]
    style = ("-", "--", ":", "-.")[index % 4]
    smooth = table[quantity].rolling(max(1, len(table) // 30), min_periods=1, center=True).mean()
    axes.plot(table["iteration"], table[quantity], color=color, alpha=0.22, linewidth=0.7)
    axes.plot(table["iteration"], smooth, color=color, linestyle=style, linewidth=1.6, label=model)


def _mark_threshold(axes: Axes, threshold: float | None, theme: Theme) -> None:
    if threshold is not None:
        axes.axvline(threshold, color=theme.cycle[1], linestyle="--", linewidth=1.4)
        axes.annotate(
            f"{threshold:g}",
            (threshold, 1.0),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=theme.cycle[1],
            fontsize=9,
        )


def _quality(
    axes: Axes, curves: pd.DataFrame, configured: Mapping[str, float | None], theme: Theme
) -> None:
    """One line for each rule, through its thresholds."""
    for color, (rule, (_, style)) in zip(theme.cycle, THRESHOLDS.items(), strict=False):
        rows = curves[(curves["rule"] == rule) & (curves["pixels"] > 0)]
        label = rule.replace("_", " ")
        axes.plot(rows["share"], rows["precision"], style, color=color, lw=1.6, label=label)
        if configured.get(rule) is not None:
            used = rows[np.float32(rows["threshold"]) == np.float32(configured[rule])]
            axes.scatter(used["share"], used["precision"], color=color, s=34, zorder=3)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid()
