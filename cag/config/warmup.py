"""Parameters of the adversarial warm-up: `warmup`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cag.config.base import ADAPTSEGNET, BATCH_NORM, RELEASED, BatchNorm, Count, about
from cag.config.training import Augmentation, Training

DISCRIMINATOR_MINIMUM = 32  # pixels, of which five halvings leave one


class Warmup(Training):
    """Alignment before the first round; 0 iterations pass the pretrained model through."""

    weights: str | None = about(
        "a model file below `$CAG_WEIGHTS` that is used instead of training one; null: train",
        source=RELEASED,
        default=None,
    )
    iterations: Count = about(
        "the number of steps; 0 passes the pretrained model through", "steps", ADAPTSEGNET
    )
    objective: Literal["vanilla", "least_squares"] = about(
        "the discriminator's: binary cross-entropy, or squared distance to 0 and 1",
        source=ADAPTSEGNET,
    )
    adversarial_weight: Annotated[float, Field(ge=0)] = about(
        "the weight of the loss that makes the target's output look like the source's; 0: training "
        "on the source, with the target's batch-norm statistics",
        source=ADAPTSEGNET,
    )
    discriminator_learning_rate: Annotated[float, Field(gt=0)] = about(
        "the discriminator's learning rate at the first step; `power` is the network's",
        source=ADAPTSEGNET,
    )
    batch_norm: BatchNorm = about(BATCH_NORM, default="mixed")

    @field_validator("augmentation")
    @classmethod
    def _large_enough(cls, augmentation: Augmentation) -> Augmentation:
        if min(augmentation.crop) < DISCRIMINATOR_MINIMUM:
            raise ValueError(
                f"crop is {list(augmentation.crop)}; the discriminator needs at least "
                f"{DISCRIMINATOR_MINIMUM} x {DISCRIMINATOR_MINIMUM} pixels"
            )
        return augmentation
