"""What `cag results` found with several seeds, kept beside the pipeline for the report to show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cag.runtime.files import write_json

PATH = Path(".scratch/results.json")
BESIDE = ("seed", "oracle")  # parameters of which the scores are not


def write_seed_scores(scores: pd.DataFrame, parameters: Mapping, path: Path = PATH) -> None:
    """Keep the scores of several seeds of the same parameters.

    Args:
        scores: A row for each seed: its `seed`, and the mIoU in [0, 1] of each model, in order.
        parameters: All of params.yaml, nested.
        path: A JSON file. It is no artifact, as the pipeline neither makes nor needs it.
    """
    write_json(path, {"parameters": _fixed(parameters), "scores": scores.to_dict("records")})


def read_seed_scores(parameters: Mapping, path: Path = PATH) -> pd.DataFrame | None:
    """The scores that were kept, None if there are none of these parameters."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["parameters"] != json.loads(json.dumps(_fixed(parameters))):
            return None
        scores = pd.DataFrame(kept["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return scores if len(scores) else None


def spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation of each model's mIoU over the seeds.

    Args:
        scores: As for `write_seed_scores`; the first model is the one the others are compared with.

    Returns:
        Columns model, miou, deviation (NaN for one seed) and change (from the first; NaN for it).
    """
    models = scores.drop(columns="seed")
    table = pd.DataFrame({"miou": models.mean(), "deviation": models.std()})
    table["change"] = (table["miou"] - table["miou"].iloc[0]).where(table.index != table.index[0])
    return table.rename_axis("model").reset_index()


def _fixed(parameters: Mapping) -> dict:
    return {key: value for key, value in parameters.items() if key not in BESIDE}
