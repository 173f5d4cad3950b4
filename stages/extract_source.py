"""Extract a round's source features with its teacher: class sums, and a sample of single pixels."""

import shutil
from pathlib import Path

import click
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from cag import features
from cag.config.base import Precision, Section, load_params
from cag.config.extract import ExtractSource
from cag.datasets.prepared import PreparedImages, fingerprint, read_label_space
from cag.extraction import Extraction
from cag.networks import load_model
from cag.prediction import ImageBatch, predict
from cag.runtime import files
from cag.runtime.devices import make_fabric
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.provenance import code_digest, require_unchanged
from cag.runtime.seeds import mix

SOURCE, MODEL = Path("data/prepared/source"), "data/models/{}.safetensors"
STORE, SCRATCH = "data/features/{}/source.h5", ".scratch/extract_source-{}"


class Params(Section):
    """The declared parameters."""

    seed: NonNegativeInt
    precision: Precision
    extract: ExtractSource


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `source.h5` of a round with the model TEACHER."""
    params = load_params(Params)
    config, model, store = params.extract, Path(MODEL.format(teacher)), STORE.format(round_name)
    batch_size, per_class = config.batch_size, config.samples_per_class
    classes = read_label_space(SOURCE)
    network = load_model(model, classes).network
    fabric = make_fabric(params.precision)
    processes = Processes(fabric)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    scratch = Path(SCRATCH.format(round_name)) / files.fingerprint(
        format=features.SHARD_FORMAT,
        code=code_digest(),
        seed=params.seed,
        device=fabric.device.type,
        precision=fabric.strategy.precision.precision,
        extract=[batch_size, per_class],
        inputs=[fingerprint(SOURCE), files.sha256(model)],
    )

    def rows(batch: ImageBatch) -> tuple[Tensor, ...]:
        output, labels = predict(network, batch.images, fabric), torch.stack(batch.labels)
        return features.source_rows(*output, labels, batch.indices, mix(params.seed, 2), per_class)

    def needed(count: int) -> int:  # for the store and so many images' shards
        form = classes.num_classes, network.width, per_class
        return sum(features.source_bytes(number, *form) for number in (len(images), count))

    images = PreparedImages(SOURCE, "train", with_labels=True)
    shards = features.source_shards(scratch, images.batches(batch_size), per_class)
    extraction, what = Extraction(images, rows, shards), f"the source features of {round_name}"
    missing = processes.from_main(lambda: extraction.missing(needed, Path(store).parent, what))
    extraction.make(missing, fabric.device, processes, "extract source")
    if processes.main:
        features.join_source(Path(store), images.names, shards.paths, per_class)
        require_unchanged()
        shutil.rmtree(scratch.parent)


if __name__ == "__main__":
    run_stage(main)
