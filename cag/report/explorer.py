"""The threshold explorer: maps of 8-bit codes from which a browser labels images exactly.

A pixel's code for a kind of threshold is the number of the slider's values that it reaches; it
passes the value of index i when its code is greater than i. Codes are made by the comparisons of
`cag.pseudo_labels`, in float32, so that the browser's labels are the pipeline's.
"""

import base64
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cag.datasets.prepared import evenly_spaced
from cag.pseudo_labels import relative_margins
from cag.report.contents import Maps, Run
from cag.report.tables import same_threshold

MOST_VALUES = 255  # of a slider; so many and none are what 8 bits count
MOST_PIXELS = 2**16  # of an embedded map; of larger ones every second, third ... row and column
PERCENT = [round(0.005 * i, 3) for i in range(201)]
NINES = [round(0.99 + 0.001 * i, 3) for i in range(10)]


class Kind(NamedTuple):
    """A kind of threshold of the anchor rule, which has a slider."""

    title: str
    quantity: Callable[[Tensor, Tensor], Tensor]  # of the distances d1, d2; a pixel must reach it
    values: Callable[[float], list[float]] | None  # up to the largest quantity; None: quantiles


def margin_values(largest: float) -> list[float]:
    """About 100 to 200 round values from 0 to the largest margin or beyond it."""
    if not largest > 0:
        return [0.0]
    exponent = math.floor(math.log10(largest / 200))
    factor, power = next(
        (factor, exponent + power)
        for power in (0, 1)
        for factor in (1, 2, 5)
        if factor * 10.0 ** (exponent + power) >= largest / 200
    )
    count = math.ceil(largest / (factor * 10.0**power))
    return [float(f"{i * factor}e{power}") for i in range(count + 1)]


KINDS = {
    "relative_margin": Kind(
        "relative margin, (d2 \u2212 d1) / (d2 + d1)", relative_margins, lambda _: PERCENT
    ),
    "margin": Kind(
        "margin, d2 \u2212 d1 in units of the features",
        lambda first, second: second - first,
        margin_values,
    ),
    "quantile": Kind("quantile, the share kept of each class", relative_margins, None),
}


def slider_values(values: Sequence[float], configured: float | None) -> list[float]:
    """Ascending values without repetition, the configured one exactly among them."""
    chosen = sorted({*values, *([] if configured is None else [float(configured)])})
    if len(chosen) > MOST_VALUES:
        raise ValueError(f"{len(chosen)} values, at most {MOST_VALUES} are possible")
    return chosen


def quantile_values(thresholds: Mapping[float, np.ndarray], configured: float | None) -> list:
    """The known quantiles, strictest last; of too many an even choice with the configured one."""
    known = sorted(thresholds, reverse=True)
    if len(known) <= MOST_VALUES:
        return known
    picks = evenly_spaced(len(known), MOST_VALUES - 1)
    chosen = {known[i] for i in picks} | {q for q in known if same_threshold(q, configured)}
    return sorted(chosen, reverse=True)


