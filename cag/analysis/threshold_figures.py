"""Figures of the threshold curves: the share of pixels labelled, and labelled rightly."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cag.analysis.fonts import drawable, legend_columns
from cag.analysis.plots import LIGHT, MANY, Theme, add_legend, plot_grid, themed
from cag.pseudo_labels import THRESHOLDS


@themed
def threshold_curves_figure(
    curves: pd.DataFrame,
    names: Sequence[str],
    palette: np.ndarray,
    configured: Mapping[str, float | None],
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the share that each threshold alone labels: a plot per kind, a line per class.

    The thick line is all classes together. For quantiles the plot shows the relative margins that
    they come to. `curves` is a `curve_table`, `palette` uint8 [K, 3]; thresholds in use are marked.
    """
    height, shown = 3.5 * -(-len(THRESHOLDS) // 2), dict(zip(names, drawable(names), strict=True))
    columns, more = legend_columns([*shown.values(), "all classes"], height)
    figure, plots = plot_grid(theme, (10.5 + more, height), len(THRESHOLDS), 2)
    colors = dict(zip(names, np.asarray(palette) / 255, strict=True))
    drawn = {}  # by name, as matplotlib hides the labels that begin with "_"
    for axes, (key, threshold) in zip(plots, THRESHOLDS.items(), strict=True):
        rows = curves[curves["rule"] == key]
        # A quantile is itself a share: the number that it comes to says more.
        value = "class_threshold" if threshold.per_class else "share"
        for name, line in rows.groupby("class", sort=False):
            (drawn[name],) = axes.plot(line["threshold"], line[value], color=colors[name], lw=1.2)
        if threshold.per_class:
            axes.set(ylabel="least relative margin of the class", ylim=(0, None))
        else:
            pixels = rows.groupby("threshold")["pixels"].sum()
            whole = pixels / max(pixels.max(), 1)
            (whole_line,) = axes.plot(whole.index, whole, color=theme.ink, linewidth=2.6)
            axes.set(ylabel="share of the class's pixels", ylim=(0, 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        last = rows.loc[rows["pixels"] > 0, "threshold"].max()
        axes.set(xlabel=threshold.label, title=threshold.title, xlim=(0, last if last > 0 else 1))
        _mark_threshold(axes, configured.get(key), theme)
        axes.grid(True)
    lines, labels = [*drawn.values(), whole_line], [*map(shown.get, drawn), "all classes"]
    figure.legend(lines, labels, loc="outside right center", ncols=columns)
    return figure


@themed
def pseudo_label_quality_figure(
    curves: pd.DataFrame, configured: Mapping[str, float | None], theme: Theme = LIGHT
) -> Figure:
    """Draw each threshold's precision against the share that it labels, a small plot per class.

    `curves` is a `LabelledCounts.table`. A dot marks the threshold in use. Of very many classes
    those are drawn of which most pixels are labelled.
    """
    # By the place in a threshold's block, not by name: a class may be called "all", too.
    places = curves.groupby(["rule", "threshold"], sort=False).cumcount()
    classes = [rows for _, rows in curves.groupby(places)]
    whole, classes = classes[-1:], classes[:-1]
    titles = drawable([rows["class"].iloc[0] for rows in classes])
    pixels = [-rows["pixels"].max() for rows in classes]
    chosen = sorted(np.argsort(pixels, kind="stable")[:MANY])
    note = "" if len(chosen) == len(classes) else f"; the largest {MANY} of {len(classes)} classes"
    titles = ["all classes", *(titles[i] for i in chosen)]
    classes = whole + [classes[i] for i in chosen]
    count = len(classes)
    columns = 5 if count > 4 else max(1, count)
    size = (max(6, 2.3 * columns), 1.1 + 1.9 * max(1, -(-count // columns)))
    figure, plots = plot_grid(theme, size, count, columns, sharex=True, sharey=True)
    for axes, rows, title in zip(plots, classes, titles, strict=False):
        _quality(axes, rows, configured, theme)
        axes.set_title(title, fontsize=10)
    if not classes:
        figure.text(0.5, 0.5, "no labelled validation images", ha="center", va="center")
    add_legend(figure, plots)
    label = "share of the pixels nearest to (probability: predicted as) the class that is labelled"
    figure.supxlabel(f"{label}{note}", color=theme.muted)
    figure.supylabel("precision", color=theme.muted)
    return figure


def _mark_threshold(axes: Axes, threshold: float | None, theme: Theme) -> None:
    """A line at the threshold, or an arrow to it where the curves end before."""
    if threshold is None:
        return
    color, place = theme.cycle[1], {"xycoords": ("data", "axes fraction"), "va": "top"}
    place |= {"textcoords": "offset points", "color": color, "fontsize": 9}
    end = axes.get_xlim()[1]
    if threshold > end:  # text at its place would leave the plots no room
        axes.annotate(
            f"{threshold:g} \N{RIGHTWARDS ARROW}", (end, 1.0), (-4, -2), ha="right", **place
        )
        return
    axes.axvline(threshold, color=color, linestyle="--", linewidth=1.4)
    axes.annotate(f"{threshold:g}", (threshold, 1.0), (4, -2), **place)


def _quality(axes: Axes, curves: pd.DataFrame, configured: Mapping, theme: Theme) -> None:
    """One line for each kind of threshold, through its thresholds."""
    for number, (key, threshold) in enumerate(THRESHOLDS.items()):
        style = theme.line(number)
        rows = curves[(curves["rule"] == key) & (curves["pixels"] > 0)]
        axes.plot(rows["share"], rows["precision"], **style, lw=1.6, label=threshold.title)
        if configured.get(key) is not None:
            used = rows[np.float32(rows["threshold"]) == np.float32(configured[key])]
            axes.scatter(used["share"], used["precision"], color=style["color"], s=34, zorder=3)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True)
