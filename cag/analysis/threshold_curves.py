"""What each rule alone labels at many thresholds, counted in one pass and in flat memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import MarginHistogram, relative_margins
from cag.runtime.errors import UserError

KINDS = ("margin", "relative_margin", "quantile", "probability")
COLUMNS = ("rule", "threshold", "class", "pixels", "share", "class_threshold")
MEASURES = ("precision", "recall")
ALL = "all"  # stands for the classes together
_MARGINS = 99  # steps up to the largest margin there can be
_DIGITS = 6  # of a share
_COUNTED = ("margin", "relative_margin", "probability")  # a quantile is a cut through the second


def threshold_grid(anchors: Tensor, config: PseudoLabel) -> dict[str, Tensor]:
    """Choose the thresholds of each rule's curve; the configured ones are among them.

    By the triangle inequality no d2 - d1 exceeds the distance between two anchors, so the margins
    need no pass over the features.

    Args:
        anchors: float [K, D], NaN rows where not seen.
        config: Thresholds of the rules, where they are not null.

    Returns:
        Rule -> ascending thresholds float32 [T], on the CPU: margin in units of the features,
        relative margin and probability in [0, 1], quantile in (0, 1].
    """
    seen = anchors[~anchors.isnan().any(dim=1)].cpu().float()
    step = _round_up(torch.cdist(seen, seen).max().item() / _MARGINS)
    hundredths = [i / 100 for i in range(100)]
    grid = {
        "margin": [i * step for i in range(_MARGINS + 1)],
        "relative_margin": hundredths,
        "quantile": [i / 50 for i in range(1, 51)],
        "probability": [*hundredths, 0.995, 0.999],
    }
    configured = {rule: getattr(config, rule) for rule in KINDS}
    given = {rule: [] if value is None else [value] for rule, value in configured.items()}
    return {
        rule: torch.tensor([*values, *given[rule]], dtype=torch.float32).unique()
        for rule, values in grid.items()
    }


class ThresholdCounts:
    """Pixels of each class by the thresholds that they pass; counts of parts of a data set add up.

    Args:
        num_classes: K.
        grid: As `threshold_grid` gives it.
        device: Where the pixels are.
    """

    def __init__(
        self, num_classes: int, grid: Mapping[str, Tensor], device: torch.device | str | None = None
    ) -> None:
        self._grid = {rule: grid[rule].to(device) for rule in _COUNTED}
        self._passed = {
            rule: torch.zeros(num_classes, len(edges) + 1, dtype=torch.int64, device=device)
            for rule, edges in self._grid.items()
        }  # [K, T + 1], by the number of thresholds passed
        self._relative = MarginHistogram(num_classes, device=device)

    def update_anchor(
        self, nearest: Tensor, nearest_distance: Tensor, second_distance: Tensor
    ) -> None:
        """Count pixels by their margins: what `anchor_distances` gives, each of one shape [...]."""
        relative = relative_margins(nearest_distance, second_distance)
        self._count("margin", nearest, second_distance - nearest_distance)
        self._count("relative_margin", nearest, relative)
        self._relative.update(nearest, relative)

    def update_probability(self, prediction: Tensor, probability: Tensor) -> None:
        """Count pixels by the probability float32 [...] of the predicted class uint8 [...]."""
        self._count("probability", prediction, probability)

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes: `Processes.total` of each tensor."""
        self._passed = {rule: total(counts) for rule, counts in self._passed.items()}
        self._relative.counts = total(self._relative.counts)

    def class_thresholds(self, quantiles: Tensor) -> Tensor:
        """Each class's least relative margin at each quantile, float32 [K, T], T of them given."""
        columns = [self._relative.thresholds(decimal(keep)) for keep in quantiles]
        return torch.stack(columns, dim=1).cpu()

    def labelled(self, class_thresholds: Tensor) -> dict[str, Tensor]:
        """Pixels that each rule alone labels: exactly those of `active` and of `confident`.

        Args:
            class_thresholds: float32 [K, T], multiples of the histogram's bins, as
                `class_thresholds` gives them.

        Returns:
            Rule -> int64 [K, T] on the CPU.
        """
        labelled = {rule: _at_least(counts)[:, 1:] for rule, counts in self._passed.items()}
        reaching = _at_least(self._relative.counts)
        edges = (class_thresholds * reaching.shape[1]).long().to(reaching.device)  # [K, T]
        labelled["quantile"] = reaching.gather(1, edges)
        return {rule: labelled[rule].cpu() for rule in KINDS}

    def totals(self) -> dict[str, Tensor]:
        """Pixels that each rule decides on: nearest to, or predicted as, the class; int64 [K]."""
        counts = {rule: counts.sum(dim=1).cpu() for rule, counts in self._passed.items()}
        return {rule: counts.get(rule, counts["margin"]) for rule in KINDS}

    def _count(self, rule: str, classes: Tensor, values: Tensor) -> None:
        counts, edges = self._passed[rule], self._grid[rule]
        # A margin that equals its threshold passes, a probability does not; NaN passes none.
        values = values.flatten().nan_to_num(nan=-1.0)
        passed = torch.bucketize(values, edges, right=rule != "probability")
        cells = classes.flatten().long() * counts.shape[1] + passed
        counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def decimal(threshold: Tensor) -> float:
    """The shortest decimal number that reads back as a float32, e.g. 0.2."""
    return float(str(np.float32(threshold)))


