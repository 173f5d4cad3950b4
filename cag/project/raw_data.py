"""Checks of raw data before any training: counts, files, sizes, label values, disk."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cag.config.base import DOMAINS
from cag.config.datasets import Source, Target
from cag.config.networks import Network
from cag.config.parameters import Parameters
from cag.config.training import Augmentation
from cag.datasets.checks import TURNS, edges_fit, oddity, refuse_label_maps
from cag.datasets.images import read_image, read_picture
from cag.datasets.labels import IGNORE, ClassMap
from cag.datasets.layouts import Split, list_split, passed_over, splits
from cag.datasets.preparation import (
    Item,
    domain_class_map,
    prepared_bytes,
    read_raw_label,
    void_labels,
)
from cag.datasets.prepared import class_difference
from cag.deploy.export import trace
from cag.features import source_bytes, target_bytes
from cag.networks import build, feature_form, hub_name
from cag.project.dry_run import Shapes, training_step
from cag.runtime.devices import best_precision
from cag.runtime.errors import UserError
from cag.runtime.files import (
    WEIGHTS_PACKAGES,
    data_root,
    encoder_weights_file,
    free_bytes,
    inside,
    used_bytes,
)
from cag.runtime.overlap import cores, in_order
from cag.runtime.progress import progress
from cag.training.global_batch import pieces

COMPLETE = {("gta5", "train"): 24966, ("synthia", "train"): 9400}  # images of the data sets
COMPLETE |= {("cityscapes", "train"): 2975, ("cityscapes", "val"): 500}
PREPARED, FEATURES = Path("data/prepared"), Path("data/features")
UNKNOWN, IGNORED = "(not in the class map)", "(ignored)"
SEVERAL_PAGES = "of several pages or frames, of which only the first is read,"
_SHOWN_UNKNOWN = 8  # label values in a message
_SHOWN_PROBLEMS = 10  # of a split, in a summary
_SMALL_CROP = 1 / 6  # of the image's area
_BETTER = 1.2  # so many times the steepness at labels' borders shows that images lie otherwise


@dataclass
class SplitCheck:
    """The images, labels and problems of a split.

    `values` are the labels' by descending pixels: columns value, class, pixels, images (number of
    those that have it), label (the first file that has it).
    """

    split: str  # its name
    images: int  # with those that are left out
    left_out: int = 0  # by the layout, as their label has another size
    pixels: int = 0  # of all images that are kept
    size: tuple[int, int] | None = None  # height, width of the first readable image
    values: pd.DataFrame | None = None  # None without labels
    absent: list[str] = field(default_factory=list)  # classes without a pixel, if there are labels
    turned: dict[str, int] = field(default_factory=dict)  # images by what their EXIF data say
    passed_over: list[str] = field(default_factory=list)  # files that are none of them
    kinds: dict[str, list[str]] = field(default_factory=dict)  # problems that differ in the file
    warnings: list[str] = field(default_factory=list)  # what may be wrong, a line each

    def add(self, problem: str, kind: str | None = None) -> None:
        """Add a problem, one line; `kind` is the same for each file that has it."""
        self.kinds.setdefault(kind or problem, []).append(problem)

    @property
    def problems(self) -> list[str]:
        """All problems, a line each."""
        return [problem for lines in self.kinds.values() for problem in lines]

    def summary(self) -> list[str]:
        """The first problem of each kind, a line each; no more than a screen takes."""
        lines = []
        for first, *rest in list(self.kinds.values())[:_SHOWN_PROBLEMS]:
            more = f" (and {len(rest)} more {'files' if len(rest) > 1 else 'file'})"
            lines.append(first + more * bool(rest))
        if (hidden := len(self.kinds) - len(lines)) > 0:
            lines.append(f"{hidden} more kinds of problems in the split '{self.split}'")
        return lines

    def plain(self) -> dict:
        """All but problems and warnings, in plain values."""
        keys = ("split", "images", "left_out", "size", "turned", "passed_over")
        fields = {key: getattr(self, key) for key in keys}
        values = self.values
        rows = None if values is None else values.drop(columns="label").to_dict("records")
        return {**fields, "absent": self.absent, "values": rows}


OnDomain = Callable[[str, list[SplitCheck]], None]


class _ItemCheck(NamedTuple):
    size: tuple[int, int] | None = None
    orientation: int = 1  # of the EXIF data
    oddity: str | None = None
    fits: tuple[float, float] | None = None  # `edges_fit` as it is read, and the other way
    counts: dict | None = None  # raw value -> pixels
    left_out: bool = False
    problem: str | None = None


def check_split(
    items: Sequence[Item],
    folder: Path,
    split: Split,
    class_map: ClassMap,
    complete: int | None = None,
    absent_is_wrong: bool = True,
    one_size: bool = False,
    on_item: Callable[[], object] = lambda: None,
) -> SplitCheck:
    """Read every image of a split, and its label if it has a path.

    `items` are from `list_split` for the folder and the split, `complete` is their expected number.
    `absent_is_wrong`: each class with values in the class map must occur. `one_size`: all images
    must have one, as a feature store needs. `on_item` is called after each in the calling thread.
    """
    result = SplitCheck(split.name, len(items))
    if complete is not None and len(items) != complete:
        problem = f"{len(items)} images, the data set has {complete}; fetch what is missing"
        result.add(f"{folder / split.images}: {problem} (--partial accepts a part)")
    values: dict = {}
    orientations, odd, fits = Counter(), defaultdict(list), []
    check = partial(_check_item, folder=folder, split=split, class_map=class_map)
    with closing(in_order(check, items, cores())) as checked:
        for item, found in zip(items, checked, strict=True):
            size = found.size
            if found.problem is not None:
                paths = [str(folder / path) for path in (item.image, item.label) if path]
                kind = found.problem
                for path in paths:
                    kind = kind.replace(path, "")
                result.add(found.problem, kind)
            result.left_out += found.left_out
            orientations[found.orientation] += 1
            if found.oddity:
                odd[found.oddity].append(item.image)
            if found.fits:
                fits.append(found.fits)
            if size is not None:
                if one_size and result.size not in (None, size):
                    result.add(
                        f"{folder / item.image}: {size[1]} x {size[0]} pixels, those before it "
                        f"{result.size[1]} x {result.size[0]}; the rounds need one size of target "
                        "images: set target.size to [height, width]"
                    )
                    one_size = False  # once is enough
                result.size = result.size or size
                result.pixels += size[0] * size[1]
            for value, pixels in (found.counts or {}).items():
                total, images, label = values.get(value, (0, 0, item.label))
                values[value] = total + pixels, images + 1, label
            on_item()
    if split.labels is not None:
        _add_values(result, values, folder, class_map, absent_is_wrong)
    result.turned = {TURNS[key]: orientations[key] for key in sorted(orientations) if key != 1}
    for kind, paths in odd.items():
        problem = f"{len(paths)} of {len(items)} images are {kind} such as {paths[0]}"
        result.warnings.append(f"{folder / split.images}: {problem}; look at them")
    if fits and np.mean(fits, axis=0)[1] > _BETTER * np.mean(fits, axis=0)[0]:
        problem = f"label maps fit the {len(fits)} images that EXIF data turn better the other way"
        remedy = f"set turn_by_exif: {str(not split.turn_by_exif).lower()}"
        remedy = "look at them" if split.turn_by_exif is None else remedy
        result.warnings.append(f"{folder / split.images}: {problem}; {remedy}")
    return result


def _check_item(item: Item, folder: Path, split: Split, class_map: ClassMap) -> _ItemCheck:
    try:
        path = inside(folder, item.image)
        image, orientation, pages = read_picture(path, item.turns)
        odd = SEVERAL_PAGES if pages > 1 else oddity(image)
        result = _ItemCheck(image.shape[:2], orientation, odd)
        if item.label is None:
            return result
        size = None if split.drop_mismatched else image.shape[:2]
        raw = read_raw_label(item, folder, size, class_map.by_color)
        if raw.shape[:2] != image.shape[:2]:
            return _ItemCheck(left_out=True)
        if orientation != 1:
            other = read_image(path, not item.turns)
            if other.shape == image.shape:
                result = result._replace(fits=(edges_fit(image, raw), edges_fit(other, raw)))
    except UserError as error:
        return _ItemCheck(problem=str(error))
    try:
        return result._replace(counts=class_map.count(raw))
    except UserError as error:
        return _ItemCheck(problem=f"{folder / item.label}: {error}")


def _add_values(
    result: SplitCheck, values: dict, folder: Path, class_map: ClassMap, absent_is_wrong: bool
) -> None:
    names, rows, present, unknown = class_map.label_space.names, [], set(), []
    for value, (pixels, images, label) in values.items():
        train_id = class_map.train_id(value)
        present.add(train_id)
        name = {None: UNKNOWN, IGNORE: IGNORED}.get(train_id) or names[train_id]
        rows.append([value, name, pixels, images, label])
        if train_id is None:
            unknown.append((f"{value} (in {images} images)", folder / label))
    if unknown:
        texts, (path, *_) = zip(*unknown, strict=True)
        more = f" and {len(texts) - _SHOWN_UNKNOWN} more" if len(texts) > _SHOWN_UNKNOWN else ""
        noun, one = ("label value", "it") if len(texts) == 1 else ("label values", "each")
        problem = f"{noun} {', '.join(texts[:_SHOWN_UNKNOWN])}{more} not in {class_map.called}"
        hint = f"list {one} under a class's 'values' or under 'ignore'"
        result.add(f"{path}: {problem}; {hint}")
    table = pd.DataFrame(rows, columns=["value", "class", "pixels", "images", "label"])
    result.values = table.sort_values("pixels", ascending=False, kind="stable", ignore_index=True)
    absent = [i for i in range(len(names)) if i not in present]
    result.absent = [names[i] for i in absent]
    if values and not present - {None, IGNORE}:
        result.add(void_labels(folder, result.split))
    elif absent_is_wrong and values:
        for name in (names[i] for i in absent if i in class_map.mapped):
            problem = f"{folder}: the class '{name}' never occurs in the split '{result.split}'"
            hint = "an empty list says that the data set lacks it"
            result.add(f"{problem}; check its values in {class_map.called} ({hint})")


def check_domain(
    domain: str, config: Source | Target, folder: Path, class_map: ClassMap, is_part: bool = False
) -> list[SplitCheck]:
    """Check all splits of a domain (source or target) but scenes, which have no files.

    No label of the target's training images is opened. If `is_part`, the folder holds a part of the
    data set on purpose: any number of images will do, and a class may be absent.
    """
    checks, listed = [], []
    for split in splits(domain, config):
        try:
            items = list_split(folder, split)
            if split.labels is None:
                refuse_label_maps(items, folder)
            listed.append((split, items))
        except UserError as error:
            checks.append(SplitCheck(split.name, 0))
            checks[-1].add(str(error))
    total = sum(len(items) for _, items in listed)
    with progress(f"check {domain}", total, "images") as advance:
        for split, items in listed:
            complete = None if is_part else COMPLETE.get((config.layout, split.name))
            absent_is_wrong = domain == "source" and not is_part  # the target's val may lack one
            one_size = domain == "target" and split.name == "train" and config.size is None
            options = (class_map, complete, absent_is_wrong, one_size, advance)
            checked = check_split(items, folder, split, *options)
            checked.passed_over = passed_over(folder, split)
            checks.append(checked)
    return checks


class Disk(NamedTuple):
    """Bytes that stages will write."""

    prepare: int
    features: int  # of all rounds together


class StepMemory(NamedTuple):
    """What a training step takes on one device."""

    bytes: int  # of all tensors at the worst moment
    training: str  # its section
    precision: str  # not "auto"


def trainings(params: Parameters) -> list[str]:
    """The sections of the trainings; the warm-up can be a copy of a model instead."""
    trains_warmup = params.warmup.weights is None and params.warmup.iterations > 0
    return ["pretrain", *["warmup"] * trains_warmup, "adapt"]


def network_form(params: Parameters, num_classes: int) -> tuple[int, int]:
    """The network's feature channels and their stride in pixels.

    UserError: it cannot be built, or cannot take the images' or a crop's size.
    """
    sizes = [getattr(params, name).augmentation.crop for name in trainings(params)]
    sizes += [config.size for config in (params.source, params.target) if config.size]
    network = build(params.network, num_classes)
    return [feature_form(network, size) for size in dict.fromkeys(sizes)][0]


def disk_needed(
    domain: str,
    config: Source | Target,
    checks: Sequence[SplitCheck],
    params: Parameters,
    num_classes: int,
    form: tuple[int, int],
) -> Disk:
    """The bytes that `prepare` and the rounds' features will take; `form`: see `network_form`."""
    width, stride = form
    counts = {check.split: check.images - check.left_out for check in checks}
    pixels = sum(check.pixels for check in checks)
    if config.size is not None:
        pixels = sum(counts.values()) * config.size[0] * config.size[1]
    if domain == "source":
        per_class = params.extract.samples_per_class
        features = source_bytes(counts["train"], num_classes, width, per_class)
    else:
        first = next((check.size for check in checks if check.split == "train"), None)
        height, breadth = (-(-side // stride) for side in config.size or first or (0, 0))
        reduced = params.extract.directions
        features = target_bytes(counts["train"], width, height, breadth, reduced)
    return Disk(prepared_bytes(pixels), len(params.rounds) * features)


def step_memory(
    params: Parameters, num_classes: int, on_training: Callable[[], object] = lambda: None
) -> StepMemory:
    """The most that a step of a training takes, see `training_step`.

    `on_training` is called after each training.
    """
    network, precision = build(params.network, num_classes), best_precision(params.precision)

    def memory(training: str) -> StepMemory:
        images = getattr(params, training).batch_size
        images //= pieces(images, params.max_batch_per_device)
        work = training_step(training, params, network, images, Shapes(precision))
        on_training()
        return StepMemory(work.memory, training, precision)

    return max(map(memory, trainings(params)))


def export_warnings(params: Parameters, num_classes: int) -> list[str]:
    """Why `cag export` will fail: tried with random weights, as only the architecture matters."""
    try:
        trace(build(params.network, num_classes).eval())
    except UserError as error:
        return [f"`cag export` of this network will fail: {error}"]
    return []


def weights_warnings(network: Network) -> list[str]:
    """That the encoder's weights are neither a file nor in a package, so that the hub is asked.

    UserError: the hub does not have them either.
    """
    name = network.encoder_weights
    if name is None:
        return []
    path = encoder_weights_file(network.encoder, name)
    if path.exists():
        return []
    hub_name(network.encoder, name, path)
    found = f"{name!r} of {network.encoder} is neither the file {path} nor in an installed package"
    example = next(iter(WEIGHTS_PACKAGES))
    remedy = f"without a network, put the file there, or take an encoder with a package: {example}"
    return [f"network.encoder_weights: {found}: `pretrain` will ask the hub; {remedy}"]


def crop_warnings(params: Parameters, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """That a crop is always larger than its image, or holds little of it.

    `sizes` are the heights and widths of the domains' prepared images.
    """
    found = defaultdict(list)
    for training in trainings(params):
        augmentation = getattr(params, training).augmentation
        for domain in DOMAINS[:1] if training == "pretrain" else DOMAINS:
            if problem := domain in sizes and _crop_problem(augmentation, domain, sizes[domain]):
                found[f"is {list(augmentation.crop)}, {problem}"].append(training)
    return [f"augmentation.crop of {', '.join(names)} {text}" for text, names in found.items()]


def _crop_problem(augmentation: Augmentation, domain: str, size: tuple[int, int]) -> str | None:
    crop, most, images = augmentation.crop, augmentation.scale[1], f"{domain} images, {list(size)}"
    if any(part > most * whole for part, whole in zip(crop, size, strict=True)):
        problem = f"larger than the {images}, even at scale {most:g}"
        return f"{problem}: each crop has black borders; set a smaller one"
    if (share := np.prod(crop) / np.prod(size)) < _SMALL_CROP:
        return f"{share:.0%} of the {images}; set a larger one, or a smaller {domain}.size"
    return None


def check_data(params: Parameters, name: str | None, is_part: bool, on_domain: OnDomain) -> dict:
    """Check the raw data of the domain `name`, or of both; `is_part`: see `check_domain`.

    `on_domain` is called after each domain, with its name and place, and its splits. The result, in
    plain values: `domains`, the splits of each; `disk_bytes` that `prepare` and the rounds'
    `extract` will write and that are `free`, with those they will replace; `step_bytes`,
    `step_training` and `step_precision`, see `StepMemory`; `problems` and `warnings`, a line each;
    `summary`, the first problem of each kind. UserError: a class map cannot be read, or the network
    cannot be built or does not fit the images.
    """
    configs = {domain: getattr(params, domain) for domain in DOMAINS}
    class_maps = {domain: domain_class_map(configs[domain].class_map) for domain in DOMAINS}
    names = [class_map.label_space.names for class_map in class_maps.values()]
    summary = [class_difference(*names)] if names[0] != names[1] else []
    form = network_form(params, len(names[0]))
    warnings, of_files = [], []
    try:
        warnings = weights_warnings(params.network)
    except UserError as error:
        summary.append(str(error))
    problems = list(summary)
    domains, disk, sizes = {}, [], {}
    for domain in DOMAINS if name is None else [name]:
        config = configs[domain]
        if config.layout == "scenes":
            counts = {"train": config.images, "val": getattr(config, "val_images", 0)}
            place = "rendered by prepare"
            checks = [SplitCheck(*pair, size=config.size) for pair in counts.items() if pair[1]]
        else:
            place = inside(data_root(), config.folder)
            checks = check_domain(domain, config, place, class_maps[domain], is_part)
        on_domain(f"{domain}: {config.layout}, {place}", checks)
        domains[domain] = [check.plain() for check in checks]
        problems += [problem for check in checks for problem in check.problems]
        summary += [line for check in checks for line in check.summary()]
        if size := config.size or next((c.size for c in checks if c.split == "train"), None):
            sizes[domain] = size
        of_files += [warning for check in checks for warning in check.warnings]
        disk.append(disk_needed(domain, config, checks, params, len(names[0]), form))
    needed = Disk(*map(sum, zip(*disk, strict=True)))
    written = sum(used_bytes(PREPARED / domain) for domain in domains) + used_bytes(FEATURES)
    free = free_bytes(PREPARED) + written
    if sum(needed) > free:
        hint = "free some space, or take fewer rounds or a smaller size"
        problem = f"the disk has {free / 1e9:.1f} GB for {sum(needed) / 1e9:.1f} GB; {hint}"
        problems, summary = [*problems, problem], [*summary, problem]
    disk_bytes = {**needed._asdict(), "free": free}
    with progress("try the network", 1 + len(trainings(params)), "trials") as advance:
        warnings += export_warnings(params, len(names[0]))
        advance()
        memory = step_memory(params, len(names[0]), advance)._asdict()
    warnings += of_files + crop_warnings(params, sizes)
    step = {f"step_{field}": value for field, value in memory.items()}
    found = {"problems": problems, "summary": summary, "warnings": warnings}
    return {"domains": domains, "disk_bytes": disk_bytes, **step, **found}
