"""Kill trainings at random moments and compare their results: python -m benchmarks.resume.

Kills each training stage, with one process and with two, by SIGKILL at random moments. Every file
under a final name must have the bytes of an uninterrupted stage started by a user. Then measures
the cost of a checkpoint. Runs on the CPU, in a temporary folder.
"""

import importlib
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import product
from math import lcm
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import ROOT
from benchmarks.measure import alternating_seconds, machine, table
from benchmarks.miniature import LENIENT, merged, scenes_params, write_params
from cag.config.parameters import load_all
from cag.networks import build
from cag.runtime.devices import one_device
from cag.runtime.files import sha256
from cag.runtime.program import run
from cag.runtime.progress import progress
from cag.training.loop import SAVE_EVERY, SAVE_SHARE, Checkpoint, _state
from cag.training.objectives import Objective

STAGES = {"pretrain": (), "warmup": (), "adapt": ("round1", "warmup")}  # and their arguments
BEFORE_ADAPTATION = (
    *("index", "prepare source", "prepare target", "pretrain", "warmup"),
    *(
        "extract_source round1 warmup",
        "extract_target round1 warmup round1",
        "anchors round1 round1",
        "pseudo_label round1",
    ),
)
ENCODER = "timm-mobilenetv3_small_minimal_100"  # few layers: processes synchronise at each
# The columns of a series of kills: the moments of the kills, and the outcomes of the runs.
HITS = ("starting", "training", "writing a checkpoint", "ending")
COUNTS = ("kills", *HITS, "runs", "that resumed", "that ended", "iterations redone")
DEADLINE = 600  # seconds; a longer run hangs
SAVES = 7  # the first warms up

# Importing torch takes longer than these trainings, so one server imports it for all runs.
FORKS = multiprocessing.get_context("forkserver")
PROGRAMS = [f"stages.{command.split()[0]}" for command in ("adapt", *BEFORE_ADAPTATION)]
FORKS.set_forkserver_preload([*PROGRAMS, "cag.adversarial"])  # imported when a warm-up trains


class Failed(Exception):
    """A run crashed, hung, or left wrong bytes."""


@dataclass(frozen=True)
class Training:
    """A training stage in its own folder, with one process or several."""

    folder: Path
    stage: str
    processes: int

    @property
    def outputs(self) -> tuple[Path, Path]:
        """Model and curve."""
        name, *_ = STAGES[self.stage] or [self.stage]
        data = self.folder / "data"
        return data / f"models/{name}.safetensors", data / f"curves/{name}.csv"

    @property
    def checkpoint(self) -> Path:
        """Its resume state."""
        name = "-".join((self.stage, *STAGES[self.stage][:1]))
        return self.folder / f".scratch/{name}/checkpoint.pt"

    def digests(self) -> dict[str, str]:
        """SHA-256 of each existing output."""
        return {path.name: sha256(path) for path in self.outputs if path.exists()}

    def delete_outputs(self) -> None:
        """Delete the outputs, as DVC does before it runs a stage."""
        for path in self.outputs:
            path.unlink(missing_ok=True)

    def saved(self) -> int:
        """Iterations in the checkpoint; 0 without one."""
        if not self.checkpoint.exists():
            return 0
        return torch.load(self.checkpoint, mmap=True, weights_only=True)["iteration"]


@dataclass(frozen=True)
class Run:
    """One run of a training."""

    resumed: int  # iterations in its first checkpoint
    steps: list[float]  # the end of each iteration, in seconds from the start
    seconds: float  # duration
    killed: bool  # else it ended by itself

    def left(self, done: int) -> float:
        """Seconds that a whole run like this one takes after `done` iterations."""
        return self.seconds - (self.steps[done - 1] - self.steps[0] if done else 0)


def make_project(folder: Path, iterations: int, batch_size: int = 2) -> Path:
    """Make the training stages' inputs in a new folder: few small scenes and a small network.

    `batch_size` counts a domain's images in a step over all processes. Returns the folder.
    """
    size = [32, 64]
    training = {"batch_size": batch_size, "augmentation": {"crop": size}}
    training["iterations"] = 10  # before the killed training
    changes = {
        **dict.fromkeys(STAGES, training),
        "warmup": training | {"adversarial_weight": 0.1},  # the discriminator changes the network
        "source": {"images": 8, "size": size},
        "target": {"images": 8, "val_images": 1, "size": size},
        "network": {
            "encoder": ENCODER,
            "encoder_weights": None,
            "options": {"decoder_channels": 256},
        },
        "anchors": LENIENT,
        "pseudo_label": {"relative_margin": 0.01, "agreement": False, "probability": 0.2},
    }
    params = scenes_params(changes)
    (folder / "classes").mkdir(parents=True)
    shutil.copy(ROOT / "classes/cityscapes.yaml", folder / "classes")
    write_params(folder, params)
    for command in BEFORE_ADAPTATION:
        if finish(start(folder, *command.split()), DEADLINE, folder):
            raise Failed(f"{command} had not ended after {DEADLINE} s")
    write_params(folder, merged(params, dict.fromkeys(STAGES, {"iterations": iterations})))
    return folder


