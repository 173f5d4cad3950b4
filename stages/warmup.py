"""Pass the pretrained model, or the one given, on as the first round's teacher."""

import shutil
from pathlib import Path

import click

from cag.config import load_params
from cag.datasets import read_label_space
from cag.errors import UserError
from cag.files import atomic_file, model_weights_file
from cag.networks import load_model
from cag.stage import run

SOURCE = Path("data/prepared/source")
PRETRAINED = Path("data/models/pretrain.safetensors")
GIVEN = Path("data/index/warmup.csv")
MODEL = Path("data/models/warmup.safetensors")


def given_model(weights: str) -> Path:
    """The file of `warmup.weights`, whose classes are those of the data."""
    if not GIVEN.is_file():
        raise UserError(f"{GIVEN}: no such file; `dvc repro` makes it")
    path = model_weights_file(weights)
    load_model(path, read_label_space(SOURCE))
    return path


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/warmup.safetensors`."""
    weights = load_params("warmup").warmup.weights
    model = PRETRAINED if weights is None else given_model(weights)
    if not model.is_file():
        raise UserError(f"{model}: no such model; `dvc repro` makes it")
    with atomic_file(MODEL) as partial:
        shutil.copyfile(model, partial)


if __name__ == "__main__":
    run(main)
