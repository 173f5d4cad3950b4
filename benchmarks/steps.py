"""One adaptation step in several forms, from the released code's form to ours.

The released form of the pseudo-labels and the losses (docs/method.md): a distance map for each
class, a masked mean for each image and class, and values read back from the device in between. Its
monitoring, which also copies label maps to the host, is left out.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import update_bn

from cag.adaptation import student_objective
from cag.anchors import resize_labels
from cag.config.networks import Network
from cag.config.parameters import Parameters
from cag.datasets.labels import IGNORE
from cag.losses import AdaptationLosses
from cag.networks import NetworkOutput, SegmentationNetwork, build
from cag.project.dry_run import flop_counter
from cag.training.objectives import Batch, DomainBatch, make_optimizer

CLASSES = 19
RELEASED = "as released"


@dataclass(frozen=True)
class Form:
    """The implementation of a step."""

    name: str
    cached_labels: bool = False  # else the teacher labels in each step
    vectorised: bool = False  # losses without loops over images and classes
    tf32: bool = False
    channels_last: bool = False
    bf16: bool = False
    fused: bool = False  # optimizer
    cudnn_benchmark: bool = False
    compiled: bool = False  # network
    online: bool = False  # the teacher is the mean of the student's weights; with class mixing

    @property
    def precision(self) -> str:
        """One of `measure.PRECISIONS`, of the network's matrix products."""
        return "bf16" if self.bf16 else "TF32" if self.tf32 else "float32"


def ladder(rungs: Mapping[str, str]) -> Iterator[Form]:
    """The released form, then a form for each rung: its name, and the field that it switches on."""
    form = Form(RELEASED)
    yield form
    for name, field in rungs.items():
        form = replace(form, name=name, **{field: True})
        yield form


class Problem(NamedTuple):
    """Random inputs of a step, on the device."""

    params: Parameters
    teacher: SegmentationNetwork  # in eval mode
    anchors: Tensor  # [K, D] float32
    margin: float  # anchor rule's threshold
    threshold: float  # probability rule's threshold
    batch: Batch  # target labels: the teacher's, at the images' size


def random_problem(params: Parameters, device: torch.device) -> Problem:
    """A problem like a trained network's, though its weights are random.

    The network predicts every class somewhere; each rule labels half of the target's pixels.
    """
    torch.manual_seed(0)
    config = params.adapt
    size = (config.batch_size, 3, *config.augmentation.crop)
    source, target = (torch.rand(size, device=device) for _ in range(2))
    teacher = random_network(params.network, source, target)
    with torch.no_grad():
        teacher.classifier.bias -= teacher(target).logits.mean(dim=(0, 2, 3))
        features, logits = teacher(target)
    pixels = torch.randint(features[:, 0].numel(), (CLASSES,), device=device)
    anchors = features.movedim(1, -1).flatten(0, 2)[pixels]  # (K, D)
    first, second = anchor_distance_loop(features, anchors)[1:]
    margin = (second - first).median().item()
    threshold = logits.softmax(dim=1).amax(dim=1).median().item()
    maps = released_labels(features, logits, anchors, margin, threshold)
    maps = [resize_labels(labels, size[2:], align_corners=True) for labels in maps]
    labels = torch.stack(maps, dim=1).byte()  # (B, 2, H, W)
    blocks = torch.randint(CLASSES + 1, (size[0], 5, 7), device=device)
    blocks = blocks.masked_fill(blocks == CLASSES, IGNORE).byte()  # one in twenty has no label
    source_labels = resize_labels(blocks, size[2:])[:, None]
    batch = Batch(DomainBatch(source, source_labels), DomainBatch(target, labels))
    return Problem(params, teacher, anchors, margin, threshold, batch)


def random_network(config: Network, *images: Tensor) -> SegmentationNetwork:
    """A random network in eval mode; the images' statistics keep its values within float16."""
    network = build(config, CLASSES).to(images[0].device)
    update_bn(images, network)
    return network.eval()


class Step:
    """A training step of one form, repeatable."""

    def __init__(self, problem: Problem, form: Form, backend: str = "inductor"):
        self.problem, self.form = problem, form
        config = problem.params.adapt
        if not form.online:
            config = config.model_copy(update={"teacher": "cached", "class_mix": 0.0})
        network = copy.deepcopy(problem.teacher)
        if form.compiled:
            network.compile(backend=backend)
        weights = torch.ones(CLASSES) if config.class_balance > 0 else None
        sections = problem.params.anchors, problem.params.pseudo_label
        objective = student_objective(network, problem.anchors, config, weights, *sections)
        self.objective = objective.to(problem.anchors.device).train()
        self.batch = problem.batch
        if form.channels_last:
            self.objective.to(memory_format=torch.channels_last)
            self.batch = in_channels_last(self.batch)
        self.optimizer = make_optimizer(network, config)
        for group in self.optimizer.param_groups:
            group["fused"] = form.fused or None  # None: what torch chooses, on a GPU foreach

    def __call__(self, batch: Batch | None = None) -> Tensor:
        """Forward, backward, update; returns the loss on the device. Default: problem's batch."""
        batch = batch or self.batch
        with torch.autocast(self.problem.anchors.device.type, torch.bfloat16, self.form.bf16):
            loss = self.objective(batch)[0] if self.form.vectorised else self._loop_loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step()
        if not self.form.vectorised:
            loss.item()  # the released step returns a number
        return loss.detach()

    def _loop_loss(self, batch: Batch) -> Tensor:
        (source_images, source_labels), (target_images, target_labels) = batch
        problem, network = self.problem, self.objective.network
        source = network(source_images)
        if self.form.cached_labels:
            size = source.logits.shape[2:]
            labels = [resize_labels(m, size, align_corners=True) for m in target_labels.unbind(1)]
        else:
            with torch.no_grad():
                teacher = problem.teacher(target_images)
            labels = released_labels(*teacher, problem.anchors, problem.margin, problem.threshold)
        domains = source, source_labels[:, 0], network(target_images), *labels
        options = problem.params.adapt.distance_weight, problem.params.anchors.min_pixels
        return released_losses(*domains, problem.anchors, *options).total


