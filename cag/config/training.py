"""Parameters of the trainings, and those of `pretrain`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cag.config.base import (
    PAPER,
    RELEASED,
    Fraction,
    Pixels,
    Positive,
    Precision,
    Section,
    Seed,
    about,
)


class Run(Section):
    """What every training takes beside its own section."""

    seed: Seed = about("the number that all random draws follow from")
    precision: Precision = about(
        "the numbers of the forward pass; `auto`: bf16-mixed on a GPU that has it, else 32-true"
    )
    max_batch_per_device: Positive | None = about(
        "the images of a domain that a device takes at a time; what is more follows in equal "
        "pieces whose gradients are averaged; null: all of its share",
        "images",
    )
    compile: bool = about("whether the networks that are trained go through `torch.compile`")


class Photometric(Section):
    """Random changes of brightness and colour; 0 switches a change off."""

    brightness: Annotated[float, Field(ge=0)] = about(
        "how far a random factor on the brightness may be from 1, never below 0",
        "factor",
        default=0.0,
    )
    contrast: Annotated[float, Field(ge=0)] = about(
        "likewise for the contrast", "factor", default=0.0
    )
    saturation: Annotated[float, Field(ge=0)] = about(
        "likewise for the saturation", "factor", default=0.0
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = about(
        "the largest random shift of the hue, either way round", "turns", default=0.0
    )
    gamma: Annotated[float, Field(ge=0, lt=5)] = about(
        "how far the base-2 logarithm of a random exponent of the intensities may be from 0",
        "octaves",
        default=0.0,
    )


class Augmentation(Section):
    """Random scale, crop, flip and photometric change of a training image."""

    scale: tuple[float, float] = about(
        "the range of a random factor on the prepared size: low, high", "factor", RELEASED
    )
    crop: Pixels = about(
        "height and width of the random crop; a larger step sees more of the scene and costs more",
        "pixels",
        RELEASED,
    )
    flip: Fraction = about("the probability that an image is mirrored", "probability", RELEASED)
    photometric: Photometric | None = about(
        "random changes of brightness and colour; null: none (the paper)", default=None
    )

    @field_validator("scale")
    @classmethod
    def _range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError("must be [low, high] with 0 < low <= high")
        return scale


class Training(Section):
    """What every training has in common."""

    iterations: Positive = about("the number of steps", "steps", RELEASED)
    batch_size: Positive = about(
        "the images of each domain in a step, over all processes", "images", RELEASED
    )
    optimizer: Literal["sgd", "adamw"] = about("the optimizer; the paper: sgd", source=PAPER)
    learning_rate: Annotated[float, Field(gt=0)] = about(
        "the learning rate at the first step", source=RELEASED
    )
    power: Annotated[float, Field(ge=0)] = about(
        "the exponent of the polynomial decay to 0; 0: no decay", source=RELEASED
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = about(
        "the momentum of sgd, beta 1 of adamw", source=RELEASED
    )
    weight_decay: Annotated[float, Field(ge=0)] = about(
        "the weight decay: added to the gradient by sgd, decoupled from it by adamw",
        source=RELEASED,
    )
    class_balance: Fraction = about(
        "the power with which rare source classes count more in the cross-entropy, (median "
        "frequency / frequency) ^ power; 0: plain (the paper)",
        default=0.0,
    )
    augmentation: Augmentation = about("how training images are changed at random", source=RELEASED)


class Pretrain(Training):
    """Cross-entropy on the source alone."""
