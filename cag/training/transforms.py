"""Joint random transforms of a training image and its label maps."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from cag.config.training import Augmentation
from cag.datasets.labels import IGNORE


class RandomResize(v2.Transform):
    """Scale image and label maps by one random factor, keeping the aspect ratio."""

    def __init__(self, scale: tuple[float, float]):
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor; gives the new height and width."""
        height, width = flat_inputs[0].shape[-2:]
        factor = float(torch.empty(()).uniform_(*self.scale))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: bilinear for images, the nearest pixel's centre for label maps."""
        is_image = isinstance(inpt, tv_tensors.Image)
        mode = InterpolationMode.BILINEAR if is_image else InterpolationMode.NEAREST_EXACT
        return self._call_kernel(v2.functional.resize, inpt, params["size"], interpolation=mode)


class RandomGamma(v2.Transform):
    """Raise an image in [0, 1] to a random power from [2^-gamma, 2^gamma]."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent, uniform on a logarithmic scale."""
        return {"gamma": 2.0 ** float(torch.empty(()).uniform_(-self.gamma, self.gamma))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the power."""
        return tv_tensors.wrap(inpt.clamp(0, 1) ** params["gamma"], like=inpt)


def training_transform(config: Augmentation) -> v2.Transform:
    """A transform of (tv_tensors.Image uint8 [3, H, W], tv_tensors.Mask uint8 [n, H, W]).

    Scale, crop, flip, conversion to float in [0, 1], photometric changes, in this order. A crop
    larger than the scaled image is filled with black, labels with 255.
    """
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
    steps: list[v2.Transform] = [
        RandomResize(config.scale),
        v2.RandomCrop(list(config.crop), pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(config.flip),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
    ]
    if change := config.photometric:
        jitter = v2.ColorJitter(change.brightness, change.contrast, change.saturation, change.hue)
        steps += [RandomGamma(change.gamma), jitter]
    return v2.Compose(steps)


def apply_seeded(
    transform: v2.Transform, image: Tensor, labels: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Apply a `training_transform` with draws that depend on the seed, in [0, 2^63), alone.

    From an image uint8 [3, H, W] and train ids uint8 [n, H, W], 255 = ignored, to float [3, h, w]
    in [0, 1] and uint8 [n, h, w].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
    return out.as_subclass(Tensor), mask.as_subclass(Tensor)
