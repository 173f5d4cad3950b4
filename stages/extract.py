"""Extract a round's features with its teacher: class sums of the source, dense target features."""

from pathlib import Path
from types import SimpleNamespace

import click
import torch
from lightning_fabric import Fabric

from cag.anchors import resize_labels
from cag.config import load_params
from cag.datasets import read_shared_label_space
from cag.devices import make_fabric
from cag.errors import UserError
from cag.features import (
    BalancedSample,
    SourceWriter,
    TargetWriter,
    create_store,
    source_bytes,
    source_statistics,
    target_bytes,
)
from cag.networks import SegmentationNetwork, load_model
from cag.prediction import image_batches, predict, predict_views
from cag.prepared import PreparedImages
from cag.seeds import mix
from cag.stage import progress, run

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL = "data/models/{}.safetensors"
STORE = "data/features/{}/{}.h5"


def extract_source(
    network: SegmentationNetwork, path: Path, params: SimpleNamespace, fabric: Fabric
) -> None:
    """Write `source.h5`."""
    images = PreparedImages(SOURCE, "train", with_labels=True)
    names, config = images.names, params.extract
    width, num_classes = network.width, network.num_classes
    size = source_bytes(len(names), num_classes, width, config.samples_per_class)
    sample = BalancedSample(config.samples_per_class, width, mix(params.seed, 2))
    with create_store(path, size) as file, progress("source", len(names), "images") as advance:
        writer = SourceWriter(file, names, num_classes, width)
        for batch_names, batch, labels in image_batches(images, config.batch_size):
            output = predict(network, batch, fabric)
            small = resize_labels(torch.stack(labels), output.logits.shape[2:]).to(fabric.device)
            writer.write(source_statistics(*output, small))
            sample.update(output.features, small)
            advance(len(batch_names))
        writer.write_sample(sample)


def extract_target(
    network: SegmentationNetwork, path: Path, params: SimpleNamespace, fabric: Fabric
) -> None:
    """Write `target.h5`."""
    images = PreparedImages(TARGET, "train", with_labels=False)
    names = images.names
    shape = predict(network, images[0][0][None], fabric).features.shape[1:]
    size = target_bytes(len(names), *shape)
    with create_store(path, size) as file, progress("target", len(names), "images") as advance:
        writer = TargetWriter(file, names, tuple(shape))
        for batch_names, batch, _ in image_batches(images, params.extract.batch_size):
            output = predict_views(network, batch, params.extract.target_views, fabric)
            if output.features.shape[1:] != shape:
                raise UserError(
                    f"{TARGET}: {batch_names[0]} differs in size from {names[0]}; the feature "
                    "store holds one size: set target.size to [height, width]"
                )
            writer.write(*output)
            advance(len(batch_names))


@click.command(help=__doc__)
@click.argument("round_name")
@click.argument("teacher")
def main(round_name: str, teacher: str) -> None:
    """Write `source.h5` and `target.h5` of a round with the model TEACHER."""
    params = load_params("seed", "precision", "extract")
    classes = read_shared_label_space(SOURCE, TARGET)
    network, _, _ = load_model(Path(MODEL.format(teacher)), classes)
    fabric = make_fabric(params.precision)
    if not fabric.is_global_zero:
        return
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    extract_source(network, Path(STORE.format(round_name, "source")), params, fabric)
    extract_target(network, Path(STORE.format(round_name, "target")), params, fabric)


if __name__ == "__main__":
    run(main)
