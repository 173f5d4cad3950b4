"""The command that labels photographs."""

import sys
from pathlib import Path

import click

from cag.commands.terminal import PATH, json_option, print_json, print_rows, stdout_for_json
from cag.runtime.errors import UserError, absent, shortened

SHOWN_FAILURES = 30
SIZE = """Predict at this size, or at each image's own.
[default: that of the images trained on, which the model knows]"""
TILE = """Side of overlapping tiles in pixels, at least 64; 0: images whole.
[default: 1024 for images above 4 million pixels]"""
TURNED = """Turn images as their EXIF orientation says; as stored: for a model of images that were
prepared with turn_by_exif: false."""
BATCH = "Images of one size that are predicted together, of up to 4 million pixels."


class PixelSize(click.ParamType):
    """(height, width) in pixels, or the word own."""

    name = "H,W|own"

    def convert(self, value, param, ctx):
        """Parse the option's text."""
        from cag.config.base import LONGEST_SIDE

        if isinstance(value, tuple) or value == "own":
            return value
        sides = value.replace("x", ",").split(",")
        sizes = [int(side) for side in sides if side.strip().isdecimal() and len(side) < 9]
        two = len(sizes) == len(sides) == 2
        if not two or not all(0 < side <= LONGEST_SIDE for side in sizes):
            problem = f"{shortened(value, 40)!r} is neither height,width, such as 512,1024, nor own"
            self.fail(f"{problem}; a side has 1 to {LONGEST_SIDE} pixels", param, ctx)
        return sizes[0], sizes[1]


@click.command(short_help="Label photographs with a model.")
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Folder to write to.")
@click.option("--overlay/--no-overlay", default=True, help="Write overlays/ too.")
@click.option("--confidence", is_flag=True, help="Write confidence/ too.")
@click.option("--size", type=PixelSize(), help=SIZE)
@click.option("--tile", type=int, help=TILE)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help=BATCH)
@click.option("--turned/--as-stored", default=True, show_default=True, help=TURNED)
@click.option("--device", help="cpu, cuda, cuda:1 or mps. [default: the best there is]")
@json_option
def predict(
    model: Path,
    images: tuple[str, ...],
    out: Path,
    overlay: bool,
    confidence: bool,
    size: tuple[int, int] | str | None,
    tile: int | None,
    batch: int,
    turned: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Label IMAGES (files, folders with all below them, or quoted patterns) with MODEL.

    Below the folder --out, at each image's own size and under its path below the folder given:
    labels/NAME.png, palette PNGs of train ids; overlays/NAME.jpg, the classes' colours over the
    image; confidence/NAME.png, the probability of the predicted class in grey, 0 to 255 for 0 to 1.
    classes.json names the classes. Images are turned as their EXIF orientation says, but for
    --as-stored; alpha is dropped; of 16 bits the upper 8 are seen. The share of the pixels of each
    class is printed.

    An image that cannot be read, or whose results cannot be written, is passed over and listed at
    the end; the exit status is then 1. Files that are no images by their extension are named. What
    does not fit in the memory is predicted in smaller tiles. An image of more than 178 million
    pixels is refused unless the variable CAG_MAX_PIXELS allows so many.

    \b
    Examples:
      cag predict data/models/round3.safetensors photos --out labelled
      cag predict model.safetensors "drive/**/*.jpg" --out labelled --confidence --tile 1024
    """
    from cag.datasets.layouts import describe_files
    from cag.deploy.image_files import list_images, other_files

    kinds = ["labels"] + ["overlays"] * overlay + ["confidence"] * confidence
    written = [out / kind for kind in ("labels", "overlays", "confidence")]
    files = list_images(images, written)
    if others := other_files(images, [*written, out / "classes.json"]):
        print(f"left out, no images: {describe_files(others)}", file=sys.stderr)
    if not model.is_file():  # before torch is loaded
        raise absent(model, "model", "`dvc repro` makes data/models/*.safetensors")

    from cag import load
    from cag.deploy.photographs import label_photographs

    with stdout_for_json(as_json):
        segmenter = load(model, device)
        labelled = label_photographs(segmenter, files, out, kinds, size, tile, batch, turned)
    shares = [round(float(share), 6) for share in labelled.shares]
    rows = list(zip(segmenter.classes, labelled.pixels.tolist(), shares, strict=True))
    if as_json:
        rate = round(labelled.images / labelled.seconds, 3)
        speed = {"seconds": round(labelled.seconds, 3), "images_per_second": rate}
        about = {"images": labelled.images, **speed, "device": str(segmenter.device)}
        classes = [{"class": name, "pixels": count, "share": share} for name, count, share in rows]
        failed = [{"image": str(path), "error": error} for path, error in labelled.failures]
        print_json({**about, "classes": classes, "failed": failed, "left_out": others})
    elif labelled.images:
        print_rows([{"class": name, "pixels, %": f"{100 * share:.2f}"} for name, _, share in rows])
    if failures := [error for _, error in labelled.failures]:
        shown = failures[:SHOWN_FAILURES]
        print(*(f"passed over: {error}" for error in shown), sep="\n", file=sys.stderr)
        more = f", {len(shown)} of them" if len(failures) > len(shown) else ""
        rest = "; the others are labelled" if labelled.images else ""
        problem = f"{len(failures)} of {len(files)} images could not be labelled"
        raise UserError(f"{problem}; listed above{more}{rest}")
