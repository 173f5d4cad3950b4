"""The threshold explorer: maps of 8-bit codes from which a browser labels images exactly.

A pixel's code for a kind of threshold is the number of the slider's values that it reaches; it
passes the value of index i when its code is greater than i. Codes are made by the comparisons of
`cag.pseudo_labels`, in float32, so that the browser's labels are the pipeline's.
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cag.config.base import RULES
from cag.datasets.prepared import evenly_spaced
from cag.pseudo_labels import relative_margins
from cag.report import pieces
from cag.report.contents import Maps, Run
from cag.report.tables import same_threshold

MOST_VALUES = 255  # of a slider; so many and none are what 8 bits count
MOST_PIXELS = 2**16  # of an embedded map; of larger ones every second, third ... row and column
PERCENT = [round(0.005 * i, 3) for i in range(201)]
NINES = [round(0.99 + 0.001 * i, 3) for i in range(10)]
KINDS = {
    "relative_margin": "relative margin, (d2 \u2212 d1) / (d2 + d1)",
    "margin": "margin, d2 \u2212 d1 in units of the features",
    "quantile": "quantile, the share kept of each class",
}


class Codes(NamedTuple):
    """An image's maps, uint8 [h, w] each; in the order in which they are embedded."""

    nearest: np.ndarray
    prediction: np.ndarray
    relative_margin: np.ndarray  # codes
    margin: np.ndarray
    quantile: np.ndarray
    probability: np.ndarray
    truth: np.ndarray  # 255 = ignore; all of it where there is none


def slider_values(values: Sequence[float], configured: float | None) -> list[float]:
    """Ascending values without repetition, the configured one exactly among them."""
    chosen = sorted({*values, *([] if configured is None else [float(configured)])})
    if len(chosen) > MOST_VALUES:
        raise ValueError(f"{len(chosen)} values, at most {MOST_VALUES} are possible")
    return chosen


def margin_values(largest: float) -> list[float]:
    """About 100 to 200 round values from 0 to the largest margin or beyond it."""
    if not largest > 0:
        return [0.0]
    exponent = math.floor(math.log10(largest / 200))
    step = next(
        (factor, exponent + power)
        for power in (0, 1)
        for factor in (1, 2, 5)
        if factor * 10.0 ** (exponent + power) >= largest / 200
    )
    factor, power = step
    count = math.ceil(largest / (factor * 10.0**power))
    return [float(f"{i * factor}e{power}") for i in range(count + 1)]


def quantile_values(thresholds: Mapping[float, np.ndarray], configured: float | None) -> list:
    """The known quantiles, strictest last; of too many an even choice with the configured one."""
    known = sorted(thresholds, reverse=True)
    if len(known) <= MOST_VALUES:
        return known
    picks = evenly_spaced(len(known), MOST_VALUES - 1)
    chosen = {known[i] for i in picks} | {q for q in known if same_threshold(q, configured)}
    return sorted(chosen, reverse=True)


def codes(
    maps: Maps,
    relative: Sequence[float],
    margins: Sequence[float],
    quantiles: np.ndarray,
    probabilities: Sequence[float],
) -> Codes:
    """Code an image's maps.

    Args:
        maps: At the features' size.
        relative: Ascending relative margins, which a pixel passes by reaching them.
        margins: The same in units of the features.
        quantiles: float32 [Q, K], class thresholds, ascending for each class; Q can be 0.
        probabilities: Ascending; to be equal is not enough.
    """
    step = math.ceil(math.sqrt(maps.nearest.size / MOST_PIXELS))
    part = (slice(None, None, step), slice(None, None, step))
    first, second = (
        torch.from_numpy(np.ascontiguousarray(distance[part]))
        for distance in (maps.nearest_distance, maps.second_distance)
    )
    relative_map = relative_margins(first, second).numpy()
    nearest = np.ascontiguousarray(maps.nearest[part])
    reached = np.zeros(nearest.shape, np.uint8)
    for thresholds in quantiles.astype(np.float32):
        reached += relative_map >= thresholds[nearest]
    none = np.full_like(nearest, 255)
    return Codes(
        nearest,
        np.ascontiguousarray(maps.prediction[part]),
        _reached(relative, relative_map, "right"),
        _reached(margins, (second - first).numpy(), "right"),
        reached,
        _reached(probabilities, maps.probability[part], "left"),
        none if maps.truth is None else np.ascontiguousarray(maps.truth[part]),
    )


def section(run: Run) -> str:
    """The explorer's controls, its data, and an empty table that the page's script fills."""
    content = _content(run)
    if content is None:
        return ""
    notes = [
        "What the rules label with other thresholds, worked out in the browser from the features' "
        "distances. An anchor label needs each of the three kinds that is not off. "
        "Pixels are those of the feature maps, whose labels are enlarged to the image."
    ]
    quantile = run.rules.quantile
    known = [one.class_thresholds for one in run.rounds.values()]
    if quantile is not None and not all(
        any(same_threshold(q, quantile) for q in one) for one in known
    ):
        notes.append(
            f"The class thresholds of the configured quantile {quantile:g} are not known: the "
            "sliders start without it, and the picture differs from the run's pseudo-labels."
        )
    step = content["step"]
    if step > 1:
        notes.append(f"Of these large maps one row and column in {step} is shown and counted.")
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "".join(f"<p>{pieces.escape(note)}</p>" for note in notes)
        + "<noscript><p>This part needs scripts.</p></noscript>"
        + f'<div id="explorer" hidden>{_choice(content)}{_views()}<div class="beside">'
        + f"<div>{_SLIDERS}{_COMMAND}</div><div>{_COUNTS}</div></div></div>"
        + f'<script type="application/json" id="explorer-data">{data}</script>'
    )


