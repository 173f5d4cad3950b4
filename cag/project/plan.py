"""What a run of the pipeline will take: disk, steps, images, FLOP, memory and time of each stage.

Only shapes are computed, and the files of a few images. `TASKS` says what each stage does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import Tensor, nn

from cag.batch_norm import IMAGES as IMAGES_OF_STATISTICS
from cag.batch_norm import spread
from cag.config.base import DOMAINS
from cag.config.parameters import Parameters, load_all
from cag.config.training import Training
from cag.datasets.prepared import read_shared_label_space
from cag.features import source_bytes, target_bytes
from cag.networks import build
from cag.prediction import predict, predict_pixels
from cag.project.dry_run import Shapes, Work, forward_pass, training_step
from cag.project.raw_data import network_form, trainings
from cag.project.repository import stage_commands
from cag.project.sample import sample_domain
from cag.project.speed import extraction_seconds, forward_seconds, start_seconds, step_seconds
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.errors import UserError
from cag.runtime.program import device_name
from cag.runtime.progress import progress
from cag.training.global_batch import pieces
from cag.training.objectives import batch_norms
from cag.watch import CHANGES

# Typical bytes of a pixel: in a label PNG, in samples.h5, in the panels of an image, its prediction
# and its truth. And those of a stage's figures, of the report, of a raw file's line in the index.
LABEL, MEASURED, PANEL = 0.1, 16, 2.5
TABLE_FIGURES, CONFUSION, REPORT, LINE = 600_000, 150_000, 2_000_000, 60
WATCHED = 2 + len(CHANGES)  # passes of a target image: as it is, mirrored, in other colours
LIGHT = ("index", "prepare")  # programs that do not wait for torch
# Images of a domain that one device takes in place of each device's single one: several devices
# normalise single images together, which one alone cannot.
TOGETHER = 2


class StagePlan(NamedTuple):
    """What a stage will take."""

    stage: str  # DVC's name, as in adapt@round1
    bytes: int  # of its outputs
    steps: int
    work: Work  # of all devices together; its memory: of one
    seconds: float | None  # None: not measured
    shared: bool  # by several devices

    def plain(self) -> dict[str, Any]:
        """All of it in one level; all but the seconds in whole numbers."""
        work = {key: round(value) for key, value in self.work._asdict().items()}
        known = {"stage": self.stage, "bytes": self.bytes, "steps": self.steps}
        return {**known, **work, "seconds": self.seconds, "shared": self.shared}


class Plan(NamedTuple):
    """What a run will take."""

    stages: list[StagePlan]
    device: str  # of this machine
    devices: int
    precision: str

    def total(self) -> StagePlan:
        """All stages, one after the other."""
        work, seconds = Work(), [stage.seconds for stage in self.stages]
        for stage in self.stages:
            work = work.plus(stage.work)
        size, steps = (sum(stage[field] for stage in self.stages) for field in (1, 2))
        time = None if None in seconds else sum(seconds)
        return StagePlan("all", size, steps, work, time, all(s.shared for s in self.stages))

    def plain(self) -> dict[str, Any]:
        """All of it for JSON."""
        stages = [stage.plain() for stage in self.stages]
        return {**self._asdict(), "stages": stages, "total": self.total().plain()}


class Task(NamedTuple):
    """What a stage does."""

    bytes: float = 0  # of its outputs
    training: str | None = None  # the section of the training that it makes
    extracted: tuple[str, int] | None = None  # a domain and the number of its images
    forward: Work = Work()  # beside training and extraction
    alone: Work = Work()  # the same, of the first process alone
    seconds: float = 0.0  # of work without a network, on all cores


class Estimator:
    """The stages' tasks, and the work and the time that they are."""

    def __init__(self, params: Parameters, devices: int, folder: Path):
        """Take a sample of the data to a folder; UserError: they or the network cannot be had."""
        most = params.max_batch_per_device
        if most is not None and devices > 1:
            params = params.model_copy(update={"max_batch_per_device": max(TOGETHER, most)})
        self.params, self.devices, self.folder = params, devices, folder
        for training in trainings(params):
            size = getattr(params, training).batch_size
            if size % devices:
                expected = f"expected a multiple of {devices}, the number of devices"
                raise UserError(f"{training}.batch_size is {size}; {expected}")
        self.images = {
            domain: sample_domain(domain, getattr(params, domain), folder / domain)
            for domain in DOMAINS
        }
        classes = read_shared_label_space(folder / "source", folder / "target")
        self.num_classes = classes.num_classes
        self.width, stride = network_form(params, self.num_classes)
        self.network = build(params.network, self.num_classes)
        self.model_bytes = sum(value.nbytes for value in self.network.state_dict().values())
        size = self.images["target"]["train"].size
        self.feature_size = tuple(-(-side // stride) for side in size)
        self.shapes = Shapes(best_precision(params.precision))
        self.fabric = cache(lambda: make_fabric(params.precision))
        self.step, self.passes = cache(self._step), cache(self._passes)
        self.step_seconds = cache(self._step_seconds)
        self.extraction_seconds = cache(self._extraction_seconds)
        self.start_seconds = cache(start_seconds)
        self.seconds_of_flop = cache(self._seconds_of_flop)

    def plan(self, stage: str, command: str, measured: bool) -> StagePlan:
        """The plan of a stage, given with its command."""
        name, _, key = stage.partition("@")
        task = TASKS[name](self, key) if name in TASKS else Task()
        steps, seconds, shared = 0, None, "LAUNCH" in command
        work = task.forward.plus(task.alone)
        if task.training is not None:
            steps = self.config(task.training).iterations
            work = work.plus(self.step(task.training).times(steps))
        if task.extracted is not None:
            domain, count = task.extracted
            work = work.plus(self.passes(domain, "train", domain == "target").times(count))
        if measured:
            seconds = self._seconds(task, steps, self.devices if shared else 1)
            seconds += 0 if name in LIGHT else self.start_seconds()
        return StagePlan(stage, round(task.bytes), steps, work, seconds, shared)

    def _seconds(self, task: Task, steps: int, shares: int) -> float:
        """A task's time on so many devices, without its start."""
        seconds = task.seconds
        if steps:
            seconds += steps * self.step_seconds(task.training)
        if task.extracted is not None:
            domain, count = task.extracted
            seconds += count * self.extraction_seconds(domain) / shares
        if flop := task.forward.forward_flop / shares + task.alone.forward_flop:
            seconds += flop * self.seconds_of_flop()
        return seconds

    def config(self, training: str) -> Training:
        """The section of a training."""
        return getattr(self.params, training)

    def _images_at_once(self, training: str) -> int:
        """A device's images of a domain in a step; of several devices at least TOGETHER."""
        share = self.config(training).batch_size // self.devices
        return share if self.devices == 1 else max(TOGETHER, share)

    def _step(self, training: str) -> Work:
        images = self._images_at_once(training)
        images //= pieces(images, self.params.max_batch_per_device)
        work = training_step(training, self.params, self.network, images, self.shapes)
        return work.times(self.config(training).batch_size / images)

    def _step_seconds(self, training: str) -> float:
        images = self._images_at_once(training)
        sample = training, self.params, self.network, images, self.folder
        share = self.config(training).batch_size / self.devices / images
        return share * step_seconds(*sample, self.fabric())

    def _extraction_seconds(self, domain: str) -> float:
        """An image's."""
        sample = self.params, self.network, self.folder, self.fabric()
        return extraction_seconds(domain, *sample)

    def _passes(self, domain: str, split: str, in_views: bool = False) -> Work:
        """An image's."""
        views, batch = self.params.extract.target_views, self.params.extract.batch_size

        def in_all_views(network: nn.Module, images: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
            return predict_pixels(network, images, views, shapes)

        function = in_all_views if in_views else predict
        shape = (batch, *self.images[domain][split].size)
        return forward_pass(function, self.network, shape, self.shapes).times(1 / batch)

    def _seconds_of_flop(self) -> float:
        shape = (self.params.extract.batch_size, *self.images["target"]["train"].size)
        flop = self.passes("target", "train").forward_flop * shape[0]
        return forward_seconds(predict, self.network, shape, self.fabric()) / flop

    def index(self, _: str) -> Task:
        """The listing of the raw files: each image's, and its label's."""
        found = [getattr(self.params, domain).layout != "scenes" for domain in DOMAINS]
        counts = (sum(i.count for i in splits.values()) for splits in self.images.values())
        return Task(sum(2 * LINE * n * listed for n, listed in zip(counts, found, strict=True)))

    def prepare(self, domain: str) -> Task:
        """All splits of a domain."""
        images = self.images[domain].values()
        return Task(sum(i.bytes for i in images), seconds=sum(i.seconds for i in images))

    def pretrain(self, _: str) -> Task:
        """A training on the source."""
        return Task(self.model_bytes, "pretrain")

    def warmup(self, _: str) -> Task:
        """A training, or a copy of a model."""
        return Task(self.model_bytes, "warmup" if "warmup" in trainings(self.params) else None)

    def extract_source(self, _: str) -> Task:
        """The sums of the source's classes."""
        count = self.images["source"]["train"].count
        per_class = self.params.extract.samples_per_class
        size = source_bytes(count, self.num_classes, self.width, per_class)
        return Task(size, extracted=("source", count))

    def extract_target(self, _: str) -> Task:
        """The target's dense features, in all views."""
        count, directions = self.images["target"]["train"].count, self.params.extract.directions
        size = target_bytes(count, self.width, *self.feature_size, directions)
        return Task(size, extracted=("target", count))

    def anchors(self, _: str) -> Task:
        """Means of what `extract_source` has written."""
        return Task(4 * self.num_classes * self.width)

    def pseudo_label(self, _: str) -> Task:
        """The label maps of both rules."""
        count, (height, width), *_ = self.images["target"]["train"]
        return Task(2 * LABEL * count * height * width + TABLE_FIGURES)

    def evaluate_pseudo_labels(self, _: str) -> Task:
        """The labelled target images, in all views."""
        if "val" not in self.images["target"]:
            return Task()
        count, (height, width) = self.images["target"]["val"].count, self.feature_size
        samples = MEASURED * min(count, self.params.report.images) * height * width
        return Task(
            samples + TABLE_FIGURES, forward=self.passes("target", "val", True).times(count)
        )

    def adapt(self, _: str) -> Task:
        """A training on both domains.

        With `target_statistics`, target images pass the student after the last step; with a check
        for regression, two models are measured.
        """
        config, forward = self.params.adapt, Work()
        if config.target_statistics > 0 and batch_norms(self.network):
            measured = min(self.images["target"]["train"].count, IMAGES_OF_STATISTICS)
            batches = spread(range(measured), max(2, config.batch_size))
            forward = self.passes("target", "train").times(sum(map(len, batches)))
            forward = forward._replace(memory=0)
        checks = 2 * (config.on_regression != "ignore")
        alone = self._watched(WATCHED).times(checks)
        return Task(self.model_bytes, "adapt", forward=forward, alone=alone)

    def watch_start(self, _: str) -> Task:
        """A model's measures on some images of each domain."""
        return Task(alone=self._watched(WATCHED))

    def watch(self, _: str) -> Task:
        """The same of a student, whose teacher predicts the target images, too."""
        return Task(alone=self._watched(WATCHED + 1))

    def _watched(self, of_target: int) -> Work:
        most, work = self.params.watch.images, Work()
        for domain, passes in (("source", 1), ("target", of_target)):
            count = min(most, self.images[domain]["train"].count)
            work = work.plus(self.passes(domain, "train").times(passes * count))
        return work._replace(memory=0)  # a batch of its own size

    def evaluate(self, _: str) -> Task:
        """A model's predictions of the labelled target images."""
        count, (height, width), *_ = self.images["target"]["val"]
        per_pixel = LABEL * count + PANEL * min(count, self.params.evaluate.panels)
        work = self.passes("target", "val").times(count)._replace(memory=0)
        return Task(per_pixel * height * width + CONFUSION, forward=work)

    def report(self, _: str) -> Task:
        """The page."""
        return Task(REPORT)


TASKS = {
    "index": Estimator.index,
    "prepare": Estimator.prepare,
    "pretrain": Estimator.pretrain,
    "warmup": Estimator.warmup,
    "extract_source": Estimator.extract_source,
    "extract_target": Estimator.extract_target,
    "anchors": Estimator.anchors,
    "pseudo_label": Estimator.pseudo_label,
    "evaluate_pseudo_labels": Estimator.evaluate_pseudo_labels,
    "adapt": Estimator.adapt,
    "watch_start": Estimator.watch_start,
    "watch": Estimator.watch,
    "evaluate": Estimator.evaluate,
    "report": Estimator.report,
}


def make_plan(devices: int = 1, measured: bool = False) -> Plan:
    """Plan a run of params.yaml on so many devices like this machine's.

    `measured`: with the seconds of each stage, from steps that are made here. UserError: as of
    `load_all`, `repository.opened` and `Estimator`.
    """
    params, commands = load_all(), stage_commands()
    with TemporaryDirectory(prefix="cag-plan-") as folder:
        estimator = Estimator(params, devices, Path(folder))
        with progress("plan", len(commands), "stages") as advance:
            stages = []
            for stage, command in commands.items():
                stages.append(estimator.plan(stage, command, measured))
                advance()
    return Plan(stages, device_name(), devices, best_precision(params.precision))
