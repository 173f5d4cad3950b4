"""Class mixing: regions of the source pasted onto target images."""

import torch
from torch import Tensor

from cag.training.global_batch import Uniform, uniform


def chosen_classes(labels: Tensor, num_classes: int, draw: Uniform = uniform) -> Tensor:
    """Choose half of the classes (rounded up) of each label map at random, bool [B, K].

    `labels` are integer [B, H, W]; values outside 0..K-1 are no class.
    """
    counted = labels.flatten(1).long().clamp(max=num_classes)  # [B, H W]
    seen = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    seen = seen.scatter_(1, counted, 1.0)[:, :num_classes].bool()  # [B, K]
    order = draw(len(labels), num_classes, labels.device).masked_fill(~seen, 2).argsort(1)
    rank = order.argsort(1)  # [B, K], classes that do not occur last
    return rank < (seen.sum(1, keepdim=True) + 1) // 2


def class_regions(
    labels: Tensor, num_classes: int, probability: float, draw: Uniform = uniform
) -> Tensor:
    """The regions to paste of each image, bool [B, H, W]: half of its classes, or nothing.

    As in ClassMix (Olsson et al., WACV 2021), here from the source to the target as in DACS
    (Tranheden et al., WACV 2021). `labels` are the source's, integer [B, H, W]; values outside
    0..K-1 are never pasted. With `probability`, in [0, 1], anything of an image is pasted.
    """
    chosen = chosen_classes(labels, num_classes, draw)
    chosen &= draw(len(labels), 1, labels.device) < probability
    chosen = torch.cat([chosen, torch.zeros_like(chosen[:, :1])], dim=1)  # ignored: never
    counted = labels.flatten(1).long().clamp(max=num_classes)
    return chosen.gather(1, counted).view(labels.shape)


def paste(regions: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Take the source [B, n, H, W] in the regions, bool [B, H, W], and the target elsewhere."""
    return torch.where(regions[:, None], source, target)
