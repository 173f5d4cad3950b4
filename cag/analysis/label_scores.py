"""Scores of pseudo-labels where the true classes are known: at the thresholds in use and others."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from cag.analysis.threshold_curves import Device, Grid, LabelledCounts, class_thresholds_at
from cag.config.base import RULES
from cag.config.pseudo_labels import PseudoLabel
from cag.metrics import labelling_outcome, labelling_scores
from cag.pseudo_labels import Pixels, apply_rules


class LabelScores:
    """Scores of the rules over labelled images, batch by batch, in constant memory.

    `config` holds the thresholds in use, `grid` those of the curves; `class_thresholds` are float
    [K, T] at the T quantiles of the grid, and `device` holds the pixels.
    """

    def __init__(
        self, config: PseudoLabel, grid: Grid, class_thresholds: Tensor, device: Device = None
    ) -> None:
        self._config, self._curves = config, (grid, class_thresholds)
        self._cuts = class_thresholds_at(config.quantile, grid, class_thresholds)
        self._counts = LabelledCounts(len(class_thresholds), grid, device)
        self._outcomes = torch.zeros(len(RULES), 5, dtype=torch.int64, device=device)

    def update(self, pixels: Pixels, truth: Tensor) -> None:
        """Count pixels [...] of the true class uint8 [...], 255 = not known."""
        self._counts.update(pixels, truth)
        maps = apply_rules(pixels, self._config, self._cuts)
        self._outcomes += torch.stack([labelling_outcome(labels, truth) for labels in maps])

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes."""
        self._counts.add_up(total)
        self._outcomes = total(self._outcomes)

    def scores(self) -> dict[str, dict[str, float]]:
        """Coverage, precision and recall of each rule at the thresholds in use."""
        return dict(zip(RULES, map(labelling_scores, self._outcomes), strict=True))

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """The same for each threshold and class: see `LabelledCounts.table`."""
        return self._counts.table(names, *self._curves)
