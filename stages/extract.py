"""Extract a round's features with its teacher: class sums of the source, dense target features."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from cag import features
from cag.config.base import Precision, Section, load_params
from cag.config.extract import Extract
from cag.datasets.prepared import PreparedImages, fingerprint, read_shared_label_space
from cag.features import Shard, Shards, count_images
from cag.networks import load_model
from cag.prediction import ImageBatch, image_batches, predict, predict_pixels
from cag.runtime import files
from cag.runtime.devices import make_fabric
from cag.runtime.overlap import overlapped, to_cpu
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.seeds import mix

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL = "data/models/{}.safetensors"
FEATURES, SCRATCH = "data/features/{}", ".scratch/extract-{}"


class Params(Section):
    """The declared parameters."""

    seed: NonNegativeInt
    precision: Precision
    extract: Extract


class Domain(NamedTuple):
    """A domain's images, the function from a batch of them to its rows, and the rows' files."""

    images: PreparedImages
    rows: Callable[[ImageBatch], tuple[Tensor, ...]]
    shards: Shards


def make_shards(
    domain: Domain, missing: list[Shard], device: torch.device, processes: Processes
) -> None:
    """Compute and write the missing shards of a domain, shared by the processes."""
    share, shards = missing[processes.rank :: processes.count], domain.shards
    count, batches = count_images(share), [batch for shard in share for batch in shard.batches]

    def compute(batch: ImageBatch) -> Iterator[tuple[int, Callable[[], tuple[Tensor, ...]]]]:
        yield len(batch.indices), to_cpu(*domain.rows(batch))

    def arriving(number: int) -> Iterator[tuple[Tensor, ...]]:
        for images, arrived in islice(computed, number):
            yield arrived()
            advance(images)

    what = f"extract {shards.folder.name}"
    with processes.progress(what, count, count_images(missing)) as advance:
        read = image_batches(domain.images, batches, device)
        with closing(overlapped(read, compute, advance)) as computed:
            for shard in share:
                rows = arriving(len(shard.batches))
                shards.write(shards.folder / shard.name, shard.count, rows)


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `source.h5`, `target.h5` and `target/` of a round with the model TEACHER."""
    params = load_params(Params)
    config, model = params.extract, Path(MODEL.format(teacher))
    folder, per_class = Path(FEATURES.format(round_name)), config.samples_per_class
    classes = read_shared_label_space(SOURCE, TARGET)
    network = load_model(model, classes).network
    fabric = make_fabric(params.precision)
    processes = Processes(fabric)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    scratch = Path(SCRATCH.format(round_name)) / files.fingerprint(
        format=features.SHARD_FORMAT,
        seed=params.seed,
        device=fabric.device.type,
        precision=fabric.strategy.precision.precision,
        extract=config.model_dump(),
        inputs=[fingerprint(SOURCE), fingerprint(TARGET), files.sha256(model)],
    )

    def source_rows(batch: ImageBatch) -> tuple[Tensor, ...]:
        output, labels = predict(network, batch.images, fabric), torch.stack(batch.labels)
        return features.source_rows(*output, labels, batch.indices, mix(params.seed, 2), per_class)

    def target_rows(batch: ImageBatch) -> tuple[Tensor, ...]:
        return predict_pixels(network, batch.images, config.target_views, fabric)

    images = PreparedImages(SOURCE, "train", with_labels=True)
    batches = images.batches(config.batch_size)
    shards = features.source_shards(scratch / "source", batches, per_class)
    source = Domain(images, source_rows, shards)
    images = PreparedImages(TARGET, "train", with_labels=False)
    shards = features.target_shards(scratch / "target", images.batches(config.batch_size))
    target = Domain(images, target_rows, shards)

    def plan() -> list[list[Shard]]:
        scratch.mkdir(parents=True, exist_ok=True)
        for other in set(scratch.parent.iterdir()) - {scratch}:  # of other parameters
            shutil.rmtree(other)
        missing = [source.shards.missing(), target.shards.missing()]
        shape = predict(network, target.images[0][0][None], fabric).features.shape[1:]
        needed = features.target_bytes(count_images(missing[1]), *shape) + sum(
            features.source_bytes(count, classes.num_classes, network.width, per_class)
            for count in (len(source.images), count_images(missing[0]))  # the store, its shards
        )
        for path in (folder, scratch):
            files.require_space(path, needed, f"the features of {round_name}")
        return missing

    for domain, missing in zip((source, target), processes.from_main(plan), strict=True):
        make_shards(domain, missing, fabric.device, processes)
    if processes.main:
        names, paths = source.images.names, source.shards.paths
        features.join_source(folder / "source.h5", names, paths, per_class)
        features.move_target(target.shards, folder, target.images.names)
        shutil.rmtree(scratch.parent)


if __name__ == "__main__":
    run_stage(main)
