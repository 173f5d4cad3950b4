"""Parameters of a round's student: `adapt`."""

from typing import Literal

from pydantic import NonNegativeFloat

from cag.config.base import BATCH_NORM, PAPER, RELEASED, BatchNorm, Fraction, about
from cag.config.training import Training


class Adapt(Training):
    """Training of a round's student."""

    class_mix: Fraction = about(
        "the probability that half of a source image's classes, with their labels, are pasted on a "
        "target image",
        "probability",
        "ClassMix, DACS",
        default=0.0,
    )
    target_labels: Literal["both", "anchor", "probability"] = about(
        "the rules whose pseudo-labels the target's cross-entropy uses: `both`, half of each "
        "(released code), or one (`anchor`: paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    distance_weight: NonNegativeFloat = about(
        "the weight lambda of the distance losses", source=PAPER
    )
    distance_kind: Literal["class_mean", "pixel"] = about(
        "what is drawn to an anchor: each image's mean feature of a class (released code) or each "
        "pixel's feature (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    batch_norm: BatchNorm = about(BATCH_NORM, default="mixed")
