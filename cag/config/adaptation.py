"""Parameters of a round's student: `adapt`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cag.config.base import BATCH_NORM, PAPER, RELEASED, BatchNorm, Fraction, about
from cag.config.training import Training


class Adapt(Training):
    """Training of a round's student."""

    class_mix: Fraction = about(
        "the probability that half of a source image's classes are pasted on a target image, with "
        "their labels",
        "probability",
        "ClassMix, DACS",
        default=0.0,
    )
    target_labels: Literal["both", "anchor", "probability"] = about(
        "the pseudo-labels of the target's cross-entropy: half of each rule's (released code), or "
        "one rule's alone (`anchor`: paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    distance_weight: Annotated[float, Field(ge=0)] = about(
        "the weight lambda of the distance losses; 0: none", source=PAPER
    )
    distance_kind: Literal["class_mean", "pixel"] = about(
        "what is drawn to an anchor: the mean feature of a class in an image (released code), or "
        "each pixel's (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    batch_norm: BatchNorm = about(BATCH_NORM, default="mixed")
