"""Parameters of a round's anchors: `anchors`."""

from __future__ import annotations

from typing import Literal

from cag.config.base import PAPER, RELEASED, Fraction, Positive, Section, about


class Anchors(Section):
    """Class centroids of the source features."""

    average: Literal["images", "pixels"] = about(
        "what an anchor is a mean over: the images' class means (released code), or all pixels of "
        "the class (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    min_pixels: Positive = about(
        "the correctly predicted pixels that a class needs in an image to count; also in the "
        "distance loss",
        "feature pixels",
        RELEASED,
    )
    min_recall: Fraction = about(
        "the share of its source pixels that the teacher must find, or a class has no anchor; 0: "
        "every class seen has one (the paper)",
        "share",
        default=0.0,
    )
