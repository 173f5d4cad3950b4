"""Parameters of the adversarial warm-up: `warmup`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cag.config.base import ADAPTSEGNET, BATCH_NORM, RELEASED, BatchNorm, Rate, Weight, about
from cag.config.training import MOST_STEPS, Augmentation, Training

DISCRIMINATOR_MINIMUM = 32  # pixels: five halvings leave one


class Warmup(Training):
    """Alignment before the first round; 0 iterations pass the pretrained model through."""

    weights: str | None = about(
        "a model below `$CAG_WEIGHTS` to use instead; null: train", source=RELEASED, default=None
    )
    iterations: Annotated[int, Field(ge=0, le=MOST_STEPS)] = about(
        "the number of steps; 0: no warm-up", "steps", ADAPTSEGNET
    )
    objective: Literal["vanilla", "least_squares"] = about(
        "the discriminator's loss: binary cross-entropy, or squared distance to 0 and 1",
        source=ADAPTSEGNET,
    )
    adversarial_weight: Weight = about(
        "the weight of the loss by which target outputs come to look like the source's; 0: the "
        "target only takes part in batch norm",
        source=ADAPTSEGNET,
    )
    discriminator_learning_rate: Rate = about(
        "the discriminator's first learning rate; decays with `power` too", source=ADAPTSEGNET
    )
    batch_norm: BatchNorm = about(BATCH_NORM, default="mixed")

    @field_validator("augmentation")
    @classmethod
    def _large_enough(cls, augmentation: Augmentation) -> Augmentation:
        crop, least = list(augmentation.crop), DISCRIMINATOR_MINIMUM
        if min(crop) < least:
            needed = f"the discriminator needs at least {least} x {least} pixels"
            raise ValueError(f"crop is {crop}; {needed}")
        return augmentation
