"""One training loop for every stage that trains: objectives, schedule, resume, learning curve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from cag.anchors import resize_labels
from cag.config import Adapt, Training
from cag.devices import loader_workers
from cag.errors import UserError
from cag.files import atomic_file
from cag.losses import Divisor, adaptation_loss, class_balance_weights, cross_entropy, own_count
from cag.mixing import Uniform, class_regions, paste, uniform
from cag.networks import NetworkOutput, SegmentationNetwork
from cag.samples import Sample, TrainingSamples, batches, class_pixels
from cag.seeds import mix
from cag.sharing import Share, mean_over_processes, pieces, share_batch_norm, share_draws
from cag.stage import Advance

Batch = tuple[tuple[Tensor, Tensor], ...]
READ_EVERY = 10  # steps between two readings of the losses, each of which waits for the device
CURVE_POINTS = 100
SAVE_EVERY = 30  # seconds between two checkpoints
SAVE_SHARE = 0.02  # of the time that checkpoints may take: a slow disk makes them rarer
CHECKPOINT_FORMAT = 2


class Objective(nn.Module):
    """A network with the losses of a batch that train it.

    Calling it gives the losses float32 [n] in the order of `names`; the first is to be minimised.

    Attributes:
        divisor: What means over labelled pixels divide by; in one of several processes not the own
            count.
        draw: Where random numbers for each image come from.
    """

    names: tuple[str, ...]
    divisor: Divisor = staticmethod(own_count)
    draw: Uniform = staticmethod(uniform)

    def __init__(self, network: SegmentationNetwork, class_weights: Tensor | None):
        super().__init__()
        self.network = network
        self.register_buffer("class_weights", class_weights, persistent=False)

    def optimizers(self, config: Training) -> list[torch.optim.Optimizer]:
        """What steps on the first loss's gradient, each for parameters of its own."""
        return [make_optimizer(self.network, config)]


class SupervisedObjective(Objective):
    """Cross-entropy on labelled images at the labels' resolution: the pretraining, the oracle."""

    def __init__(
        self,
        network: SegmentationNetwork,
        class_weights: Tensor | None = None,
        domains: tuple[str, ...] = ("source",),
    ):
        super().__init__(network, class_weights)
        self.names = ("loss", *(f"{domain}_ce" for domain in domains))

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a batch; the first is the sum of the others."""
        losses = torch.stack([self._cross_entropy(*domain) for domain in batch])
        return torch.cat([losses.sum()[None], losses.detach()])

    def _cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        labels = labels[:, 0]  # (B, H, W)
        logits = upsampled(self.network(images).logits, labels.shape[1:])
        return cross_entropy(logits, labels, self.class_weights, self.divisor)


class TwoDomainObjective(Objective):
    """An objective that sees the target too: whose batch-norm statistics its network keeps.

    `batch_norm` is "mixed" for those of both domains, "target", or "frozen" for the ones it has.
    """

    def __init__(self, network: SegmentationNetwork, class_weights: Tensor | None, batch_norm: str):
        super().__init__(network, class_weights)
        self.batch_norm = batch_norm

    def train(self, mode: bool = True) -> TwoDomainObjective:
        """Training mode, in which frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in batch_norms(self.network):
                module.eval()
        return self

    def source_output(self, images: Tensor) -> NetworkOutput:
        """The network's output on source images [B, 3, H, W]."""
        if self.batch_norm != "target":
            return self.network(images)
        # The source batch is normalised by its own statistics and leaves no trace in the kept ones.
        modules = batch_norms(self.network)
        momenta = [module.momentum for module in modules]
        for module in modules:
            module.momentum = 0.0
        output = self.network(images)
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        return output


class AdaptationObjective(TwoDomainObjective):
    """The loss of a round's student on a source and a target batch (METHOD step 3c)."""

    names = ("loss", "source_ce", "target_ce", "source_distance", "target_distance")

    def __init__(
        self,
        network: SegmentationNetwork,
        anchors: Tensor,
        config: Adapt,
        min_pixels: int,
        class_weights: Tensor | None = None,
    ):
        super().__init__(network, class_weights, config.batch_norm)
        self.register_buffer("anchors", anchors, persistent=False)
        self.config = config
        self.min_pixels = min_pixels

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a batch, whose target label maps are those of the two rules."""
        (source_images, source_labels), (target_images, target_labels) = batch
        pasted = None
        if self.config.class_mix > 0:
            pasted = class_regions(
                source_labels[:, 0], self.network.num_classes, self.config.class_mix, self.draw
            )
            target_images = paste(pasted, source_images, target_images)
            target_images = target_images.contiguous(memory_format=torch.channels_last)
            target_labels = paste(pasted, source_labels, target_labels)
        source = self.source_output(source_images)
        target = self.network(target_images)
        size = target.logits.shape[2:]
        anchor_labels, probability_labels = (
            resize_labels(labels, size, align_corners=True) for labels in target_labels.unbind(1)
        )  # (B, h, w) each
        if pasted is not None:
            pasted = resize_labels(pasted, size, align_corners=True)
        losses = adaptation_loss(
            source.features,
            source.logits,
            source_labels[:, 0],
            target.features,
            target.logits,
            anchor_labels,
            probability_labels,
            self.anchors,
            distance_weight=self.config.distance_weight,
            distance_kind=self.config.distance_kind,
            target_labels=self.config.target_labels,
            min_pixels=self.min_pixels,
            source_class_weights=self.class_weights,
            pasted=pasted,
            divisor=self.divisor,
        )
        return torch.stack([losses[0], *(value.detach() for value in losses[1:])])


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] as float32 [B, K, H, W], bilinear with aligned corners."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=True)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The network's batch-norm layers."""
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def source_class_weights(
    samples: Sequence[Sample], num_classes: int, config: Training
) -> Tensor | None:
    """Weights float32 [K] of the source's cross-entropy; None: plain."""
    if config.class_balance == 0:
        return None
    return class_balance_weights(class_pixels(samples, num_classes), config.class_balance)


