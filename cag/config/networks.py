"""Parameters of the network: `network`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from cag.config.base import PAPER, RELEASED, Section, about


class Normalization(Section):
    """Mean and standard deviation of the red, green and blue inputs, in units of [0, 1]."""

    mean: tuple[float, float, float] = about(
        "what is subtracted from red, green and blue", "of inputs in [0, 1]", RELEASED
    )
    std: tuple[float, float, float] = about(
        "what red, green and blue are then divided by; above 0", "of inputs in [0, 1]", RELEASED
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be above 0")
        return std


class Network(Section):
    """A network of segmentation_models_pytorch, or the paper's, on one of its encoders."""

    architecture: str = about(
        "`DeepLabV3PlusPaper`, or a network of segmentation_models_pytorch, e.g. `DeepLabV3Plus`, "
        "`FPN`, `Unet`",
        source=PAPER,
    )
    encoder: str = about("its encoder, e.g. `resnet18`, `mobilenet_v2`, `resnet101`", source=PAPER)
    encoder_weights: str | None = about(
        "the encoder's weights at the start: a name such as `imagenet`, a `.safetensors` file "
        "below `$CAG_WEIGHTS`, or null for random ones",
        source=PAPER,
    )
    options: dict[str, Any] = about(
        "further arguments of the architecture: `decoder_channels`", default={}
    )
    normalization: Normalization = about("how inputs are normalised", source=RELEASED)
