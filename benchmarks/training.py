"""Duration of a training step on this CPU: python -m benchmarks.training.

The preset scenes with its batch and crop, random images, labels and weights. The forms of a step,
from the released one to ours, take turns, so that other load slows them alike.
"""

from functools import partial

import click
import torch
from torch.optim import SGD, AdamW

from benchmarks import ROOT
from benchmarks.measure import alternating_seconds, cores, machine, peak_bytes, table
from benchmarks.steps import Problem, Step, ladder, random_problem
from cag.config.parameters import Parameters, load_all
from cag.networks import SegmentationNetwork
from cag.runtime.program import run

RUNGS = {
    "+ cached labels": "cached_labels",
    "+ vectorised losses": "vectorised",
    "+ channels_last (in use)": "channels_last",
    "+ fused optimizer": "fused",
    "online teacher instead": "online",
}


def step_rows(problem: Problem, count: int) -> list[dict[str, str]]:
    """Whole steps of each form."""
    forms = list(ladder(RUNGS))
    steps = [Step(problem, form) for form in forms]
    durations = alternating_seconds(steps, count, warm_up=2)
    rows, images = [], 2 * problem.params.adapt.batch_size
    for form, step, duration in zip(forms, steps, durations, strict=True):
        row = {"step": form.name, "ms": f"{1000 * duration:.0f}"}
        row |= {"images/s": f"{images / duration:.1f}"}
        row |= {"times released": f"{durations[0] / duration:.2f}"}
        rows.append(row | {"MB": f"{peak_bytes(step) / 1e6:.0f}"})
    return rows


def optimizer_rows(network: SegmentationNetwork, count: int) -> list[dict[str, str]]:
    """The optimizer's part of a step, fused or not."""
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    updates = {}
    for name, make in {"SGD": partial(SGD, momentum=0.9), "AdamW": AdamW}.items():
        for suffix, fused in {"": False, ", fused": True}.items():
            updates[name + suffix] = make(network.parameters(), lr=1e-6, fused=fused).step
    durations = alternating_seconds(list(updates.values()), count, warm_up=2)
    return [
        {"optimizer alone": name, "ms": f"{1000 * duration:.1f}"}
        for name, duration in zip(updates, durations, strict=True)
    ]


def benchmark(params: Parameters, count: int) -> None:
    """Print both tables, with medians over `count` steps."""
    config, device = params.adapt, torch.device("cpu")
    height, width = config.augmentation.crop
    print(
        f"{machine(device)}, {torch.get_num_threads()} threads\n"
        f"{params.network.architecture} on {params.network.encoder}, {config.batch_size} + "
        f"{config.batch_size} crops of {width} x {height}, {config.optimizer}; images of both "
        f"domains together;\nmedians of {count} steps of each, in turn; MB: the most that a step "
        "holds beyond the weights and the optimizer's state\n"
    )
    problem = random_problem(params, device)
    print(table(step_rows(problem, count)), end="\n\n")
    print(table(optimizer_rows(problem.teacher, count)))


@click.command(help=__doc__)
@click.option("--steps", default=15, show_default=True, help="Of each form.")
def main(steps: int) -> None:
    """Measure on all cores."""
    torch.set_num_threads(cores())
    benchmark(load_all(ROOT / "presets/scenes.yaml"), steps)


if __name__ == "__main__":
    run(main)
