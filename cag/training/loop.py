"""One training loop for every stage that trains: schedule, resume, learning curve."""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from cag.config.training import Run, Training
from cag.runtime.devices import loader_workers
from cag.runtime.environment import seconds
from cag.runtime.errors import UserError, refusal
from cag.runtime.files import atomic_file, binary_file
from cag.runtime.progress import Progress
from cag.runtime.seeds import mix
from cag.training.global_batch import (
    Share,
    mean_over_processes,
    pieces,
    share_batch_norm,
    share_draws,
)
from cag.training.objectives import Batch, DomainBatch, Objective
from cag.training.samples import TrainingSamples, batches

READ_EVERY = 10  # steps between two readings of the losses, which wait for the device
CURVE_POINTS = 100
SAVE_EVERY = 30  # seconds between two checkpoints
SAVE_SHARE = 0.02  # of the time, at most, goes into checkpoints
CHECKPOINT_FORMAT = 3


def shared_batches(
    domains: Sequence[TrainingSamples], batch_size: int, fabric: Fabric
) -> Callable[[range], Iterator[Batch]]:
    """A function that gives this process's share of the batches of a range of steps.

    The domains are the source and, if needed, the target; all processes together take `batch_size`
    images of each in a step.
    """
    workers, ranks = loader_workers(fabric.device), (fabric.global_rank, fabric.world_size)

    def make_batches(steps: range) -> Iterator[Batch]:
        loaders = [batches(domain, batch_size, steps, workers, *ranks) for domain in domains]
        for parts in zip(*loaders, strict=True):
            yield Batch(*(DomainBatch(*part) for part in parts))

    return make_batches


def polynomial_decay(step: int, iterations: int, power: float) -> float:
    """The learning rate's factor at a step: (1 - step / iterations) ^ power."""
    return (1 - step / iterations) ** power


def rate_factor(step: int, config: Training) -> float:
    """The learning rates' factor at a step: the decay, in n warm-up steps times (step + 1) / n."""
    warmup = config.learning_rate_warmup
    rise = (step + 1) / warmup if step < warmup else 1.0
    return polynomial_decay(step, config.iterations, config.power) * rise


@dataclass(frozen=True)
class Checkpoint:
    """Resume state in one file, valid for one fingerprint of parameters and inputs."""

    path: Path
    fingerprint: str

    def load(self) -> dict[str, Any] | None:
        """The state, or None if it is missing, damaged or another training's.

        A UserError says that the system refuses to read it, so that it is not lost.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            with ZipFile(self.path) as archive:  # PyTorch does not compare the checksums
                damaged = archive.testzip() is not None
        except Exception as error:  # a damaged file raises many kinds
            if (refused := refusal(error, self.path)) is not None:
                raise refused from None
            return None  # the training can always start afresh
        known = isinstance(state, dict) and self._identity().items() <= state.items()
        return state if known and not damaged else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by this state."""
        with atomic_file(self.path) as partial, binary_file(partial) as file:
            torch.save({**state, **self._identity()}, file)

    def _identity(self) -> dict[str, Any]:
        return {"format": CHECKPOINT_FORMAT, "fingerprint": self.fingerprint}


