"""Runs of shapes alone: the images, FLOP and memory of steps that are never computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from cag.adaptation import student_objective
from cag.adversarial import AdversarialObjective
from cag.config.parameters import Parameters
from cag.networks import SegmentationNetwork
from cag.runtime.errors import UserError, in_one_line
from cag.training.objectives import Batch, DomainBatch, Objective, SupervisedObjective

HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# The trainings by their sections, and the label maps of an image of each domain, the source first.
LABEL_MAPS = {"pretrain": (1,), "warmup": (1, 0), "adapt": (1, 2)}


class Shapes(NamedTuple):
    """Takes the place of a Fabric where only shapes are computed, the same on any machine."""

    precision: str  # not "auto"
    device: torch.device = torch.device("cpu")

    def autocast(self) -> AbstractContextManager:
        """A context of the precision."""
        half = HALVES.get(self.precision)
        return nullcontext() if half is None else torch.autocast("cpu", half)


class Work(NamedTuple):
    """What networks do."""

    forwarded: float = 0  # images that pass a network without gradients: a teacher's, for example
    trained: float = 0  # images that pass a network forward and backward
    forward_flop: float = 0  # of the former
    training_flop: float = 0  # of all the rest
    memory: int = 0  # bytes of all tensors on a device at the worst moment

    def times(self, factor: float) -> Work:
        """The work of so many repetitions; the memory is that of one."""
        return Work(*(factor * value for value in self[:-1]), self.memory)

    def plus(self, other: Work) -> Work:
        """This work and then another."""
        sums = (a + b for a, b in zip(self[:-1], other[:-1], strict=True))
        return Work(*sums, max(self.memory, other.memory))


def flop_counter() -> FlopCounterMode:
    """A counter of the FLOP of convolutions and matrix products, 2 for a multiply-add.

    PyTorch's own counts the gradients of a grouped convolution as if it had one group, and not the
    attention of a CPU.
    """
    aten = torch.ops.aten
    mapping = {
        aten.convolution_backward: _gradient_flop,
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(
            *shapes[:3]
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
            sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def new_objective(training: str, params: Parameters, network: SegmentationNetwork) -> Objective:
    """What a training of `LABEL_MAPS` minimises, as its stage makes it; all anchors are zeros."""
    config = getattr(params, training)
    weights = torch.ones(network.num_classes) if config.class_balance > 0 else None
    if training == "pretrain":
        return SupervisedObjective(network, weights)
    if training == "warmup":
        return AdversarialObjective(network, config, weights)
    anchors = torch.zeros(network.num_classes, network.width)
    return student_objective(network, anchors, config, weights, params.anchors, params.pseudo_label)


def training_step(
    training: str, params: Parameters, network: SegmentationNetwork, images: int, shapes: Shapes
) -> Work:
    """The work of a step of a training on so many images of each domain.

    Its memory: parameters, the optimizers' states, the batch, and what lives at the worst moment of
    the forward and the backward pass. The network stays as it is.
    """
    config, objective = getattr(params, training), _on_meta(network, training, params)
    objective.to(memory_format=torch.channels_last).train()
    if config.freeze_encoder:
        objective.network.freeze_encoder()
    with _dry(objective) as tally:
        size = config.augmentation.crop
        domains = [_empty_domain(images, maps, size) for maps in LABEL_MAPS[training]]
        with shapes.autocast():
            losses = objective(Batch(*domains))
        losses[0].backward()
    groups = [g for optimizer in objective.optimizers(config) for g in optimizer.param_groups]
    states = sum(
        parameter.nbytes * (2 if "betas" in group else group["momentum"] > 0)
        for group in groups
        for parameter in group["params"]
        if parameter.requires_grad
    )
    work = tally.work()
    return work._replace(memory=work.memory + states)


def forward_pass(
    function: Callable[[nn.Module, Tensor, Shapes], Any],
    network: SegmentationNetwork,
    shape: Sequence[int],
    shapes: Shapes,
) -> Work:
    """The work of a function of `cag.prediction` on images of the shape (B, H, W)."""
    count, *size = shape
    network = deepcopy(network).eval().to("meta").to(memory_format=torch.channels_last)
    with _dry(network) as tally:
        function(network, torch.empty(count, 3, *size, dtype=torch.uint8), shapes)
    return tally.work()


def _on_meta(network: SegmentationNetwork, training: str, params: Parameters) -> Objective:
    return new_objective(training, params, deepcopy(network).to("meta")).to("meta")


def _empty_domain(images: int, maps: int, size: Sequence[int]) -> DomainBatch:
    pixels = torch.empty(images, 3, *size, memory_format=torch.channels_last)
    return DomainBatch(pixels, torch.empty(images, maps, *size, dtype=torch.uint8))


@contextmanager
def _dry(module: nn.Module) -> Iterator[_Tally]:
    """Compute shapes alone, with a module that comes from the device "meta"; count its work.

    A UserError says that this cannot be done, for example that the network looks at values.
    """
    tally = _Tally()
    for network in module.modules():
        if isinstance(network, SegmentationNetwork):
            network.register_forward_pre_hook(tally.before)
            network.register_forward_hook(tally.after)
    with FakeTensorMode(allow_non_fake_inputs=True), tally.memory, tally.flop:
        module.to_empty(device="cpu")
        try:
            yield tally
        except Exception as error:  # any library's network can be in it
            problem = f"what it takes cannot be worked out ({in_one_line(error)})"
            raise UserError(f"network: {problem}") from None


class _Tally:
    """The work of all networks that call it."""

    def __init__(self):
        self.flop = flop_counter()
        self.memory = _Memory()
        self.forwarded = self.trained = self.forward_flop = self._began = 0

    def before(self, network: nn.Module, inputs: tuple[Tensor]) -> None:
        self._began = self.flop.get_total_flops()

    def after(self, network: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        if torch.is_grad_enabled():
            self.trained += len(inputs[0])
        else:
            self.forwarded += len(inputs[0])
            self.forward_flop += self.flop.get_total_flops() - self._began

    def work(self) -> Work:
        training_flop = self.flop.get_total_flops() - self.forward_flop
        counts = self.forwarded, self.trained, self.forward_flop, training_flop
        return Work(*counts, self.memory.peak)


def _gradient_flop(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """FLOP of a convolution's gradients: those of the input and of the weight cost as it does."""
    return conv_flop_count(x, weight, gradient, transposed) * sum(wanted[:2])


class _Memory(TorchDispatchMode):
    """The bytes of the tensors that were made in it and live, and the most there were."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._living: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._living:
            self._living[key] = weakref.ref(storage, partial(self._remove, key, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _remove(self, key: int, size: int, _: weakref.ref) -> None:
        del self._living[key]
        self.bytes -= size