def curve_table(
    names: Sequence[str],
    grid: Mapping[str, Tensor],
    counts: ThresholdCounts,
    class_thresholds: Tensor,
) -> pd.DataFrame:
    """A row for each rule, threshold and class.

    Args:
        names: K class names.
        grid: Rule -> thresholds float32 [T].
        counts: The pixels.
        class_thresholds: float32 [K, T] of the rule quantile.

    Returns:
        The columns `COLUMNS`: pixels are those that the rule alone labels at the threshold, share
        is theirs of the pixels nearest to (for probability: predicted as) the class.
    """
    labelled, totals = counts.labelled(class_thresholds), counts.totals()
    tables = [
        _rows(names, rule, grid[rule], labelled[rule], totals[rule], class_thresholds)
        for rule in KINDS
    ]
    return pd.concat(tables, ignore_index=True)


class LabelledCounts:
    """`ThresholdCounts` of labelled pixels: all, those of a known class, those labelled rightly.

    Args:
        num_classes: K.
        grid: As `threshold_grid` gives it.
        device: Where the pixels are.
    """

    def __init__(
        self, num_classes: int, grid: Mapping[str, Tensor], device: torch.device | str | None = None
    ) -> None:
        self._parts = [ThresholdCounts(num_classes, grid, device) for _ in range(3)]
        self._truth = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def update(
        self, truth: Tensor, distances: Sequence[Tensor], prediction: Tensor, probability: Tensor
    ) -> None:
        """Count pixels.

        Args:
            truth: uint8 [...], 255 = not known.
            distances: What `anchor_distances` gives, [...] each.
            prediction: uint8 [...], the predicted class.
            probability: float32 [...], its probability.
        """
        known = truth != IGNORE
        # Which pixels count in each part, of the anchor rules and of the probability rule.
        masks = [(None, None), (known, known), (truth == distances[0], truth == prediction)]
        for counts, (by_anchor, by_probability) in zip(self._parts, masks, strict=True):
            counts.update_anchor(*_chosen(by_anchor, *distances))
            counts.update_probability(*_chosen(by_probability, prediction, probability))
        self._truth += torch.bincount(truth[known].long(), minlength=len(self._truth))

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes."""
        for counts in self._parts:
            counts.add_up(total)
        self._truth = total(self._truth)

    def table(
        self, names: Sequence[str], grid: Mapping[str, Tensor], class_thresholds: Tensor
    ) -> pd.DataFrame:
        """`curve_table` with rows of the class "all" and two more columns.

        Precision is the share of the labelled pixels of a known class that are labelled rightly,
        recall the share of the class's true pixels that are; NaN where there is none. No pixels, no
        rows.
        """
        whole = self._parts[0].totals()
        if not sum(total.sum() for total in whole.values()):
            return pd.DataFrame(columns=[*COLUMNS, *MEASURES])
        labelled = [part.labelled(class_thresholds) for part in self._parts]
        # Of the classes together, no threshold is a class's.
        cuts = torch.cat([class_thresholds, torch.full_like(class_thresholds[:1], math.nan)])
        truth = _with_sum(self._truth.cpu())
        tables = []
        for rule in KINDS:
            pixels, known, right = (_with_sum(counts[rule]) for counts in labelled)  # [K + 1, T]
            table = _rows([*names, ALL], rule, grid[rule], pixels, _with_sum(whole[rule]), cuts)
            table["precision"] = _shares(right, known)
            table["recall"] = _shares(right, truth[:, None])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


def read_thresholds(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Read the thresholds of a round's curves.

    Args:
        path: What `curve_table` gives, as CSV.
        names: K class names.

    Returns:
        The grid, and the class thresholds float32 [K, T] of the rule quantile.

    Raises:
        UserError: The file is missing or damaged, or of other classes.
    """
    table = read_curves(path)
    grid, count = {}, len(names)
    for rule in KINDS:
        rows = table[table["rule"] == rule]
        values = rows["threshold"].to_numpy(dtype=np.float32)
        if not len(rows) or list(rows["class"]) != list(names) * (len(rows) // count):
            raise UserError(
                f"{path}: the rule {rule} has not one row for each threshold and class; "
                "delete it and rerun"
            )
        grid[rule] = torch.from_numpy(values[::count].copy())
    cuts = table.loc[table["rule"] == "quantile", "class_threshold"].to_numpy(dtype=np.float32)
    return grid, torch.from_numpy(cuts.reshape(-1, count).T.copy())


def class_thresholds_at(
    quantile: float | None, grid: Mapping[str, Tensor], class_thresholds: Tensor
) -> Tensor | None:
    """The class thresholds float32 [K] of a quantile of the grid; None for None.

    Raises:
        UserError: The grid lacks it: the curves are of another quantile.
    """
    if quantile is None:
        return None
    (place,) = torch.nonzero(grid["quantile"] == torch.tensor(quantile), as_tuple=True)
    if not len(place):
        raise UserError(
            f"the threshold curves lack pseudo_label.quantile {quantile:g}; `dvc repro` makes them"
        )
    return class_thresholds[:, place[0]]


def read_curves(path: Path) -> pd.DataFrame:
    """Read a table of curves; names are text, whatever they spell.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        table = pd.read_csv(
            path,
            dtype={"rule": str, "class": str, "threshold": float, "pixels": np.int64},
            keep_default_na=False,
            na_values={name: [""] for name in ("share", "class_threshold", *MEASURES)},
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged table ({reason}); delete it and rerun") from None
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]}; delete it and rerun")
    return table


def _chosen(mask: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
    return values if mask is None else tuple(value[mask] for value in values)


def _with_sum(counts: Tensor) -> Tensor:
    """Counts [K, ...] of the classes, then their sum, [K + 1, ...]."""
    return torch.cat([counts, counts.sum(dim=0, keepdim=True)])


def _rows(names, rule, thresholds, labelled, totals, class_thresholds) -> pd.DataFrame:
    count = len(names)
    own = class_thresholds.T.flatten() if rule == "quantile" else torch.tensor(math.nan)
    return pd.DataFrame(
        {
            "rule": rule,
            "threshold": np.repeat([decimal(value) for value in thresholds], count),
            "class": list(names) * len(thresholds),
            "pixels": labelled.T.flatten().numpy(),
            "share": _shares(labelled, totals[:, None]),
            "class_threshold": own.expand(labelled.numel()).double().numpy(),
        }
    )


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
