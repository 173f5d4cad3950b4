"""Pixels that each threshold alone labels, at many values, counted in one pass and flat memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cag.config.base import RULES
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import THRESHOLDS, MarginHistogram, Pixels
from cag.runtime.errors import UserError
from cag.runtime.validation import readable

COLUMNS = ("rule", "threshold", "class", "pixels", "share", "class_threshold")
MEASURES = ("precision", "recall")
ALL = "all"  # stands for the classes together
Grid = Mapping[str, Tensor]  # key of THRESHOLDS -> thresholds float32 [T]
Device = torch.device | str | None
_MARGINS = 99  # steps up to the largest margin there can be
_DIGITS = 6  # of a share


def threshold_grid(anchors: Tensor, config: PseudoLabel) -> dict[str, Tensor]:
    """Choose the ascending thresholds of each curve, float32 [T] on the CPU, by key of THRESHOLDS.

    The configured ones are among them. By the triangle inequality no d2 - d1 exceeds the largest
    distance between two anchors, float [K, D] with rows of NaN where not seen, so the margins need
    no pass over the features.
    """
    seen = anchors[~anchors.isnan().any(dim=1)].cpu().float()
    step = _round_up(torch.cdist(seen, seen).max().item() / _MARGINS)
    distances = [i * step for i in range(_MARGINS + 1)]
    grid = {}
    for key, threshold in THRESHOLDS.items():
        values = [*(threshold.scale or distances), getattr(config, key)]
        values = [value for value in values if value is not None]
        grid[key] = torch.tensor(values, dtype=torch.float32).unique()
    return grid


class ThresholdCounts:
    """Pixels of each class by the thresholds of a `threshold_grid` that they pass.

    Counts of parts of a data set add up. `device` holds the pixels.
    """

    def __init__(self, num_classes: int, grid: Grid, device: Device = None) -> None:
        # The histogram serves the thresholds per class, whatever share they keep.
        direct = [key for key, threshold in THRESHOLDS.items() if not threshold.per_class]
        self._grid = {key: grid[key].to(device) for key in direct}
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        # [K, T + 1], by the number of thresholds passed
        self._passed = {key: zeros(num_classes, len(grid[key]) + 1) for key in direct}
        self._relative = MarginHistogram(num_classes, device=device)

    def update(self, pixels: Pixels, rules: Sequence[str] = RULES) -> None:
        """Count pixels [...] for the thresholds of some rules."""
        for key, counts in self._passed.items():
            threshold = THRESHOLDS[key]
            if threshold.rule in rules:
                passed = threshold.count_passed(threshold.value(pixels), self._grid[key])
                cells = pixels.classes(threshold.rule).long() * counts.shape[1] + passed
                counts.view(-1).scatter_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
        if "anchor" in rules:
            self._relative.update(pixels.nearest, pixels.relative_margin())

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes: `Processes.total` of each tensor."""
        self._passed = {key: total(counts) for key, counts in self._passed.items()}
        self._relative.counts = total(self._relative.counts)

    def class_thresholds(self, quantiles: Tensor) -> Tensor:
        """Each class's least relative margin at T quantiles, float32 [K, T]."""
        columns = [self._relative.thresholds(decimal(keep)) for keep in quantiles]
        return torch.stack(columns, dim=1).cpu()

    def labelled(self, class_thresholds: Tensor) -> dict[str, Tensor]:
        """Pixels that each threshold alone labels, int64 [K, T] on the CPU, by key of THRESHOLDS.

        They are exactly those of `pseudo_labels.label_pixels`, in the order of the grid. The
        argument is float32 [K, T], edges of the histogram's bins, from the method of this name.
        """
        reaching = _at_least(self._relative.counts)
        edges = (class_thresholds * reaching.shape[1]).long().to(reaching.device)  # [K, T]
        labelled = {}
        for key, threshold in THRESHOLDS.items():
            if threshold.per_class:
                counts = reaching.gather(1, edges)
            else:
                counts = _at_least(self._passed[key])[:, 1:]  # the loosest threshold first
            labelled[key] = (counts.flip(1) if threshold.at_most else counts).cpu()
        return labelled

    def totals(self) -> dict[str, Tensor]:
        """Pixels that each threshold decides on, [K]: nearest to, or predicted as, the class."""
        counts = {key: counts.sum(dim=1).cpu() for key, counts in self._passed.items()}
        nearest = self._relative.counts.sum(dim=1).cpu()
        return {key: counts.get(key, nearest) for key in THRESHOLDS}


def decimal(threshold: Tensor) -> float:
    """The shortest decimal number that reads back as a float32, e.g. 0.2."""
    return float(str(np.float32(threshold)))


def curve_table(
    names: Sequence[str], grid: Grid, counts: ThresholdCounts, class_thresholds: Tensor
) -> pd.DataFrame:
    """Make a row for each kind of threshold, threshold and class, with the columns `COLUMNS`.

    They hold the pixels that the threshold alone labels, and their share of the pixels nearest to
    (for probability: predicted as) the class. Class thresholds: float32 [K, T] at the T quantiles.
    """
    labelled, totals, cuts = counts.labelled(class_thresholds), counts.totals(), class_thresholds
    tables = [_rows(names, key, grid[key], labelled[key], totals[key], cuts) for key in THRESHOLDS]
    return pd.concat(tables, ignore_index=True)


