"""A target image or one of its pixels, as the rules see and label it."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from cag import pseudo_labels
from cag.anchors import resize_labels
from cag.config.base import RULES
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import COVERAGE, THRESHOLDS, Pixels
from cag.runtime.errors import UserError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SHOWN_NAMES = 4


class Inspection(NamedTuple):
    """The maps of an image at feature size, [h, w] each."""

    pixels: Pixels
    by_anchor: Tensor  # uint8, the label by the anchor rule; 255 = none
    by_probability: Tensor  # uint8, the label by the probability rule; 255 = none


def inspect_image(
    features: Tensor,
    prediction: Tensor,
    probability: Tensor,
    anchors: Tensor,
    config: PseudoLabel,
    class_thresholds: Tensor | None,
) -> Inspection:
    """Apply the rules to an image.

    `prediction` is uint8 and `probability` float32 [1, h, w]; the rest is as for `describe_pixel`.
    """
    pixels = pseudo_labels.measure(features, prediction, probability, anchors)
    pixels = Pixels(*(pixel_map[0] for pixel_map in pixels))
    return Inspection(pixels, *pseudo_labels.apply_rules(pixels, config, class_thresholds))


def enlarge(pixel_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map [h, w] to an image's size, as training and the pseudo-label PNGs do."""
    return resize_labels(pixel_map[None], size, align_corners=True)[0]


def feature_pixel(xy: tuple[int, int], size: tuple[int, int], shape: torch.Size) -> tuple[int, int]:
    """The row and column of the feature pixel that an image's pixel takes its label from.

    `xy` is column and row, from 0, in the prepared image of `size` (height, width), else a
    UserError; `shape` is h, w of the features.
    """
    (x, y), (height, width) = xy, size
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f"--xy is {x},{y}; the image is {width} x {height} pixels, "
            f"so x is 0 to {width - 1} and y 0 to {height - 1}"
        )
    index = enlarge(torch.arange(shape.numel()).view(shape), size)[y, x].item()
    return divmod(index, shape[1])


def describe_pixel(
    image: Inspection,
    place: tuple[int, int],
    features: Tensor,
    anchors: Tensor,
    config: PseudoLabel,
    class_thresholds: Tensor | None,
    names: Sequence[str],
    target_labels: str,
) -> dict[str, Any]:
    """Collect all that is known of a feature pixel, whose `place` is its row and column.

    Features are float16 [1, D, h, w], anchors float32 [K, D], the class thresholds float [K] of the
    configured quantile, or None; the student trains on the labels `adapt.target_labels`.

    The result is plain values: the distances to the anchors, nearest first, in units of the
    features; the margins; each configured threshold, the value compared with it, and whether the
    pixel passes; the prediction; the labels, None for none; and under "training" the classes that
    the student's cross-entropy draws the pixel to.
    """
    row, column = place
    pixel = Pixels(*(pixel_map[row, column] for pixel_map in image.pixels))
    nearest, prediction = names[pixel.nearest], names[pixel.prediction]
    distances = (anchors.double() - features[0, :, row, column].double()).norm(dim=1)
    by_rule = zip(RULES, (image.by_anchor, image.by_probability), strict=True)
    labels = {rule: _name(labels[row, column], names) for rule, labels in by_rule}
    used = labels.values() if target_labels == "both" else [labels[target_labels]]
    rules = []
    for rule in RULES:
        thresholds = pseudo_labels.configured(rule, config, class_thresholds)
        rules += [_threshold(key, pixel, threshold) for key, threshold in thresholds.items()]
        if rule == "anchor" and config.agreement:
            agree = bool(pixel.nearest == pixel.prediction)
            rules.append(_rule("agreement", nearest, prediction, agree))
    return {
        "feature_pixel": {"row": row, "column": column},
        "distances": [
            {"class": names[i], "distance": distances[i].item()}
            for i in distances.argsort().tolist()
            if distances[i].isfinite()
        ],
        "nearest": nearest,
        "nearest_distance": pixel.nearest_distance.item(),
        "second_distance": pixel.second_distance.item(),
        "margin": pixel.margin().item(),
        "relative_margin": pixel.relative_margin().item(),
        "prediction": prediction,
        "probability": pixel.probability.item(),
        "rules": rules,
        "labels": {**labels, "training": [*dict.fromkeys(filter(None, used))]},
    }


def describe_image(image: Inspection, names: Sequence[str]) -> dict[str, Any]:
    """Count an image's feature pixels by class, and take the quantiles of what is compared.

    The result is plain values: under "classes", for each class that occurs, the pixels nearest to
    it and those that each rule and both label so; under "quantiles" those of margins and
    probability.
    """
    labels = (image.pixels.nearest, image.by_anchor, image.by_probability)
    counts = pseudo_labels.count_labels(*labels, len(names)).T.numpy()
    classes = pd.DataFrame(counts, columns=COVERAGE)
    levels, quantiles = torch.tensor(QUANTILES), pd.DataFrame({"quantile": QUANTILES})
    for key, threshold in THRESHOLDS.items():
        if not threshold.per_class:
            quantiles[key] = threshold.value(image.pixels).flatten().quantile(levels).tolist()
    present = classes.assign(**{"class": names})[classes.any(axis=1)]
    return {
        "pixels": image.pixels.nearest.numel(),
        "classes": present[["class", *COVERAGE]].to_dict("records"),
        "quantiles": quantiles.to_dict("records"),
    }


def find_image(names: Sequence[str], wanted: str) -> int:
    """The index of the image with this name, part of a name, or path that ends in a name.

    If no name or several fit, the message of the UserError gives examples.
    """
    path = PurePosixPath(wanted)
    path = path.with_suffix("").as_posix() if path.name else ""
    exact = [i for i, name in enumerate(names) if wanted == name or f"/{path}".endswith(f"/{name}")]
    # Of the names a/b and b a path means the longer one.
    if exact:
        return max(exact, key=lambda index: len(names[index]))
    parts = [i for i, name in enumerate(names) if path and (wanted in name or path in name)]
    if len(parts) == 1:
        return parts[0]
    if parts:
        first = ", ".join(names[i] for i in parts[:_SHOWN_NAMES])
        raise UserError(f"'{wanted}' is part of {len(parts)} names: {first}, ...; write more of it")
    near = get_close_matches(path, names, n=_SHOWN_NAMES, cutoff=0) or list(names[:_SHOWN_NAMES])
    raise UserError(
        f"'{wanted}' is none of the {len(names)} target training images; nearest: {', '.join(near)}"
    )


def _threshold(key: str, pixel: Pixels, threshold: float | Tensor) -> dict[str, Any]:
    """Compare a pixel, whose maps are [], with a threshold: a number, or one per class [K]."""
    compared = THRESHOLDS[key]
    passes = bool(compared.passed(pixel, threshold))
    if isinstance(threshold, Tensor):
        threshold = threshold[pixel.classes(compared.rule).long()].item()
    return _rule(key, threshold, compared.value(pixel).item(), passes)


def _rule(rule: str, threshold: Any, value: Any, passes: bool) -> dict[str, Any]:
    return {"rule": rule, "threshold": threshold, "value": value, "passes": passes}


def _name(label: Tensor, names: Sequence[str]) -> str | None:
    return None if label == IGNORE else names[label]
