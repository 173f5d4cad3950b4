"""Parameters of a round's features: `extract`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cag.config.base import Count, Positive, Section, about


class Views(Section):
    """Views of a target image whose outputs are averaged: every combination."""

    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = about(
        "the factors on the image's size", "factor", default=(1.0,)
    )
    gammas: Annotated[tuple[Annotated[float, Field(gt=0, le=5)], ...], Field(min_length=1)] = about(
        "the powers that intensities in [0, 1] are raised to; below 1: lighter",
        "exponent",
        default=(1.0,),
    )
    flip: bool = about("whether each of them is also seen mirrored", default=False)


class Extract(Section):
    """Features of both domains by the round's teacher."""

    batch_size: Positive = about(
        "the images in a forward pass; changes speed and memory, not the features", "images"
    )
    target_views: Views = about(
        "the views of a target image whose outputs are averaged; one plain view: the paper",
        default=Views(),
    )
    samples_per_class: Count = about(
        "the single-pixel source features of each class that are kept for plots", "pixels"
    )
