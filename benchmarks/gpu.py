"""What a GPU makes of it: python -m benchmarks.gpu.

Checks that it computes what the CPU does; then training steps from the released form to ours,
feature extraction and pseudo-labelling in images per second, each beside the limit that the machine
sets. Needs no data: images, labels and weights are random, sizes and network those of the preset
gta5_to_cityscapes. Takes minutes. Exit status 1 where a check fails.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import torch

from benchmarks.agreement import Check, checks
from benchmarks.measure import (
    PRECISIONS,
    copy_rate,
    disk_rate,
    host_tensor,
    machine,
    matrix_rate,
    memory_rate,
    numerics,
    seconds,
    table,
)
from benchmarks.steps import (
    CLASSES,
    Form,
    Problem,
    Step,
    feature_shape,
    in_channels_last,
    ladder,
    network_flops,
    random_network,
    random_problem,
)
from cag.config.parameters import load_all
from cag.config.training import Training
from cag.features import target_bytes
from cag.networks import SegmentationNetwork
from cag.pseudo_labels import anchor_distances
from cag.runtime.errors import UserError
from cag.runtime.program import run

ROOT = Path(__file__).resolve().parents[1]
PRESET = ROOT / "presets/gta5_to_cityscapes.yaml"
TARGET_SPEEDUP = 4
RUNGS = {
    "+ cached labels": "cached_labels",
    "+ vectorised losses": "vectorised",
    "+ TF32": "tf32",
    "+ channels_last": "channels_last",
    "+ bf16 autocast": "bf16",
    "+ fused optimizer": "fused",
    "+ cudnn.benchmark": "cudnn_benchmark",
    "+ torch.compile": "compiled",
}


def preset(small: bool) -> SimpleNamespace:
    """The preset's parameters; small: of a network and images that a CPU is soon done with."""
    params = load_all(PRESET)
    if not small:
        return params
    network = params.network.model_copy(
        update={"encoder": "tu-resnet10t", "options": {"decoder_channels": 16}}
    )
    return SimpleNamespace(
        **{
            **vars(params),
            "network": network,
            "adapt": _small_training(params.adapt),
            "extract": params.extract.model_copy(update={"batch_size": 2}),
            "target": params.target.model_copy(update={"size": (32, 64)}),
        }
    )


def _small_training(config: Training) -> Training:
    augmentation = config.augmentation.model_copy(update={"crop": (32, 64)})
    return config.model_copy(update={"batch_size": 2, "augmentation": augmentation})