def in_channels_last(batch: Batch) -> Batch:
    """A batch with its images stored channels last."""
    last = torch.channels_last
    return Batch(*(DomainBatch(x.contiguous(memory_format=last), labels) for x, labels in batch))


def network_flops(
    config: Network, height: int, width: int, backward: bool = False
) -> tuple[int, torch.Size]:
    """FLOP of convolutions and matrix products on an image, 2 for a multiply-add; and D, h, w."""
    with torch.device("meta"):
        network = build(config, CLASSES).eval()
        images = torch.empty(1, 3, height, width)
    with flop_counter() as counter, torch.set_grad_enabled(backward):
        output = network(images)
        if backward:
            (output.features.sum() + output.logits.sum()).backward()
    return counter.get_total_flops(), output.features.shape[1:]


def anchor_distance_loop(features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest anchor int64 [B, h, w], distances to it and to the second: a norm for each class.

    Features float [B, D, h, w], anchors float [K, D]; distances must be below 100, as released.
    """
    maps = [torch.norm(anchor[:, None, None] - features, dim=1) for anchor in anchors]
    distances = torch.stack(maps, dim=1)  # (B, K, h, w)
    first, nearest = distances.min(dim=1, keepdim=True)
    distances.scatter_(1, nearest, 100)
    return nearest[:, 0], first[:, 0], distances.min(dim=1).values


def released_labels(
    features: Tensor, logits: Tensor, anchors: Tensor, margin: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Labels int64 [B, h, w] of the anchor rule and of the probability rule, 255 = none."""
    nearest, first, second = anchor_distance_loop(features, anchors)
    nearest[second - first < margin] = IGNORE
    probabilities = F.softmax(logits, dim=1)
    for c in range(len(anchors)):
        probabilities[:, c] = torch.where(probabilities[:, c] > threshold, 1.0, 0.0)
    others = torch.full_like(probabilities[:, :1], 0.2)
    confident = torch.cat([probabilities, others], dim=1).argmax(dim=1)
    confident[confident == len(anchors)] = IGNORE
    return nearest, confident


def released_losses(
    source: NetworkOutput,
    source_labels: Tensor,
    target: NetworkOutput,
    anchor_labels: Tensor,
    probability_labels: Tensor,
    anchors: Tensor,
    distance_weight: float,
    min_pixels: int,
) -> AdaptationLosses:
    """The losses of `cag.losses.adaptation_loss` by loops over images and classes.

    Source labels have the images' size, the others the features'.
    """
    size = source_labels.shape[1:]
    upsampled = F.interpolate(source.logits, size, mode="bilinear", align_corners=True)
    source_ce = _cross_entropy(upsampled, source_labels)
    maps = (anchor_labels, probability_labels)
    target_ce = sum(_cross_entropy(target.logits, labels) for labels in maps) / 2
    small = F.interpolate(source_labels[:, None].float(), source.logits.shape[2:], mode="nearest")
    distances = [
        distance_loop(*class_vectors(*output, labels, len(anchors), min_pixels), anchors)
        for output, labels in ((source, small[:, 0]), (target, anchor_labels))
    ]
    total = source_ce + target_ce + distance_weight * sum(distances)
    return AdaptationLosses(total, source_ce, target_ce, *distances)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.long()
    labels = torch.where(labels < logits.shape[1], labels, IGNORE)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


def class_vectors(
    features: Tensor, logits: Tensor, labels: Tensor, num_classes: int, min_pixels: int
) -> tuple[list[Tensor], list[int]]:
    """Mean features [D] of each image and class where prediction and label agree; their classes.

    A pixel's gradient is 2 / (h w) times the mean's.
    """
    prediction = F.softmax(logits, dim=1).argmax(dim=1)
    vectors, classes = [], []
    for image, c in product(range(len(features)), range(num_classes)):
        chosen = (prediction[image] == c) & (labels[image] == c)  # (h, w)
        if chosen.sum() >= min_pixels:  # waits for the device
            mean = (features[image] * chosen).mean(dim=(1, 2)) / chosen.float().mean()
            scale = 2 * chosen.float().mean()
            vectors.append(mean.detach() + (mean - mean.detach()) * scale)
            classes.append(c)
    return vectors, classes


def distance_loop(vectors: list[Tensor], classes: list[int], anchors: Tensor) -> Tensor:
    """The distance loss of mean features [D] and their classes, as released."""
    total = torch.zeros((), device=anchors.device)
    for vector, c in zip(vectors, classes, strict=True):
        term = F.smooth_l1_loss(vector, anchors[c])
        while term.item() > 5:
            term = term / 10
        total = total + term
    return 10 * total / max(len(vectors), 1)
