"""Figures and picture panels of a run, drawn without a display, with the same bytes each time.

The argument `theme` of a figure gives its colours.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import style as styles
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont
from rich.cells import cell_len

from cag.analysis.fonts import FIRST, drawable, fonts_for, legend_columns
from cag.runtime.files import atomic_file

DPI = 144
MARKERS = {"anchor": "o", "probability": "s", "agreement": "D"}  # each with its own marker
LINES = ("-", "--", ":", "-.")  # with the colours of the cycle
P = ParamSpec("P")
MANY = 24  # classes; beyond them cells are too small for numbers, and plots of one class too many
LEAST_CELL = 0.12  # inches: of a confusion matrix, that its names can still be read


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. The hues are Okabe and Ito's, which colour-blind readers tell apart."""

    surface: str = "#ffffff"
    ink: str = "#1b1f24"
    muted: str = "#5b6470"
    grid: str = "#e3e6ea"
    missing: str = "#f1f2f4"
    cycle: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b88600", "#3f9fd8")
    ramp: tuple[str, str, str] = ("#ffffff", "#6aaedb", "#08306b")

    @property
    def colormap(self) -> LinearSegmentedColormap:
        """The colours of shares in [0, 1]."""
        ramp = LinearSegmentedColormap.from_list("share", self.ramp)
        return ramp.with_extremes(bad=self.missing)

    def line(self, number: int) -> dict[str, str]:
        """The colour and kind of a line, by its number."""
        color, style = self.cycle[number % len(self.cycle)], LINES[number % len(LINES)]
        return {"color": color, "linestyle": style}

    def applied(self) -> AbstractContextManager[None]:
        """Matplotlib with the settings of its figures, whatever a user's matplotlibrc says."""
        return styles.context(["default", self.settings()])

    def settings(self) -> dict[str, Any]:
        """Matplotlib's settings for its figures, where they are not the default."""
        axes = {"facecolor": self.surface, "edgecolor": self.grid, "labelcolor": self.muted}
        axes |= {"labelsize": 9, "titlecolor": self.ink, "axisbelow": True}
        figure = {"facecolor": self.surface, "labelsize": 9, "titlesize": 11}
        ticks = {"color": self.muted, "labelcolor": self.ink, "labelsize": 9, "major.size": 0}
        groups = {
            "axes": axes | {"spines.top": False, "spines.right": False},
            "figure": figure | {"constrained_layout.use": True},
            "grid": {"color": self.grid, "linewidth": 0.8},
            "legend": {"frameon": False, "labelcolor": self.ink, "fontsize": 9},
            "text": {"color": self.ink, "parse_math": False},  # a name is text, whatever it spells
            "xtick": ticks,
            "ytick": ticks,
        }
        return {f"{group}.{key}": groups[group][key] for group in groups for key in groups[group]}


LIGHT = Theme()
DARK = Theme(
    surface="#1b1f25",
    ink="#e8eaed",
    muted="#a3abb6",
    grid="#333942",
    missing="#262b32",
    cycle=("#56b4e9", "#f08a3c", "#2fbf94", "#e19cc4", "#e6b422", "#8fd0f7"),
    ramp=("#1b1f25", "#2b74a8", "#cfe9fb"),
)