def start(folder: Path, stage: str, *arguments: str, processes: int = 1) -> list[BaseProcess]:
    """Start a stage's processes as forks, with torchrun's variables if there are several."""
    launch = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        world = address | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        launch = [world | dict.fromkeys(("RANK", "LOCAL_RANK"), str(r)) for r in range(processes)]
    inputs = [(folder, stage, arguments, variables) for variables in launch]
    forks = [FORKS.Process(target=_run_stage, args=args) for args in inputs]
    for fork in forks:
        fork.start()
    return forks


def _run_stage(folder: Path, stage: str, arguments: tuple[str, ...], variables: dict) -> None:
    os.chdir(folder)
    rank = variables.get("RANK", "0")
    output = os.open(f"log{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(variables, CAG_CHECKPOINT_SECONDS="0", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    if rank == "0":
        _log_steps(folder / "steps")
    importlib.import_module(f"stages.{stage}").main.main(list(arguments), standalone_mode=False)


def _log_steps(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    first = []  # a warm-up's second optimizer does not count

    def stepped(optimizer: torch.optim.Optimizer, *_) -> None:
        first[:] = first or [optimizer]
        if optimizer is first[0]:
            os.write(log, array("d", [time.monotonic()]).tobytes())

    register_optimizer_step_post_hook(stepped)


def finish(forks: list[BaseProcess], seconds: float, folder: Path) -> bool:
    """Wait for a stage's processes, then kill the remaining ones; returns whether there were any.

    Raises Failed if a process ended by itself with a status other than 0.
    """
    end = time.monotonic() + seconds
    for fork in forks:
        fork.join(max(0.0, end - time.monotonic()))
    statuses = [fork.exitcode for fork in forks]
    for fork in forks:
        fork.kill()
    for fork in forks:
        fork.join()
    if any(statuses):
        logs = "\n".join(log.read_text() for log in sorted(folder.glob("log*.txt")))
        raise Failed(f"exit statuses {statuses}\n{logs}")
    return None in statuses


def run_once(training: Training, seconds: float = DEADLINE) -> Run:
    """Run a training and kill it after some seconds."""
    resumed, steps = training.saved(), training.folder / "steps"
    steps.unlink(missing_ok=True)
    began = time.monotonic()
    program = training.stage, *STAGES[training.stage]
    forks = start(training.folder, *program, processes=training.processes)
    killed = finish(forks, seconds, training.folder)
    lived = time.monotonic() - began
    moments = array("d", steps.read_bytes() if steps.exists() else b"")
    return Run(resumed, [moment - began for moment in moments], lived, killed)


def started_by_hand(training: Training) -> dict[str, str]:
    """Digests of the stage's outputs, started as a user does, without checkpoints."""
    several = f"-m torch.distributed.run --standalone --nproc-per-node={training.processes}"
    launch = several.split() if training.processes > 1 else []
    command = [sys.executable, *launch, "-m", f"stages.{training.stage}", *STAGES[training.stage]]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=training.folder, env=os.environ | variables, **output)
    if done.returncode:
        raise Failed(done.stdout)
    digests = training.digests()
    training.delete_outputs()
    return digests


def check(training: Training, made: Run, expected: dict[str, str], iterations: int) -> None:
    """Check and delete the outputs of a run.

    Raises Failed if an output has wrong bytes, or if the run ended by itself, but an output is
    missing, it did not go on from its checkpoint, or it left that behind.
    """
    digests = training.digests()
    differing = [name for name, digest in digests.items() if digest != expected[name]]
    if differing:
        raise Failed(f"other bytes: {', '.join(differing)}")
    if not made.killed:
        if digests.keys() != expected.keys():
            raise Failed(f"ended with no more than {list(digests)}")
        if made.resumed + len(made.steps) != iterations:
            raise Failed(f"resumed at {made.resumed}, but made {len(made.steps)} iterations")
        if training.checkpoint.exists():
            raise Failed("ended and left its checkpoint")
    training.delete_outputs()


def kill_at_random(
    training: Training, whole: Run, expected: dict[str, str], kills: int, moments: random.Random
) -> Counter:
    """Kill a training at random moments, run after run, then let it end; returns its `COUNTS`.

    The training has no outputs or checkpoint yet; `whole` is an uninterrupted run, `expected` are
    digests of its outputs. A kill comes within 1.25 times the remaining duration. After a run that
    ends before its kill, the next one starts anew. `kills` must hit a live run, and at least one
    run resumes from the middle. Raises Failed like `check` and `finish`.
    """
    tally, iterations = Counter(), len(whole.steps)
    with progress(f"{training.stage}, {training.processes} process(es)", kills, "kills") as advance:
        while True:
            last = tally["kills"] >= kills and tally["that resumed"] > 0
            before = _written(training.checkpoint)
            left = 1.25 * whole.left(training.saved())  # some runs end before their kill
            made = run_once(training, DEADLINE if last else moments.uniform(0, left))
            if last and made.killed:
                raise Failed(f"had not ended after {DEADLINE} s")
            complete = len(training.digests()) == len(expected)
            check(training, made, expected, iterations)
            tally["runs"] += 1
            tally["that resumed"] += 0 < made.resumed < iterations
            tally["that ended"] += not made.killed
            if last:
                return tally
            if made.killed:
                reached = made.resumed + len(made.steps)
                hit = "starting" if not made.steps else "training"
                hit = "ending" if reached == iterations and made.steps else hit
                hit = "writing a checkpoint" if _written(training.checkpoint) - before else hit
                tally.update(["kills", hit])
                tally["iterations redone"] += 0 if complete else reached - training.saved()
                advance()


def _written(checkpoint: Path) -> set[Path]:
    """The checkpoints that killed processes did not finish."""
    return set(checkpoint.parent.glob(f".{checkpoint.name}.*.partial"))


def checkpoint_cost(preset: str, folder: Path) -> dict[str, str]:
    """The table's row for the cost of a checkpoint in a preset's adaptation, at random weights."""
    params = load_all(ROOT / f"presets/{preset}.yaml")
    objective = Objective(build(params.network, num_classes=19), None)
    parameters = list(objective.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizers = objective.optimizers(params.adapt)
    for optimizer in optimizers:
        optimizer.step()  # creates the momenta
    history = torch.zeros(params.adapt.iterations, 5)
    checkpoint, fabric = Checkpoint(folder / f"{preset}.pt", "0" * 64), one_device("cpu")
    with progress(f"checkpoints of {preset}", SAVES, "saves") as advance:

        def save() -> None:
            checkpoint.save(_state(objective, optimizers, history, 1, fabric))
            advance()

        (seconds,) = alternating_seconds([save], SAVES - 1, warm_up=1)
    interval = max(SAVE_EVERY, seconds / SAVE_SHARE)
    row = {"preset": preset, "parameters": f"{sum(p.numel() for p in parameters):,}"}
    row |= {"MB": f"{checkpoint.path.stat().st_size / 1e6:.0f}", "save, s": f"{seconds:.2f}"}
    row[f"share at {SAVE_EVERY} s"] = f"{seconds / (SAVE_EVERY + seconds):.2%}"
    share = f"{seconds / (interval + seconds):.2%}"
    return row | {"interval, s": f"{interval:.0f}", "share": share}


@click.command(help=__doc__)
@click.option("--kills", default=20, show_default=True, help="Of each stage.")
@click.option("--iterations", default=30, show_default=True, help="Of each training.")
@click.option("--processes", default="1,2", show_default=True, help="Numbers, with commas.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, iterations: int, processes: str, seed: int) -> None:
    """Print both tables; exit status 1 if a result differs."""
    numbers = list(map(int, processes.split(",")))
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("preparing a project", flush=True)
        project = make_project(folder / "project", iterations, max(2, lcm(*numbers)))
        for number, stage in product(numbers, STAGES):
            copy = shutil.copytree(project, folder / f"{stage}-{number}")
            name, tally, result = f"{stage}, {number} process(es)", {}, "FAILED"
            print(f"{name}, uninterrupted", flush=True)
            try:
                moments = random.Random(f"{seed} {stage} {number}")
                training = Training(copy, stage, number)
                training.delete_outputs()
                expected, whole = started_by_hand(training), run_once(training)
                check(training, whole, expected, len(whole.steps))
                tally = kill_at_random(training, whole, expected, kills, moments)
                result = "same bytes"
            except Failed as failure:
                failures.append(f"FAILED: {name}: {failure}")
            counts = {count: str(tally[count]) if tally else "" for count in COUNTS}
            rows.append({"stage": stage, "processes": str(number), **counts, "result": result})
        costs = [checkpoint_cost(preset, folder) for preset in ("scenes", "gta5_to_cityscapes")]
    print(machine(torch.device("cpu")), table(rows), table(costs), sep="\n\n")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    run(main)
