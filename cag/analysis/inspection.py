"""What the rules go by in one target image or pixel, and what they make of it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cag.anchors import resize_labels
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE
from cag.pseudo_labels import agreeing, anchor_distances, apply_rules, relative_margins
from cag.runtime.errors import UserError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SHOWN_NAMES = 4


class Inspection(NamedTuple):
    """The maps of an image at feature size, [h, w] each."""

    nearest: Tensor  # uint8, the class of the nearest anchor
    nearest_distance: Tensor  # float32, d1
    second_distance: Tensor  # float32, d2
    prediction: Tensor  # uint8, the predicted class
    probability: Tensor  # float32, its probability
    by_anchor: Tensor  # uint8, the label by the anchor rule; 255 = none
    by_probability: Tensor  # uint8, the label by the probability rule; 255 = none

    @property
    def relative_margin(self) -> Tensor:
        """float32 [h, w] in [0, 1]."""
        return relative_margins(self.nearest_distance, self.second_distance)


def inspect_image(
    features: Tensor,
    prediction: Tensor,
    probability: Tensor,
    anchors: Tensor,
    config: PseudoLabel,
    class_thresholds: Tensor | None,
) -> Inspection:
    """Apply the rules to an image.

    Args:
        features: float16 [1, D, h, w].
        prediction: uint8 [1, h, w].
        probability: float32 [1, h, w].
        anchors: float32 [K, D].
        config: The thresholds.
        class_thresholds: float [K] of the configured quantile, or None.
    """
    distances = anchor_distances(features, anchors)
    labels = apply_rules(distances, prediction, probability, config, class_thresholds)
    return Inspection(*(part[0] for part in (*distances, prediction, probability, *labels)))


def enlarge(pixel_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map [h, w] to an image's size, as training and the pseudo-label PNGs do."""
    return resize_labels(pixel_map[None], size, align_corners=True)[0]


