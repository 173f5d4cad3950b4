"""Parameters of the network: `network`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from cag.config.base import PAPER, RELEASED, Section, about

Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-4, le=1000)]
LARGEST_OPTION = 4096  # a width; more takes the memory of large machines


class Normalization(Section):
    """Mean and standard deviation of the red, green and blue inputs, in units of [0, 1]."""

    mean: tuple[Mean, Mean, Mean] = about("the mean to subtract", "of inputs in [0, 1]", RELEASED)
    std: tuple[Deviation, Deviation, Deviation] = about(
        "the deviation to divide by", "of inputs in [0, 1]", RELEASED
    )


class Network(Section):
    """The paper's network or one of segmentation_models_pytorch, on an encoder of the latter."""

    architecture: str = about(
        "`DeepLabV3PlusPaper`; `Linear`, on a vision transformer; or a network of "
        "segmentation_models_pytorch such as `FPN`, `Unet` or `DPT`",
        source=PAPER,
    )
    encoder: str = about(
        "its encoder, such as `resnet101`, `mit_b5` or timm's `tu-vit_large_patch14_dinov2`",
        source=PAPER,
    )
    encoder_weights: str | None = about(
        "the encoder's first weights: a name such as `imagenet` or timm's tag `lvd142m` (below "
        "`$CAG_WEIGHTS`, else in an installed package, else from the hub), a `.safetensors` file "
        "below `$CAG_WEIGHTS`, or null: random",
        source=PAPER,
    )
    options: dict[str, Any] = about(
        "other arguments of the architecture, such as `decoder_channels`", default={}
    )
    normalization: Normalization = about("how inputs are normalised", source=RELEASED)

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            value = tuple(value.values()) if isinstance(value, dict) else value
            parts = value if isinstance(value, list | tuple) else [value]
            if not all(
                part is None or isinstance(part, bool | int | float | str) for part in parts
            ):
                raise ValueError(f"{name}: expected a number, a text or a list of them")
            numbers = [part for part in parts if isinstance(part, int | float)]
            if not all(abs(number) <= LARGEST_OPTION for number in numbers):  # nor NaN
                raise ValueError(f"{name}: expected numbers up to {LARGEST_OPTION}")
        return options
