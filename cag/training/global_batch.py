"""A training step shared by several processes or made in pieces: the step of the whole batch.

Batch-norm statistics, means over labelled pixels and random draws are the global batch's. So the
number of processes changes only the order of floating-point sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, DropPath, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Uniform = Callable[[int, int, torch.device], Tensor]


def uniform(images: int, numbers: int, device: torch.device) -> Tensor:
    """Random numbers [images, numbers] in [0, 1) from the device's global random state."""
    return torch.rand(images, numbers, device=device)


@dataclass
class Share:
    """The `images` of a forward pass: `start`, `start` + 1, ... of a step's `total`."""

    start: int
    images: int
    total: int

    def uniform(self, images: int, numbers: int, device: torch.device) -> Tensor:
        """This share's of the batch's random numbers [images, numbers] in [0, 1)."""
        return uniform(self.total, numbers, device)[self.start : self.start + images]


def pieces(images: int, most: int | None) -> int:
    """The least number of equal pieces of so many images, each of at most `most` images if set."""
    counts = range(1, images + 1)
    return next(n for n in counts if images % n == 0 and images // n <= (most or images))


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of all processes' counts, float32.

    Each process divides its sum by it. The mean of these quotients over the processes, like that of
    the gradients, is the whole batch's sum over its count.
    """
    total = count.to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make batch norm in training use the statistics of all processes' images, in place."""
    if device.type == "cuda":  # torch has no form for a CPU
        convert_sync_batchnorm(network)  # timm's, which keeps the activations in its own layers
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            activates = isinstance(module, BatchNormAct2d)
            # These have no state of their own.
            module.__class__ = _SharedBatchNormAct if activates else _SharedBatchNorm


def share_draws(network: nn.Module, share: Share) -> None:
    """Make dropout in training draw for the whole batch and take the current `share`.

    Every process and piece must then start from the same random state.
    """
    for module in network.modules():
        if isinstance(module, _DropoutNd | DropPath):
            module.forward = partial(_shared_drop, module, module.forward, share)


def _shared_drop(layer: nn.Module, drop: Callable, share: Share, x: Tensor) -> Tensor:
    if not layer.training:
        return drop(x)
    rows = len(x) // share.images  # of an image: more than 1 where it is cut into windows
    whole = x.new_ones((share.total * rows, *x.shape[1:]))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        whole = whole.contiguous(memory_format=torch.channels_last)  # draws follow the memory
    return x * drop(whole)[share.start * rows : share.start * rows + len(x)]


class _SharedBatchNorm(_BatchNorm):
    """Batch norm by the statistics of all processes' images, equally many in each."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the original layer has checked it

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


class _SharedBatchNormAct(_SharedBatchNorm):
    """The same of timm's layers, which end with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x float [B, C, ...] and activate it."""
        return self.act(self.drop(super().forward(x)))


class _AllReduce(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _AllReduce.forward(ctx, gradient)
