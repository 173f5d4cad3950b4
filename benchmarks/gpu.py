"""Speed on a GPU: python -m benchmarks.gpu.

Checks that it computes what the CPU does. Then measures training steps from the released form to
ours, feature extraction and pseudo-labelling in images per second, each beside the machine's limit.
Needs no data: images, labels and weights are random, with the sizes and the network of the presets
gta5_to_cityscapes and gta5_to_cityscapes_online. Takes minutes. Exit status 1: a check fails.
"""

import gc
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import click
import torch
from torch import Tensor, nn

from benchmarks import ROOT, measure, steps
from cag.config.parameters import Parameters, load_all
from cag.features import reduced_row, target_bytes
from cag.networks import SegmentationNetwork
from cag.prediction import predict_pixels
from cag.project.speed import random_projection
from cag.projection import Projection
from cag.pseudo_labels import anchor_distances
from cag.runtime.errors import UserError
from cag.runtime.program import run

TARGET_SPEEDUP, TARGET_READING = 4, 0.4  # times the released form; of the memory's rate
COPIED, ON_DEVICE = "from the host", "from the device's memory"
RUNGS = {
    "+ cached labels": "cached_labels",
    "+ vectorised losses": "vectorised",
    "+ TF32": "tf32",
    "+ channels_last": "channels_last",
    "+ bf16 autocast": "bf16",
    "+ fused optimizer": "fused",
    "+ cudnn.benchmark": "cudnn_benchmark",
    "+ torch.compile": "compiled",
    "online teacher instead": "online",
}


class Device(NamedTuple):
    """Takes the place of a Fabric, in one of `measure.PRECISIONS`."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager:
        """A context of the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16")


def preset(small: bool) -> Parameters:
    """The preset's parameters; `small` ones have a network and images for a quick run on a CPU."""
    params = load_all(ROOT / "presets/gta5_to_cityscapes_online.yaml")
    if not small:
        return params
    size = (32, 64)
    augmentation = params.adapt.augmentation.model_copy(update={"crop": size})
    changes = {
        "network": {
            "encoder": "tu-resnet10t",
            "encoder_weights": None,
            "options": {"decoder_channels": 16},
        },
        "adapt": {"batch_size": 2, "augmentation": augmentation},
        "extract": {"batch_size": 2},
        "target": {"size": size},
    }
    update = {name: getattr(params, name).model_copy(update=new) for name, new in changes.items()}
    return params.model_copy(update=update)