class ThemedFigure(Figure):
    """A figure drawn under its theme's settings, as matplotlib makes ticks only while drawing."""

    def __init__(self, theme: Theme, size: tuple[float, float]):
        super().__init__(figsize=size)
        self.theme = theme

    def draw(self, renderer) -> None:
        """Draw the figure."""
        with self.theme.applied():
            for text in self.findobj(Text):
                fonts = fonts_for(text.get_text())
                if fonts is None:
                    text.set_text(text.get_text().encode("ascii", "backslashreplace").decode())
                elif set(fonts) - {FIRST}:
                    text.set_family([FIRST, *fonts])
            super().draw(renderer)


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a figure under the settings of its argument `theme`."""

    @wraps(draw)
    def make(*args: P.args, **kwargs: P.kwargs) -> Figure:
        theme = signature(draw).bind(*args, **kwargs).arguments.get("theme", LIGHT)
        with theme.applied():
            return draw(*args, **kwargs)

    return make


def plot_grid(
    theme: Theme, size: tuple[float, float], count: int = 1, columns: int = 1, **options
) -> tuple[ThemedFigure, list[Axes]]:
    """Start a figure of `count` plots in rows of `columns`; the last row may have empty places.

    `size` is width and height in inches; the options are those of `Figure.subplots`.
    """
    figure = ThemedFigure(theme, size)
    rows = max(1, -(-count // columns))
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def panel(
    rows: Sequence[Sequence[np.ndarray]], column_titles: Sequence[str], gap: int = 6
) -> np.ndarray:
    """Lay pictures out in a grid under a line of titles, `gap` pixels apart; uint8 [H', W', 3] RGB.

    All pictures, uint8 [H, W, 3] RGB, are scaled to the size of the first. There must be a row, and
    a picture for each title in every row.
    """
    if not rows or any(len(row) != len(column_titles) for row in rows):
        count = len(column_titles)
        raise ValueError(f"a panel needs at least one row, and {count} pictures in each")
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
            # A box filter averages when it shrinks, and invents no colour when it enlarges.
            picture = Image.fromarray(np.ascontiguousarray(pictures[column]))
            cell = picture.resize((width, height), Image.Resampling.BOX)
            canvas.paste(cell, (left, top + row * (height + gap)))
    return np.asarray(canvas)


@themed
def confusion_figure(confusion: np.ndarray, names: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Draw pixel counts [K, K], rows = truth, as shares of the row; empty rows stay blank."""
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    cell = max(LEAST_CELL, 0.34 * min(1, MANY / len(names)))
    ticks, names = range(len(names)), drawable(names)
    margin = max(2.6, 1.0 + 0.1 * max(map(cell_len, names)))
    side, size = margin + cell * len(names), min(9, 50 * cell)
    figure, (axes,) = plot_grid(theme, (side, side - 0.8))
    figure.get_layout_engine().set(w_pad=0.15)  # or the square axes push "truth" off the edge
    picture = axes.imshow(share, cmap=theme.colormap, vmin=0, vmax=1)
    axes.set_xticks(ticks, names, rotation=55, ha="right", rotation_mode="anchor", size=size)
    axes.set_yticks(ticks, names, size=size)
    axes.set(xlabel="prediction", ylabel="truth")
    axes.spines[:].set_visible(False)
    if len(names) <= MANY:
        # A number in each cell of at least 1 %, in the ink that reads on the cell's colour.
        style = {"ha": "center", "va": "center", "fontsize": 6.5}
        for row, column in np.argwhere(np.nan_to_num(share) >= 0.01):
            style["color"] = theme.surface if share[row, column] > 0.55 else theme.ink
            axes.text(column, row, f"{100 * share[row, column]:.0f}", **style)
    _heat_bar(figure, axes, picture, theme, format=PercentFormatter(1), fraction=0.045, pad=0.02)
    figure.axes[-1].set_ylabel("share of the true class's pixels", fontsize=10)
    return figure


@themed
def miou_figure(table: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Draw the mIoU of each model as bars, the source-only model in grey.

    The table's columns are model, miou in [0, 1], and change from the source-only model (NaN).
    """
    figure, (axes,) = plot_grid(theme, (8, 0.9 + 0.46 * len(table)))
    miou, positions = table["miou"].to_numpy(dtype=np.float64), np.arange(len(table))
    lengths = np.nan_to_num(miou)
    colors = np.where(table["change"].isna(), theme.muted, theme.cycle[0])
    axes.barh(positions, lengths, color=colors, height=0.62)
    for x, y, value, change in zip(lengths, positions, miou, table["change"], strict=True):
        text = f"{100 * value:.1f}" if np.isfinite(value) else "none"
        text += "" if pd.isna(change) else f"   ({100 * change:+.1f})"
        axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center")
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
    """Draw each class's IoU before and after as two joined dots, greatest gain first, NaN last.

    IoU is [K] in [0, 1], NaN where a class occurs in neither map; `labels` name the models.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (before, after))
    order = np.argsort(before - after, kind="stable")  # NaN sorts last
    before, after = before[order], after[order]
    figure, (axes,) = plot_grid(theme, (8, 1.2 + 0.29 * len(names)))
    positions, lower, (gain, loss) = np.arange(len(names)), after < before, theme.cycle[:2]
    colors = np.where(lower, loss, gain)
    axes.hlines(positions, before, after, colors=colors, linewidth=2.5, alpha=0.55)
    hollow = {"color": theme.surface, "edgecolor": theme.muted, "linewidth": 1.5}
    axes.scatter(before, positions, s=38, zorder=3, label=labels[0], **hollow)
    for mask, color, marker, word in ((lower, loss, "v", "lower"), (~lower, gain, "o", "higher")):
        if mask.any():
            style = {"color": color, "marker": marker, "label": f"{labels[1]} ({word})"}
            axes.scatter(after[mask], positions[mask], s=44, zorder=4, **style)
    axes.set_yticks(positions, [drawable(names)[index] for index in order])
    # The first class on top; room for one without a dot.
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(-0.02, 1.02), xlabel="IoU")
    _share_axis(axes)
    add_legend(figure, [axes])
    return figure


