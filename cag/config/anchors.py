"""Parameters of a round's anchors: `anchors`."""

from typing import Annotated, Literal

from pydantic import Field

from cag.config.base import MOST_PIXELS, PAPER, RELEASED, Fraction, Section, about


class Anchors(Section):
    """Class centroids of the source features."""

    average: Literal["images", "pixels"] = about(
        "what an anchor is the mean of: the images' class means (released code) or all pixels of "
        "the class (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    min_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = about(
        "the least number of correctly predicted pixels with which an image's class counts, here "
        "and in the distance loss",
        "feature pixels",
        RELEASED,
    )
    min_recall: Fraction = about(
        "the least recall of the teacher on the source with which a class has an anchor; 0: every "
        "class seen has one (the paper). With `adapt.anchor_momentum`, a class without an anchor "
        "gets one during the training",
        "share",
        default=0.0,
    )
