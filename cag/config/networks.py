"""Parameters of the network: `network`."""

from typing import Any

from pydantic import field_validator

from cag.config.base import PAPER, RELEASED, Section, about


class Normalization(Section):
    """Mean and standard deviation of the red, green and blue inputs, in units of [0, 1]."""

    mean: tuple[float, float, float] = about(
        "the mean to subtract", "of inputs in [0, 1]", RELEASED
    )
    std: tuple[float, float, float] = about(
        "the deviation to divide by, above 0", "of inputs in [0, 1]", RELEASED
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be above 0")
        return std


class Network(Section):
    """The paper's network or one of segmentation_models_pytorch, on an encoder of the latter."""

    architecture: str = about(
        "`DeepLabV3PlusPaper`, or a network of segmentation_models_pytorch such as `FPN` or `Unet`",
        source=PAPER,
    )
    encoder: str = about("its encoder, such as `resnet101` or `mobilenet_v2`", source=PAPER)
    encoder_weights: str | None = about(
        "the encoder's first weights: a name such as `imagenet` (below `$CAG_WEIGHTS`, else in an "
        "installed package, else from the hub), a `.safetensors` file below `$CAG_WEIGHTS`, or "
        "null: random",
        source=PAPER,
    )
    options: dict[str, Any] = about(
        "other arguments of the architecture, such as `decoder_channels`", default={}
    )
    normalization: Normalization = about("how inputs are normalised", source=RELEASED)
