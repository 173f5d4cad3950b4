"""Time the anchor-guided kernels on one CPU thread beside plain loops over the classes.

Both give the same results, which is checked first. Features are scattered around the anchors in
tests/golden, 256 x 128 x 224 an image and 19 classes; the images are taken in turn, more of them
than a CPU's cache holds. Exit status 1: results differ.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cag.anchors import class_sums
from cag.datasets.labels import IGNORE
from cag.losses import distance_loss
from cag.pseudo_labels import anchor_margins, by_anchor
from cag.runtime.program import cpu_name, run

ANCHORS = Path(__file__).resolve().parents[1] / "tests/golden/anchors.npy"
HEIGHT, WIDTH = 128, 224
IMAGES = 4  # of 29 MB
MARGIN, MIN_PIXELS = 2.5, 10
MARGIN_ROUNDING = 1e-4  # float32 distances of 10 have an error of about 1e-6 each
HALF_ROUNDING = 1e-2  # float16 features have 11 bits


class Image(NamedTuple):
    """Features [1, D, h, w], logits [1, K, h, w] and labels uint8 [1, h, w] of an image."""

    features: Tensor
    logits: Tensor
    labels: Tensor


class Kernel(NamedTuple):
    """Two ways to compute the same, and what is known of it."""

    name: str
    loop: Callable[[Image], object]
    ours: Callable[[Image], object]
    target: float  # s
    bound: str
    released: float  # s, published, as is the next
    vectorised: float


def make_image(anchors: Tensor, seed: int) -> Image:
    """Features as after a ReLU, from on an anchor to half-way to another, with noise."""
    random = torch.Generator().manual_seed(seed)
    num_classes, width = anchors.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(HEIGHT, WIDTH, 1, generator=random)

    def classes(*size: int) -> Tensor:
        return torch.randint(num_classes, size, generator=random)

    rows, columns = torch.arange(HEIGHT) * 5 // HEIGHT, torch.arange(WIDTH) * 7 // WIDTH
    own = classes(5, 7)[rows[:, None], columns]  # [h, w]
    own = torch.where(uniform(0, 1)[..., 0] < 0.05, classes(HEIGHT, WIDTH), own)
    share = uniform(0, 0.5) * (uniform(0, 1) > 0.35)
    features = anchors[own].lerp(anchors[classes(HEIGHT, WIDTH)], share)
    noise = torch.randn(features.shape, generator=random)
    features = (features + uniform(0.05, 0.55) * noise).relu()  # [h, w, D]
    predicted = torch.where(uniform(0, 1)[..., 0] < 0.2, classes(HEIGHT, WIDTH), own)
    logits = torch.randn(HEIGHT, WIDTH, num_classes, generator=random)
    logits += uniform(1, 11) * F.one_hot(predicted, num_classes)
    labels = own.masked_fill(uniform(0, 1)[..., 0] < 0.06, IGNORE).to(torch.uint8)
    maps = (tensor.permute(2, 0, 1)[None].contiguous() for tensor in (features, logits))
    return Image(*maps, labels[None])


def loop_pseudo_labels(image: Image, anchors: Tensor) -> Tensor:
    """The anchor rule: a norm for each class, the minimum, and the minimum without it."""
    norms = [(image.features - anchor[:, None, None]).norm(dim=1) for anchor in anchors]
    distances = torch.stack(norms, dim=1)  # [1, K, h, w]
    first, nearest = distances.min(dim=1, keepdim=True)
    second = distances.scatter_(1, nearest, 1e4).amin(dim=1, keepdim=True)
    active = second - first >= MARGIN
    return nearest.masked_fill(~active, IGNORE).to(torch.uint8)[:, 0]


def loop_class_means(image: Image, labels: Tensor, num_classes: int) -> dict[int, Tensor]:
    """Mean feature vector [D] of each class that has enough pixels in the image."""
    means = {}
    for c in range(num_classes):
        mask = labels[0] == c
        if mask.sum() >= MIN_PIXELS:
            means[c] = image.features[0][:, mask].mean(dim=1)
    return means


def loop_distance_loss(image: Image, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The released code's distance loss, class by class, and its gradient."""
    features = image.features.detach().requires_grad_()
    prediction = image.logits.argmax(dim=1)
    labels = torch.where(prediction == image.labels, image.labels, IGNORE)
    means = loop_class_means(image._replace(features=features), labels, len(anchors))
    total = torch.zeros(())
    for c, mean in means.items():
        scale = 2 * (labels == c).sum() / labels.numel()
        mean.register_hook(lambda gradient, scale=scale: gradient * scale)
        term = F.smooth_l1_loss(mean, anchors[c])
        while term > 5:
            term = term / 10
        total = total + term
    loss = 10 * total / max(len(means), 1)
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
            lambda image: loop_class_means(image, image.labels, num_classes),
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


