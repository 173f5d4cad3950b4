"""Parameters of a round's features: `extract`."""

from typing import Annotated

from pydantic import ConfigDict, Field

from cag.config.base import BatchSize, Section, about

MOST_VIEWS = Field(min_length=1, max_length=16)
Scale = Annotated[float, Field(ge=0.05, le=4)]
Gamma = Annotated[float, Field(ge=0.05, le=5)]


class Views(Section):
    """Views of a target image whose outputs are averaged: all combinations."""

    scales: Annotated[tuple[Scale, ...], MOST_VIEWS] = about(
        "the factors on the image's size", "factor", default=(1.0,)
    )
    gammas: Annotated[tuple[Gamma, ...], MOST_VIEWS] = about(
        "the exponents of intensities in [0, 1]; below 1: lighter", "exponent", default=(1.0,)
    )
    flip: bool = about("whether each view is also mirrored", default=False)


class ExtractSource(Section):
    """The part of `extract` that `extract_source` reads and declares; it passes over the rest."""

    model_config = ConfigDict(extra="ignore")

    batch_size: BatchSize = about(
        "the images in a forward pass; changes only speed and memory", "images"
    )
    samples_per_class: Annotated[int, Field(ge=0, le=100_000)] = about(
        "the number of source pixels of each class whose features are kept for plots", "pixels"
    )


class Extract(ExtractSource):
    """Features of both domains by the round's teacher."""

    model_config = ConfigDict(extra="forbid")

    target_views: Views = about("the views of a target image; one: the paper", default=Views())
    directions: Annotated[int, Field(ge=1, le=4096)] | None = about(
        "the most directions among the anchors along which a target pixel's features are kept, "
        "with what is left of their length: distances to the anchors stay the same but for "
        "rounding, and the store is some six times smaller; null: all channels, as they are",
        "directions",
        default=None,
    )
