"""The Cityscapes folder layout, in which other programs look for images and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cag.datasets.labels import IGNORE

CITY = "target"  # of images that come from no city
_NAME = re.compile(r"([^/_]+)/\1_\d{6}_\d{6}")
_FRAMES = 10**6


def cityscapes_names(names: Sequence[str]) -> list[str]:
    """Names of the form <city>/<city>_<sequence>_<frame>, one for each image, all different.

    Args:
        names: The images' names. If each has the form already, they stay as they are; if not, the
            image at place i is target/target_000000_<i>, in sequences of a million.
    """
    if all(_NAME.fullmatch(name) for name in names):
        return list(names)
    places = (divmod(i, _FRAMES) for i in range(len(names)))
    return [f"{CITY}/{CITY}_{sequence:06d}_{frame:06d}" for sequence, frame in places]


def image_path(name: str, split: str) -> str:
    """Where an image of such a name lies below the data set's folder."""
    return f"leftImg8bit/{split}/{name}_leftImg8bit.png"


def label_path(name: str, split: str, kind: str) -> str:
    """Where its label map lies; kind is labelTrainIds or labelIds."""
    return f"gtFine/{split}/{name}_gtFine_{kind}.png"


def either(anchor: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """One label map of two, uint8 [H, W]: the label that a rule gives, 255 where two differ.

    `adapt` sums the losses of the two maps: a pixel that one of them labels counts once, one that
    both label alike twice, which a single map cannot say.
    """
    labels = np.where(anchor == IGNORE, probability, anchor)
    labels[(probability != IGNORE) & (probability != labels)] = IGNORE
    return labels
