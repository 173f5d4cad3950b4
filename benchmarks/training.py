"""What a training step takes on this CPU: python -m benchmarks.training.

Steps of the preset scenes at its batch and crop, from the released form to the one in use, with
random images, labels and weights. They take turns, so that whatever else runs slows them alike.
"""

from __future__ import annotations

from types import SimpleNamespace

import click
import torch

from benchmarks.gpu import ROOT
from benchmarks.measure import alternating_seconds, cores, machine, table
from benchmarks.steps import Problem, Step, ladder, random_problem
from cag.config.parameters import load_all
from cag.networks import SegmentationNetwork
from cag.runtime.program import run

PRESET = ROOT / "presets/scenes.yaml"
RUNGS = {
    "+ cached labels": "cached_labels",
    "+ vectorised losses": "vectorised",
    "+ channels_last (in use)": "channels_last",
    "+ fused optimizer": "fused",
}


def print_steps(problem: Problem, count: int) -> None:
    """Whole steps of each form."""
    forms = list(ladder(RUNGS))
    steps = [Step(problem, form) for form in forms]
    images = 2 * problem.params.adapt.batch_size
    durations = alternating_seconds(steps, count, warm_up=2)
    rows = [
        [form.name, f"{1000 * t:.0f}", f"{images / t:.1f}", f"{durations[0] / t:.2f}"]
        for form, t in zip(forms, durations, strict=True)
    ]
    print(table(["step", "ms", "images/s", "times released"], rows))


def print_optimizers(network: SegmentationNetwork, count: int) -> None:
    """The optimizer's part of a step, fused and not."""
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    kinds = {"SGD": (torch.optim.SGD, {"momentum": 0.9}), "AdamW": (torch.optim.AdamW, {})}
    names, updates = [], []
    for name, (kind, options) in kinds.items():
        for fused in (False, True):
            names.append(f"{name}, fused" if fused else name)
            optimizer = kind(network.parameters(), lr=1e-6, fused=fused, **options)
            updates.append(optimizer.step)
    durations = alternating_seconds(updates, count, warm_up=2)
    rows = [[name, f"{1000 * t:.1f}"] for name, t in zip(names, durations, strict=True)]
    print(table(["optimizer alone", "ms"], rows))


def benchmark(params: SimpleNamespace, count: int) -> None:
    """Print both tables, of medians over `count` steps."""
    config, device = params.adapt, torch.device("cpu")
    height, width = config.augmentation.crop
    print(
        f"{machine(device)}, {torch.get_num_threads()} threads\n"
        f"{params.network.architecture} on {params.network.encoder}, {config.batch_size} + "
        f"{config.batch_size} crops of {width} x {height}, {config.optimizer}; images of both "
        f"domains together;\nmedians of {count} steps of each, in turn\n"
    )
    problem = random_problem(params, device)
    print_steps(problem, count)
    print()
    print_optimizers(problem.teacher, count)


@click.command(help=__doc__)
@click.option("--steps", default=15, show_default=True, help="Of each form.")
def main(steps: int) -> None:
    """Measure on all cores."""
    torch.set_num_threads(cores())
    benchmark(load_all(PRESET), steps)


if __name__ == "__main__":
    run(main)
