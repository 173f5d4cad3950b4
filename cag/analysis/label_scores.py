"""Scores of pseudo-labels where the true classes are known: at the thresholds in use and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from cag.analysis.threshold_curves import LabelledCounts, class_thresholds_at
from cag.config.base import RULES
from cag.config.pseudo_labels import PseudoLabel
from cag.metrics import labelling_outcome, labelling_scores
from cag.pseudo_labels import Pixels, apply_rules


@dataclass(frozen=True)
class Rules:
    """A round's rules: the thresholds in use and those of its curves."""

    config: PseudoLabel
    grid: dict[str, Tensor]
    class_thresholds: Tensor  # [K, T], of the quantiles

    def outcomes(self, pixels: Pixels, truth: Tensor) -> Tensor:
        """Count what the labels come to, int64 [2, 5]: `labelling_outcome` for each of RULES."""
        cuts = class_thresholds_at(self.config.quantile, self.grid, self.class_thresholds)
        maps = apply_rules(pixels, self.config, cuts)
        return torch.stack([labelling_outcome(labels, truth) for labels in maps])


class LabelScores:
    """Scores of the rules over labelled images, batch by batch and in flat memory.

    Args:
        rules: The rules.
        device: Where the pixels are.
    """

    def __init__(self, rules: Rules, device: torch.device | str | None = None) -> None:
        self._rules = rules
        self._counts = LabelledCounts(len(rules.class_thresholds), rules.grid, device)
        self._outcomes = torch.zeros(len(RULES), 5, dtype=torch.int64, device=device)

    def update(self, pixels: Pixels, truth: Tensor) -> None:
        """Count pixels [...] of the true class uint8 [...], 255 = not known."""
        self._counts.update(pixels, truth)
        self._outcomes += self._rules.outcomes(pixels, truth)

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by those of all processes: `Processes.total` of each tensor."""
        self._counts.add_up(total)
        self._outcomes = total(self._outcomes)

    def scores(self) -> dict[str, dict[str, float]]:
        """Coverage, precision and recall of each rule at the thresholds in use."""
        return dict(zip(RULES, map(labelling_scores, self._outcomes), strict=True))

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """The same of each threshold and class: see `LabelledCounts.table`."""
        return self._counts.table(names, self._rules.grid, self._rules.class_thresholds)