def _content(run: Run) -> dict | None:
    """All that the script needs to know, None if there is nothing to explore."""
    shown = [
        (kind, index, sample)
        for kind, samples in (("training", run.training), ("labelled", run.labelled))
        for index, sample in enumerate(samples)
        if sample.maps
    ]
    if run.rules is None or not shown:
        return None
    maps = [one for _, _, sample in shown for one in sample.maps.values()]
    largest = max(float((one.second_distance - one.nearest_distance).max()) for one in maps)
    rules = run.rules
    scales = {
        "relative_margin": slider_values(PERCENT, rules.relative_margin),
        "margin": slider_values(margin_values(largest), rules.margin),
        "probability": slider_values([*PERCENT, *NINES], rules.probability),
    }
    return {
        "names": run.label_space.names,
        "palette": run.label_space.palette_array.tolist(),
        "fields": Codes._fields,
        "scales": scales,
        "rules": {key: getattr(rules, key) for key in (*KINDS, "probability", "agreement")},
        "step": math.ceil(math.sqrt(max(one.nearest.size for one in maps) / MOST_PIXELS)),
        "rounds": [_round_content(run, name, shown, scales) for name in run.rounds],
    }


def _round_content(run: Run, name: str, shown: Sequence, scales: Mapping) -> dict:
    thresholds = run.rounds[name].class_thresholds
    quantiles = quantile_values(thresholds, run.rules.quantile)
    table = np.stack([thresholds[q] for q in quantiles]) if quantiles else np.empty((0, 0))
    samples = []
    for kind, index, sample in shown:
        if name not in sample.maps:
            continue
        coded = codes(
            sample.maps[name],
            scales["relative_margin"],
            scales["margin"],
            table,
            scales["probability"],
        )
        height, width = coded.nearest.shape
        samples.append(
            {
                "kind": kind,
                "name": sample.name,
                "photo": f"photo-{kind}-{index}",
                "height": height,
                "width": width,
                "maps": base64.b64encode(zlib.compress(np.stack(coded).tobytes(), 9)).decode(),
            }
        )
    # The configured value stands for the known one that is equal in float32.
    configured = run.rules.quantile
    exact = [
        configured if same_threshold(q, configured) else float(str(np.float32(q)))
        for q in quantiles
    ]
    return {"name": name, "quantiles": exact, "samples": samples}


def _choice(content: Mapping) -> str:
    rounds = "".join(
        f'<option value="{i}">{pieces.escape(one["name"])}</option>'
        for i, one in enumerate(content["rounds"])
    )
    return (
        '<div class="selects">'
        f'<label>round <select id="explorer-round">{rounds}</select></label>'
        '<label>image <select id="explorer-image"></select></label>'
        '<label>colours <select id="explorer-colors"><option value="classes">classes</option>'
        '<option value="errors">right (blue) and wrong (orange)</option></select></label></div>'
    )


def _views() -> str:
    stacks = "".join(
        f'<figure><div class="stack" tabindex="0" role="application" id="view-{rule}" '
        f'aria-label="{rule} label; arrow keys read the pixels"><img alt="">'
        f'<canvas id="canvas-{rule}" width="1" height="1"></canvas></div>'
        f'<figcaption id="kept-{rule}"></figcaption></figure>'
        for rule in RULES
    )
    return (
        f'<div class="views">{stacks}</div>'
        '<p id="readout" aria-live="polite">Point at a pixel, or use the arrow keys on a picture, '
        "to read its values.</p>"
    )


_SLIDERS = (
    '<div class="controls"><fieldset><legend>anchor label</legend>'
    + "".join(
        f'<label class="slider" id="slider-{key}"><span>{title}: <output></output></span>'
        f'<input type="range" min="-1" max="0" value="-1" step="1" id="{key}"></label>'
        for key, title in KINDS.items()
    )
    + '<label class="check"><input type="checkbox" id="agreement"> agreement: the teacher predicts '
    "the same class</label></fieldset>"
    '<fieldset><legend>probability label</legend><label class="slider">'
    "<span>probability above: <output></output></span>"
    '<input type="range" min="0" max="0" step="1" id="probability"></label>'
    '<label class="slider"><span>opacity of the labels: <output></output></span>'
    '<input type="range" min="0" max="100" value="70" id="opacity"></label></fieldset></div>'
)
_COMMAND = (
    '<div class="command"><button type="button" id="copy">Copy the command</button>'
    '<code id="command"></code><span id="copied" role="status"></span></div>'
)
_COUNTS = (
    '<div class="selects"><label>count <select id="explorer-scope">'
    '<option value="image">this image</option><option value="all">all images shown of its kind'
    "</option></select></label></div>"
    '<div class="scroll" tabindex="0" role="region" aria-label="Pixels that the rules label">'
    '<table id="counts"><thead></thead><tbody></tbody><tfoot></tfoot></table></div>'
)


def _reached(values: Sequence[float], found: np.ndarray, side: str) -> np.ndarray:
    """How many of the values each pixel reaches ("right": by being equal, too), uint8."""
    thresholds = np.array(values, np.float32)
    return np.searchsorted(thresholds, found.astype(np.float32), side).astype(np.uint8)
