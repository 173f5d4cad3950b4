"""Random changes of a training step's images on the device: colours and blur."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cag.config.training import Photometric
from cag.runtime.precision import full_precision
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
    images = images * _factors(change.brightness, brightness)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * _factors(change.contrast, contrast)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * _factors(change.saturation, saturation)
    if change.hue > 0:
        images = _turned(images, 2 * math.pi * change.hue * hue)
    return (grey + images).clamp(0, 1)


def _factors(change: float, signed: Tensor) -> Tensor:
    """Factors from max(0, 1 - change) to 1 + change, from numbers in [-1, 1]."""
    middle = (1 + change) / 2  # of 0 and 1 + change, for a change above 1
    return max(1, middle) + min(change, middle) * signed


def _turned(chroma: Tensor, angle: Tensor) -> Tensor:
    """Colours [B, 3, H, W] of mean 0 turned about the grey axis by radians [B, 1, 1, 1]."""
    side = (chroma.roll(1, dims=1) - chroma.roll(-1, dims=1)) / math.sqrt(3)
    return chroma * angle.cos() + side * angle.sin()


def blur(images: Tensor, probability: float, draw: Uniform = uniform) -> Tensor:
    """Blur each image, float [B, C, H, W], with a probability in [0, 1]; the others stay.

    Gaussian, of a standard deviation from `BLUR_SIGMA`, cut off at 3 pixels. DACS (Tranheden et
    al., WACV 2021) blurs too, with 0.15 to 1.15 and a wider kernel.
    """
    if probability == 0:
        return images
    chance, strength = draw(len(images), 2, images.device).unbind(dim=1)
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * strength
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device)
    kernels = (-offsets.square() / (2 * sigma.square()[:, None])).softmax(dim=1)  # [B, 7]
    channels = images.shape[0] * images.shape[1]
    kernels = kernels.repeat_interleave(images.shape[1], dim=0)[:, None, :, None]  # [B C, 1, 7, 1]
    flat = images.float().contiguous().view(1, channels, *images.shape[2:])
    flat = F.pad(flat, [_REACH] * 4, "replicate")
    with full_precision(images.device.type):
        for kernel in (kernels, kernels.transpose(2, 3)):
            flat = F.conv2d(flat, kernel, groups=channels)
    blurred = flat.view(images.shape).to(images.dtype)
    return torch.where((chance < probability).view(-1, 1, 1, 1), blurred, images)
