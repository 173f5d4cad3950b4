"""Commands about models and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.table import Table

from cag.commands.template import template
from cag.commands.terminal import print_table
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor


@click.command(short_help="A model as ONNX or pt2 for other programs.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["onnx", "pt2"]), required=True, help="Of the file."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--images",
    multiple=True,
    help="Photographs to compare with too: a file, a folder or a pattern; 4 are taken. "
    "[default: two built-in scenes]",
)
def export(model: Path, form: str, out: Path, images: tuple[str, ...]) -> None:
    """Write MODEL for other programs: ONNX, or pt2 for torch.export.load.

    Input `images`: float32 [B, 3, H, W], RGB in [0, 1], of any number and any size above 32; the
    normalisation is inside. Output `logits`: float32 [B, K, H, W] at the images' size; the largest
    of the K is the train id. Names and colours of the classes and the size of the images that the
    model was trained on are in the file (ONNX: metadata properties; pt2: the extra file cag.json):
    `cag predict` brings images to that size, who runs the file must do so.

    What was written is run and compared with the model on random and real images of several sizes.
    The table shows the largest difference of their logits, beside that of the model's own logits to
    the same computed in float64, and the largest logit. The file is kept if they differ by no more
    than rounding.

    \b
    Examples:
      cag export data/models/round3.safetensors --format onnx --out round3.onnx
      cag export data/models/round3.safetensors --format pt2 --out round3.pt2 --images photos
    """
    from cag.deploy import export as exports
    from cag.networks import load_model

    if out.suffix != f".{form}":
        raise UserError(f"--out is {out}; the name of a {form} file ends in .{form}")
    if form == "onnx":
        exports.require_packages("onnx", "onnxscript", "onnxruntime")
    network, _, classes, size = load_model(model)
    given = _comparison_images(images)
    program = exports.trace(network)
    write, load = {
        "onnx": (exports.write_onnx, exports.load_onnx),
        "pt2": (exports.write_pt2, exports.load_pt2),
    }[form]
    with atomic_file(out) as partial:
        write(partial, program, exports.metadata(classes, size))
        compared = list(exports.compare(network, load(partial), given))
        _print_comparisons(compared)
        if not all(one.passed for one in compared):
            raise UserError(
                f"{out}: not kept: its logits differ from those of {model} by more than rounding; "
                "see the table above"
            )
    opset = f", opset {exports.OPSET}" if form == "onnx" else ""
    print(f"{out}: {model}, {out.stat().st_size / 1e6:.1f} MB{opset}")


def _comparison_images(given: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Random images of two sizes, and photographs or built-in scenes; float [B, 3, H, W]."""
    import torch

    from cag.commands.predict import list_images
    from cag.datasets.images import read_image
    from cag.datasets.prepared import evenly_spaced
    from cag.deploy.export import LEAST_SIDE
    from cag.scenes import render

    generator = torch.Generator().manual_seed(0)
    images = [
        ("random", torch.rand(shape, generator=generator))
        for shape in ((1, 3, 96, 160), (2, 3, 125, 203))
    ]
    if given:
        found = list_images(given)
        chosen = [found[i] for i in evenly_spaced(len(found), 4)]
        real = [(path.name, read_image(path)) for _, path in chosen]
    else:
        real = [
            (f"scene {look}", render(look, 0, 0, *size)[0])
            for look, size in (("source", (128, 256)), ("target", (180, 300)))
        ]
    small = [name for name, image in real if min(image.shape[:2]) < LEAST_SIDE]
    if small:
        raise UserError(f"{small[0]}: is too small; compare with images above 32 pixels a side")
    return images + [
        (name, torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255) for name, image in real
    ]


def _print_comparisons(compared: list) -> None:
    table = Table("images", box=None)
    for column in ("size", "difference", "own rounding", "largest", "equal labels"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in compared:
        shape = "x".join(map(str, one.shape))
        errors = f"{one.difference:.1e}", f"{one.rounding:.1e}", f"{one.scale:.3g}"
        table.add_row(one.what, shape, *errors, f"{one.agreement:.3%}")
    print_table(table)


@click.group()
def weights() -> None:
    """Use weights from elsewhere."""


@weights.command("import", short_help="Convert the paper's released weights.")
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
    from cag.deploy.released import read_released

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
    from cag.datasets.labels import read_class_map
    from cag.deploy.released import RELEASED_NETWORK, convert_released_weights
    from cag.networks import build, save_model

    weights = convert_released_weights(state)
    classes = read_class_map(template() / "classes/cityscapes.yaml").label_space
    network = build(RELEASED_NETWORK, classes.num_classes)
    network.load_state_dict(weights)
    save_model(path, network, RELEASED_NETWORK, classes)


def _write_anchors(path: Path, anchors: np.ndarray) -> None:
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.save(file, anchors)
