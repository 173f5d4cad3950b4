"""The feature space of each round: a projection, the distances of the anchors, their drift."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from cag.datasets.labels import LabelSpace
from cag.report.contents import Features, Run
from cag.report.pictures import css_color
from cag.report.texts import percent

WIDTH, HEIGHT = 672, 472  # of the largest projection, in its own units


def principal_axes(anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two directions in which anchors float [K, D] differ most; K and D are at least 2.

    The result is their centre float64 [D], unit directions [2, D], whose largest component is
    positive, and the share of the variance along each, [2]. Rows of NaN are left out.
    """
    seen = anchors[~np.isnan(anchors).any(axis=1)].astype(np.float64)
    centre = seen.mean(axis=0)
    _, lengths, directions = np.linalg.svd(seen - centre, full_matrices=False)
    variance = lengths**2 / max((lengths**2).sum(), np.finfo(np.float64).tiny)
    axes = directions[:2]
    largest = np.abs(axes).argmax(axis=1)
    return centre, axes * np.sign(axes[[0, 1], largest])[:, None], variance[:2]


def drift_table(anchors: Mapping[str, np.ndarray], names: tuple[str, ...]) -> pd.DataFrame:
    """Tabulate how far each class's anchor, float [K, D] by round, moved from round to round.

    Each round but the first has the columns (round, "distance"), the L2 distance to the anchor of
    the round before, and (round, "cosine") of their angle; NaN where one is missing.
    """
    table = {("", "class"): list(names)}
    for (_, before), (name, after) in pairwise(anchors.items()):
        before, after = before.astype(np.float64), after.astype(np.float64)
        table[name, "distance"] = np.linalg.norm(after - before, axis=1)
        lengths = np.linalg.norm(after, axis=1) * np.linalg.norm(before, axis=1)
        dots, unknown = (after * before).sum(axis=1), np.full(len(lengths), np.nan)
        table[name, "cosine"] = np.divide(dots, lengths, out=unknown, where=lengths > 0)
    return pd.DataFrame(table)


def section(run: Run) -> dict | None:
    """Projections, distance matrices and drift of the rounds with features."""
    features = {name: part.features for name, part in run.rounds.items() if part.features}
    if not features:
        return None
    space, rounds = run.label_space, []
    for name, part in features.items():
        drawn = {"name": name, "projection": _projection(name, part, space)}
        rounds.append(drawn | _distances(part.anchors, space.names))
    anchors = {name: part.anchors for name, part in features.items()}
    drift = drift_table(anchors, space.names) if len(rounds) > 1 else pd.DataFrame()
    return {"rounds": rounds, "drift": list(drift.itertuples(index=False, name=None))}


def _projection(name: str, features: Features, label_space: LabelSpace) -> dict:
    """Each class's points on the anchors' principal axes, scaled to fit in WIDTH x HEIGHT."""
    centre, axes, share = principal_axes(features.anchors)
    source, target, anchors = (
        (part.astype(np.float64) - centre) @ axes.T * [1, -1]  # SVG counts downwards
        for part in (features.source, features.target, features.anchors)
    )
    drawn = np.concatenate([source, target, anchors])
    low, high = np.nanmin(drawn, axis=0), np.nanmax(drawn, axis=0)
    # One scale for both axes keeps distances comparable.
    scale = (np.array([WIDTH, HEIGHT]) / np.maximum(high - low, 1e-9)).min()
    source, target, anchors = ((scale * (xy - low)).round(1) for xy in (source, target, anchors))
    width, height = np.ceil(scale * (high - low)).astype(int).tolist()
    sides = _free_sides(anchors, width / 2)
    named = zip(label_space.names, label_space.palette, strict=True)
    classes = [
        {
            "index": index,
            "name": class_name,
            "color": css_color(color),
            "source": source[features.source_labels == index].tolist(),
            "target": target[features.target_labels == index].tolist(),
            "anchor": None if np.isnan(anchors[index]).any() else anchors[index].tolist(),
            "side": sides[index].tolist(),
        }
        for index, (class_name, color) in enumerate(named)
    ]
    return {
        "classes": classes,
        "width": width,
        "height": height,
        "alt": f"Features of {name} along the two principal axes of its anchors: circles are "
        "source pixels, crosses target pixels, named diamonds anchors.",
        "caption": f"{name}: the horizontal axis shows {percent(share[0])} %, the vertical one "
        f"{percent(share[1])} % of the anchors' variance. Source: {len(source)} pixels, target: "
        f"{len(target)}.",
    }


def _free_sides(places: np.ndarray, middle: float) -> np.ndarray:
    """On which side of each anchor [K, 2] its name stands, as -1 and 1 [K, 2].

    The name stands away from the nearest other anchor, but towards the middle near the left and
    right edge, which would cut it off.
    """
    apart = places[:, None] - places[None]  # [K, K, 2]
    distances = np.linalg.norm(apart, axis=2) + np.diag(np.full(len(places), np.inf))
    nearest = np.where(np.isnan(distances), np.inf, distances).argmin(axis=1)
    away = apart[np.arange(len(places)), nearest] > 0
    from_middle = places[:, 0] - middle
    away[:, 0] = np.where(abs(from_middle) > middle / 2, from_middle < 0, away[:, 0])
    return np.where(away, 1, -1)


def _distances(anchors: np.ndarray, names: tuple[str, ...]) -> dict:
    """L2 distances between the known anchors, and the strength of each one's colour."""
    seen = [i for i, row in enumerate(anchors) if not np.isnan(row).any()]
    there, names = anchors[seen].astype(np.float64), [names[k] for k in seen]
    distances = np.linalg.norm(there[:, None] - there[None], axis=2)
    heat = 1 - distances / max(distances.max(), np.finfo(np.float64).tiny)  # near pairs are strong
    heat = np.where(np.eye(len(seen), dtype=bool), None, heat)
    rows = [
        {"class": name, "cells": list(zip(*cells, strict=True))}
        for name, *cells in zip(names, distances, heat, strict=True)
    ]
    return {"seen": names, "distances": rows}
