"""Pass the pretrained model on as the first round's teacher (0 iterations of alignment)."""

import shutil
from pathlib import Path

import click

from cag.config import load_params
from cag.errors import UserError
from cag.files import atomic_file
from cag.stage import run

PRETRAINED = Path("data/models/pretrain.safetensors")
MODEL = Path("data/models/warmup.safetensors")


@click.command(help=__doc__)
def main() -> None:
    """Write `data/models/warmup.safetensors`."""
    load_params("warmup")
    if not PRETRAINED.is_file():
        raise UserError(f"{PRETRAINED}: no such model; `dvc repro` makes it")
    with atomic_file(MODEL) as partial:
        shutil.copyfile(PRETRAINED, partial)


if __name__ == "__main__":
    run(main)