def codes(
    maps: Maps, scales: Mapping[str, Sequence[float]], class_thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Code an image's maps.

    Args:
        maps: At the features' size.
        scales: Ascending values of each slider but that of the quantile; to be equal is enough for
            a pixel to reach a margin, and not enough for a probability.
        class_thresholds: float32 [Q, K], of each quantile, ascending for each class; Q can be 0.

    Returns:
        uint8 [h, w] each, in the order in which they are embedded: nearest, prediction, a code for
        each of KINDS, the code of the probability, and truth (255 where there is none).
    """
    step = _step(maps)
    nearest, first, second, prediction, probability = (
        np.ascontiguousarray(part[::step, ::step])
        for part in (
            maps.nearest,
            maps.nearest_distance,
            maps.second_distance,
            maps.prediction,
            maps.probability,
        )
    )
    coded = {"nearest": nearest, "prediction": prediction}
    for key, kind in KINDS.items():
        quantity = kind.quantity(torch.from_numpy(first), torch.from_numpy(second)).numpy()
        if kind.values is None:
            coded[key] = np.zeros(nearest.shape, np.uint8)
            for thresholds in class_thresholds.astype(np.float32):
                coded[key] += quantity >= thresholds[nearest]
        else:
            coded[key] = _reached(scales[key], quantity, "right")
    coded["probability"] = _reached(scales["probability"], probability, "left")
    unknown = np.full_like(nearest, 255)
    coded["truth"] = unknown if maps.truth is None else maps.truth[::step, ::step]
    return coded


def section(run: Run) -> dict | None:
    """All that the script and its template need to know; None if there is nothing to explore."""
    shown = [
        (kind, f"photo-{kind}-{index}", sample)
        for kind, samples in (("training", run.training), ("labelled", run.labelled))
        for index, sample in enumerate(samples)
        if sample.maps
    ]
    if run.rules is None or not shown:
        return None
    maps = [part for _, _, sample in shown for part in sample.maps.values()]
    configured = {key: getattr(run.rules, key) for key in (*KINDS, "probability", "agreement")}
    scales = {"probability": slider_values([*PERCENT, *NINES], run.rules.probability)}
    for key, kind in KINDS.items():
        if kind.values is not None:
            largest = max(
                float(kind.quantity(*map(torch.from_numpy, _distances(part))).max())
                for part in maps
            )
            scales[key] = slider_values(kind.values(largest), configured[key])
    rounds = [_round(run, name, shown, scales) for name in run.rounds]
    return {
        "names": run.label_space.names,
        "palette": run.label_space.palette_array.tolist(),
        "kinds": [
            {"key": key, "title": kind.title, "falling": kind.values is None}
            for key, kind in KINDS.items()
        ],
        "rules": configured,
        "step": max(map(_step, maps)),
        "rounds": rounds,
        "missing": [  # configured values that some round's sliders do not have
            f"{key} {configured[key]:g}"
            for key in KINDS
            if configured[key] is not None
            and not all(configured[key] in part["scales"][key] for part in rounds)
        ],
    }


def _round(run: Run, name: str, shown: Sequence, scales: Mapping) -> dict:
    """A round's sliders and its coded images."""
    thresholds, configured = run.rounds[name].class_thresholds, run.rules.quantile
    quantiles = quantile_values(thresholds, configured)
    table = np.stack([thresholds[q] for q in quantiles]) if quantiles else np.empty((0, 0))
    samples = []
    for kind, photo, sample in shown:
        if name not in sample.maps:
            continue
        coded = codes(sample.maps[name], scales, table)
        height, width = coded["nearest"].shape
        packed = zlib.compress(np.stack(list(coded.values())).tobytes(), 9)
        samples.append(
            {
                "kind": kind,
                "name": sample.name,
                "photo": photo,
                "height": height,
                "width": width,
                "fields": list(coded),
                "maps": base64.b64encode(packed).decode(),
            }
        )
    # The configured value stands for the known one that is equal in float32.
    exact = [
        configured if same_threshold(q, configured) else float(str(np.float32(q)))
        for q in quantiles
    ]
    by_class = {key: exact for key, kind in KINDS.items() if kind.values is None}
    return {"name": name, "scales": {**scales, **by_class}, "samples": samples}


def _distances(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    return maps.nearest_distance, maps.second_distance


def _step(maps: Maps) -> int:
    """Every how many rows and columns of a map are embedded."""
    return math.ceil(math.sqrt(maps.nearest.size / MOST_PIXELS))


def _reached(values: Sequence[float], quantity: np.ndarray, side: str) -> np.ndarray:
    """How many of the values each pixel reaches ("right": by being equal, too), uint8."""
    thresholds = np.array(values, np.float32)
    return np.searchsorted(thresholds, quantity.astype(np.float32), side).astype(np.uint8)
