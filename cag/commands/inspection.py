"""The command that shows all that is known of one target image or pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.table import Table

from cag.commands.rounds import chosen_round
from cag.commands.terminal import print_table
from cag.config.base import RULES
from cag.config.parameters import load_all
from cag.runtime.errors import UserError
from cag.runtime.files import inside

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
ROUND, STORE = "data/rounds/{}", "data/features/{}/target.h5"
LABELS, CURVES = "pseudo_labels", "threshold_curves.csv"


@click.command(short_help="What is known of a target image or pixel.")
@click.argument("image")
@click.option("--round", "round_name", help="Name or number; the last one with pseudo-labels.")
@click.option("--xy", help="A pixel X,Y of the prepared image, from 0.")
@click.option("--out", type=click.Path(path_type=Path), help="PNG; inspect-IMAGE-ROUND.png.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a PNG only with --out.")
def inspect(
    image: str, round_name: str | None, xy: str | None, out: Path | None, as_json: bool
) -> None:
    """Show what a round knows of IMAGE, a target training image, or of one of its pixels.

    IMAGE is a name, a part of one, or a path. Printed are the pixels of each class by nearest
    anchor and by pseudo-label and the quantiles of the margins; with --xy the distances to all
    anchors, which thresholds of params.yaml the pixel passes, and its labels. A PNG shows the maps.

    \b
    Examples:
      cag inspect target_00012
      cag inspect target_00012 --round round1 --xy 120,64 --out sign.png
    """
    from cag.analysis.inspection import (
        describe_image,
        describe_pixel,
        enlarge,
        feature_pixel,
        find_image,
        inspect_image,
    )
    from cag.analysis.threshold_curves import class_thresholds_at, read_thresholds
    from cag.anchors import read_anchors
    from cag.datasets.images import read_label
    from cag.datasets.prepared import read_label_space
    from cag.features import read_target_row, read_target_store

    params = load_all()
    config, chosen = params.pseudo_label, _round(round_name, list(params.rounds))
    folder, classes = Path(ROUND.format(chosen)), read_label_space(SOURCE)
    store = read_target_store(Path(STORE.format(chosen)))
    index = find_image(store.names, image)
    name = store.names[index]
    row = _manifest_row(name)
    size = int(row["height"]), int(row["width"])
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, store.width)
    own = class_thresholds_at(config.quantile, *read_thresholds(folder / CURVES, classes.names))
    features, prediction, probability = read_target_row(store, index)
    found = inspect_image(features, prediction, probability, anchors, config, own)
    written = [read_label(inside(folder / LABELS / rule, f"{name}.png")) for rule in RULES]
    computed = [enlarge(labels, size).numpy() for labels in (found.by_anchor, found.by_probability)]
    result = {
        "image": name,
        "round": chosen,
        "teacher": params.rounds[chosen].teacher,
        "height": size[0],
        "width": size[1],
        # Otherwise the PNGs are of other thresholds than params.yaml has now.
        "as_written": all(map(np.array_equal, written, computed)),
        **describe_image(found, classes.names),
    }
    point = None
    if xy is not None:
        point = _point(xy)
        place = feature_pixel(point, size, found.pixels.nearest.shape)
        known = (found, place, features, anchors, config, own, classes.names)
        pixel = describe_pixel(*known, params.adapt.target_labels)
        result["pixel"] = {"x": point[0], "y": point[1], **pixel}
    if out is None and not as_json:
        out = Path(f"inspect-{name.replace('/', '-')}-{chosen}.png")
    if out is not None:
        _draw(out, inside(TARGET, row["image"]), found, classes, size, point, f"{name}, {chosen}")
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
        print(f"picture: {out}")


def _round(given: str | None, rounds: list[str]) -> str:
    """The round that is meant: by name, by number from 1, or the last one that has labels."""
    ready = [name for name in rounds if (Path(ROUND.format(name)) / LABELS).is_dir()]
    chosen = chosen_round(given, ready if given is None and ready else rounds)
    if chosen not in ready:
        raise UserError(
            f"{chosen} has no pseudo-labels; `dvc repro pseudo_label@{chosen}` makes them"
        )
    return chosen


def _manifest_row(name: str) -> pd.Series:
    """The row of a target training image."""
    from cag.datasets.prepared import read_manifest

    rows = read_manifest(TARGET).query("split == 'train'").set_index("name")
    if name not in rows.index:
        raise UserError(f"{TARGET}: has no training image {name} any more; run `dvc repro` first")
    return rows.loc[name]


def _point(xy: str) -> tuple[int, int]:
    try:
        x, y = (int(number) for number in xy.split(","))
    except ValueError:
        raise UserError(f"--xy is '{xy}'; expected two whole numbers: 120,64") from None
    return x, y


def _draw(out: Path, image: Path, found, classes, size, point, title: str) -> None:
    from cag.analysis import plots
    from cag.analysis.inspection import enlarge
    from cag.datasets.images import colorize, read_image

    pixels = found.pixels

    def in_colour(labels):
        return colorize(enlarge(labels, size).numpy(), classes.palette_array)

    pictures = {
        "image": read_image(image),
        "nearest anchor": in_colour(pixels.nearest),
        "relative margin": enlarge(pixels.relative_margin(), size).numpy(),
        "probability": enlarge(pixels.probability, size).numpy(),
        "anchor label": in_colour(found.by_anchor),
        "probability label": in_colour(found.by_probability),
    }
    present = set(pixels.nearest.unique().tolist()) | set(found.by_probability.unique().tolist())
    legend = {
        name: color
        for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
        if i in present
    }
    plots.save_png(plots.inspection_figure(pictures, legend, point, title), out)


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['image']} in {result['round']} (teacher {result['teacher']}): "
        f"{result['width']} x {result['height']} pixels, {result['pixels']} of the features"
    )
    if not result["as_written"]:
        print(
            "its label PNGs are of other thresholds than params.yaml has now; shown are the latter"
        )
    if "pixel" in result:
        _print_pixel(result["pixel"])
    _print_rows(result["classes"])
    _print_rows(result["quantiles"])


def _print_pixel(pixel: dict[str, Any]) -> None:
    place = pixel["feature_pixel"]
    print(f"pixel {pixel['x']},{pixel['y']}: row {place['row']}, column {place['column']}")
    _print_rows(pixel["distances"])
    print(
        f"nearest {pixel['nearest']}: d1 {pixel['nearest_distance']:.4g}, "
        f"d2 {pixel['second_distance']:.4g}, margin {pixel['margin']:.4g}, "
        f"relative margin {pixel['relative_margin']:.4f}"
    )
    print(f"predicted {pixel['prediction']}: probability {pixel['probability']:.4f}")
    _print_rows(pixel["rules"])
    labels = pixel["labels"]
    training = " and ".join(labels["training"])
    print(
        f"label by anchor: {labels['anchor'] or 'none'}; by probability: "
        f"{labels['probability'] or 'none'}; trained on: {training or 'none'}"
    )


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Dicts of the same keys as a table; numbers stand to the right."""
    table = Table(box=None)
    for key, value in rows[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        table.add_column(key.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    print_table(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
