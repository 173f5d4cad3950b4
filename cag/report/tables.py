"""The numbers of the report: scores, per-class changes, drift of the anchors."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

BASELINE = "pretrain"  # the model that never saw a target image


def baseline_of(models: Sequence[str]) -> str:
    """Name the model the others are compared with: the source-only one, else the first."""
    return BASELINE if BASELINE in models else next(iter(models))


def results_table(metrics: Mapping[str, Mapping]) -> pd.DataFrame:
    """Tabulate the models' accuracy.

    Args:
        metrics: model -> miou, pixel_accuracy, mean_accuracy (0..1, or None), images.

    Returns:
        columns model, miou, change (from the source-only model; NaN in its own row),
        pixel_accuracy, mean_accuracy, images.
    """
    baseline = baseline_of(list(metrics))
    columns = ["miou", "pixel_accuracy", "mean_accuracy", "images"]
    table = pd.DataFrame.from_dict(
        {model: [values.get(name) for name in columns] for model, values in metrics.items()},
        orient="index",
        columns=columns,
    ).astype(np.float64)
    change = (table["miou"] - table.at[baseline, "miou"]).where(table.index != baseline)
    table.insert(1, "change", change)
    return table.rename_axis("model").reset_index()


def iou_of(metrics: Mapping, names: Sequence[str]) -> np.ndarray:
    """Return a model's IoU as float64 [K], NaN where a class occurs in neither map."""
    return np.array([number(metrics["iou"].get(name)) for name in names])


def per_class_table(before: Mapping, after: Mapping, names: Sequence[str]) -> pd.DataFrame:
    """Compare two models class by class.

    Args:
        before: class -> IoU (0..1), None where the class occurs in neither map.
        after: the same of the other model.
        names: the classes, in label-space order.

    Returns:
        columns class, before, after, change; greatest gain first, undefined changes last.
    """
    table = pd.DataFrame(
        {
            "class": list(names),
            "before": [number(before.get(name)) for name in names],
            "after": [number(after.get(name)) for name in names],
        }
    )
    table["change"] = table["after"] - table["before"]
    return table.sort_values("change", ascending=False, kind="stable", ignore_index=True)


def same_threshold(first: float | None, second: float | None) -> bool:
    """Whether two thresholds are equal as float32, in which pixels are compared with them."""
    return first is not None and second is not None and np.float32(first) == np.float32(second)


def number(value: float | None) -> float:
    """Return a number, NaN for none."""
    return float("nan") if value is None else float(value)
