"""A training step shared by several processes or made in pieces: the step of the whole batch.

What looks at more than one image at a time (batch-norm statistics, means over labelled pixels,
random draws) is made that of the global batch, so that the number of processes changes a training
by no more than the order of its floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Uniform = Callable[[int, int, torch.device], Tensor]


def uniform(images: int, numbers: int, device: torch.device) -> Tensor:
    """Numbers [images, numbers] in [0, 1) from torch's global random state of the device."""
    return torch.rand(images, numbers, device=device)


@dataclass
class Share:
    """The images `start`, `start` + 1, ... of a step's `total`, which one forward pass holds."""

    start: int
    total: int

    def uniform(self, images: int, numbers: int, device: torch.device) -> Tensor:
        """Uniform random numbers [images, numbers] in [0, 1), this share's of the batch's."""
        draws = torch.rand(self.total, numbers, device=device)
        return draws[self.start : self.start + images]


def pieces(images: int, most: int | None) -> int:
    """In how many equal pieces a process takes its images of a batch, one after the other.

    Args:
        images: Their number.
        most: How many a device takes at a time; None: any number.

    Returns:
        The least number of pieces that are equal and not larger than `most`.
    """
    counts = range(1, images + 1)
    return next(n for n in counts if images % n == 0 and images // n <= (most or images))


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of all processes' counts, float32.

    A process's sum divided by it has as its mean over the processes, which is what their gradients
    are averaged to, the quotient of the whole batch's sum and count.
    """
    total = count.to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make batch norm in training use the statistics of all processes' images, in place.

    By `torch.nn.SyncBatchNorm` on a GPU; it has no form for a CPU.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _SharedBatchNorm  # has no state of its own


def share_draws(network: nn.Module, share: Share) -> None:
    """Make dropout draw for the whole batch and take its share, whatever `share` is at the time.

    Every process and piece then must start from the same random state.
    """
    for module in network.modules():
        if isinstance(module, _DropoutNd | DropPath):
            module.forward = partial(_shared_drop, module.forward, share)


def _shared_drop(drop, share: Share, x: Tensor) -> Tensor:
    whole = x.new_ones((share.total, *x.shape[1:]))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        whole = whole.contiguous(memory_format=torch.channels_last)  # draws follow the memory
    return x * drop(whole)[share.start : share.start + len(x)]


class _SharedBatchNorm(_BatchNorm):
    """Batch norm by the statistics of all processes' images, which are equally many in each."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer that it was has seen to it

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x float [B, C, ...]."""
        if not self.training:
            return super().forward(x)
        others = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        if count < 2:
            raise ValueError("Expected more than 1 value per channel when training")
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean = _AllReduce.apply(x.sum(others)) / count  # [C]
        centred = x - mean.view(shape)
        variance = _AllReduce.apply(centred.square().sum(others)) / count  # [C]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return torch.addcmul(self.bias.view(shape), centred, (scale * self.weight).view(shape))
        return centred * scale.view(shape)


class _AllReduce(torch.autograd.Function):
    """The sum over the processes, with the sum of their gradients as its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
