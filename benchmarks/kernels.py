"""Time the anchor-guided kernels on one CPU thread beside plain loops over the classes.

First checks that both give the same results. Features, 256 x 128 x 224 an image, are scattered
around the 19 anchors in tests/golden; the images take turns and exceed a CPU's cache. Exit status
1: results differ.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from runpy import run_path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import ROOT
from benchmarks.measure import alternating_seconds, machine, matrix_rate, table
from benchmarks.steps import anchor_distance_loop, distance_loop
from cag.anchors import class_sums
from cag.datasets.labels import IGNORE
from cag.losses import distance_loss
from cag.pseudo_labels import anchor_margins, by_anchor
from cag.runtime.errors import UserError
from cag.runtime.program import run

GOLDEN = ROOT / "tests/golden"
HEIGHT, WIDTH = 128, 224
IMAGES = 4  # of 29 MB
MARGIN, MIN_PIXELS = 2.5, 10
ROUNDING = 1e-4  # of margins, whose float32 distances err by 1e-6; as a share of other values
HALF_ROUNDING = 1e-2  # float16 features have 11 bits


class Image(NamedTuple):
    """Features [1, D, h, w], logits [1, K, h, w] and labels uint8 [1, h, w] of an image."""

    features: Tensor
    logits: Tensor
    labels: Tensor


Images = Sequence[Image]


class Kernel(NamedTuple):
    """Two implementations of the same computation."""

    name: str
    loop: Callable[[Image], object]
    ours: Callable[[Image], object]
    target: float  # s
    bound: str
    released: float  # s, published
    vectorised: float  # s, published


def make_images(anchors: np.ndarray) -> list[Image]:
    """Images like those of the golden files, but with features of full float32 precision."""
    make_inputs = run_path(str(GOLDEN / "gen_inputs.py"))["pseudo_inputs"]
    random, images = torch.Generator().manual_seed(0), []
    for seed in range(IMAGES):
        inputs = make_inputs(seed, anchors, 1, HEIGHT, WIDTH)
        features, logits, labels = map(torch.from_numpy, inputs)
        # Noise within the float16 rounding of the golden features.
        rounding = 2**-12 * (2 * torch.rand(features.shape, generator=random) - 1)
        labels = labels[:, ::4, ::4]  # (1, h, w)
        labels = labels.masked_fill(labels >= len(anchors), IGNORE)
        images.append(Image(features.float() * (1 + rounding), logits, labels))
    return images


def loop_pseudo_labels(image: Image, anchors: Tensor) -> Tensor:
    """The anchor rule by a norm for each class, the minimum, and the minimum without it."""
    nearest, first, second = anchor_distance_loop(image.features, anchors)
    return nearest.masked_fill(second - first < MARGIN, IGNORE).to(torch.uint8)


def loop_class_means(features: Tensor, labels: Tensor, num_classes: int) -> dict[int, Tensor]:
    """Mean feature vector [D] of each class with enough pixels in the image."""
    masks = {c: labels[0] == c for c in range(num_classes)}
    common = {c: mask for c, mask in masks.items() if mask.sum() >= MIN_PIXELS}
    return {c: features[0][:, mask].mean(dim=1) for c, mask in common.items()}


def loop_distance_loss(image: Image, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The released code's distance loss, class by class, and its gradient."""
    features = image.features.detach().requires_grad_()
    agreeing = torch.where(image.logits.argmax(dim=1) == image.labels, image.labels, IGNORE)
    means = loop_class_means(features, agreeing, len(anchors))
    for c, mean in means.items():
        scale = 2 * (agreeing == c).sum() / agreeing.numel()
        mean.register_hook(lambda gradient, scale=scale: gradient * scale)
    loss = distance_loop(list(means.values()), list(means), anchors)
    loss.backward()
    return loss.detach(), features.grad