def feature_pixel(xy: tuple[int, int], size: tuple[int, int], shape: torch.Size) -> tuple[int, int]:
    """The row and column of the feature pixel that an image's pixel takes its label from.

    Args:
        xy: Column and row in the prepared image, from 0.
        size: Height and width of the prepared image.
        shape: h, w of the features.

    Raises:
        UserError: The pixel lies outside the image.
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
    found: Inspection,
    place: tuple[int, int],
    features: Tensor,
    anchors: Tensor,
    config: PseudoLabel,
    class_thresholds: Tensor | None,
    names: Sequence[str],
    target_labels: str,
) -> dict[str, Any]:
    """All that is known of a feature pixel.

    Args:
        found: The image.
        place: Row and column of the pixel.
        features: float16 [1, D, h, w].
        anchors: float32 [K, D].
        config: The thresholds.
        class_thresholds: float [K] of the configured quantile, or None.
        names: K class names.
        target_labels: Which labels the student trains on: `adapt.target_labels`.

    Returns:
        Plain values: distances to each anchor, nearest first, in units of the features; margins;
        the configured rules with threshold, value and whether the pixel passes; the prediction; the
        labels, None where there is none; and under "training" the classes that the student's
        cross-entropy draws the pixel to.
    """
    row, column = place
    nearest, first, second, prediction, probability, by_anchor, by_probability = (
        pixel_map[row, column] for pixel_map in found
    )
    relative = found.relative_margin[row, column]
    distances = (anchors.double() - features[0, :, row, column].double()).norm(dim=1)
    order = distances.argsort()
    labels = {
        "anchor": _name(by_anchor, names),
        "probability": _name(by_probability, names),
    }
    used = labels.values() if target_labels == "both" else [labels[target_labels]]
    own = None if class_thresholds is None else class_thresholds[nearest.long()].item()
    rules = [
        ("margin", config.margin, (second - first).item()),
        ("relative_margin", config.relative_margin, relative.item()),
        ("quantile", own, relative.item()),
    ]
    agreement = agreeing(nearest, prediction) != IGNORE
    return {
        "feature_pixel": {"row": row, "column": column},
        "distances": [
            {"class": names[i], "distance": distances[i].item()}
            for i in order.tolist()
            if distances[i].isfinite()
        ],
        "nearest": names[nearest],
        "nearest_distance": first.item(),
        "second_distance": second.item(),
        "margin": (second - first).item(),
        "relative_margin": relative.item(),
        "prediction": names[prediction],
        "probability": probability.item(),
        "rules": [
            *(
                # As `active` compares: in float32.
                _rule(rule, threshold, value, bool(torch.tensor(value) >= threshold))
                for rule, threshold, value in rules
                if threshold is not None
            ),
            *(
                [_rule("agreement", names[nearest], names[prediction], bool(agreement))]
                if config.agreement
                else []
            ),
            _rule(
                "probability",
                config.probability,
                probability.item(),
                bool(probability > torch.tensor(config.probability)),
            ),
        ],
        "labels": {
            **labels,
            "training": list(dict.fromkeys(label for label in used if label is not None)),
        },
    }


def describe_image(found: Inspection, names: Sequence[str]) -> dict[str, Any]:
    """Count an image's feature pixels by class, and give the quantiles of its margins.

    Returns:
        Plain values: under "classes" for each class that occurs the pixels nearest to it, labelled
        so by each rule and by both alike; under "quantiles" those of both margins and of the
        probability.
    """
    agree = agreeing(found.by_anchor, found.by_probability)
    maps = {
        "nearest": found.nearest,
        "anchor": found.by_anchor,
        "probability": found.by_probability,
        "agree": agree,
    }
    counts = {key: _count(labels, len(names)) for key, labels in maps.items()}
    levels = torch.tensor(QUANTILES)
    values = {
        "margin": found.second_distance - found.nearest_distance,
        "relative_margin": found.relative_margin,
        "probability": found.probability,
    }
    quantiles = {key: value.flatten().quantile(levels).tolist() for key, value in values.items()}
    return {
        "pixels": found.nearest.numel(),
        "classes": [
            {"class": name, **{key: count[i] for key, count in counts.items()}}
            for i, name in enumerate(names)
            if any(count[i] for count in counts.values())
        ],
        "quantiles": [
            {"quantile": level, **{key: values[i] for key, values in quantiles.items()}}
            for i, level in enumerate(QUANTILES)
        ],
    }


def find_image(names: Sequence[str], wanted: str) -> int:
    """Find an image by its name, the only name that holds the given text, or a path that ends so.

    Returns:
        The index of the name.

    Raises:
        UserError: None or several are meant; some names are given.
    """
    path = PurePosixPath(wanted)
    path = path.with_suffix("").as_posix() if path.name else ""
    exact = [i for i, name in enumerate(names) if wanted == name or f"/{path}".endswith(f"/{name}")]
    # Of names such as a/b and b the longer one is what a path means.
    if exact:
        return max(exact, key=lambda index: len(names[index]))
    parts = [i for i, name in enumerate(names) if path and (wanted in name or path in name)]
    if len(parts) == 1:
        return parts[0]
    if parts:
        some = ", ".join(names[i] for i in parts[:_SHOWN_NAMES])
        raise UserError(f"'{wanted}' is part of {len(parts)} names: {some}, ...; write more of it")
    near = get_close_matches(path, names, n=_SHOWN_NAMES, cutoff=0) or list(names[:_SHOWN_NAMES])
    raise UserError(
        f"'{wanted}' is none of the {len(names)} target training images; nearest: {', '.join(near)}"
    )


def _rule(rule: str, threshold: Any, value: Any, passes: bool) -> dict[str, Any]:
    return {"rule": rule, "threshold": threshold, "value": value, "passes": passes}


def _name(label: Tensor, names: Sequence[str]) -> str | None:
    return None if label == IGNORE else names[label]


def _count(labels: Tensor, num_classes: int) -> list[int]:
    return torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:num_classes].tolist()
