"""Commands about models and weights."""

import sys
from pathlib import Path

import click

from cag.commands.terminal import PATH, print_rows
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file

IMAGES = """Photographs to compare with too: a file, a folder or a pattern; 4 are taken.
[default: two built-in scenes]"""


@click.command(short_help="A model as ONNX or pt2 for other programs.")
@click.argument("model", type=PATH)
@click.option(
    "--format", "form", type=click.Choice(["onnx", "pt2"]), required=True, help="Of the file."
)
@click.option("--out", type=PATH, required=True, help="File to write.")
@click.option("--images", multiple=True, help=IMAGES)
def export(model: Path, form: str, out: Path, images: tuple[str, ...]) -> None:
    """Write MODEL for other programs: ONNX, or pt2 for torch.export.load.

    Input `images`: float32 [B, 3, H, W], RGB in [0, 1], of any number and any size above 32; the
    normalisation is inside. Output `logits`: float32 [B, K, H, W] at the images' size; the largest
    of the K is the train id. Names and colours of the classes and the size of the images that the
    model was trained on are in the file (ONNX: metadata properties; pt2: the extra file cag.json):
    `cag predict` brings images to that size; if you run the file yourself, do the same.

    The written file is run and compared with the model on random and real images of several sizes.
    The table shows the largest difference of their logits, beside that of the model's own logits to
    the same computed in float64, and the largest logit. The file is kept if they differ by no more
    than rounding. Files of --images that are no images by their extension are named.

    \b
    Examples:
      cag export data/models/round3.safetensors --format onnx --out round3.onnx
      cag export data/models/round3.safetensors --format pt2 --out round3.pt2 --images photos
    """
    from cag.datasets.layouts import describe_files
    from cag.deploy import export as exports
    from cag.deploy.image_files import other_files

    if out.suffix != f".{form}":
        raise UserError(f"--out is {out}; the name of a {form} file ends in .{form}")
    if others := other_files(images, [out]):
        print(f"left out, no images: {describe_files(others)}", file=sys.stderr)
    with atomic_file(out) as partial:
        rows, compared = [], exports.export(model, form, partial, images)
        for result in compared:
            size = "x".join(map(str, result.shape))
            row = {"images": result.images, "size": size, "difference": f"{result.difference:.1e}"}
            row |= {"own rounding": f"{result.rounding:.1e}", "largest": f"{result.scale:.3g}"}
            rows.append(row | {"equal labels": f"{result.agreement:.3%}"})
        print_rows(rows)
        if not all(result.passed for result in compared):
            reason = f"its logits differ from those of {model} by more than rounding"
            raise UserError(f"{out}: not kept: {reason}; see the table above")
    opset = f", opset {exports.OPSET}" if form == "onnx" else ""
    print(f"{out}: {model}, {out.stat().st_size / 1e6:.1f} MB{opset}")


@click.group()
def weights() -> None:
    """Use weights from elsewhere."""


@weights.command("import", short_help="Convert the paper's released weights.")
@click.argument("released", type=PATH)
@click.argument("out", type=PATH)
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
    from cag.deploy.released import import_released
    from cag.project.template import template

    kind = import_released(released, out, template() / "classes/cityscapes.yaml")
    print(f"{out}: the {kind} of {released}")
