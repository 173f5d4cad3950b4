"""Commands about models and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from cag.commands.template import template
from cag.errors import UserError
from cag.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor


@click.group()
def weights() -> None:
    """Use weights from elsewhere."""


@weights.command("import")
@click.argument("released", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def import_weights(released: Path, out: Path) -> None:
    """Convert RELEASED, a file of the paper's authors, without running anything in it.

    A checkpoint (*.pkl) becomes a model of the 19 Cityscapes classes: OUT ends in .safetensors. To
    start from it instead of training a warm-up, write it to the folder that CAG_WEIGHTS names
    (default data/weights) and name it in params.yaml. The rounds then use its network and input
    normalisation; `pretrain` still trains the source-only model that they are compared with.
    Their category_anchors become anchors as numpy.load reads them, [19, 256]: OUT ends in .npy.

    \b
    Examples:
      cag weights import warmup.pkl data/weights/gta5_warmup.safetensors
      cag weights import category_anchors released_anchors.npy
    then in params.yaml:
      warmup:
        weights: gta5_warmup.safetensors
    """
    from cag.released import read_released

    found = read_released(released)
    kind, suffix = ("weights", ".safetensors") if isinstance(found, dict) else ("anchors", ".npy")
    if out.suffix != suffix:
        raise UserError(f"{released}: holds {kind}, so OUT must end in {suffix}, not '{out}'")
    try:
        _write_weights(out, found) if isinstance(found, dict) else _write_anchors(out, found)
    except UserError as error:
        raise UserError(f"{released}: {error}") from None
    print(f"{out}: the {kind} of {released}")


def _write_weights(path: Path, state: dict[str, Tensor]) -> None:
    from cag.labels import read_class_map
    from cag.networks import RELEASED_NETWORK, build, convert_released_weights, save_model

    weights = convert_released_weights(state)
    classes = read_class_map(template() / "classes/cityscapes.yaml").label_space
    network = build(RELEASED_NETWORK, classes.num_classes)
    network.load_state_dict(weights)
    save_model(path, network, RELEASED_NETWORK, classes)


def _write_anchors(path: Path, anchors: np.ndarray) -> None:
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.save(file, anchors)