class Bench:
    """The sections of the benchmark and what they share: device, parameters, effort, rates."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small = device, small
        self.params = preset(small)
        size = 256 if small else 8192
        self.matrix_rates = {p: matrix_rate(p, device, size) for p in PRECISIONS}
        self.steps, self.warm_up = (2, 1) if small else (20, 5)

    # Agreement

    def agreement(self) -> bool:
        """Print what differs from the CPU and from the released code; whether all is well."""
        done = list(checks(self.device, self.params.network if self.small else None))
        self._print_checks(done)
        failed = [check.name for check in done if not check.passed]
        print("\nfailed: " + "; ".join(failed) if failed else f"\nall {len(done)} checks passed")
        return not failed

    def _print_checks(self, done: list[Check]) -> None:
        heading("Agreement with the CPU, TF32 allowed")
        print(
            "Label maps: pixels that differ, but for those within 1e-4 of a threshold. Others: L2 "
            "norm of the\ndifference over the norm.\n"
        )
        header = ["what", "from the CPU", "from the released code", "limit", "passed"]
        rows = [
            [
                check.name,
                difference(check.from_cpu),
                difference(check.from_released),
                difference(check.limit),
                "yes" if check.passed else "NO",
            ]
            for check in done
        ]
        print(table(header, rows))

    # Training

    def training(self) -> bool:
        """Print the ladder of training steps; whether ours waits for the device nowhere."""
        config = self.params.adapt
        height, width = config.augmentation.crop
        images = 2 * config.batch_size
        flops = images * network_flops(self.params.network, height, width, backward=True)
        heading(
            f"Training: {self.params.network.architecture} on {self.params.network.encoder}, "
            f"{config.batch_size} + {config.batch_size} crops of {width} x {height}"
        )
        print(
            f"Images of both domains together; loading them is left out. Medians of {self.steps} "
            f"steps after {self.warm_up}.\n{flops / 1e12:.3g} TFLOP of the student's network in a "
            "step (a teacher's come on top), beside the measured rate of a\nlarge matrix product "
            "in the same precision: "
            + ", ".join(f"{p} {rate / 1e12:.3g}" for p, rate in self.matrix_rates.items())
            + " TFLOP/s.\n"
        )
        header = ["step", "images/s", "ms", "times released", "peak memory, GiB", "TFLOP/s"]
        header.append("of the matrix rate")
        problem = random_problem(self.params, self.device)
        rows, rates = [], {}
        for form in ladder(RUNGS):
            try:
                duration, memory = self._measure_step(problem, form)
            except Exception as error:  # a rung that fails must not take the others with it
                rows.append([f"{form.name}: {shortened(error)}", *["-"] * (len(header) - 1)])
                continue
            finally:
                self._free()
            rates[form.name] = images / duration
            achieved = flops / duration
            rows.append(
                [
                    form.name,
                    f"{images / duration:.1f}",
                    f"{1000 * duration:.1f}",
                    times(images / duration, rates.get("as released")),
                    memory,
                    f"{achieved / 1e12:.3g}",
                    f"{achieved / self.matrix_rates[form.precision]:.0%}",
                ]
            )
        print(table(header, rows))
        if rates:
            best = max(rates, key=rates.get)
            speedup = times(rates[best], rates.get("as released"))
            print(
                f"\nfastest, '{best}' and all before it: {speedup} times the released form's "
                f"images/s (target: at least {TARGET_SPEEDUP})"
            )
        return self._waits_nowhere(problem)

    def _measure_step(self, problem: Problem, form: Form) -> tuple[float, str]:
        # Without a GPU the compiler itself is left out: it would take longer than all the rest.
        backend = "inductor" if self.device.type == "cuda" else "eager"
        with numerics(form.tf32, form.cudnn_benchmark):
            step = Step(problem, form, backend)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            duration = seconds(step, self.device, self.steps, self.warm_up)
        if self.device.type == "cpu":
            return duration, "-"
        return duration, f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"

    def _waits_nowhere(self, problem: Problem) -> bool:
        """Run a step of ours, with its copy to the device, where any wait for it is an error."""
        *_, form = ladder({k: v for k, v in RUNGS.items() if v != "compiled"})
        step = Step(problem, form)
        host = tuple((self._on_host(x), self._on_host(labels)) for x, labels in problem.batch)
        step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            moved = [
                [part.to(self.device, non_blocking=True) for part in domain] for domain in host
            ]
            step.run(in_channels_last(moved))
        except RuntimeError as error:
            print(f"a step of ours waits for the device: {shortened(error)}")
            return False
        finally:
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        where = "" if self.device.type == "cuda" else " (which says nothing on a CPU)"
        print(f"a step of ours waits for the device nowhere{where}")
        return True

    def _on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return host_tensor(tensor.shape, tensor.dtype, self.device).copy_(tensor)

    # Extraction and pseudo-labelling

    def extraction(self) -> None:
        """Print the rate of feature extraction, and which part of the machine bounds it."""
        height, width = self.params.target.size
        batch = self.params.extract.batch_size
        heading(f"Extraction: {batch} images of {width} x {height}, float16 features to the host")
        images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        images = images.to(self.device)
        network = random_network(self.params.network, images[:2] / 255)
        network.to(memory_format=torch.channels_last)
        shape = feature_shape(self.params.network, height, width)
        host = host_tensor((batch, *shape), torch.float16, self.device)
        flops = network_flops(self.params.network, height, width, backward=False)
        copied = host.nbytes / batch
        to_host = copy_rate(host.to(self.device), host, self.device) / copied
        stored = target_bytes(1, *shape)
        to_disk = disk_rate(ROOT, 2**20 if self.small else 2**30) / stored
        print(
            f"An image takes {flops / 1e12:.3g} TFLOP, {copied / 1e6:.4g} MB to the host and "
            f"{stored / 1e6:.4g} MB of this folder's disk.\n"
        )
        header = ["precision", "images/s", "matrix rate allows", "copy allows", "disk allows"]
        header += ["bound by", "of that bound"]
        rows = []
        for precision in PRECISIONS:
            limits = {"matrix rate": self.matrix_rates[precision] / flops}
            limits |= {"copy": to_host, "disk": to_disk}
            found = batch / self._measure_extraction(network, images, host, precision)
            bound = min(limits, key=limits.get)
            row = [precision, f"{found:.1f}", *(f"{x:.1f}" for x in limits.values()), bound]
            rows.append([*row, f"{found / limits[bound]:.0%}"])
        print(table(header, rows))
        print("\nThe features are not written: where the disk is the bound, it sets the pace.")

    def _measure_extraction(
        self,
        network: SegmentationNetwork,
        images: torch.Tensor,
        host: torch.Tensor,
        precision: str,
    ) -> float:
        def extract() -> None:
            inputs = (images.float() / 255).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, precision == "bf16"):
                features = network(inputs).features
            host.copy_(features.half().contiguous(), non_blocking=True)

        with torch.inference_mode(), numerics(precision == "TF32"):
            return seconds(extract, self.device, self.steps, self.warm_up)

    def pseudo_labelling(self) -> None:
        """Print the rate of `anchor_distances`, which `pseudo_label` spends its time on."""
        shape = (1, *feature_shape(self.params.network, *self.params.target.size))
        heading(f"Pseudo-labels: anchor_distances on float16 features {shape[1:]}")
        host = host_tensor(shape, torch.float16, self.device)
        host.copy_(torch.randn(shape).relu())
        on_device = torch.empty_like(host, device=self.device)
        from_host = copy_rate(host, on_device, self.device)
        memory = memory_rate(self.device, 2**20 if self.small else 2**30)
        anchors = torch.randn(CLASSES, shape[1], device=self.device).relu()

        def from_host_memory() -> None:
            anchor_distances(host.to(self.device, non_blocking=True), anchors)

        def from_device_memory() -> None:
            anchor_distances(on_device, anchors)

        print(f"An image has {host.nbytes / 1e6:.4g} MB of features.\n")
        rows = []
        for name, function, rate in (
            ("host memory, copied", from_host_memory, from_host),
            ("the device's memory", from_device_memory, memory),
        ):
            duration = seconds(function, self.device, self.steps, self.warm_up)
            read = host.nbytes / duration
            numbers = [f"{1 / duration:.1f}", f"{read / 1e9:.3g}", f"{rate / 1e9:.3g}"]
            rows.append([name, *numbers, f"{read / rate:.0%}"])
        print(table(["features from", "images/s", "GB/s", "measured rate, GB/s", "of it"], rows))

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()  # a failed rung's tensors hang in its traceback
            torch.cuda.empty_cache()


def heading(text: str) -> None:
    """Print the heading of a section."""
    print(f"\n## {text}\n", flush=True)


def difference(value: float | None) -> str:
    """A check's number."""
    return "-" if value is None else f"{value:.2g}"


def times(rate: float, released: float | None) -> str:
    """How many times the released form's rate, where that was to be had."""
    return "?" if released is None else f"{rate / released:.2f}"


def shortened(error: Exception) -> str:
    """An exception in a few words."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text[:100]}"


def chosen_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: It is a GPU, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; `--device cpu --small` runs every line without one")
    return torch.device(name)


@click.command(help=__doc__)
@click.option("--device", default="cuda", type=click.Choice(["cuda", "cpu"]), show_default=True)
@click.option("--small", is_flag=True, help="Tiny: to see that it runs, not how fast.")
def main(device: str, small: bool) -> None:
    """Print every section."""
    chosen = chosen_device(device)
    began = time.monotonic()
    print(machine(chosen))
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
