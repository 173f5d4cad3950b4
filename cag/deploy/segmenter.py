"""A trained model that labels images of any size."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cag.datasets.images import read_image, resize, to_rgb
from cag.datasets.labels import LabelSpace
from cag.networks import SegmentationNetwork, feature_grid, load_model
from cag.prediction import full_resolution, known, predict, upsampled
from cag.runtime.devices import one_device

WHOLE_PIXELS = 2048 * 2048  # a larger image is predicted in tiles
TILE, SMALLEST_TILE = 1024, 64

Picture = str | PathLike | Image.Image | np.ndarray | Tensor
Pixels = tuple[int, int]
Size = Pixels | Literal["own"]


class Segmenter:
    """A network with what its outputs mean.

    Args:
        network: The network.
        classes: Its classes.
        device: Where it computes; see `cag.load`.
        size: (height, width) to predict at unless a call gives another, that of all training
            images; None: each image's own.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        classes: LabelSpace,
        device: str | None = None,
        size: Pixels | None = None,
    ):
        self.size, self.label_space, self._fabric = size, classes, one_device(device)
        self.device = self._fabric.device
        self._grid = feature_grid(network)
        self._network = network.eval().to(self.device, memory_format=torch.channels_last)

    @classmethod
    def from_file(cls, path: Path, device: str | None = None) -> Segmenter:
        """See `cag.load`."""
        model = load_model(path)
        return cls(model.network, model.classes, device, model.size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their train ids."""
        return self.label_space.names

    @property
    def palette(self) -> np.ndarray:
        """The classes' colours, uint8 [K, 3]."""
        return self.label_space.palette_array

    @property
    def num_classes(self) -> int:
        """K."""
        return self.label_space.num_classes

    def __call__(
        self, image: Picture, size: Size | None = None, tile: int | None = None
    ) -> np.ndarray:
        """The predicted train ids of an image, uint8 [H, W].

        Args:
            image: A file's path; a Pillow image; uint8 [H, W, 3], [H, W] or [H, W, 4] (alpha is
                dropped) as numpy array; or a tensor uint8 [3, H, W].
            size: (height, width) to predict at, or "own" for the image's; the labels have the
                image's size either way. None: `self.size`, as the pipeline's `evaluate` does, or
                the image's if that is None.
            tile: See `logits`.

        Raises:
            UserError: The file is missing or not an image; or the network's outputs are no numbers.
            ValueError: An array has another form.
        """
        (classes,) = full_resolution(*self._logits_and_size(image, size, tile))
        return known(classes.cpu()).numpy()

    def probabilities(
        self, image: Picture, size: Size | None = None, tile: int | None = None
    ) -> np.ndarray:
        """The probability of each class, float32 [K, H, W]; arguments as for a call."""
        return upsampled(*self._logits_and_size(image, size, tile)).softmax(0).cpu().numpy()

    @torch.inference_mode()
    def logits(self, images: Tensor, tile: int | None = None) -> Tensor:
        """Logits [B, K, h, w] of images, on the device, at the network's stride.

        Args:
            images: uint8 [B, 3, H, W].
            tile: Side of the tiles in pixels, at least 64, rounded up to a multiple of 32 (of a
                transformer's patch if the network needs that); an image within one is predicted
                whole. Tiles overlap by a quarter. There the result is the mean of their
                probabilities, weighted by the distance from the tiles' borders. Tiled images get
                the logarithm of these probabilities as logits. None: tiles of 1024 for images above
                4 million pixels; 0: always whole.

        Raises:
            ValueError: The tile is too small.
        """
        height, width = images.shape[2:]
        if tile is None:
            tile = TILE if height * width > WHOLE_PIXELS else 0
        if tile and tile < SMALLEST_TILE:
            raise ValueError(f"tile is {tile} pixels; expected 0 or at least {SMALLEST_TILE}")
        tile = tile and -(-max(tile, 2 * self._grid) // self._grid) * self._grid
        if not tile or max(height, width) <= tile:
            return predict(self._network, images, self._fabric).logits.float()
        return self._tiled(images, tile)

    def _tiled(self, images: Tensor, tile: int) -> Tensor:
        rows, columns = (tiles(side, tile, self._grid) for side in images.shape[2:])
        total = weights = None
        for row in rows:
            for column in columns:
                logits = predict(self._network, images[:, :, row, column], self._fabric).logits
                if total is None:
                    stride = tile // (logits.shape[2] if len(rows) > 1 else logits.shape[3])
                    height, width = (-(-side // stride) for side in images.shape[2:])
                    total = logits.new_zeros(*logits.shape[:2], height, width, dtype=torch.float32)
                    weights = total.new_zeros(height, width)
                y, x = row.start // stride, column.start // stride
                part = (..., slice(y, y + logits.shape[2]), slice(x, x + logits.shape[3]))
                weight = torch.outer(*(_window(side, total) for side in logits.shape[2:]))
                total[part] += logits.float().softmax(1) * weight
                weights[part] += weight
        return (total / weights).clamp_min(1e-30).log()

    def seen_size(self, size: Size | None) -> Pixels | None:
        """The size that images are brought to: a call's, or else `self.size`; None: their own."""
        return None if size == "own" else size or self.size

    def _logits_and_size(self, image: Picture, size, tile) -> tuple[Tensor, Pixels]:
        """Logits [K, h, w] of an image, and its own height and width."""
        pixels = as_rgb(image)  # (H, W, 3)
        resized = torch.from_numpy(resize(pixels, self.seen_size(size))).permute(2, 0, 1)[None]
        return self.logits(resized, tile)[0], pixels.shape[:2]


def as_rgb(image: Picture) -> np.ndarray:
    """An image in any form that a `Segmenter` takes, as uint8 [H, W, 3]; errors as for a call."""
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor) and image.ndim == 3 and len(image) == 3:
        image, known = image.permute(1, 2, 0).cpu().numpy(), True
    else:
        is_array = isinstance(image, np.ndarray)
        known = is_array and (image.ndim == 2 or image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if not known or image.dtype != np.uint8 or 0 in image.shape:
        what = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image)
        raise ValueError(
            f"the image is {what}; expected a path, a Pillow image, a numpy array uint8 [H, W, 3], "
            "[H, W] or [H, W, 4], or a tensor uint8 [3, H, W]"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def tiles(side: int, tile: int, grid: int = 32) -> list[slice]:
    """Cut a side of an image into tiles that overlap by at least about a quarter.

    A tile has a multiple of `grid` pixels, at least two. They start at such multiples; the last
    ends with the image.
    """
    step = tile - max(grid, tile // 4 // grid * grid)
    last = max(0, -(-(side - tile) // grid) * grid)
    return [slice(start, min(start + tile, side)) for start in (*range(0, last, step), last)]


def _window(side: int, like: Tensor) -> Tensor:
    """Weights above 0 that fall smoothly to the ends of a side, [side]."""
    return torch.hann_window(side + 1, dtype=like.dtype, device=like.device)[1:].clamp_min(1e-3)
