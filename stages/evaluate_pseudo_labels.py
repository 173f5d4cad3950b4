"""Score a round's pseudo-label rules on the labelled target validation images.

No training and no selection reads the scores.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag.analysis.label_scores import LabelScores
from cag.analysis.plots import save_png
from cag.analysis.threshold_curves import read_thresholds
from cag.analysis.threshold_figures import pseudo_label_quality_figure
from cag.anchors import read_anchors, resize_labels
from cag.config.base import Precision, Section, load_params
from cag.config.evaluation import Report
from cag.config.extract import Extract
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.prepared import (
    PreparedImages,
    evenly_spaced,
    read_manifest,
    read_shared_label_space,
)
from cag.features import shared_groups, write_group
from cag.networks import SegmentationNetwork, load_model
from cag.prediction import ImageBatch, image_batches, predict_pixels
from cag.pseudo_labels import Pixels, measure
from cag.runtime.devices import make_fabric
from cag.runtime.files import write_csv, write_json
from cag.runtime.numbers import percent
from cag.runtime.overlap import overlapped
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, ROUND = "data/models/{}.safetensors", "data/rounds/{}"
EVALUATION = "data/pseudo_label_evaluation/{}"
Measured = tuple[list[int], Pixels, Tensor]  # a batch's indices, pixels and true classes


class Params(Section):
    """The declared parameters."""

    precision: Precision
    extract: Extract
    pseudo_label: PseudoLabel
    report: Report


def score(
    images: PreparedImages | None,
    network: SegmentationNetwork,
    anchors: Tensor,
    scores: LabelScores,
    params: Params,
    fabric: Fabric,
    processes: Processes,
    folder: Path,
) -> None:
    """Score the rules on the images, shared by the processes, and write `samples.h5`."""
    batches = [] if images is None else images.batches(params.extract.batch_size)
    share = batches[processes.rank :: processes.count]
    total, count = (sum(map(len, part)) for part in (batches, share))
    shown = {i: str(n) for n, i in enumerate(evenly_spaced(total, params.report.images))}

    def measured(batch: ImageBatch) -> Iterator[Measured]:
        row = predict_pixels(network, batch.images, params.extract.target_views, fabric)
        pixels, size = measure(*row, anchors), row[0].shape[2:]
        # as training enlarges maps of this size
        truth = [resize_labels(label[None], size, align_corners=True) for label in batch.labels]
        yield batch.indices, pixels, torch.cat(truth).to(fabric.device)

    read = image_batches(images, share, fabric.device)
    with (
        processes.progress("evaluate pseudo-labels", count, total) as advance,
        shared_groups(folder / "samples.h5", processes, len(shown)) as samples,
        closing(overlapped(read, measured, advance)) as computed,
    ):
        for indices, pixels, truth in computed:
            scores.update(pixels, truth)
            for index, *maps in zip(indices, *pixels, truth, strict=True):
                if index in shown:
                    named = dict(zip((*Pixels._fields, "truth"), maps, strict=True))
                    write_group(samples, shown[index], images.names[index], named)
                advance()
    scores.add_up(processes.total)


def summary(scores: dict[str, dict[str, float]], count: int) -> str:
    """The scores in one line."""
    if not count:
        return "no labelled validation images"
    rules = (
        f"{rule} " + ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())
        for rule, shares in scores.items()
    )
    known = all(share["recall"] == share["recall"] for share in scores.values())
    note = "" if known else "; no pixel of their labels has a class"
    return f"{'; '.join(rules)} over {count} images{note}"


def _percent(share: float) -> str:
    return f"{percent(share)} %" if share == share else "unknown"


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `data/pseudo_label_evaluation/<round>/`: curves, metrics and samples."""
    params = load_params(Params)
    classes = read_shared_label_space(SOURCE, TARGET)
    names, config, source = classes.names, params.pseudo_label, Path(ROUND.format(round_name))
    thresholds = read_thresholds(source / "threshold_curves.csv", names)
    labelled = read_manifest(TARGET).query("split == 'val' and label != ''")
    images = None if labelled.empty else PreparedImages(TARGET, "val", with_labels=True)
    network = load_model(Path(MODEL.format(teacher)), classes).network
    anchors = read_anchors(source / "anchors.npy", len(names), network.width)
    fabric = make_fabric(params.precision)
    torch.backends.cudnn.benchmark = False  # else each process chooses its own algorithms
    processes, anchors = Processes(fabric), anchors.to(fabric.device)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    scores = LabelScores(config, *thresholds, fabric.device)
    with processes.folder(Path(EVALUATION.format(round_name))) as folder:
        score(images, network, anchors, scores, params, fabric, processes, folder)
        shares, count = scores.scores(), 0 if images is None else len(images)
        if processes.main:
            table = scores.table(names)
            write_csv(folder / "curves.csv", table)
            write_json(folder / "metrics.json", {"images": count, **shares})
            curves = pseudo_label_quality_figure(table, config.model_dump())
            save_png(curves, folder / "curves.png")
    if processes.main:
        print(f"evaluate_pseudo_labels@{round_name}: {summary(shares, count)}")


if __name__ == "__main__":
    run_stage(main)