def train(
    objective: Objective,
    make_batches: Callable[[range], Iterator[Batch]],
    run: Run,
    config: Training,
    seed: int,
    fabric: Fabric,
    checkpoint: Checkpoint,
    advance: Progress,
) -> pd.DataFrame:
    """Train an objective's network in place.

    Seed and step determine a step's random draws, so that a resumed training ends with the same
    weights. Processes share each batch and together make one process's step, up to the order of
    floating-point sums. A process with more than `run.max_batch_per_device` images of a domain
    takes them in pieces and averages their gradients; means over pixels and batch-norm statistics
    are then each piece's. The seed is that of dropout. The state is also saved after the last step,
    so that no step is made again if what follows fails.

    Gives the learning curve: iteration, learning_rate and each loss, means over up to 100
    stretches. A UserError says that the loss is not finite, or that batch norm cannot normalise a
    single value.
    """
    objective.to(fabric.device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    images = config.batch_size // fabric.world_size
    parts = pieces(images, run.max_batch_per_device)
    share = Share(fabric.global_rank * images, images // parts, config.batch_size)
    _take_share(objective, share, fabric, parts)
    if config.freeze_encoder:
        objective.network.freeze_encoder()
    if run.compile:
        objective.network.compile()
    wrapped, *optimizers = fabric.setup(objective, *objective.optimizers(config))
    wrapped.train()
    history = array("f")  # the losses of each step so far
    for group in _groups(optimizers):
        group["initial_lr"] = group["lr"]
    start = _resume(checkpoint, objective, optimizers, history, fabric)
    _check_start(start, checkpoint, fabric)
    advance(start, resumed=True)
    saved, interval, pending = time.monotonic(), _save_interval(), []
    steps = range(start, config.iterations)
    for step, batch in zip(steps, advance.waiting(make_batches(steps)), strict=True):
        factor = rate_factor(step, config)
        for group in _groups(optimizers):
            group["lr"] = group["initial_lr"] * factor
        pending.append(_gradients(wrapped, batch, share, mix(seed, step, 0), fabric))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        objective.after_step()
        if len(pending) == READ_EVERY or step + 1 == config.iterations:
            losses = _read(pending, step, fabric)
            history.extend(losses.flatten().tolist())
            advance(len(pending), f"loss {losses[-1, 0]:.3f}")
            pending = []
            began = time.monotonic()
            due = began - saved > interval or step + 1 == config.iterations
            if fabric.is_global_zero and due:
                losses = _by_step(history, objective)
                checkpoint.save(_state(objective, optimizers, losses, step + 1, fabric))
                saved = time.monotonic()
                interval = _save_interval(saved - began)
    return _curve(_by_step(history, objective), objective.names, config)


def _by_step(history: array, objective: Objective) -> Tensor:
    """The losses float32 [steps, n] of all steps so far."""
    return torch.from_numpy(np.array(history, np.float32)).view(-1, len(objective.names))


def _groups(optimizers: list[Optimizer]) -> Iterator[dict[str, Any]]:
    """Their groups of parameters, each with its learning rate."""
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def _take_share(objective: Objective, share: Share, fabric: Fabric, parts: int) -> None:
    """Make an objective act on a part of each batch as on all of it."""
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
    chosen = seconds("CAG_CHECKPOINT_SECONDS")
    return max(SAVE_EVERY, duration / SAVE_SHARE) if chosen is None else chosen


def _gradients(wrapped: nn.Module, batch: Batch, share: Share, seed: int, fabric: Fabric) -> Tensor:
    """Add a step's gradients, one part of the batch after the other; its losses [n]."""
    images, size = len(batch.source.images), share.images
    first, parts = fabric.global_rank * images, images // size
    total = 0.0
    for start in range(0, images, size):
        share.start = first + start
        torch.manual_seed(seed)  # each part draws for the whole batch
        part = _to_device(batch, slice(start, start + size), fabric.device)
        last = start + size == images
        with fabric.no_backward_sync(wrapped, enabled=fabric.world_size > 1 and not last):
            losses = _losses(wrapped, part) / parts
            fabric.backward(losses[0])
        total = total + losses.detach()
    return total


def _to_device(batch: Batch, rows: slice, device: torch.device) -> Batch:
    def moved(images: Tensor, labels: Tensor) -> DomainBatch:
        images = images[rows].to(device, memory_format=torch.channels_last, non_blocking=True)
        return DomainBatch(images, labels[rows].to(device, non_blocking=True))

    return Batch(*(moved(*domain) for domain in batch.domains))


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
    objective: Objective, optimizers: list[Optimizer], history: Tensor, done: int, fabric: Fabric
) -> dict[str, Any]:
    return {
        "objective": objective.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "precision": fabric.strategy.precision.state_dict(),  # of 16-mixed: the losses' scale
        "history": history,
        "iteration": done,
    }


def _resume(
    checkpoint: Checkpoint,
    objective: Objective,
    optimizers: list[Optimizer],
    history: array,
    fabric: Fabric,
) -> int:
    state = checkpoint.load()
    if state is None:
        return 0
    objective.load_state_dict(state["objective"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    fabric.strategy.precision.load_state_dict(state["precision"])
    history.extend(state["history"][: state["iteration"]].flatten().tolist())
    return state["iteration"]


def _curve(history: Tensor, names: tuple[str, ...], config: Training) -> pd.DataFrame:
    size = -(-config.iterations // CURVE_POINTS)
    table = pd.DataFrame(history.numpy(), columns=list(names))
    table.insert(0, "iteration", range(1, config.iterations + 1))
    rates = [config.learning_rate * rate_factor(i, config) for i in range(config.iterations)]
    table.insert(1, "learning_rate", rates)
    columns = dict.fromkeys(table, "mean") | {"iteration": "max"}
    return table.groupby(table.index // size).agg(columns)
