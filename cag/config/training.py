"""Parameters of the trainings, and those of `pretrain`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cag.config.base import (
    MOST_BATCH_PIXELS,
    PAPER,
    RELEASED,
    BatchSize,
    Fraction,
    Pixels,
    Precision,
    Rate,
    Section,
    about,
)

MOST_STEPS = 10_000_000
Change = Annotated[float, Field(ge=0, le=10)]
Scale = Annotated[float, Field(ge=0.05, le=20)]


class Run(Section):
    """The parameters that a training takes beside its own section."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = about("the seed of all random draws")
    precision: Precision = about(
        "the precision of the forward pass; `auto`: bf16-mixed on a GPU that has it, else 32-true"
    )
    max_batch_per_device: BatchSize | None = about(
        "the most images of a domain that a device takes at a time; it averages the gradients of "
        "equal pieces of its share; null: no limit",
        "images",
    )
    compile: bool = about("whether trained networks go through `torch.compile`")


class Photometric(Section):
    """Random changes of brightness and colour; 0 switches a change off."""

    brightness: Change = about(
        "the largest distance from 1 of a random factor, at least 0, on the brightness",
        "factor",
        default=0.0,
    )
    contrast: Change = about("the same for the contrast", "factor", default=0.0)
    saturation: Change = about("the same for the saturation", "factor", default=0.0)
    hue: Annotated[float, Field(ge=0, le=0.5)] = about(
        "the largest random shift of the hue, either way", "turns", default=0.0
    )
    gamma: Annotated[float, Field(ge=0, lt=5)] = about(
        "the largest |log2| of a random exponent of the intensities", "octaves", default=0.0
    )


class Augmentation(Section):
    """Random scale, crop, flip and photometric change of a training image."""

    scale: tuple[Scale, Scale] = about(
        "the least and the largest random factor on the prepared size", "factor", RELEASED
    )
    crop: Pixels = about(
        "height and width of the random crop; larger: more context, more cost", "pixels", RELEASED
    )
    flip: Fraction = about("the probability that an image is mirrored", "probability", RELEASED)
    photometric: Photometric | None = about(
        "changes of brightness and colour; null: none (the paper)", default=None
    )

    @field_validator("scale")
    @classmethod
    def _range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("must be [low, high] with low <= high")
        return scale


class Training(Section):
    """The parameters of every training."""

    iterations: Annotated[int, Field(ge=1, le=MOST_STEPS)] = about(
        "the number of steps", "steps", RELEASED
    )
    batch_size: BatchSize = about(
        "the images of each domain in a step, over all processes", "images", RELEASED
    )
    optimizer: Literal["sgd", "adamw"] = about("the optimizer; the paper: sgd", source=PAPER)
    learning_rate: Rate = about("the first step's learning rate", source=RELEASED)
    learning_rate_decoder: Rate | None = about(
        "the first step's learning rate of the decoder and the classifier; null: `learning_rate`, "
        "as the encoder",
        source="DAFormer",
        default=None,
    )
    learning_rate_warmup: Annotated[int, Field(ge=0, le=MOST_STEPS)] = about(
        "the steps in which all learning rates rise linearly to what they would be without it",
        "steps",
        "DAFormer",
        default=0,
    )
    freeze_encoder: bool = about(
        "whether the encoder stays as it is: its weights and its batch-norm statistics, without "
        "dropout",
        source="DINOv2",
        default=False,
    )
    power: Annotated[float, Field(ge=0, le=100)] = about(
        "the exponent of the polynomial decay to 0; 0: no decay", source=RELEASED
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = about(
        "the momentum of sgd, beta 1 of adamw", source=RELEASED
    )
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = about(
        "the weight decay, part of the gradient (sgd) or decoupled (adamw)", source=RELEASED
    )
    class_balance: Fraction = about(
        "the power in the weights of source classes in the cross-entropy, (median frequency / "
        "frequency) ^ power; 0: plain (the paper)",
        default=0.0,
    )
    augmentation: Augmentation = about("the random changes of training images", source=RELEASED)

    @model_validator(mode="after")
    def _batch(self):
        crop = self.augmentation.crop
        if (pixels := self.batch_size * crop[0] * crop[1]) > MOST_BATCH_PIXELS:
            product = f"batch_size {self.batch_size} times augmentation.crop {list(crop)}"
            limit = f"expected at most {MOST_BATCH_PIXELS:,}"
            raise ValueError(f"{product} is {pixels:,} pixels; {limit}")
        return self


class Pretrain(Training):
    """Cross-entropy on the source alone."""