def our_class_means(image: Image, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature vectors [1, K, D] and the pixels of each class [1, K]."""
    sums, counts = class_sums(image.features, image.labels, num_classes)
    return sums / counts.clamp(min=1)[..., None], counts


def our_distance_loss(image: Image, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The distance loss and its gradient."""
    features = image.features.detach().requires_grad_()
    loss = distance_loss(features, image.logits, image.labels, anchors, min_pixels=MIN_PIXELS)
    loss.backward()
    return loss.detach(), features.grad


def make_kernels(anchors: Tensor) -> list[Kernel]:
    """The three kernels, with their targets and the published times for the same work."""
    num_classes = len(anchors)
    return [
        Kernel(
            "pseudo-labels",
            lambda image: loop_pseudo_labels(image, anchors),
            lambda image: by_anchor(image.features, anchors, MARGIN),
            *(0.015, "arithmetic, then passes over blocks in cache", 0.80, 0.038),
        ),
        Kernel(
            "class means",
            lambda image: loop_class_means(image.features, image.labels, num_classes),
            lambda image: our_class_means(image, num_classes),
            *(0.006, "arithmetic, then reordering the features for it", 0.079, 0.014),
        ),
        Kernel(
            "class means, distance loss, forward and backward",
            lambda image: loop_distance_loss(image, anchors),
            lambda image: our_distance_loss(image, anchors),
            *(0.025, "class means, then writing the gradient", 0.94, 0.041),
        ),
    ]


def check_labels(
    name: str, labels: Callable[[Image], Tensor], images: Images, anchors: Tensor, limit: float
) -> str:
    """Describe the differences between `labels` and `by_anchor`.

    Raises UserError if a label differs whose margin is more than `limit` from the threshold.
    """
    distances = []
    for image in images:
        differ = labels(image) != by_anchor(image.features, anchors, MARGIN)
        _, margins = anchor_margins(image.features, anchors)
        distances += (margins[differ] - MARGIN).abs().tolist()
    farthest = max(distances, default=0.0)
    if farthest > limit:
        raise UserError(f"{name}: a label differs, its margin {farthest:.1e} from the threshold")
    return (
        f"{name}: {len(distances)} of {len(images) * HEIGHT * WIDTH} labels differ, their margin "
        f"at most {farthest:.1e} from the threshold (allowed: {limit})"
    )


def check_equal(kernels: Sequence[Kernel], images: Images) -> str:
    """Describe the rounding differences in means, losses, gradients; a UserError beyond that."""
    _, means, losses = kernels
    worst = {"class means": 0.0, "loss": 0.0, "gradient": 0.0}
    for image in images:
        expected, (values, counts) = means.loop(image), means.ours(image)
        if list(expected) != (counts[0] >= MIN_PIXELS).nonzero().flatten().tolist():
            raise UserError("class means: the classes differ")
        pairs = [("class means", values[0, c], mean) for c, mean in expected.items()]
        pairs += zip(("loss", "gradient"), losses.ours(image), losses.loop(image), strict=True)
        for name, ours, loop in pairs:
            error = ((ours - loop).abs().max() / loop.abs().max()).item()
            worst[name] = max(worst[name], error)
    errors = ", ".join(f"{name} {error:.0e}" for name, error in worst.items())
    if max(worst.values()) > ROUNDING:
        raise UserError(f"results differ: {errors}, as shares of the greatest value")
    return f"greatest difference as a share of the greatest value: {errors}"


def measure(kernels: Sequence[Kernel], images: Images, runs: int) -> list[dict[str, str]]:
    """Rows of the table: CPU seconds of each kernel, its loop and a read of the features, in turn.

    CPU time leaves out other programs' use of the CPU.
    """
    rows, reads = [], []
    for kernel in kernels:
        turn = cycle(images)  # each call gets another image, no longer in the cache
        functions = (lambda image: image.features.sum(), kernel.loop, kernel.ours)
        calls = [lambda f=function, turn=turn: f(next(turn)) for function in functions]
        read, loop, ours = alternating_seconds(calls, runs, 1, time.process_time)
        reads.append(read)
        times = (f"{loop:.4f}", f"{ours:.4f}", f"{loop / ours:.1f}", f"{kernel.target:.3f}")
        rows.append([kernel.name, *times, f"{ours / read:.1f}", kernel.bound])
    read = f"{statistics.median(reads):.4f}"
    rows.append(["reading the features", "", read, "", "", "1.0", "memory"])
    header = ["kernel", "plain loop, s", "ours, s", "ratio", "target, s", "reads", "bound by"]
    return [dict(zip(header, row, strict=True)) for row in rows]


@click.command(help=__doc__)
@click.option("--runs", default=11, show_default=True, help="Of each kernel, for the medians.")
def main(runs: int) -> None:
    """Check and print."""
    torch.set_num_threads(1)
    anchors = np.load(GOLDEN / "anchors.npy")
    images, anchors = make_images(anchors), torch.from_numpy(anchors)
    kernels, (num_classes, channels) = make_kernels(anchors), anchors.shape
    megabytes = f"{images[0].features.nbytes / 1e6:.0f} MB"
    print(f"{machine(torch.device('cpu'))}, 1 thread\n")
    print(
        f"One image of features {channels} x {HEIGHT} x {WIDTH} in float32 ({megabytes}), "
        f"{num_classes} classes; {IMAGES} images in turn, medians of {runs} alternating runs.\n"
    )

    def half(image: Image) -> Tensor:
        return by_anchor(image.features.half(), anchors, MARGIN)

    notes = [
        check_labels("plain loop", kernels[0].loop, images, anchors, ROUNDING),
        check_labels("features in float16", half, images, anchors, HALF_ROUNDING),
        check_equal(kernels, images),
    ]
    print(table(measure(kernels, images, runs)))
    flops = 2 * num_classes * channels * HEIGHT * WIDTH
    rate = matrix_rate("float32", torch.device("cpu"), 512)
    notes += [
        "s: seconds of CPU time, for an image",
        f"reads: multiples of the time to read the features once, {megabytes} from memory",
        f"the product of features and classes, {flops / 1e9:.2f} GFLOP, takes {flops / rate:.4f} s "
        f"at the {rate / 1e9:.0f} GFLOP/s of a large square one",
    ]
    print("", *(f"- {note}" for note in notes), "", sep="\n")
    rows = [(k.name, f"{k.released:.3f}", f"{k.vectorised:.3f}") for k in kernels]
    header = ("published, another 2-core CPU", "released code, s", "vectorised, s")
    rows.append(("reading the features", "", "0.0023"))
    print(table([dict(zip(header, row, strict=True)) for row in rows]))


if __name__ == "__main__":
    run(main)
