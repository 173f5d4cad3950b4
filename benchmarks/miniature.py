"""Miniature projects for benchmarks and tests: a smaller preset `scenes`."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks import ROOT

LENIENT = {"min_pixels": 1, "min_recall": 0.0}  # thresholds that the shortest training reaches


def scenes_params(changes: Mapping) -> dict:
    """The preset's parameters with changes; see `merged`."""
    preset = (ROOT / "presets/scenes.yaml").read_text(encoding="utf-8")
    return merged(yaml.safe_load(preset), changes)


def merged(params: Mapping, changes: Mapping) -> dict:
    """Parameters with changes; a mapping changes only its own keys."""
    result = dict(params)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if nested else value
    return result


def write_params(folder: Path, params: Mapping) -> None:
    """Write a folder's params.yaml."""
    text = yaml.safe_dump(dict(params), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
