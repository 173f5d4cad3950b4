"""Measures of a model on unlabelled images: which of two models is better, without labels."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.transforms.v2 import functional as colours

from cag.anchors import AnchorMean, agreeing_labels, class_sums, resize_labels
from cag.config.watch import MEASURES, Watch
from cag.datasets.labels import IGNORE
from cag.datasets.prepared import PreparedImages, evenly_spaced
from cag.networks import Model, SegmentationNetwork, load_model
from cag.prediction import ImageBatch, image_batches, predict
from cag.pseudo_labels import anchor_distances, relative_margins
from cag.runtime.errors import UserError
from cag.runtime.progress import Progress, progress
from cag.runtime.seeds import mix

MEASURE = "information"  # the one that `regressed` compares
BATCH_SIZE = 4
LEAST = 0.005  # of a fall of MEASURE that counts: images and rounding move it a little
SURE = 0.9  # the probability above which a pixel is covered
PIXELS = 2000  # that the neighbourhood density compares with one another
TEMPERATURE = 0.05  # of the neighbourhood density
CHANGES = ((0.7, 0.8, 1.3), (1.3, 1.2, 0.8))  # brightness, contrast, gamma: darker, lighter
MAPS = tuple(name for name, measure in MEASURES.items() if measure.per_class)


class Watched(NamedTuple):
    """The measures of a model."""

    numbers: dict[str, float]  # by the names of MEASURES; NaN where one is not defined
    per_class: pd.DataFrame  # [K] pixels so predicted, share, source_share, MAPS on these pixels


class Verdict(NamedTuple):
    """The model that a round keeps, and why; all but `kept` is None if nothing was measured."""

    kept: Literal["student", "teacher"] = "student"  # teacher: the model that it started from
    regressed: bool | None = None
    measure: str | None = None  # one of MEASURES, of which the next two are the values
    teacher: float | None = None
    student: float | None = None


def entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """The entropy of float [..., K, ...] along a dimension, in [0, 1]; 1: all K are equal."""
    return torch.special.entr(probabilities).sum(dim) / math.log(probabilities.shape[dim])


def divergence(first: Tensor, second: Tensor) -> float:
    """The Jensen-Shannon divergence of two distributions, in [0, 1], to the base 2.

    They are given as counts or shares [K]; NaN if one is all zeros.
    """
    both = torch.stack([first, second]).double()
    both = both / both.sum(1, keepdim=True)
    entropies = torch.special.entr(torch.cat([both.mean(0, keepdim=True), both])).sum(1)
    return float(entropies[0] - entropies[1:].mean()) / math.log(2)


def neighbourhood_density(probabilities: Tensor, temperature: float = TEMPERATURE) -> float:
    """The soft neighbourhood density of points, in [0, log(n - 1)] nats.

    The mean entropy of each point's similarities to the others, their softmax (Saito et al., "Tune
    it the right way", ICCV 2021, equations 1 to 3). Takes probabilities float [n, K] of n > 1
    pixels; the similarity is the cosine.
    """
    points = F.normalize(probabilities.float(), dim=1)
    similarity = (points @ points.T / temperature).fill_diagonal_(-math.inf)  # [n, n]
    return float(torch.special.entr(similarity.softmax(1)).sum(1).mean())


def recoloured(images: Tensor, brightness: float, contrast: float, gamma: float) -> Tensor:
    """Images uint8 [B, 3, H, W] after changes by factors and an exponent, 1 = none, in order."""
    images = colours.adjust_brightness(images, brightness)
    return colours.adjust_gamma(colours.adjust_contrast(images, contrast), gamma)


def two_rules(features: Tensor, prediction: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Where the nearest anchor is the prediction, and the relative margin; float32 [B, h, w].

    Features float [B, D, h, w], prediction integer [B, h, w], anchors float [K, D], a row of NaN
    for a class without one. Both are NaN with fewer than two anchors.
    """
    if (~anchors.isnan().any(1)).sum() < 2:
        nothing = torch.full(prediction.shape, math.nan, device=prediction.device)
        return nothing, nothing
    nearest, *distances = anchor_distances(features, anchors)
    return (nearest == prediction).float(), relative_margins(*distances)