def coverage_shares(coverage: pd.DataFrame) -> pd.DataFrame:
    """Turn a round's pixel counts by class into shares; the last row is "all classes".

    The columns class, nearest, anchor, probability, agree count pixels nearest to the class's
    anchor, and those that each rule and both label so. They become class, anchor, probability and
    agreement: the rules' shares of the nearest pixels, of which `probability` can exceed 1, and the
    share of both rules among the pixels that either labels. NaN for n / 0.
    """
    counts = coverage[["nearest", "anchor", "probability", "agree"]].astype(np.float64)
    counts = pd.concat([counts, counts.sum().to_frame().T], ignore_index=True)
    shares = counts[["anchor", "probability"]].div(counts["nearest"], axis=0)
    either = counts["anchor"] + counts["probability"] - counts["agree"]
    shares["agreement"] = counts["agree"] / either
    shares = shares.replace(np.inf, np.nan)
    shares.insert(0, "class", [*coverage["class"].astype(str), "all classes"])
    return shares


@themed
def coverage_figure(coverages: Mapping[str, pd.DataFrame], theme: Theme = LIGHT) -> Figure:
    """Draw the share of each class that the pseudo-labels keep, one column of dots per round.

    Shares above 1.1 become arrows at the edge. The counts, by round, are as for `coverage_shares`.
    """
    shares = {name: coverage_shares(table) for name, table in coverages.items()}
    classes = list(next(iter(shares.values()))["class"])
    size = (max(8, 1.6 + 2.6 * len(shares)), 1.6 + 0.27 * len(classes))
    figure, plots = plot_grid(theme, size, len(shares), len(shares), sharey=True)
    for axes, (name, table) in zip(plots, shares.items(), strict=True):
        _coverage_column(axes, table, theme)
        axes.set_title(name, fontsize=11)
        axes.set_xlim(-0.03, 1.13)
        _share_axis(axes)
    plots[0].set_yticks(range(len(classes)), [*drawable(classes[:-1]), classes[-1]])
    plots[0].set_ylim(len(classes) - 0.4, -0.6)
    add_legend(figure, plots[:1])
    label = "share (anchor, probability: of the pixels nearest to the class's anchor)"
    figure.supxlabel(label, color=theme.muted)
    return figure


