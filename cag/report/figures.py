"""The figures on the page, which also lie beside it as PNG."""

from collections.abc import Callable

from matplotlib.figure import Figure

from cag.analysis import plots
from cag.analysis.plots import LIGHT, Theme
from cag.report.contents import Run
from cag.report.tables import iou_of, results_table


def miou(run: Run, theme: Theme = LIGHT) -> Figure:
    """The mIoU of each model."""
    return plots.miou_figure(results_table(run.scores), theme=theme)


def per_class(run: Run, theme: Theme = LIGHT) -> Figure:
    """Each class's IoU for the two models that the page compares."""
    names = run.label_space.names
    iou = (iou_of(run.scores[model], names) for model in run.compared)
    return plots.per_class_figure(*iou, names, theme=theme, labels=run.compared)


def coverage(run: Run, theme: Theme = LIGHT) -> Figure:
    """The share of the pixels that each rule labels, by class and round."""
    tables = {name: part.coverage for name, part in run.rounds.items()}
    return plots.coverage_figure(tables, theme=theme)


def curves(run: Run, theme: Theme = LIGHT) -> Figure:
    """The learning curves."""
    return plots.curves_figure(run.curves, theme=theme)


def drawable(run: Run) -> list[Callable[..., Figure]]:
    """The figures for which the run has contents."""
    needs = {miou: run.scores, per_class: run.scores, coverage: run.rounds, curves: run.curves}
    return [draw for draw, contents in needs.items() if contents]
