"""The Cityscapes folder layout, in which other programs look for images and labels."""

import re
from collections.abc import Sequence

import numpy as np

from cag.datasets.labels import IGNORE

_NAME = re.compile(r"([^/_]+)/\1_\d{6}_\d{6}")


def cityscapes_names(names: Sequence[str]) -> list[str]:
    """A name of the form <city>/<city>_<sequence>_<frame> for each image, all different.

    If all names have the form already, they stay. Otherwise the image at place i is
    target/target_000000_<i>, in sequences of a million.
    """
    if all(_NAME.fullmatch(name) for name in names):
        return list(names)
    places = (divmod(i, 10**6) for i in range(len(names)))
    return [f"target/target_{sequence:06d}_{frame:06d}" for sequence, frame in places]


def image_path(name: str, split: str) -> str:
    """Where an image of such a name lies in the data set's folder."""
    return f"leftImg8bit/{split}/{name}_leftImg8bit.png"


def label_path(name: str, split: str, kind: str) -> str:
    """Where its label map lies; kind is labelTrainIds or labelIds."""
    return f"gtFine/{split}/{name}_gtFine_{kind}.png"


def either(anchor: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """One label map of two, uint8 [H, W]: the label that a rule gives, 255 where two differ.

    `adapt` sums the losses of both maps, so a pixel with the same label in both counts twice. A
    single map cannot express that.
    """
    labels = np.where(anchor == IGNORE, probability, anchor)
    labels[(probability != IGNORE) & (probability != labels)] = IGNORE
    return labels