@themed
def curves_figure(curves: Mapping[str, pd.DataFrame], theme: Theme = LIGHT) -> Figure:
    """Draw the learning curves, a small plot per quantity and a line per model.

    The lines are running means over a thirtieth of the run, with the raw values behind them. A
    model's columns are iteration and any of learning_rate, loss, source_ce, ...
    """
    columns = dict.fromkeys(column for table in curves.values() for column in table)
    quantities = [column for column in columns if column != "iteration"]
    quantities.sort(key="learning_rate".__eq__)  # a stable sort that puts it last
    count = max(1, len(quantities))
    size = (8.4, 0.7 + 2.1 * -(-count // 3))
    figure, plots = plot_grid(theme, size, len(quantities), min(3, count))
    for axes, quantity in zip(plots, quantities, strict=True):
        for index, (model, table) in enumerate(curves.items()):
            if quantity in table:
                _curve(axes, table["iteration"], table[quantity], model, theme.line(index))
        axes.set_title(quantity.replace("_", " "), fontsize=10)
        axes.grid(True, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    add_legend(figure, plots)
    figure.supxlabel("iteration", color=theme.muted)
    return figure


@themed
def sweep_figure(
    groups: Iterable[tuple[str, pd.DataFrame]], parameter: str, theme: Theme = LIGHT
) -> Figure:
    """Draw mIoU, precision and coverage of experiments against a parameter.

    A line is a result of a group: groups differ in the kind of line, results in colour. A group is
    its other parameters, as text, and its experiments: the column `parameter` and results such as
    round1.miou, round1.precision.anchor, round1.coverage.anchor.
    """
    kinds = {"mIoU": ".miou", "precision": ".precision.", "coverage": ".coverage."}
    figure, plots = plot_grid(theme, (11.5, 5), len(kinds), len(kinds))
    lines, by_style, values = {}, {}, set()
    for number, (group, rows) in enumerate(groups):
        style = {"linestyle": LINES[number % len(LINES)], "marker": "os^Dv"[number % 5]}
        values.update(rows[parameter])
        if group:
            by_style[group] = Line2D([], [], color=theme.ink, **style)
        for axes, part in zip(plots, kinds.values(), strict=True):
            for i, key in enumerate(key for key in rows if part in key):
                result, color = rows[key].astype(float), theme.cycle[i % len(theme.cycle)]
                if result.notna().any():
                    axes.plot(rows[parameter], result, color=color, **style)
                    name = key.replace(part, " ") if part != ".miou" else key[: -len(part)]
                    lines.setdefault(name, Line2D([], [], color=color))
    for axes, title in zip(plots, kinds, strict=True):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(parameter)
        if len(values) <= 8:
            axes.set_xticks(sorted(values))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(True)
    if lines := lines | by_style:
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize=8)
    return figure


@themed
def inspection_figure(
    pictures: Mapping[str, np.ndarray],
    legend: Mapping[str, Sequence[int]],
    point: tuple[int, int] | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw an image's maps beside it, and mark a pixel (column, row) in each.

    `pictures` are, by title, uint8 [H, W, 3] RGB, or float [H, W] in [0, 1] for a heat map;
    `legend` gives each class's colour (red, green, blue) in 0..255, by a `drawable` name.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    side = min(6.0, 3.2 * width / height)  # inches
    tall = -(-len(pictures) // 2) * (side * height / width + 0.45) + 0.5
    columns, more = legend_columns([*legend, "no label"], tall)
    figure, plots = plot_grid(theme, (2 * side + 2.2 + more, tall), len(pictures), 2)
    for axes, (name, picture) in zip(plots, pictures.items(), strict=True):
        shown = axes.imshow(picture, cmap=theme.colormap, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.spines[:].set_visible(False)
        if picture.ndim == 2:
            _heat_bar(figure, axes, shown, theme, fraction=0.03, pad=0.01)
        if point is not None:
            for color, marker, weight in (("white", 13, 3.4), (theme.cycle[1], 12, 1.6)):
                axes.plot(*point, "+", color=color, markersize=marker, markeredgewidth=weight)
    colors = {name: np.divide(color, 255) for name, color in legend.items()}
    colors["no label"] = "black"
    patches = [Patch(fc=color, ec=theme.grid, label=name) for name, color in colors.items()]
    figure.legend(handles=patches, loc="outside right upper", ncols=columns)
    figure.suptitle(title)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Encode a figure as PNG, without the name of the program."""
    buffer = io.BytesIO()
    with styles.context("default"):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(png_bytes(figure))


def add_legend(figure: Figure, plots: Sequence[Axes]) -> None:
    """Put one legend above the plots; a name that several of them draw is listed once."""
    entries: dict[str, Artist] = {}
    for axes in plots:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries, loc="outside upper left", ncols=6)


def _share_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)


def _heat_bar(figure: Figure, axes: Axes, picture: AxesImage, theme: Theme, **options) -> None:
    bar = figure.colorbar(picture, ax=axes, **options)
    bar.ax.tick_params(labelcolor=theme.muted, labelsize=8)
    bar.outline.set_visible(False)


def _coverage_column(axes: Axes, shares: pd.DataFrame, theme: Theme) -> None:
    positions = np.arange(len(shares))
    axes.axhline(len(shares) - 1.5, color=theme.muted, linewidth=0.8)  # above "all classes"
    for color, (rule, marker) in zip(theme.cycle, MARKERS.items(), strict=False):
        values = shares[rule].to_numpy()
        beyond = values > 1.1
        style = {"color": color, "zorder": 3}
        inside, outside = positions[~beyond], positions[beyond]
        axes.scatter(values[~beyond], inside, marker=marker, s=26, alpha=0.9, label=rule, **style)
        axes.scatter(np.full(len(outside), 1.1), outside, marker=">", s=30, **style)


def _curve(axes: Axes, x: pd.Series, values: pd.Series, label: str, style: dict[str, str]) -> None:
    smooth = values.rolling(max(1, len(values) // 30), min_periods=1, center=True).mean()
    axes.plot(x, values, color=style["color"], alpha=0.22, linewidth=0.7)
    axes.plot(x, smooth, **style, linewidth=1.6, label=label)
