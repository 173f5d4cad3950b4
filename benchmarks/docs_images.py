"""Draw the documentation's pictures from the last run of preset `scenes`.

python -m benchmarks.docs_images

Photographs of the report need chromium and chromedriver.

No stage has labels of target training images; the truth of the README's picture is rendered here,
from the scenes' own numbers.
"""

import io
import shutil
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image
from selenium import webdriver

from cag.analysis import plots
from cag.config.base import RULES
from cag.config.parameters import load_all
from cag.datasets.images import colorize, read_image, read_label, write_image
from cag.datasets.labels import LabelSpace, read_class_map
from cag.datasets.prepared import read_label_space, read_manifest
from cag.evaluation import full_resolution_prediction
from cag.networks import load_model
from cag.prediction import predict
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file
from cag.runtime.program import run
from cag.scenes import render

PREPARED = Path("data/prepared")
TARGET = PREPARED / "target"
PSEUDO_LABELS = "data/rounds/{}/pseudo_labels/{}/{}.png"
PREDICTIONS = "data/evaluation/{}/predictions/{}.png"
DOCS = Path("docs")
IMAGES = DOCS / "images"
REPORT = Path("data/report")
SHOTS = {
    "report.png": None,  # the window
    "report-explorer.png": "#explorer",
    "report-features.png": "#features svg",
}
EXPLORE = """
const set = (id, value, event) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(event));
};
document.querySelector('nav').style.position = 'static';
const images = document.getElementById('explorer-image').options;
set('explorer-image', images[images.length - 1].value, 'change');
set('relative_margin', 30, 'input');
"""


def rows_of(domain: str, split: str, numbers: list[int]) -> list[pd.Series]:
    """Rows of a prepared data set's manifest."""
    manifest = read_manifest(PREPARED / domain)
    rows = manifest[manifest["split"] == split]
    return [rows.iloc[number] for number in numbers]


def colored(path: Path | str, classes: LabelSpace) -> np.ndarray:
    """A label map in its classes' colours, uint8 [H, W, 3]."""
    return colorize(read_label(Path(path)), classes.palette_array)


def write_panel(path: Path, titles: list[str], rows: list[list[np.ndarray]]) -> None:
    """Write pictures side by side under their titles."""
    with atomic_file(path) as partial:
        write_image(partial, plots.panel(rows, titles))
    print(path)


def write_figure(path: Path, figure) -> None:
    """Write a plot."""
    plots.save_png(figure, path)
    print(path)


def draw_domains(classes: LabelSpace) -> None:
    """Source images with their labels beside target images, which have none."""
    source, target = (rows_of(domain, "train", [2, 5, 11]) for domain in ("source", "target"))
    rows = [
        [
            read_image(PREPARED / "source" / one["image"]),
            colored(PREPARED / "source" / one["label"], classes),
            read_image(TARGET / other["image"]),
        ]
        for one, other in zip(source, target, strict=True)
    ]
    write_panel(IMAGES / "domains.png", ["source image", "its label", "target image"], rows)


def draw_pseudo_labels(classes: LabelSpace, first: str, last: str, numbers: list[int]) -> None:
    """Target training images with the pseudo-labels of both rules in two rounds."""
    columns = [(name, rule) for name in (first, last) for rule in RULES]
    rows = [
        [
            read_image(TARGET / row["image"]),
            *(colored(PSEUDO_LABELS.format(*column, row["name"]), classes) for column in columns),
        ]
        for row in rows_of("target", "train", numbers)
    ]
    titles = ["target image", *(f"{rule}, {name}" for name, rule in columns)]
    write_panel(IMAGES / "pseudo_labels.png", titles, rows)


def draw_predictions(classes: LabelSpace, models: tuple[str, str]) -> None:
    """Validation images with the predictions of two models and the truth."""
    rows = [
        [
            read_image(TARGET / row["image"]),
            *(colored(PREDICTIONS.format(model, row["name"]), classes) for model in models),
            colored(TARGET / row["label"], classes),
        ]
        for row in rows_of("target", "val", [0, 12, 35])
    ]
    titles = ["validation image", "source only", models[1], "truth"]
    write_panel(IMAGES / "predictions.png", titles, rows)


def draw_plots(rounds: list[str]) -> None:
    """Coverage of the rounds' pseudo-labels, and the learning curves."""
    tables = {name: pd.read_csv(f"data/rounds/{name}/coverage.csv") for name in rounds}
    write_figure(IMAGES / "coverage.png", plots.coverage_figure(tables))
    curves = {name: pd.read_csv(f"data/curves/{name}.csv") for name in ("pretrain", *rounds)}
    write_figure(IMAGES / "curves.png", plots.curves_figure(curves))


def draw_overview(classes: LabelSpace, last: str, numbers: list[int]) -> None:
    """The README's picture: target training images from the source-only model to the adapted."""
    class_map, fabric = read_class_map(Path("classes/cityscapes.yaml")), make_fabric("32-true")
    paths = [Path(f"data/models/{name}.safetensors") for name in ("pretrain", last)]
    networks = [load_model(path).network for path in paths]
    rows = []
    for number, row in zip(numbers, rows_of("target", "train", numbers), strict=True):
        image = read_image(TARGET / row["image"])
        rendered, ids = render("target", 0, number, *image.shape[:2])
        if not np.array_equal(rendered, image):
            raise SystemExit(f"{row['name']} is not scene {number}: run preset `scenes` first")
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        before, after = (
            full_resolution_prediction(predict(net, tensor, fabric).logits[0], image.shape[:2])
            for net in networks
        )
        pseudo = read_label(Path(PSEUDO_LABELS.format(last, "anchor", row["name"])))
        maps = (before.numpy(), pseudo, after.numpy(), class_map.encode(ids))
        rows.append([image, *(colorize(labels, classes.palette_array) for labels in maps)])
    titles = ["target image", "source only", "pseudo-label", "adapted", "truth"]
    write_panel(DOCS / "overview.png", titles, rows)


def photograph_report() -> None:
    """The report in a browser: its top, the feature space, and the explorer with a slider moved."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = shutil.which("chromedriver")
    if driver is None:
        raise UserError("chromedriver: not found; install chromium and its driver")
    # With a path given, selenium fetches nothing.
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        view = {"width": 1280, "height": 1250, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        driver.get((REPORT / "index.html").resolve().as_uri())
        # The last image is a validation image, whose truth gives a precision.
        driver.execute_script(EXPLORE)
        for name, selector in SHOTS.items():
            if selector is None:
                png = driver.get_screenshot_as_png()
            else:
                found = driver.find_elements("css selector", selector)
                png = next(one for one in found if one.is_displayed()).screenshot_as_png
            picture = Image.open(io.BytesIO(png)).convert("RGB")
            with atomic_file(IMAGES / name) as partial:
                picture.save(partial, format="PNG", optimize=True)
            print(IMAGES / name)
    finally:
        driver.quit()


@click.command(help=__doc__)
@click.option("--images", default="3,41,88,150", show_default=True, help="Numbers, with commas.")
def main(images: str) -> None:
    """Write `docs/overview.png` and `docs/images/`."""
    classes, rounds = read_label_space(TARGET), list(load_all().rounds)
    numbers = [int(number) for number in images.split(",")]
    draw_domains(classes)
    draw_pseudo_labels(classes, rounds[0], rounds[-1], numbers)
    draw_predictions(classes, ("pretrain", rounds[-1]))
    draw_plots(rounds)
    draw_overview(classes, rounds[-1], numbers)
    photograph_report()


if __name__ == "__main__":
    run(main)
