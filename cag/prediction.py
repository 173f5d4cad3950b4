"""Forward passes over prepared images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag.networks import NetworkOutput
from cag.prepared import PreparedImages


def image_batches(
    images: PreparedImages, batch_size: int
) -> Iterator[tuple[list[str], Tensor, list[Tensor | None]]]:
    """Batches of consecutive images of one size, in order.

    Yields:
        Names, images uint8 [b, 3, H, W], and each image's label map uint8 or None; b <= batch_size.
    """
    names: list[str] = []
    pending: list[Tensor] = []
    labels: list[Tensor | None] = []
    for index in range(len(images)):
        image, label, name = images[index]
        if pending and (len(pending) == batch_size or image.shape != pending[0].shape):
            yield names, torch.stack(pending), labels
            names, pending, labels = [], [], []
        names.append(name)
        pending.append(image)
        labels.append(label)
    if pending:
        yield names, torch.stack(pending), labels


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, fabric: Fabric) -> NetworkOutput:
    """A network's output for images.

    Args:
        network: In eval mode, on the device.
        images: uint8 [B, 3, H, W].
        fabric: Device and precision.
    """
    images = images.to(fabric.device).float() / 255
    with fabric.autocast():
        return network(images.to(memory_format=torch.channels_last))
