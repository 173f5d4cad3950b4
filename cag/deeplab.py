"""DeepLab v3+ as the paper's authors built it; the library's has another pyramid and decoder."""

from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

MULTI_GRID = (1, 2, 4)
LOW_LEVEL_CHANNELS = 48


class DeepLabV3PlusPaper(nn.Module):
    """The paper's network, with the parts and arguments of the library's networks.

    The last stage of a ResNet encoder keeps the stride of the previous one and dilates the 3x3
    convolutions of its blocks by 2, 4 and 8 (multi-grid 1, 2, 4; DeepLab v3, section 4.1.2). Other
    encoders are dilated as in the library. With resnet101 and 19 classes: 59,343,795 parameters.

    `encoder_weights` names pretrained weights on the hub. `encoder_output_stride` is 8 or 16 image
    pixels, else a ValueError. `decoder_channels` is D, `decoder_atrous_rates` the dilations of the
    pyramid's 3x3 convolutions. `kwargs` go to the encoder.
    """

    def __init__(
        self,
        encoder_name: str = "resnet101",
        encoder_weights: str | None = None,
        classes: int = 19,
        encoder_output_stride: int = 16,
        decoder_channels: int = 256,
        decoder_atrous_rates: Sequence[int] = (6, 12, 18),
        **kwargs: Any,
    ):
        super().__init__()
        if encoder_output_stride not in (8, 16):
            raise ValueError(f"encoder_output_stride is {encoder_output_stride}; expected 8 or 16")
        self.encoder = smp.encoders.get_encoder(
            encoder_name, weights=encoder_weights, output_stride=encoder_output_stride, **kwargs
        )
        apply_multi_grid(self.encoder, 32 // encoder_output_stride)
        self.input_multiple = 32 if cuts_patches(self.encoder) else 1  # the decoder takes any size
        self.decoder = Decoder(self.encoder.out_channels, decoder_channels, decoder_atrous_rates)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels, classes, 1))
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)


class Decoder(nn.Module):
    """Atrous pyramid, joined with the low-level map, then two 3x3 convolutions: the features f."""

    def __init__(self, encoder_channels: Sequence[int], channels: int, rates: Sequence[int]):
        super().__init__()
        self.aspp = ASPP(encoder_channels[-1], rates, channels)
        self.low_level = Conv2dNormActivation(encoder_channels[2], LOW_LEVEL_CHANNELS, 1)
        self.last = nn.Sequential(
            *Conv2dNormActivation(channels + LOW_LEVEL_CHANNELS, channels, 3),
            nn.Dropout(0.5),
            *Conv2dNormActivation(channels, channels, 3),
            nn.Dropout(0.1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features f, float [B, D, H / 4, W / 4] >= 0, of the encoder's maps, largest first."""
        context = self.aspp(features[-1])  # (B, D, H / 16, W / 16)
        low_level = self.low_level(features[2])  # (B, 48, H / 4, W / 4)
        size = low_level.shape[-2:]
        context = F.interpolate(context, size, mode="bilinear", align_corners=True)
        return self.last(torch.cat([context, low_level], dim=1))  # (B, D, H / 4, W / 4)


def cuts_patches(encoder: nn.Module) -> bool:
    """Whether a convolution leaves out pixels beyond its last whole stride, as ConvNeXt's do."""
    strided = (
        m for m in encoder.modules() if type(m) is nn.Conv2d and m.stride[0] > 1 < m.kernel_size[0]
    )
    return any(convolution.padding == (0, 0) for convolution in strided)


def apply_multi_grid(encoder: nn.Module, dilation: int) -> None:
    """Dilate the 3x3 convolutions of a ResNet's last blocks by `dilation` times 1, 2 and 4."""
    resnet = getattr(encoder, "model", encoder)  # timm's networks are wrapped
    for block, factor in zip(getattr(resnet, "layer4", ()), MULTI_GRID, strict=False):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation * factor, dilation * factor)
