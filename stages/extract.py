"""Extract a round's features with its teacher: class sums of the source, dense target features."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import click
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cag.anchors import resize_labels
from cag.config.base import Precision, Section, Seed, load_params
from cag.config.extract import Extract
from cag.datasets.prepared import PreparedImages, read_shared_label_space
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.features import (
    SHARD_FORMAT,
    SOURCE_SHARD_KEYS,
    TARGET_ROWS,
    Shard,
    cut_shards,
    is_whole,
    join_source,
    link_target,
    pixel_draws,
    sample_pixels,
    source_bytes,
    source_statistics,
    target_bytes,
    write_source_shard,
    write_target_shard,
)
from cag.networks import SegmentationNetwork, load_model
from cag.prediction import ImageBatch, image_batches, predict, predict_pixels
from cag.runtime.devices import make_fabric
from cag.runtime.files import atomic_folder, fingerprint, require_space, sha256
from cag.runtime.overlap import ahead, to_cpu
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.runtime.seeds import mix

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL = "data/models/{}.safetensors"
FEATURES, SCRATCH = "data/features/{}", ".scratch/extract-{}"


class Params(Section):
    """The declared parameters."""

    seed: Seed
    precision: Precision
    extract: Extract


def source_output(
    batch: ImageBatch, network: SegmentationNetwork, params: Params, fabric: Fabric
) -> tuple[Tensor, ...]:
    """A source batch's statistics and sample of pixels, field by field."""
    features, logits = predict(network, batch.images, fabric)
    labels = resize_labels(torch.stack(batch.labels), logits.shape[2:])
    statistics = source_statistics(features, logits, labels.to(fabric.device))
    draws = pixel_draws(mix(params.seed, 2), batch.indices, tuple(labels.shape[1:]))
    sample = sample_pixels(features, labels, draws, params.extract.samples_per_class)
    return *statistics, *sample


def target_output(
    batch: ImageBatch, network: SegmentationNetwork, params: Params, fabric: Fabric
) -> tuple[Tensor, ...]:
    """A target batch's features, prediction and probability."""
    return predict_pixels(network, batch.images, params.extract.target_views, fabric)


@dataclass(frozen=True)
class Domain:
    """A domain's images, how they become rows of a store, and in which shards."""

    name: str
    images: PreparedImages
    shards: list[Shard]
    folder: Path  # of the shards
    keys: tuple[str, ...]  # of their data sets
    output: Callable[[ImageBatch], tuple[Tensor, ...]]
    write: Callable[[Path, int, Iterable[tuple[Tensor, ...]]], None]

    def paths(self) -> list[Path]:
        """The shards' files."""
        return [self.folder / shard.name for shard in self.shards]

    def missing(self) -> list[Shard]:
        """The shards that are not there or cannot be read."""
        files = zip(self.shards, self.paths(), strict=True)
        return [shard for shard, path in files if not is_whole(path, shard.count, self.keys)]


def images_in(shards: list[Shard]) -> int:
    """Number of images."""
    return sum(shard.count for shard in shards)


def start_or_resume(folder: Path) -> None:
    """Make a folder for shards, and delete those of other parameters beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)


def make_shards(domain: Domain, shards: list[Shard], fabric: Fabric, processes: Processes) -> None:
    """Compute and write some shards of a domain; the processes share them."""
    own = shards[processes.rank :: processes.count]
    batches = [batch for shard in own for batch in shard.batches]
    with progress(f"extract {domain.name}", images_in(own), "images") as advance:

        def outputs() -> Iterator[tuple[int, Callable[[], tuple[Tensor, ...]]]]:
            with closing(ahead(image_batches(domain.images, batches, fabric.device))) as read:
                for batch in advance.waiting(read):
                    yield len(batch.indices), to_cpu(*domain.output(batch))

        def arriving(batches: int) -> Iterator[tuple[Tensor, ...]]:
            for images, arrived in islice(computed, batches):
                yield arrived()
                advance(images)

        with closing(ahead(outputs(), depth=1)) as computed:
            for shard in own:
                domain.write(domain.folder / shard.name, shard.count, arriving(len(shard.batches)))
        processes.wait()
        advance(images_in(shards) - images_in(own))


def publish(folder: Path, source: Domain, target: Domain, per_class: int) -> None:
    """Put what the shards hold where it belongs."""
    join_source(folder / "source.h5", source.images.names, source.paths(), per_class)
    with atomic_folder(folder / "target") as unfinished:
        for path in target.paths():
            shutil.move(path, unfinished / path.name)  # `data` may lie on another disk
    shards = [folder / "target" / shard.name for shard in target.shards]
    link_target(folder / "target.h5", target.images.names, shards)


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `source.h5`, `target.h5` and `target/` of a round with the model TEACHER."""
    params = load_params(Params)
    config, model, folder = params.extract, Path(MODEL.format(teacher)), FEATURES.format(round_name)
    classes = read_shared_label_space(SOURCE, TARGET)
    network = load_model(model, classes).network
    fabric = make_fabric(params.precision)
    processes = Processes(fabric)
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    scratch = Path(SCRATCH.format(round_name)) / fingerprint(
        format=SHARD_FORMAT,
        seed=params.seed,
        device=fabric.device.type,
        precision=fabric.strategy.precision.precision,
        extract=config.model_dump(),
        inputs=[data_fingerprint(SOURCE), data_fingerprint(TARGET), sha256(model)],
    )

    def domain(name: str, images: PreparedImages, *how) -> Domain:
        shards = cut_shards(images.batches(config.batch_size))
        return Domain(name, images, shards, scratch / name, *how)

    given = {"network": network, "params": params, "fabric": fabric}
    source = domain(
        "source",
        PreparedImages(SOURCE, "train", with_labels=True),
        SOURCE_SHARD_KEYS,
        partial(source_output, **given),
        partial(write_source_shard, per_class=config.samples_per_class),
    )
    target = domain(
        "target",
        PreparedImages(TARGET, "train", with_labels=False),
        TARGET_ROWS,
        partial(target_output, **given),
        write_target_shard,
    )

    def plan() -> list[list[Shard]]:
        start_or_resume(scratch)
        missing = [source.missing(), target.missing()]
        shape = predict(network, target.images[0][0][None], fabric).features.shape[1:]
        sums = [len(source.images), images_in(missing[0])]  # the store and the shards it is made of
        needed = target_bytes(images_in(missing[1]), *shape) + sum(
            source_bytes(count, classes.num_classes, network.width, config.samples_per_class)
            for count in sums
        )
        for path in (Path(folder), scratch):
            require_space(path, needed, f"the features of {round_name}")
        return missing

    for one, shards in zip((source, target), processes.from_main(plan), strict=True):
        make_shards(one, shards, fabric, processes)
    if processes.main:
        publish(Path(folder), source, target, config.samples_per_class)
        shutil.rmtree(scratch.parent)


if __name__ == "__main__":
    run_stage(main)