class LabelledCounts:
    """`ThresholdCounts`, three times: of all pixels, of a known class, and rightly labelled."""

    def __init__(self, num_classes: int, grid: Grid, device: Device = None) -> None:
        self._parts = [ThresholdCounts(num_classes, grid, device) for _ in range(3)]
        self._truth = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def update(self, pixels: Pixels, truth: Tensor) -> None:
        """Count pixels [...] of the true class uint8 [...], 255 = not known."""
        whole, known, right = self._parts
        whole.update(pixels)
        known.update(pixels.chosen(truth != IGNORE))
        for rule in RULES:
            right.update(pixels.chosen(truth == pixels.classes(rule)), (rule,))
        counts = torch.bincount(truth.flatten().long(), minlength=IGNORE + 1)
        self._truth += counts[: len(self._truth)]

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes."""
        for counts in self._parts:
            counts.add_up(total)
        self._truth = total(self._truth)

    def table(self, names: Sequence[str], grid: Grid, class_thresholds: Tensor) -> pd.DataFrame:
        """`curve_table` with rows of the class "all", and two more columns.

        Of the labelled pixels of a known class, precision is the share labelled rightly; of the
        class's true pixels, recall is. NaN for 0 / 0. Without pixels there are no rows.
        """
        whole = self._parts[0].totals()
        if not sum(total.sum() for total in whole.values()):
            return pd.DataFrame(columns=[*COLUMNS, *MEASURES])
        labelled = [part.labelled(class_thresholds) for part in self._parts]
        # The row "all" has no class threshold.
        cuts = torch.cat([class_thresholds, torch.full_like(class_thresholds[:1], math.nan)])
        truth = _with_sum(self._truth.cpu())
        tables = []
        for key in THRESHOLDS:
            pixels, known, right = (_with_sum(counts[key]) for counts in labelled)  # [K + 1, T]
            table = _rows([*names, ALL], key, grid[key], pixels, _with_sum(whole[key]), cuts)
            table["precision"] = _shares(right, known)
            table["recall"] = _shares(right, truth[:, None])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


def read_thresholds(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Read a `curve_table`: its grid, and the class thresholds float32 [K, T] at the quantiles.

    A file that is missing, damaged or of other classes is a UserError.
    """
    shares = ("share", "class_threshold", *MEASURES)
    types = {"rule": str, "class": str, "pixels": np.int64}
    types |= dict.fromkeys(("threshold", *shares), float)
    missing = dict.fromkeys(shares, [""])
    with readable(path, "a readable table", "`dvc repro` makes it", "delete it and rerun"):
        # Names are text, whatever they spell.
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]}; delete it and rerun")
    grid, count = {}, len(names)
    for key in THRESHOLDS:
        rows = table[table["rule"] == key]
        if not len(rows) or list(rows["class"]) != list(names) * (len(rows) // count):
            fault = f"the rule {key} has not one row for each threshold and class"
            raise UserError(f"{path}: {fault}; delete it and rerun")
        grid[key] = torch.tensor(rows["threshold"].to_numpy(dtype=np.float32)[::count])
    cuts = table.loc[table["rule"] == "quantile", "class_threshold"].to_numpy(dtype=np.float32)
    return grid, torch.from_numpy(cuts.reshape(-1, count).T.copy())


def class_thresholds_at(quantile: float | None, grid: Grid, cuts: Tensor) -> Tensor | None:
    """From class thresholds [K, T] those of a quantile, float32 [K]; None for None.

    A UserError if the grid lacks it: the curves are of another quantile.
    """
    if quantile is None:
        return None
    (place,) = torch.nonzero(grid["quantile"] == torch.tensor(quantile), as_tuple=True)
    if not len(place):
        raise UserError(
            f"the threshold curves lack pseudo_label.quantile {quantile:g}; `dvc repro` makes them"
        )
    return cuts[:, place[0]]


def _with_sum(counts: Tensor) -> Tensor:
    """Counts [K, ...] of the classes, then their sum, [K + 1, ...]."""
    return torch.cat([counts, counts.sum(dim=0, keepdim=True)])


def _rows(names, key, thresholds, labelled, totals, class_thresholds) -> pd.DataFrame:
    cuts = class_thresholds.T.flatten() if THRESHOLDS[key].per_class else torch.tensor(math.nan)
    columns = (
        key,
        np.repeat([decimal(value) for value in thresholds], len(names)),
        list(names) * len(thresholds),
        labelled.T.flatten().numpy(),
        _shares(labelled, totals[:, None]),
        cuts.expand(labelled.numel()).double().numpy(),
    )
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _shares(part: Tensor, whole: Tensor) -> np.ndarray:
    """Counts [K, T] as shares, in the order of the rows; NaN for 0 / 0."""
    return (part.double() / whole).T.flatten().numpy().round(_DIGITS)


def _at_least(counts: Tensor) -> Tensor:
    """Sums of the cells from each one on, along dimension 1."""
    return counts.flip(1).cumsum(dim=1).flip(1)


def _round_up(value: float) -> float:
    """To two significant digits, so that thresholds are short numbers."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
    return math.ceil(value / unit) * unit
