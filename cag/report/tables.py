"""The numbers of the report: scores, per-class changes, drift of the anchors."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

BASELINE = "pretrain"  # the model that never saw a target image


def baseline_of(models: Sequence[str]) -> str:
    """The model that the others are compared with: the source-only one, else the first."""
    return BASELINE if BASELINE in models else models[0]


def results_table(metrics: Mapping[str, Mapping]) -> pd.DataFrame:
    """Tabulate the models' miou, pixel_accuracy, mean_accuracy (in [0, 1], or None) and images.

    The column change, after miou, is from the source-only model; NaN for it.
    """
    baseline = baseline_of(list(metrics))
    columns = ["miou", "pixel_accuracy", "mean_accuracy", "images"]
    table = pd.DataFrame(metrics.values(), list(metrics), columns).astype(np.float64)
    change = (table["miou"] - table.at[baseline, "miou"]).where(table.index != baseline)
    table.insert(1, "change", change)
    return table.rename_axis("model").reset_index()


def iou_of(metrics: Mapping, names: Sequence[str]) -> np.ndarray:
    """A model's IoU float64 [K], NaN where a class occurs in neither map."""
    return np.array([metrics["iou"].get(name) for name in names], dtype=np.float64)


def per_class_table(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Compare two models' IoU [K], as `iou_of` gives them, class by class.

    The columns are class, before, after, change; greatest gain first, undefined changes last.
    """
    table = pd.DataFrame({"class": list(names), "before": before, "after": after})
    table["change"] = table["after"] - table["before"]
    return table.sort_values("change", ascending=False, kind="stable", ignore_index=True)


def same_threshold(first: float | None, second: float | None) -> bool:
    """Whether two thresholds are equal as float32, in which pixels are compared with them."""
    return first is not None and second is not None and np.float32(first) == np.float32(second)