def shared_batches(
    domains: Sequence[TrainingSamples], batch_size: int, fabric: Fabric
) -> Callable[[range], Iterator[Batch]]:
    """What gives this process's share of the batches of a range of steps.

    Args:
        domains: The samples of each.
        batch_size: Images of each domain in a step, over all processes.
        fabric: Device and processes.
    """
    workers, ranks = loader_workers(fabric.device), (fabric.global_rank, fabric.world_size)

    def make_batches(steps: range) -> Iterator[Batch]:
        loaders = [batches(domain, batch_size, steps, workers, *ranks) for domain in domains]
        return zip(*loaders, strict=True)

    return make_batches


def make_optimizer(network: nn.Module, config: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters, as the `training` parameters say; fused on a GPU."""
    fused = on_gpu(network) or None
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
        fused=fused,
    )


def on_gpu(network: nn.Module) -> bool:
    """Whether its parameters lie on a GPU."""
    return next(network.parameters()).is_cuda


def polynomial_decay(step: int, iterations: int, power: float) -> float:
    """The learning rate's factor at a step: (1 - step / iterations) ^ power."""
    return (1 - step / iterations) ** power


@dataclass(frozen=True)
class Checkpoint:
    """Resume state in one file, valid for one fingerprint of parameters and inputs."""

    path: Path
    fingerprint: str

    def load(self) -> dict[str, Any] | None:
        """The state, or None where there is none, a damaged one, or one of another training."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # whatever is wrong with it, the training can start afresh
            return None
        known = isinstance(state, dict) and self._identity().items() <= state.items()
        return state if known else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by this state."""
        with atomic_file(self.path) as partial:
            torch.save({**state, **self._identity()}, partial)

    def delete(self) -> None:
        """Remove the file: its training is complete."""
        self.path.unlink(missing_ok=True)

    def _identity(self) -> dict[str, Any]:
        return {"format": CHECKPOINT_FORMAT, "fingerprint": self.fingerprint}


def train(
    objective: Objective,
    make_batches: Callable[[range], Iterator[Batch]],
    config: Training,
    seed: int,
    fabric: Fabric,
    checkpoint: Checkpoint,
    advance: Advance,
    max_batch_per_device: int | None = None,
    compiled: bool = False,
) -> pd.DataFrame:
    """Train an objective's network in place.

    The step's randomness is a function of the seed and the step, so that a training resumed from
    the checkpoint ends with the weights of an uninterrupted one. Processes share each batch, and
    make the step that one process would make, up to the order of floating-point sums.

    Args:
        objective: Gives a batch's losses, the first to be minimised.
        make_batches: The batches of a range of steps.
        config: Iterations, the network's optimizer, and the schedule of every optimizer.
        seed: Of dropout.
        fabric: Device, precision, processes.
        checkpoint: Where to resume from, and to save to now and then.
        advance: Counts the steps, and how long they wait for their batches.
        max_batch_per_device: The most images of a domain in a forward pass; a process takes more
            one piece after the other and steps by the mean of their gradients, with means over
            pixels and batch-norm statistics that are each piece's. None: any number.
        compiled: Whether to compile the network.

    Returns:
        The learning curve: iteration, learning_rate and each loss, means over up to 100 stretches.

    Raises:
        UserError: The loss is not finite, or batch norm has a single value to normalise.
    """
    objective.to(fabric.device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    images = config.batch_size // fabric.world_size
    share = Share(fabric.global_rank * images, config.batch_size)
    parts = pieces(images, max_batch_per_device)
    _take_share(objective, share, fabric, parts)
    if compiled:
        objective.network.compile()
    wrapped, *optimizers = fabric.setup(objective, *objective.optimizers(config))
    wrapped.train()
    history = torch.zeros(config.iterations, len(objective.names))
    start = _resume(checkpoint, objective, optimizers, history)
    _check_start(start, checkpoint, fabric)
    advance(start, resumed=True)
    saved, interval, pending = time.monotonic(), _save_interval(), []
    steps = range(start, config.iterations)
    for step, batch in zip(steps, advance.waiting(make_batches(steps)), strict=True):
        decay = polynomial_decay(step, config.iterations, config.power)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * decay
        pending.append(_gradients(wrapped, batch, parts, share, mix(seed, step, 0), fabric))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if len(pending) == READ_EVERY or step + 1 == config.iterations:
            history[step + 1 - len(pending) : step + 1] = _read(pending, step, fabric)
            advance(len(pending), f"loss {history[step, 0]:.3f}")
            pending = []
            began = time.monotonic()
            if fabric.is_global_zero and began - saved > interval:
                checkpoint.save(_state(objective, optimizers, history, step + 1))
                saved = time.monotonic()
                interval = _save_interval(saved - began)
    return _curve(history, objective.names, config)


def _take_share(objective: Objective, share: Share, fabric: Fabric, parts: int) -> None:
    """Make an objective that sees a part of each batch act as it would on all of it."""
    if fabric.world_size > 1:
        objective.divisor = mean_over_processes
        share_batch_norm(objective, fabric.device)
    if fabric.world_size * parts > 1:
        objective.draw = share.uniform
        share_draws(objective, share)


def _check_start(start: int, checkpoint: Checkpoint, fabric: Fabric) -> None:
    if fabric.world_size == 1:
        return
    starts = fabric.all_gather(torch.tensor(start, device=fabric.device))
    if (starts != start).any():
        raise UserError(
            f"{checkpoint.path}: not the same for all processes, which would resume from the "
            f"iterations {sorted(set(starts.tolist()))}; run them in one shared folder"
        )


def _save_interval(duration: float = 0.0) -> float:
    """Seconds to the next checkpoint, after one that took `duration` seconds."""
    chosen = os.environ.get("CAG_CHECKPOINT_SECONDS")
    return float(chosen) if chosen else max(SAVE_EVERY, duration / SAVE_SHARE)


def _gradients(
    wrapped: nn.Module, batch: Batch, parts: int, share: Share, seed: int, fabric: Fabric
) -> Tensor:
    """Add a step's gradients, of equal parts of the batch one after the other; its losses [n]."""
    images = len(batch[0][0])
    first, size = fabric.global_rank * images, images // parts
    total = 0.0
    for start in range(0, images, size):
        share.start = first + start
        torch.manual_seed(seed)  # draws are the whole batch's, of which each part takes its own
        part = _to_device(batch, slice(start, start + size), fabric.device)
        last = start + size == images
        with fabric.no_backward_sync(wrapped, enabled=fabric.world_size > 1 and not last):
            losses = _losses(wrapped, part) / parts
            fabric.backward(losses[0])
        total = total + losses.detach()
    return total


def _to_device(batch: Batch, rows: slice, device: torch.device) -> Batch:
    return tuple(
        (
            images[rows].to(device, memory_format=torch.channels_last, non_blocking=True),
            labels[rows].to(device, non_blocking=True),
        )
        for images, labels in batch
    )


def _losses(objective: nn.Module, batch: Batch) -> Tensor:
    try:
        return objective(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch_size or max_batch_per_device leaves a single image, whose pooled features batch "
            "norm cannot normalise: at least 2 images of each domain must be there at a time"
        ) from None


def _read(pending: list[Tensor], step: int, fabric: Fabric) -> Tensor:
    losses = fabric.all_reduce(torch.stack(pending), reduce_op="mean").cpu()
    if not torch.isfinite(losses[:, 0]).all():
        raise UserError(
            f"the loss is not finite around iteration {step + 1}: lower the learning_rate "
            "(or use precision 32-true)"
        )
    return losses


def _state(
    objective: Objective, optimizers: list[torch.optim.Optimizer], history: Tensor, done: int
) -> dict[str, Any]:
    return {
        "objective": objective.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": history,
        "iteration": done,
    }


def _resume(
    checkpoint: Checkpoint,
    objective: Objective,
    optimizers: list[torch.optim.Optimizer],
    history: Tensor,
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    objective.load_state_dict(state["objective"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    history.copy_(state["history"])
    return state["iteration"]


def _curve(history: Tensor, names: tuple[str, ...], config: Training) -> pd.DataFrame:
    size = -(-config.iterations // CURVE_POINTS)
    table = pd.DataFrame(history.numpy(), columns=list(names))
    table.insert(0, "iteration", range(1, config.iterations + 1))
    steps = range(config.iterations)
    rates = [
        config.learning_rate * polynomial_decay(s, config.iterations, config.power) for s in steps
    ]
    table.insert(1, "learning_rate", rates)
    groups = table.groupby(table.index // size)
    curve = groups.mean()
    curve["iteration"] = groups["iteration"].max()
    return curve.astype({"iteration": int})
