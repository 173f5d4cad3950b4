"""The figures that stand on the page and lie beside it as PNG."""

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
    """Each class's IoU of the two models that are compared."""
    names = run.label_space.names
    before, after = (iou_of(run.scores[model], names) for model in run.compared)
    return plots.per_class_figure(before, after, names, theme=theme, labels=run.compared)


def coverage(run: Run, theme: Theme = LIGHT) -> Figure:
    """The share of the pixels that each rule labels, by class and round."""
    tables = {name: one_round.coverage for name, one_round in run.rounds.items()}
    return plots.coverage_figure(tables, theme=theme)


def curves(run: Run, theme: Theme = LIGHT) -> Figure:
    """The learning curves."""
    return plots.curves_figure(run.curves, theme=theme)


def drawable(run: Run) -> list[Callable[..., Figure]]:
    """The figures that there is something to draw for."""
    scored = [miou, per_class] if run.evaluations else []
    return [*scored, *([coverage] if run.rounds else []), *([curves] if run.curves else [])]
