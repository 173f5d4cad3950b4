"""Category anchor-guided unsupervised domain adaptation for semantic segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cag.deploy.segmenter import Segmenter

__version__ = "0.1.0"


def load(path: str | Path, device: str | None = None) -> Segmenter:
    """Read a model that labels images from `data/models/*.safetensors`, without a network.

    `device` is cpu, cuda, cuda:1 or mps; None: the best there is. A UserError says that the file is
    missing, damaged or no model, or that there is no such device.

    Example:
        >>> segmenter = cag.load("data/models/round3.safetensors")    # doctest: +SKIP
        >>> labels = segmenter("street.jpg")                          # doctest: +SKIP
    """
    from cag.deploy.segmenter import Segmenter

    return Segmenter.from_file(Path(path), device)