def class_totals(maps: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Sums of maps float [M, ...] over the pixels of each class, integer [...]; float64 [M, K]."""
    totals = torch.zeros(len(maps), num_classes, dtype=torch.float64, device=maps.device)
    return totals.index_add_(1, prediction.flatten().long(), maps.flatten(1).double())


@torch.inference_mode()
def watch(
    network: SegmentationNetwork,
    source: PreparedImages,
    target: PreparedImages,
    config: Watch,
    seed: int,
    fabric: Fabric,
    advance: Progress,
    teacher: SegmentationNetwork | None = None,
) -> Watched:
    """Measure a network, at the size of its logits. No label of the target is opened.

    At most `config.images` of the labelled source give the anchors and class shares; as many of the
    target are measured. `advance` counts both. The network is in eval mode on the fabric's device.
    The seed draws the pixels of the neighbourhood density. Without the teacher, the network that
    it started from, with which it shares the size of the logits, their agreement is NaN.
    """
    batches = (_batches(images, config, fabric, advance) for images in (source, target))
    anchors, source_pixels = _read_source(network, next(batches), fabric)
    per_image = max(1, PIXELS // min(config.images, len(target)))
    totals, pixels, mean, sample = 0, 0, 0, []
    for batch in next(batches):
        output = predict(network, batch.images, fabric)
        probabilities = output.logits.float().softmax(1)  # [B, K, h, w]
        probability, prediction = probabilities.max(1)
        others = _consistency(network, batch.images, prediction, fabric)
        like_teacher = _teacher_agreement(teacher, batch.images, prediction, fabric)
        rules = two_rules(output.features, prediction, anchors)
        sure = probability > SURE
        maps = (*rules, probability, sure, entropy(probabilities), *others, like_teacher)
        totals = totals + class_totals(torch.stack(maps), prediction, network.num_classes)
        pixels = pixels + torch.bincount(prediction.flatten(), minlength=network.num_classes)
        mean = mean + probabilities.double().sum((0, 2, 3))
        for index, image in zip(batch.indices, probabilities.flatten(2).cpu(), strict=True):
            draws = torch.Generator().manual_seed(mix(seed, index))
            sample.append(image[:, torch.randperm(image.shape[1], generator=draws)[:per_image]])
    numbers = dict(zip(MAPS, (totals.sum(1) / pixels.sum()).tolist(), strict=True))
    numbers["information"] = float(entropy(mean / pixels.sum(), 0)) - numbers["entropy"]
    numbers["share_divergence"] = divergence(pixels, source_pixels)
    numbers["neighbourhood_density"] = neighbourhood_density(torch.cat(sample, 1).T)
    counts = {"share": pixels, "source_share": source_pixels}
    columns = {"pixels": pixels, **{key: part / part.sum() for key, part in counts.items()}}
    columns |= dict(zip(MAPS, totals / pixels, strict=True))
    return Watched(numbers, pd.DataFrame({key: part.cpu() for key, part in columns.items()}))


def regressed(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> str | None:
    """Whether a model is worse than the one before it, by MEASURE of both: one line, or None.

    It is if the measure gets worse by more than LEAST. None also where one of both is not known.
    """
    first, second = (math.nan if m.get(MEASURE) is None else m[MEASURE] for m in (before, after))
    if not MEASURES[MEASURE].better * (second - first) < -LEAST:
        return None
    change = f"{MEASURE.replace('_', ' ')} went from {first:.4f} to {second:.4f}"
    return f"{change} on the unlabelled target: the new model looks worse than the one before"


def kept_model(
    before: Path,
    after: Model,
    action: str,
    folders: tuple[Path, Path],
    config: Watch,
    seed: int,
    fabric: Fabric,
) -> tuple[Model, Verdict]:
    """The model that a round keeps: `after`, its student, unless it has `regressed` from `before`.

    Then the action "keep_teacher" gives the model of the file `before`, "warn" prints a warning,
    and "stop" is a UserError; "ignore" measures nothing, nor do processes but the first. The
    folders are the prepared source and target.
    """
    if action == "ignore" or not fabric.is_global_zero:
        return after, Verdict()
    first = load_model(before, after.classes)
    domains = [PreparedImages(f, "train", with_labels=f == folders[0]) for f in folders]
    numbers, count = [], 2 * sum(min(config.images, len(images)) for images in domains)
    with progress("watch teacher and student", count, "images") as advance:
        for model in (first, after):
            network = model.network.eval().to(fabric.device, memory_format=torch.channels_last)
            numbers.append(watch(network, *domains, config, seed, fabric, advance).numbers)
    reason = regressed(*numbers)
    values = MEASURE, *(measured[MEASURE] for measured in numbers)
    if reason is None:
        return after, Verdict("student", False, *values)
    if action == "stop":
        remedy = "set it to warn, which keeps the new model, or to keep_teacher, and run again"
        reason = f"{reason}; adapt.on_regression is stop: {remedy}"
        raise UserError(f"{reason} (no step of the training is made again)")
    print(f"warning: {reason}", file=sys.stderr)
    if action == "keep_teacher":
        return first, Verdict("teacher", True, *values)
    return after, Verdict("student", True, *values)


def _batches(
    images: PreparedImages, config: Watch, fabric: Fabric, advance: Progress
) -> Iterator[ImageBatch]:
    batches = images.batches(BATCH_SIZE, evenly_spaced(len(images), config.images))
    with closing(image_batches(images, batches, fabric.device)) as read:
        for batch in advance.waiting(read):
            yield batch
            advance(len(batch.indices))


def _read_source(
    network: SegmentationNetwork, batches: Iterator[ImageBatch], fabric: Fabric
) -> tuple[Tensor, Tensor]:
    """Anchors float32 [K, D] of correctly predicted pixels, and the labelled pixels int64 [K]."""
    mean, count = AnchorMean("pixels"), network.num_classes
    labelled = torch.zeros(count, dtype=torch.int64, device=fabric.device)
    for batch in batches:
        features, logits = predict(network, batch.images, fabric)
        labels = resize_labels(torch.stack(batch.labels), logits.shape[2:]).to(fabric.device)
        mean.update(*class_sums(features, agreeing_labels(labels, logits), count))
        labelled += torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:count]
    return mean.compute(), labelled


def _consistency(
    network: SegmentationNetwork, images: Tensor, prediction: Tensor, fabric: Fabric
) -> tuple[Tensor, Tensor]:
    """The share of other views predicted as the images are, float32 [B, h, w]: flip, colour."""
    flipped = predict(network, images.flip(3), fabric).logits.flip(3).argmax(1) == prediction
    changed = [
        predict(network, recoloured(images, *change), fabric).logits.argmax(1) == prediction
        for change in CHANGES
    ]
    return flipped.float(), torch.stack(changed).float().mean(0)


def _teacher_agreement(
    teacher: SegmentationNetwork | None, images: Tensor, prediction: Tensor, fabric: Fabric
) -> Tensor:
    """Where a teacher predicts the same, float32 [B, h, w]; NaN without one."""
    if teacher is None:
        return torch.full(prediction.shape, math.nan, device=prediction.device)
    return (predict(teacher, images, fabric).logits.argmax(1) == prediction).float()
