"""The artifacts of a round, for one target training image or a pixel of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cag.analysis import inspection, plots
from cag.analysis.fonts import drawable
from cag.analysis.threshold_curves import class_thresholds_at, read_thresholds
from cag.anchors import read_anchors
from cag.config.base import RULES
from cag.config.parameters import load_all
from cag.datasets.images import colorize, read_image, read_label
from cag.datasets.labels import IGNORE, LabelSpace
from cag.datasets.prepared import most_pixels, read_label_space, read_manifest
from cag.features import read_target_row, read_target_store
from cag.project.pseudo_labels import LABELS, ROUND, TARGET, chosen_round
from cag.pseudo_labels import left_out
from cag.runtime.errors import UserError
from cag.runtime.files import inside

SOURCE, STORE = Path("data/prepared/source"), "data/features/{}/target.h5"


class Inspected(NamedTuple):
    """An image as a round knows it."""

    description: dict[str, Any]  # in plain values
    image: Path
    maps: inspection.Inspection
    classes: LabelSpace
    point: tuple[int, int] | None  # x, y of the pixel


def inspect(image: str, round_name: str | None, point: tuple[int, int] | None) -> Inspected:
    """Read what a round knows of a target training image, or of the pixel (x, y) of it.

    `image` is a name, a part of one, or a path; `round_name` a name, a number, or None for the last
    round with pseudo-labels. UserError: one of them does not exist, or an artifact is missing.
    """
    params = load_all()
    config, chosen = params.pseudo_label, _labelled_round(round_name, list(params.rounds))
    folder, classes = Path(ROUND.format(chosen)), read_label_space(SOURCE)
    rows = read_manifest(TARGET).query("split == 'train'").set_index("name")
    path = Path(STORE.format(chosen))
    store = read_target_store(path, classes.num_classes, most_pixels(rows))
    index = inspection.find_image(store.names, image)
    name = store.names[index]
    if name not in rows.index:
        raise UserError(f"{TARGET}: has no training image {name} any more; run `dvc repro` first")
    row = rows.loc[name]
    size = int(row["height"]), int(row["width"])
    anchors = read_anchors(folder / "anchors.npy", classes.num_classes, store.width)
    placed, error = store.place(anchors)
    curves = read_thresholds(folder / "threshold_curves.csv", classes.names)
    cuts = class_thresholds_at(config.quantile, *curves)
    features, prediction, probability = read_target_row(store, index)
    maps = inspection.inspect_image(features, prediction, probability, placed, config, cuts)
    written = [read_label(inside(folder / LABELS / rule, f"{name}.png")) for rule in RULES]
    computed = [_enlarged(labels, size) for labels in (maps.by_anchor, maps.by_probability)]
    description = {"image": name, "round": chosen, "teacher": params.rounds[chosen].teacher}
    description |= {"height": size[0], "width": size[1]}
    # Otherwise the PNGs are of other thresholds than params.yaml has now.
    description["as_written"] = all(map(np.array_equal, written, computed))
    # Of the distances to the anchors, by what the store leaves out; and a line if it matters.
    description |= {"distance_error": error, "left_out": left_out(error, anchors, config)}
    description |= inspection.describe_image(maps, classes.names)
    if point is not None:
        place = inspection.feature_pixel(point, size, maps.pixels.nearest.shape)
        evidence = (maps, place, features, placed, config, cuts, classes.names)
        pixel = inspection.describe_pixel(*evidence, params.adapt.target_labels)
        description["pixel"] = {"x": point[0], "y": point[1], **pixel}
    return Inspected(description, inside(TARGET, row["image"]), maps, classes, point)


def _labelled_round(wanted: str | None, rounds: list[str]) -> str:
    ready = [name for name in rounds if (Path(ROUND.format(name)) / LABELS).is_dir()]
    chosen = chosen_round(wanted, ready if wanted is None and ready else rounds)
    if chosen not in ready:
        hint = f"`dvc repro pseudo_label@{chosen}` makes them"
        raise UserError(f"{chosen} has no pseudo-labels; {hint}")
    return chosen


def _enlarged(pixel_map: Tensor, size: tuple[int, int]) -> np.ndarray:
    return inspection.enlarge(pixel_map, size).numpy()


def figure(inspected: Inspected) -> Figure:
    """The image and its maps side by side."""
    about, image, maps, classes, point = inspected
    size, pixels = (about["height"], about["width"]), maps.pixels

    def in_colour(labels: Tensor) -> np.ndarray:
        return colorize(_enlarged(labels, size), classes.palette_array)

    pictures = {
        "image": read_image(image),
        "nearest anchor": in_colour(pixels.nearest),
        "relative margin": _enlarged(pixels.relative_margin(), size),
        "probability": _enlarged(pixels.probability, size),
        "anchor label": in_colour(maps.by_anchor),
        "probability label": in_colour(maps.by_probability),
    }
    present = torch.cat([pixels.nearest, maps.by_probability]).unique().tolist()  # sorted
    names = drawable(classes.names)
    legend = {names[i]: classes.palette[i] for i in present if i != IGNORE}
    title = f"{about['image']}, {about['round']}"
    return plots.inspection_figure(pictures, legend, point, title)
