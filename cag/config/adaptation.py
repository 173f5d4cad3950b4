"""Parameters of a round's student: `adapt`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cag.config.base import BATCH_NORM, PAPER, RELEASED, BatchNorm, Fraction, Weight, about
from cag.config.training import Training

Momentum = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-6, le=1_000_000)]
AFTERWARDS = ("kept", "target_statistics", "on_regression")  # act only after the last step


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
        "the rules whose pseudo-labels the target's cross-entropy uses with a `cached` teacher: "
        "`both`, half of each (released code), or one (`anchor`: paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    distance_weight: Weight = about("the weight lambda of the distance losses", source=PAPER)
    distance_kind: Literal["class_mean", "pixel"] = about(
        "what is drawn to an anchor: each image's mean feature of a class (released code) or each "
        "pixel's feature (paper)",
        source=f"{PAPER}; {RELEASED}",
    )
    batch_norm: BatchNorm = about(BATCH_NORM, default="mixed")
    teacher: Literal["cached", "ema"] = about(
        "who labels the target's crops: `cached`: the round's teacher, once (the paper); `ema`: in "
        "each step the exponential mean of the student's weights",
        source=f"{PAPER}; mean teacher",
        default="cached",
    )
    teacher_momentum: Momentum = about(
        "the share of itself that the `ema` teacher keeps in a step", source="DACS", default=0.99
    )
    teacher_probability: Fraction = about(
        "the probability that an `ema` teacher's sure pixels exceed",
        "probability",
        "DACS",
        default=0.9,
    )
    target_weight: Literal["share", "pixel", "threshold"] = about(
        "what a pixel that the `ema` teacher labels counts: `share`: the crop's share of sure "
        "pixels; `threshold`: 1 if it is sure, else 0; `pixel`: its probability",
        source="DACS",
        default="share",
    )
    blur: Fraction = about(
        "the probability that a target image is blurred for an `ema` teacher's student",
        "probability",
        "DACS",
        default=0.0,
    )
    kept: Literal["student", "teacher"] = about(
        "whose weights an `ema` training keeps", default="student"
    )
    anchor_momentum: Momentum | None = about(
        "the share that the anchors keep in a step while they follow the `ema` teacher's features "
        "of the source; null: the round's anchors stay",
        default=None,
    )
    anchor_temperature: Temperature | None = about(
        "the temperature of the softmax over distances to the anchors that weights the `ema` "
        "teacher's probabilities; null: no weights",
        "units of the features",
        "ProDA",
        default=None,
    )
    active_only: bool = about(
        "whether only pixels count that the anchor rule gives the `ema` teacher's label, by the "
        "thresholds of `pseudo_label` on its features of the crop",
        default=False,
    )
    second_opinion: bool = about(
        "whether pixels count only where no pseudo-label of the round's anchor rule contradicts "
        "the `ema` teacher",
        default=False,
    )
    share_alignment: Fraction = about(
        "the power of the factor that corrects the `ema` teacher's probabilities in the target: a "
        "class's share in its predictions of the source over that in the target; 0: no factor",
        source="ReMixMatch",
        default=0.0,
    )
    target_statistics: Fraction = about(
        "the share of the target's own statistics in batch norm, taken after the last step from "
        "training images as they are; 0: those of the training stay. A frozen encoder keeps its "
        "own; `batch_norm: frozen` is about the steps before",
        source="alpha-BN",
        default=0.0,
    )
    on_regression: Literal["ignore", "warn", "stop", "keep_teacher"] = about(
        "what happens if a measure without labels says that the student is worse than the model it "
        "started from: a warning, an error, or that model is kept in its place; `ignore`: it is "
        "not measured",
        default="ignore",
    )

    @property
    def of_training(self) -> Adapt:
        """These parameters as the steps need them: those of AFTERWARDS have their defaults."""
        fields = type(self).model_fields
        return self.model_copy(update={key: fields[key].default for key in AFTERWARDS})

    @property
    def of_samples(self) -> Adapt:
        """These parameters as the samples need them: a step with an `ema` teacher changes colours.

        The teacher sees each target image with its own.
        """
        if self.teacher == "cached":
            return self
        augmentation = self.augmentation.model_copy(update={"photometric": None})
        return self.model_copy(update={"augmentation": augmentation})
