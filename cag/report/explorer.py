"""The threshold explorer: maps of 8-bit codes from which a browser labels images exactly.

A pixel's code counts the slider's values that it passes, so that it passes value i if its code is
above i. `cag.pseudo_labels` compares, in float32: the browser's labels are the pipeline's.
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cag.analysis.threshold_curves import decimal
from cag.datasets.labels import IGNORE
from cag.datasets.prepared import evenly_spaced
from cag.pseudo_labels import THRESHOLDS, Threshold
from cag.report.contents import Maps, Run
from cag.report.tables import same_threshold

MOST_VALUES = 255  # of a slider, as 8 bits count to 255
MOST_PIXELS = 2**16  # of an embedded map; larger ones lose rows and columns evenly
PERCENT = [round(0.005 * i, 3) for i in range(201)]
NINES = [round(0.99 + 0.001 * i, 3) for i in range(10)]
KINDS = {key: kind for key, kind in THRESHOLDS.items() if kind.rule == "anchor"}


def margin_values(largest: float) -> list[float]:
    """About 80 to 200 round values from 0 to the largest margin or just beyond it."""
    if not largest > 0:
        return [0.0]
    power = math.floor(math.log10(largest / 200))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**power >= largest / 200)
    count = math.ceil(largest / (factor * 10.0**power))
    return [float(f"{i * factor}e{power}") for i in range(count + 1)]


def slider_values(values: Sequence[float], configured: float | None) -> list[float]:
    """Ascending values without repetition, among them the configured one."""
    chosen = sorted({*values, *([] if configured is None else [float(configured)])})
    if len(chosen) > MOST_VALUES:
        raise ValueError(f"{len(chosen)} values, at most {MOST_VALUES} are possible")
    return chosen


def quantile_values(thresholds: Mapping[float, np.ndarray], configured: float | None) -> list:
    """The known quantiles, strictest last; of too many an even choice and the configured one."""
    known = sorted(thresholds, reverse=True)
    if len(known) <= MOST_VALUES:
        return known
    picks = evenly_spaced(len(known), MOST_VALUES - 1)
    chosen = {known[i] for i in picks} | {q for q in known if same_threshold(q, configured)}
    return sorted(chosen, reverse=True)


def codes(
    maps: Maps, scales: Mapping[str, Sequence[float]], class_thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Code an image's maps: nearest, prediction, each of THRESHOLDS, and truth (255: none).

    They are uint8 [h, w] in the order of embedding. Scales give the values of each slider but the
    quantile's, class thresholds are float32 [Q, K] at the Q >= 0 quantiles; the strictest is last.
    """
    step = _step(maps)
    pixels = maps.pixels(step)
    coded = {"nearest": pixels.nearest, "prediction": pixels.prediction}
    for key, kind in THRESHOLDS.items():
        if kind.per_class:
            passed = (kind.passed(pixels, cuts) for cuts in torch.from_numpy(class_thresholds))
            coded[key] = sum(passed, torch.zeros_like(pixels.nearest))
        else:
            values = torch.tensor(scales[key], dtype=torch.float32)
            coded[key] = kind.count_passed(kind.value(pixels), values)
    coded = {key: values.byte().numpy() for key, values in coded.items()}
    unknown = np.full_like(coded["nearest"], IGNORE)
    coded["truth"] = unknown if maps.truth is None else maps.truth[::step, ::step]
    return coded


def section(run: Run) -> dict | None:
    """The data of the script and its template; None if there is nothing to explore."""
    shown = [
        (kind, f"photo-{kind}-{index}", sample)
        for kind, samples in (("training", run.training), ("labelled", run.labelled))
        for index, sample in enumerate(samples)
        if sample.maps
    ]
    if not shown:
        return None
    maps = [part for _, _, sample in shown for part in sample.maps.values()]
    configured = {key: getattr(run.rules, key) for key in (*THRESHOLDS, "agreement")}
    shared = [key for key, kind in THRESHOLDS.items() if not kind.per_class]
    scales = {key: _scale(THRESHOLDS[key], maps, configured[key]) for key in shared}
    rounds = [_round(run, name, shown, scales) for name in run.rounds]
    kinds, missing = [], []  # missing: configured values that some round's sliders do not have
    for key, kind in KINDS.items():
        falling, value = kind.per_class or kind.at_most, configured[key]
        kinds.append({"key": key, "title": f"{kind.title}: {kind.label}", "falling": falling})
        if not all(value in (None, *part["scales"][key]) for part in rounds):
            missing.append(f"{key} {value:g}")
    return {
        "names": run.label_space.names,
        "palette": run.label_space.palette_array.tolist(),
        "kinds": kinds,
        "rules": configured,
        "step": max(map(_step, maps)),
        "rounds": rounds,
        "missing": missing,
        "unread": _labels_are_unread(run.parameters.get("adapt", {})),
    }


def _labels_are_unread(adapt: Mapping) -> bool:
    """Whether the student learns none of the round's labels, for the parameters of `adapt`."""
    uses = adapt.get("active_only"), adapt.get("second_opinion")
    return adapt.get("teacher") == "ema" and not any(uses)


def _round(run: Run, name: str, shown: Sequence, scales: Mapping) -> dict:
    """A round's sliders and its coded images."""
    thresholds, configured = run.rounds[name].class_thresholds, run.rules.quantile
    quantiles = quantile_values(thresholds, configured)
    table = np.stack([thresholds[q] for q in quantiles]) if quantiles else np.empty((0, 0))
    samples = []
    for kind, photo, sample in shown:
        if name in sample.maps:
            coded = codes(sample.maps[name], scales, table)
            height, width = coded["nearest"].shape
            packed = base64.b64encode(zlib.compress(np.stack(list(coded.values())).tobytes(), 9))
            about = {"kind": kind, "name": sample.name, "photo": photo}
            about |= {"height": height, "width": width, "fields": list(coded)}
            samples.append({**about, "maps": packed.decode()})
    # The configured value replaces the known one that is equal in float32.
    exact = [configured if same_threshold(q, configured) else decimal(q) for q in quantiles]
    by_class = {key: exact for key, kind in KINDS.items() if kind.per_class}
    return {"name": name, "scales": {**scales, **by_class}, "samples": samples}


def _scale(kind: Threshold, maps: Sequence[Maps], configured: float | None) -> list[float]:
    """A slider's values, the strictest last."""
    if kind.scale is None:
        values = margin_values(max(float(kind.value(part.pixels()).max()) for part in maps))
    else:
        values = [*PERCENT, *NINES] if kind.rule == "probability" else PERCENT
    return slider_values(values, configured)[:: -1 if kind.at_most else 1]


def _step(maps: Maps) -> int:
    """The distance between the rows, and columns, that are embedded."""
    return math.ceil(math.sqrt(maps.nearest.size / MOST_PIXELS))