def check_equal(kernels: Sequence[Kernel], images: Sequence[Image], anchors: Tensor) -> list[str]:
    """Compare both ways on all images; say how far they differ.

    Raises:
        SystemExit: They differ by more than rounding.
    """
    labels, means, losses = kernels
    pixels, margin, mean_error, loss_error, gradient_error = 0, 0.0, 0.0, 0.0, 0.0
    for image in images:
        differ = labels.loop(image) != labels.ours(image)
        pixels += int(differ.sum())
        margin = max(margin, _from_threshold(image, anchors, differ))
        found, counts = means.ours(image)
        expected = means.loop(image)
        if list(expected) != (counts[0] >= MIN_PIXELS).nonzero().flatten().tolist():
            raise SystemExit("class means: the classes differ")
        for c, mean in expected.items():
            mean_error = max(mean_error, _error(found[0, c], mean))
        (loss, gradient), (own_loss, own_gradient) = losses.loop(image), losses.ours(image)
        loss_error = max(loss_error, _error(own_loss, loss))
        gradient_error = max(gradient_error, _error(own_gradient, gradient))
    if margin > MARGIN_ROUNDING or max(mean_error, loss_error, gradient_error) > 1e-4:
        raise SystemExit(
            f"results differ: {pixels} labels (margin {margin:.1e} from the threshold), means "
            f"{mean_error:.1e}, loss {loss_error:.1e}, gradient {gradient_error:.1e}"
        )
    return [
        f"labels: {pixels} of {len(images) * HEIGHT * WIDTH} pixels differ"
        + (f", their margin at most {margin:.0e} from the threshold" if pixels else ""),
        f"greatest difference as a share of the greatest value: class means {mean_error:.0e}, "
        f"loss {loss_error:.0e}, gradient {gradient_error:.0e}",
    ]


def check_half(images: Sequence[Image], anchors: Tensor) -> str:
    """Compare the labels of features in float16, as they are stored, with those in float32.

    Raises:
        SystemExit: A label differs whose margin is not close to the threshold.
    """
    pixels, margin = 0, 0.0
    for image in images:
        labels = by_anchor(image.features, anchors, MARGIN)
        differ = by_anchor(image.features.half(), anchors, MARGIN) != labels
        pixels += int(differ.sum())
        margin = max(margin, _from_threshold(image, anchors, differ))
    if margin > HALF_ROUNDING:
        raise SystemExit(f"float16: a label differs, its margin {margin:.1e} from the threshold")
    return (
        f"features in float16: {pixels} of {len(images) * HEIGHT * WIDTH} labels differ, their "
        f"margin at most {margin:.1e} from the threshold (allowed: {HALF_ROUNDING})"
    )


def _from_threshold(image: Image, anchors: Tensor, pixels: Tensor) -> float:
    """How far the margin of these pixels bool [1, h, w] is from the threshold, at most."""
    _, margins = anchor_margins(image.features, anchors)
    return (margins[pixels] - MARGIN).abs().max().item() if pixels.any() else 0.0


