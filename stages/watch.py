"""Measure a round's student on unlabelled target images, beside the model it started from."""

from pathlib import Path

import click
import torch
from pydantic import NonNegativeInt

from cag.config.base import Precision, Section, load_params
from cag.config.watch import Watch
from cag.datasets.prepared import PreparedImages, read_shared_label_space
from cag.networks import SegmentationNetwork, load_model
from cag.runtime.devices import make_fabric
from cag.runtime.files import write_csv, write_json
from cag.runtime.program import run_stage
from cag.runtime.progress import progress
from cag.watch import watch

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, NUMBERS, TABLE = "data/models/{}.safetensors", "data/watch/{}.json", "data/watch/{}.csv"


class Params(Section):
    """The declared parameters."""

    seed: NonNegativeInt
    precision: Precision
    watch: Watch = Watch()


def write_measures(model: str, teacher: str | None = None) -> None:
    """Write `data/watch/<model>.json` and, for each class, `data/watch/<model>.csv`.

    The teacher is the model that it started from.
    """
    params = load_params(Params)
    config, classes = params.watch, read_shared_label_space(SOURCE, TARGET)
    fabric = make_fabric(params.precision)

    def read_network(name: str) -> SegmentationNetwork:
        network = load_model(Path(MODEL.format(name)), classes).network
        return fabric.to_device(network.to(memory_format=torch.channels_last))

    network, before = read_network(model), teacher and read_network(teacher)
    source = PreparedImages(SOURCE, "train", with_labels=True)
    target = PreparedImages(TARGET, "train", with_labels=False)
    counts = [min(config.images, len(images)) for images in (source, target)]
    with progress(f"watch {model}", sum(counts), "images") as advance:
        measured = watch(network, source, target, config, params.seed, fabric, advance, before)
    table = measured.per_class
    table.insert(0, "class", classes.names)
    write_csv(Path(TABLE.format(model)), table.round(6))
    write_json(Path(NUMBERS.format(model)), {**measured.numbers, "images": counts[1]})
    numbers = {k: "none" if v != v else f"{v:.3f}" for k, v in measured.numbers.items()}
    print(f"watch {model}: {', '.join(map(' '.join, numbers.items()))}")


@click.command(help=__doc__)
@click.argument("name", metavar="ROUND")
@click.argument("teacher")
def main(name: str, teacher: str) -> None:
    """Measure the student of a round and TEACHER; see `write_measures`."""
    write_measures(name, teacher)


if __name__ == "__main__":
    run_stage(main)
