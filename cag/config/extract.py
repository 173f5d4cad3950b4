"""Parameters of a round's features: `extract`."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from cag.config.base import Positive, Section, about


class Views(Section):
    """Views of a target image whose outputs are averaged: all combinations."""

    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = about(
        "the factors on the image's size", "factor", default=(1.0,)
    )
    gammas: Annotated[tuple[Annotated[float, Field(gt=0, le=5)], ...], Field(min_length=1)] = about(
        "the exponents of intensities in [0, 1]; below 1: lighter", "exponent", default=(1.0,)
    )
    flip: bool = about("whether each view is also mirrored", default=False)


class Extract(Section):
    """Features of both domains by the round's teacher."""

    batch_size: Positive = about(
        "the images in a forward pass; changes only speed and memory", "images"
    )
    target_views: Views = about("the views of a target image; one: the paper", default=Views())
    samples_per_class: NonNegativeInt = about(
        "the number of source pixels of each class whose features are kept for plots", "pixels"
    )
