"""Score a round's pseudo-label rules on the labelled target validation images.

No training and no selection reads what comes out.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import h5py
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag.analysis import plots
from cag.analysis.threshold_curves import LabelledCounts, class_thresholds_at, read_thresholds
from cag.anchors import read_anchors, resize_labels
from cag.config.base import RULES, Precision, Section, load_params
from cag.config.evaluation import Report
from cag.config.extract import Extract, Views
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.prepared import (
    PreparedImages,
    evenly_spaced,
    read_manifest,
    read_shared_label_space,
)
from cag.features import create_store
from cag.metrics import labelling_outcome, labelling_scores
from cag.networks import SegmentationNetwork, load_model
from cag.prediction import image_batches, predict_pixels
from cag.pseudo_labels import anchor_distances, apply_rules
from cag.runtime.devices import make_fabric
from cag.runtime.files import write_csv, write_json
from cag.runtime.overlap import ahead
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.progress import Advance, progress

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, ROUND = "data/models/{}.safetensors", "data/rounds/{}"
EVALUATION = "data/pseudo_label_evaluation/{}"
SAMPLE = ("nearest", "nearest_distance", "second_distance", "prediction", "probability", "truth")
Pixels = tuple[Tensor, ...]  # of a batch: the maps of SAMPLE, [B, h, w]


class Params(Section):
    """The declared parameters."""

    precision: Precision
    extract: Extract
    pseudo_label: PseudoLabel
    report: Report


@dataclass(frozen=True)
class Rules:
    """A round's rules: its anchors, its thresholds and those of its curves."""

    config: PseudoLabel
    anchors: Tensor  # [K, D]
    grid: dict[str, Tensor]
    class_thresholds: Tensor  # [K, T], of the quantiles

    def outcomes(self, pixels: Pixels) -> Tensor:
        """What the configured thresholds come to in a batch, a row for each of RULES, [2, 5]."""
        *distances, prediction, probability, truth = pixels
        own = class_thresholds_at(self.config.quantile, self.grid, self.class_thresholds)
        maps = apply_rules(distances, prediction, probability, self.config, own)
        return torch.stack([labelling_outcome(labels, truth) for labels in maps])


def labelled_images() -> PreparedImages | None:
    """The validation images; None where there are no labelled ones, which is normal."""
    labelled = read_manifest(TARGET).query("split == 'val' and label != ''")
    return None if labelled.empty else PreparedImages(TARGET, "val", with_labels=True)


def label_pixels(
    images: PreparedImages | None,
    batches: list[list[int]],
    network: SegmentationNetwork,
    anchors: Tensor,
    views: Views,
    fabric: Fabric,
    advance: Advance,
) -> Iterator[tuple[list[int], Pixels]]:
    """Of each batch the images' indices, and what the rules go by beside the true classes."""
    if not batches:
        return
    with closing(ahead(image_batches(images, batches, fabric.device))) as read:
        for batch in advance.waiting(read):
            features, *predicted = predict_pixels(network, batch.images, views, fabric)
            size = features.shape[2:]
            # Where training enlarges the maps of this size to.
            truth = [resize_labels(label[None], size, align_corners=True) for label in batch.labels]
            distances = anchor_distances(features, anchors)
            yield batch.indices, (*distances, *predicted, torch.cat(truth).to(fabric.device))


@contextmanager
def shared_samples(path: Path, processes: Processes, count: int) -> Iterator[h5py.File]:
    """This process's part of a file of the groups "0" to `count` - 1, each of one of the parts."""
    parts = [path.with_name(f"{path.stem}.{rank}.h5") for rank in range(processes.count)]
    with create_store(parts[processes.rank]) as part:
        yield part
    processes.wait()
    if processes.main:
        with ExitStack() as stack, create_store(path) as whole:
            files = [stack.enter_context(h5py.File(part)) for part in parts]
            for place in map(str, range(count)):
                next(file for file in files if place in file).copy(place, whole)
        for part in parts:
            part.unlink()


def write_sample(group: h5py.Group, name: str, pixels: Pixels) -> None:
    """Write an image's maps [h, w]."""
    group.attrs["name"] = name
    for key, pixel_map in zip(SAMPLE, pixels, strict=True):
        group[key] = pixel_map.cpu().numpy()


def score(
    images: PreparedImages | None,
    network: SegmentationNetwork,
    rules: Rules,
    params: Params,
    fabric: Fabric,
    processes: Processes,
    folder: Path,
) -> tuple[LabelledCounts, Tensor]:
    """Count what the rules come to in all processes' images, and write `samples.h5`."""
    batches = [] if images is None else images.batches(params.extract.batch_size)
    own = batches[processes.rank :: processes.count]
    total, part = (sum(map(len, some)) for some in (batches, own))
    shown = {i: str(n) for n, i in enumerate(evenly_spaced(total, params.report.images))}
    counts = LabelledCounts(len(rules.anchors), rules.grid, fabric.device)
    outcomes = torch.zeros(len(RULES), 5, dtype=torch.int64, device=fabric.device)
    how = (network, rules.anchors, params.extract.target_views, fabric)
    with (
        progress("evaluate pseudo-labels", part, "images") as advance,
        shared_samples(folder / "samples.h5", processes, len(shown)) as samples,
        closing(label_pixels(images, own, *how, advance)) as labelled,
    ):
        for indices, pixels in labelled:
            *distances, prediction, probability, truth = pixels
            counts.update(truth, distances, prediction, probability)
            outcomes += rules.outcomes(pixels)
            for index, *maps in zip(indices, *pixels, strict=True):
                if index in shown:
                    group = samples.create_group(shown[index])
                    write_sample(group, images.names[index], maps)
                advance()
        processes.wait()
        advance(total - part)
    counts.add_up(processes.total)
    return counts, processes.total(outcomes)


def summary(scores: dict[str, dict[str, float]], count: int) -> str:
    """The scores in a line."""
    if not count:
        return "no labelled validation images"
    rules = (
        f"{rule} " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        for rule, shares in scores.items()
    )
    return f"{'; '.join(rules)} over {count} images"


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `data/pseudo_label_evaluation/<round>/`: curves, metrics and samples."""
    params = load_params(Params)
    classes = read_shared_label_space(SOURCE, TARGET)
    names, config, source = classes.names, params.pseudo_label, Path(ROUND.format(round_name))
    thresholds = read_thresholds(source / "threshold_curves.csv", names)
    images = labelled_images()
    network = load_model(Path(MODEL.format(teacher)), classes).network
    anchors = read_anchors(source / "anchors.npy", len(names), network.width)
    fabric = make_fabric(params.precision)
    torch.backends.cudnn.benchmark = False  # each process would choose its own algorithms
    processes = Processes(fabric)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    rules = Rules(config, anchors.to(fabric.device), *thresholds)
    with processes.folder(Path(EVALUATION.format(round_name))) as folder:
        counts, outcomes = score(images, network, rules, params, fabric, processes, folder)
        scores = dict(zip(RULES, map(labelling_scores, outcomes), strict=True))
        count = 0 if images is None else len(images)
        if processes.main:
            table = counts.table(names, *thresholds)
            write_csv(folder / "curves.csv", table)
            write_json(folder / "metrics.json", {"images": count, **scores})
            figure = plots.pseudo_label_quality_figure(table, config.model_dump())
            plots.save_png(figure, folder / "curves.png")
    if processes.main:
        print(f"evaluate_pseudo_labels@{round_name}: {summary(scores, count)}")


if __name__ == "__main__":
    run_stage(main)
