"""The command that shows all that is known of one target image or pixel."""

from pathlib import Path
from typing import Any

import click

from cag.commands.terminal import PATH, json_option, print_json, print_rows
from cag.config.base import RULES
from cag.runtime.errors import UserError


@click.command(short_help="What is known of a target image or pixel.")
@click.argument("image")
@click.option("--round", "round_name", help="Name or number; the last one with pseudo-labels.")
@click.option("--xy", help="A pixel X,Y of the prepared image, from 0.")
@click.option("--out", type=PATH, help="PNG; inspect-IMAGE-ROUND.png.")
@json_option
def inspect(
    image: str, round_name: str | None, xy: str | None, out: Path | None, as_json: bool
) -> None:
    """Show what a round knows of IMAGE, a target training image, or of one of its pixels.

    IMAGE is a name, a part of one, or a path. The tables show the pixels of each class by nearest
    anchor and by pseudo-label, and the quantiles of the margins; with --xy the distances to all
    anchors, the thresholds of params.yaml that the pixel passes, and its labels. A PNG shows the
    maps; with --json only if --out names it.

    \b
    Examples:
      cag inspect target_00012
      cag inspect target_00012 --round round1 --xy 120,64 --out sign.png
    """
    from cag.analysis.plots import save_png
    from cag.project import inspection

    inspected = inspection.inspect(image, round_name, None if xy is None else _point(xy))
    about = inspected.description
    if out is None and not as_json:
        out = Path(f"inspect-{about['image'].replace('/', '-')}-{about['round']}.png")
    if out is not None:
        save_png(inspection.figure(inspected), out)
    if as_json:
        print_json(about)
    else:
        _print(about)
        print(f"picture: {out}")


def _point(xy: str) -> tuple[int, int]:
    try:
        x, y = (int(number) for number in xy.split(","))
    except ValueError:
        raise UserError(f"--xy is '{xy}'; expected two whole numbers: 120,64") from None
    return x, y


def _print(about: dict[str, Any]) -> None:
    size = f"{about['width']} x {about['height']} pixels, {about['pixels']} of the features"
    print(f"{about['image']} in {about['round']} (teacher {about['teacher']}): {size}")
    if not about["as_written"]:
        print("its label PNGs have other thresholds than params.yaml now; the tables have the new")
    if about["left_out"]:
        print(about["left_out"])
    if "pixel" in about:
        _print_pixel(about["pixel"])
    print_rows(about["classes"])
    print_rows(about["quantiles"])


def _print_pixel(pixel: dict[str, Any]) -> None:
    place, labels = pixel["feature_pixel"], pixel["labels"]
    training = " and ".join(labels["training"]) or "none"
    print(f"pixel {pixel['x']},{pixel['y']}: row {place['row']}, column {place['column']}")
    print_rows(pixel["distances"])
    distances = f"d1 {pixel['nearest_distance']:.4g}, d2 {pixel['second_distance']:.4g}"
    margins = f"margin {pixel['margin']:.4g}, relative margin {pixel['relative_margin']:.4f}"
    print(f"nearest {pixel['nearest']}: {distances}, {margins}")
    print(f"predicted {pixel['prediction']}: probability {pixel['probability']:.4f}")
    print_rows(pixel["rules"])
    anchor, probability = (labels[rule] or "none" for rule in RULES)
    print(f"label by anchor: {anchor}; by probability: {probability}; trained on: {training}")
