"""Score a round's pseudo-label rules on the labelled target validation images.

No training and no selection reads what comes out.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import h5py
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag import plots
from cag.anchors import resize_labels
from cag.config import load_params
from cag.datasets import read_manifest, read_shared_label_space
from cag.devices import make_fabric
from cag.features import create_store, read_anchors
from cag.files import write_csv, write_json
from cag.metrics import labelling_outcome, labelling_scores
from cag.networks import SegmentationNetwork, load_model
from cag.prediction import image_batches, predict_pixels
from cag.prepared import PreparedImages
from cag.processes import Processes
from cag.pseudo_labels import active, agreeing, anchor_distances, confident
from cag.stage import Advance, progress, run
from cag.streams import ahead
from cag.threshold_curves import LabelledCounts, class_thresholds_at, read_thresholds

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, ROUND = "data/models/{}.safetensors", "data/rounds/{}"
EVALUATION = "data/pseudo_label_evaluation/{}"
RULES = ("anchor", "probability")
SAMPLE = ("nearest", "nearest_distance", "second_distance", "prediction", "probability", "truth")
Pixels = tuple[Tensor, ...]  # of a batch: the maps of SAMPLE, [B, h, w]


def label_pixels(
    images: PreparedImages,
    batches: list[list[int]],
    network: SegmentationNetwork,
    anchors: Tensor,
    params: SimpleNamespace,
    fabric: Fabric,
    advance: Advance,
) -> Iterator[tuple[list[int], Pixels]]:
    """Of each batch the images' indices, and what the rules go by beside the true classes."""
    views = params.extract.target_views
    with closing(ahead(image_batches(images, batches, fabric.device))) as read:
        for batch in advance.waiting(read):
            features, *predicted = predict_pixels(network, batch.images, views, fabric)
            size = features.shape[2:]
            # Where training enlarges the maps of this size to.
            truth = [resize_labels(label[None], size, align_corners=True) for label in batch.labels]
            distances = anchor_distances(features, anchors)
            yield batch.indices, (*distances, *predicted, torch.cat(truth).to(fabric.device))


def count_outcomes(pixels: Pixels, class_thresholds: Tensor | None, config) -> Tensor:
    """What the configured thresholds come to in a batch, a row for each of RULES, int64 [2, 5]."""
    *distances, prediction, probability, truth = pixels
    by_anchor = active(*distances, config.margin, config.relative_margin, class_thresholds)
    if config.agreement:
        by_anchor = agreeing(by_anchor, prediction)
    maps = (by_anchor, confident(prediction, probability, config.probability))
    return torch.stack([labelling_outcome(labels, truth) for labels in maps])


def write_samples(file: h5py.File, names: dict[int, str], pixels: Pixels, shown: list[int]) -> None:
    """Write a group for each image of a batch that is shown, named by its place among these."""
    for place, (index, name) in enumerate(names.items()):
        if index in shown:
            group = file.create_group(str(place))
            group.attrs["name"] = name
            for key, maps in zip(SAMPLE, pixels, strict=True):
                group[key] = maps[shown.index(index)].cpu().numpy()


@contextmanager
def shared_store(folder: Path, processes: Processes, count: int) -> Iterator[h5py.File]:
    """A process's part of `samples.h5`, which process 0 makes of all parts and their groups."""
    parts = [folder / f"samples.{rank}.h5" for rank in range(processes.count)]
    with create_store(parts[processes.rank]) as part:
        yield part
    processes.wait()
    if processes.main:
        join_samples(folder / "samples.h5", parts, count)


def join_samples(path: Path, parts: list[Path], count: int) -> None:
    """Put the groups "0" to `count` - 1 of several files in one, and delete those."""
    with create_store(path) as whole:
        found = {}
        for part in parts:
            with h5py.File(part) as file:
                found |= dict.fromkeys(file, part)
        for place in range(count):
            with h5py.File(found[str(place)]) as file:
                file.copy(str(place), whole)
    for part in parts:
        part.unlink()


def evenly_spaced(images: PreparedImages | None, count: int) -> dict[int, str]:
    """Index -> name of `count` images spread over all."""
    if images is None:
        return {}
    picks = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int).tolist()
    return {index: images.names[index] for index in picks}


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `data/pseudo_label_evaluation/<round>/`: curves, metrics and samples."""
    params = load_params("precision", "extract", "pseudo_label", "report")
    config, source = params.pseudo_label, Path(ROUND.format(round_name))
    classes = read_shared_label_space(SOURCE, TARGET)
    grid, thresholds = read_thresholds(source / "threshold_curves.csv", classes.names)
    labelled = read_manifest(TARGET).query("split == 'val' and label != ''")
    images = None if labelled.empty else PreparedImages(TARGET, "val", with_labels=True)
    network, _, _ = load_model(Path(MODEL.format(teacher)), classes)
    anchors = read_anchors(source / "anchors.npy", classes.num_classes, network.width)
    fabric = make_fabric(params.precision)
    torch.backends.cudnn.benchmark = False  # each process would choose its own algorithms
    processes, anchors = Processes(fabric), anchors.to(fabric.device)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    batches = [] if images is None else images.batches(params.extract.batch_size)
    count, batches = sum(map(len, batches)), batches[processes.rank :: processes.count]
    own = sum(map(len, batches))
    shown = evenly_spaced(images, params.report.images)
    used = class_thresholds_at(config.quantile, grid, thresholds)
    curves = LabelledCounts(classes.num_classes, grid, fabric.device)
    outcomes = torch.zeros(len(RULES), 5, dtype=torch.int64, device=fabric.device)
    with processes.folder(Path(EVALUATION.format(round_name))) as folder:
        with (
            progress(f"evaluate pseudo-labels {round_name}", own, "images") as advance,
            shared_store(folder, processes, len(shown)) as samples,
            closing(
                label_pixels(images, batches, network, anchors, params, fabric, advance)
            ) as read,
        ):
            for indices, pixels in read:
                *distances, prediction, probability, truth = pixels
                curves.update(truth, distances, prediction, probability)
                outcomes += count_outcomes(pixels, used, config)
                write_samples(samples, shown, pixels, indices)
                advance(len(indices))
            processes.wait()
            advance(count - own)
        curves.add_up(processes.total)
        scores = {
            rule: labelling_scores(outcome)
            for rule, outcome in zip(RULES, processes.total(outcomes), strict=True)
        }
        if processes.main:
            table = curves.table(classes.names, grid, thresholds)
            write_csv(folder / "curves.csv", table)
            write_json(folder / "metrics.json", {"images": count, **scores})
            figure = plots.pseudo_label_quality_figure(table, config.model_dump())
            plots.save_png(figure, folder / "curves.png")
    if processes.main:
        print(f"evaluate_pseudo_labels@{round_name}: {summary(scores, count)}")


def summary(scores: dict[str, dict[str, float]], count: int) -> str:
    """The scores in a line."""
    if not count:
        return "no labelled validation images"
    rules = (
        f"{rule} " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        for rule, shares in scores.items()
    )
    return f"{'; '.join(rules)} over {count} images"


if __name__ == "__main__":
    run(main)