def _error(found: Tensor, expected: Tensor) -> float:
    """Greatest difference, as a share of the greatest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def alternating_seconds(
    functions: Sequence[Callable[[], object]], count: int, warm_up: int
) -> list[float]:
    """Median CPU time of each function, called in turn: what else runs slows all alike.

    Of one thread it is the duration, less the time in which the CPU was another program's.
    """
    times = [[_elapsed(function) for function in functions] for _ in range(warm_up + count)]
    return [statistics.median(own) for own in zip(*times[warm_up:], strict=True)]


def _elapsed(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def product_rate(count: int, size: int = 512) -> float:
    """FLOP/s of a product of two square float32 matrices."""
    a, b = torch.randn(2, size, size)
    (duration,) = alternating_seconds([lambda: a @ b], count, 2)
    return 2 * size**3 / duration


def machine() -> str:
    """CPU, cores, threads and torch in one line."""
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {os.cpu_count()} cores, {threads} thread, torch {torch.__version__}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns line up; all but the first are aligned to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def measure(kernels: Sequence[Kernel], images: Sequence[Image], runs: int) -> list[list[str]]:
    """Rows of the table: each kernel's times, in turn with its loop's and a read's."""
    rows, reads = [], []
    for kernel in kernels:
        turn = cycle(images)  # each call gets another image, which has left the cache

        def read(turn=turn):
            return next(turn).features.sum()

        def loop(turn=turn, kernel=kernel):
            return kernel.loop(next(turn))

        def ours(turn=turn, kernel=kernel):
            return kernel.ours(next(turn))

        once, plain, own = alternating_seconds([read, loop, ours], runs, 1)
        reads.append(once)
        times = [f"{plain:.4f}", f"{own:.4f}", f"{plain / own:.1f}", f"{kernel.target:.3f}"]
        rows.append([kernel.name, *times, f"{own / once:.1f}", kernel.bound])
    once = statistics.median(reads)
    return [*rows, ["reading the features", "", f"{once:.4f}", "", "", "1.0", "memory"]]


@click.command(help=__doc__)
@click.option("--runs", default=11, show_default=True, help="Of which medians are taken.")
def main(runs: int) -> None:
    """Check and print."""
    torch.set_num_threads(1)
    anchors = torch.from_numpy(np.load(ANCHORS))
    images = [make_image(anchors, seed) for seed in range(IMAGES)]
    kernels = make_kernels(anchors)
    num_classes, channels = anchors.shape
    size = images[0].features.nbytes / 1e6
    print(machine())
    print(
        f"\nOne image of features {channels} x {HEIGHT} x {WIDTH} in float32 ({size:.0f} MB), "
        f"{num_classes} classes; {IMAGES} images in turn, medians of {runs} alternating runs.\n"
    )
    checks = [*check_equal(kernels, images, anchors), check_half(images, anchors)]
    header = ["kernel", "plain loop, s", "ours, s", "ratio", "target, s", "reads", "bound by"]
    print(table(header, measure(kernels, images, runs)))
    print()
    flops = 2 * num_classes * channels * HEIGHT * WIDTH
    rate = product_rate(runs)
    print("- s: seconds of CPU time, for an image")
    print(f"- reads: multiples of the time to read the features once, {size:.0f} MB from memory")
    print(
        f"- the product of features and classes, {flops / 1e9:.2f} GFLOP, takes "
        f"{flops / rate:.4f} s at the {rate / 1e9:.0f} GFLOP/s of a large square one"
    )
    for line in checks:
        print(f"- {line}")
    print()
    published = [[k.name, f"{k.released:.3f}", f"{k.vectorised:.3f}"] for k in kernels]
    published.append(["reading the features", "", "0.0023"])
    print(table(["published, another 2-core CPU", "released code, s", "vectorised, s"], published))


if __name__ == "__main__":
    run(main)
