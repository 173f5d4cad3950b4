"""Extract a round's dense target features with its teacher, reduced to what its anchors need."""

import shutil
from pathlib import Path

import click
import torch
from torch import Tensor

from cag import features
from cag.config.base import Precision, Section, load_params
from cag.config.extract import Extract
from cag.datasets.prepared import PreparedImages, fingerprint, read_shared_label_space
from cag.extraction import Extraction
from cag.networks import load_model
from cag.prediction import ImageBatch, predict, predict_pixels
from cag.projection import Projection, span
from cag.runtime import files
from cag.runtime.devices import make_fabric
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.provenance import code_digest, require_unchanged

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, STORE = "data/models/{}.safetensors", "data/features/{}/source.h5"
FEATURES, SCRATCH = "data/features/{}", ".scratch/extract_target-{}"


class Params(Section):
    """The declared parameters."""

    precision: Precision
    extract: Extract


def anchors_span(store: Path, num_classes: int, most: int | None) -> Projection | None:
    """The span of the anchors that come from a source store; None keeps all channels."""
    if most is None:
        return None
    statistics = features.read_anchor_statistics(store, num_classes)
    return span(((part.correct_class_sums, part.correct_class_counts) for part in statistics), most)


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
@click.argument("anchors")
def main(round_name: str, teacher: str, anchors: str) -> None:
    """Write `target.h5` and `target/` of a round with TEACHER, for anchors of the round ANCHORS."""
    params = load_params(Params)
    config, model = params.extract, Path(MODEL.format(teacher))
    folder, source = Path(FEATURES.format(round_name)), Path(STORE.format(anchors))
    classes = read_shared_label_space(SOURCE, TARGET)
    network = load_model(model, classes).network
    fabric = make_fabric(params.precision)
    processes = Processes(fabric)
    limits = classes.num_classes, config.directions
    projection = processes.from_main(lambda: anchors_span(source, *limits))
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    scratch = Path(SCRATCH.format(round_name)) / files.fingerprint(
        format=features.SHARD_FORMAT,
        code=code_digest(),
        device=fabric.device.type,
        precision=fabric.strategy.precision.precision,
        extract=config.model_dump(),
        inputs=[fingerprint(TARGET), *map(files.sha256, (model, source))],
    )

    def rows(batch: ImageBatch) -> tuple[Tensor, ...]:
        row = predict_pixels(network, batch.images, config.target_views, fabric)
        return row if projection is None else features.reduced_row(*row, projection)

    def needed(count: int) -> int:
        shape = predict(network, images[0][0][None], fabric).features.shape[1:]
        directions = None if projection is None else len(projection.directions)
        return features.target_bytes(count, *shape, directions)

    images = PreparedImages(TARGET, "train", with_labels=False)
    shards = features.target_shards(scratch, images.batches(config.batch_size))
    extraction, what = Extraction(images, rows, shards), f"the target features of {round_name}"
    missing = processes.from_main(lambda: extraction.missing(needed, folder, what))
    extraction.make(missing, fabric.device, processes, "extract target")
    if processes.main:
        features.move_target(shards, folder, images.names, projection)
        require_unchanged()
        shutil.rmtree(scratch.parent)


if __name__ == "__main__":
    run_stage(main)
