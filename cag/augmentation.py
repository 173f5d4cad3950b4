"""Random changes of a training step's images on the device: colours and blur."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cag.config.training import Photometric
from cag.training.global_batch import Uniform, uniform

BLUR_SIGMA = (0.3, 1.5)  # pixels
_REACH = 3  # pixels of the blur's kernel to either side


def change_colours(images: Tensor, change: Photometric | None, draw: Uniform = uniform) -> Tensor:
    """Draw new colours for each image, float [B, 3, H, W] in [0, 1]; None changes nothing.

    The ranges are those of the samples' photometric changes, here in one order: gamma, brightness,
    contrast about the image's mean, saturation and hue about the pixel's mean.
    """
    if change is None:
        return images
    signed = 2 * draw(len(images), 5, images.device) - 1
    gamma, brightness, contrast, saturation, hue = signed.t()[..., None, None, None]  # [B, 1, 1, 1]
    images = images.clamp(0, 1) ** 2 ** (change.gamma * gamma)
    images = images * (1 + change.brightness * brightness)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + change.contrast * contrast)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (1 + change.saturation * saturation)
    if change.hue > 0:
        images = _turned(images, 2 * math.pi * change.hue * hue)
    return (grey + images).clamp(0, 1)


def _turned(chroma: Tensor, angle: Tensor) -> Tensor:
    """Colours [B, 3, H, W] of mean 0 turned about the grey axis by radians [B, 1, 1, 1]."""
    side = (chroma.roll(1, dims=1) - chroma.roll(-1, dims=1)) / math.sqrt(3)
    return chroma * angle.cos() + side * angle.sin()


def blur(images: Tensor, probability: float, draw: Uniform = uniform) -> Tensor:
    """Blur each image, float [B, C, H, W], with a probability in [0, 1].

    Gaussian, of a standard deviation from `BLUR_SIGMA` (DACS, Tranheden et al., WACV 2021).
    """
    if probability == 0:
        return images
    chance, strength = draw(len(images), 2, images.device).unbind(dim=1)
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * strength
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device)
    kernels = (-offsets.square() / (2 * sigma.square()[:, None])).softmax(dim=1)  # [B, 7]
    kernels = torch.where((chance < probability)[:, None], kernels, (offsets == 0).float())
    kernels = kernels.to(images.dtype)
    channels = images.shape[0] * images.shape[1]
    kernels = kernels.repeat_interleave(images.shape[1], dim=0)[:, None, :, None]  # [B C, 1, 7, 1]
    flat = images.contiguous().view(1, channels, *images.shape[2:])
    flat = F.pad(flat, [_REACH] * 4, "replicate")
    flat = F.conv2d(flat, kernels, groups=channels)
    return F.conv2d(flat, kernels.transpose(2, 3), groups=channels).view(images.shape)