class Bench:
    """The benchmark's sections, with their device, parameters and measured rates."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small = device, small
        self.on_gpu = device.type == "cuda"
        self.params = preset(small)
        size = 256 if small else 8192
        self.matrix_rates = {p: measure.matrix_rate(p, device, size) for p in measure.PRECISIONS}
        self.effort = (2, 1) if small else (20, 5)  # measured calls, warm-up calls

    def agreement(self) -> bool:
        """Whether the tests pass that compare the GPU with the CPU."""
        heading("Agreement with the CPU, TF32 allowed")
        if not self.on_gpu:
            print("the CPU agrees with itself")
            return True
        tests = [sys.executable, "-m", "pytest", "-q", "-W", "default", "tests/test_gpu.py"]
        return subprocess.run(tests, cwd=ROOT).returncode == 0

    def training(self) -> bool:
        """Print the training steps' rates; returns whether ours never waits for the device."""
        config, network = self.params.adapt, self.params.network
        height, width = config.augmentation.crop
        images = 2 * config.batch_size
        flops = images * steps.network_flops(network, height, width, backward=True)[0]
        heading(
            f"Training: {network.architecture} on {network.encoder}, "
            f"{config.batch_size} + {config.batch_size} crops of {width} x {height}"
        )
        limits = ", ".join(f"{p} {rate / 1e12:.3g}" for p, rate in self.matrix_rates.items())
        count, warm_up = self.effort
        print(
            f"Images of both domains together, without loading them. Means of {count} steps after "
            f"{warm_up}.\n{flops / 1e12:.3g} TFLOP of the student's network in a step (a teacher's "
            "come on top), beside the measured rate of a\nlarge matrix product in the same "
            f"precision: {limits} TFLOP/s.\n"
        )
        problem = steps.random_problem(self.params, self.device)
        rows, durations = [], {}
        for form in steps.ladder(RUNGS):
            try:
                duration, memory = self._measure_step(problem, form)
            except Exception as error:  # the other rungs still run
                rows.append({"step": f"{form.name}: {shortened(error)}"})
                continue
            finally:
                if self.on_gpu:
                    gc.collect()  # a failed rung's traceback holds its tensors
                    torch.cuda.empty_cache()
            durations[form.name], achieved = duration, flops / duration
            rates = {"images/s": f"{images / duration:.1f}", "ms": f"{1000 * duration:.1f}"}
            row = {"step": form.name} | rates | {"times released": speedup(durations, form.name)}
            row["peak memory, GiB"] = memory
            share = f"{achieved / self.matrix_rates[form.precision]:.0%}"
            rows.append(row | {"TFLOP/s": f"{achieved / 1e12:.3g}", "of the matrix rate": share})
        columns = max(rows, key=len)
        print(measure.table([dict.fromkeys(columns, "-") | row for row in rows]))
        if durations:
            best = min(durations, key=durations.get)
            print(
                f"\nfastest, '{best}' and all before it: {speedup(durations, best)} times the "
                f"released form's images/s (target: at least {TARGET_SPEEDUP})"
            )
        return self._waits_nowhere(problem)

    def _measure_step(self, problem: steps.Problem, form: steps.Form) -> tuple[float, str]:
        # On a CPU the compiler would take longer than all the rest.
        backend = "inductor" if self.on_gpu else "eager"
        with measure.numerics(form.tf32, form.cudnn_benchmark):
            step = steps.Step(problem, form, backend)
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            duration = measure.seconds(step, *self.effort)
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if self.on_gpu else "-"
        return duration, memory

    def _waits_nowhere(self, problem: steps.Problem) -> bool:
        """Whether a step of ours, with its copy to the device, runs without waiting for it."""
        *_, uncompiled, _, _ = steps.ladder(RUNGS)
        step, new = steps.Step(problem, uncompiled), measure.host_tensor
        host = [[new(x.shape, x.dtype, self.device).copy_(x) for x in d] for d in problem.batch]
        step()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            moved = ((x.to(self.device, non_blocking=True) for x in domain) for domain in host)
            step(steps.in_channels_last(moved))
        except RuntimeError as error:
            print(f"a step of ours waits for the device: {shortened(error)}")
            return False
        finally:
            if self.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        note = "" if self.on_gpu else " (which says nothing on a CPU)"
        print(f"a step of ours waits for the device nowhere{note}")
        return True

    def _forms(self, width: int) -> dict[str, Projection | None]:
        """The forms of a target store of so many channels: the preset's, and all channels."""
        projection = random_projection(steps.CLASSES, width, self.params.extract.directions)
        return {f"{len(projection.directions)} directions": projection, "all channels": None}

    def extraction(self) -> None:
        """Print the rate of feature extraction and the part of the machine that limits it."""
        height, width = self.params.target.size
        batch = self.params.extract.batch_size
        heading(f"Extraction: {batch} images of {width} x {height}, a target store's rows")
        images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8).to(self.device)
        network = steps.random_network(self.params.network, images[:2] / 255)
        network.to(memory_format=torch.channels_last)
        flops, shape = steps.network_flops(self.params.network, height, width)
        disk = measure.disk_rate(ROOT, 2**20 if self.small else 2**30)
        print(f"An image takes {flops / 1e12:.3g} TFLOP of the network.\n")
        rows = []
        for form, projection in self._forms(shape[0]).items():
            directions = None if projection is None else len(projection.directions)
            stored = target_bytes(1, *shape, directions)
            for precision in measure.PRECISIONS:
                with torch.inference_mode(), measure.numerics(precision == "TF32"):
                    rate, copied, copies = self._extracted(network, images, projection, precision)
                limits = {"matrix rate": self.matrix_rates[precision] / flops}
                limits |= {"copy": copies / copied, "disk": disk / stored}
                bound = min(limits, key=limits.get)
                row = {"features": f"{form}, {precision}", "images/s": f"{rate:.1f}"}
                row |= {"MB copied": f"{copied / 1e6:.4g}", "MB of disk": f"{stored / 1e6:.4g}"}
                row |= {f"{name} allows": f"{limit:.1f}" for name, limit in limits.items()}
                row |= {"bound by": bound, "of that bound": f"{rate / limits[bound]:.0%}"}
                rows.append(row)
        print(measure.table(rows))
        print("\nNo features are written: where the disk is the bound, it sets the pace.")

    def _extracted(
        self,
        network: SegmentationNetwork,
        images: Tensor,
        projection: Projection | None,
        precision: str,
    ) -> tuple[float, float, float]:
        """Images a second to the host, as in `extract_target`; an image's bytes; bytes a second."""
        views, fabric = self.params.extract.target_views, Device(self.device, precision)

        def rows() -> tuple[Tensor, ...]:
            row = predict_pixels(network, images, views, fabric)
            return row if projection is None else reduced_row(*row, projection)

        first = rows()
        hosts = [measure.host_like(part) for part in first]
        copied = sum(host.nbytes for host in hosts) / len(images)
        copies = measure.copy_rate(first[0], hosts[0])

        def to_host() -> None:
            for host, part in zip(hosts, rows(), strict=True):
                host.copy_(part, non_blocking=True)

        return len(images) / measure.seconds(to_host, *self.effort), copied, copies

    def pseudo_labelling(self) -> None:
        """Print the rate of `anchor_distances`, which takes most of `pseudo_label`'s time."""
        shape = (1, *steps.network_flops(self.params.network, *self.params.target.size)[1])
        heading(f"Pseudo-labels: anchor_distances on features {tuple(shape[1:])}")
        features = torch.randn(shape, device=self.device).relu()
        anchors = torch.randn(steps.CLASSES, shape[1], device=self.device).relu()
        memory = measure.memory_rate(self.device, 2**20 if self.small else 2**30)
        rows = []
        for form, projection in self._forms(shape[1]).items():
            rows += self._labelled(form, projection, features, anchors, memory)
        print(measure.table(rows))
        print(
            f"\ntarget: all channels from the device's memory at {TARGET_READING:.0%} of its rate"
        )

    def _labelled(
        self,
        form: str,
        projection: Projection | None,
        features: Tensor,
        anchors: Tensor,
        memory: float,
    ) -> list[dict[str, str]]:
        """Rows for features that the host reads and copies, as in `pseudo_label`, and for others.

        `memory`: bytes a second of the device's.
        """
        if projection is None:
            stored, read = features.half().cpu(), nn.Identity()
        else:
            stored, read = projection.reduce(features).cpu(), projection.coordinates
            anchors, _ = projection.place(anchors)
        on_host = read(stored)
        on_device = on_host.to(self.device)
        copies = measure.copy_rate(on_host, torch.empty_like(on_device))

        def row(place: str, get: Callable[[], Tensor], limit: float) -> dict[str, str]:
            duration = measure.seconds(lambda: anchor_distances(get(), anchors), *self.effort)
            rate = on_host.nbytes / duration
            rates = {"MB": f"{on_host.nbytes / 1e6:.4g}", "images/s": f"{1 / duration:.1f}"}
            limits = {"measured rate, GB/s": f"{limit / 1e9:.3g}", "of it": f"{rate / limit:.0%}"}
            return {"features": f"{form}, {place}"} | rates | {"GB/s": f"{rate / 1e9:.3g}"} | limits

        return [
            row(COPIED, lambda: read(stored).to(self.device), copies),
            row(ON_DEVICE, lambda: on_device, memory),
        ]


def heading(text: str) -> None:
    """Print a section's heading."""
    print(f"\n## {text}\n", flush=True)


def speedup(durations: dict[str, float], name: str) -> str:
    """Ratio to the released form's rate, or "?" if that one failed."""
    released = durations.get(steps.RELEASED)
    return f"{released / durations[name]:.2f}" if released else "?"


def shortened(error: Exception) -> str:
    """An exception in a few words."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text[:100]}"


def chosen_device(name: str) -> torch.device:
    """The device of this name; a UserError if it is a missing GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; `--device cpu --small` runs every line without one")
    return torch.device(name)


@click.command(help=__doc__)
@click.option("--device", default="cuda", type=click.Choice(["cuda", "cpu"]), show_default=True)
@click.option("--small", is_flag=True, help="Tiny: shows that it runs, not how fast.")
def main(device: str, small: bool) -> None:
    """Print every section."""
    chosen = chosen_device(device)
    began = time.monotonic()
    print(measure.machine(chosen))
    if small or chosen.type == "cpu":
        print("these figures mean nothing: they show that the benchmark runs")
    bench = Bench(chosen, small)
    passed = [bench.agreement(), bench.training()]
    bench.extraction()
    bench.pseudo_labelling()
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
