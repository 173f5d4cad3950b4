"""Draw the documentation's pictures from the last run of preset `scenes`.

python -m benchmarks.docs_images

Screenshots of the report need chromium and chromedriver. The truth of the README's target training
images, which no stage sees, is rendered here from the scenes' numbers.
"""

import io
import shutil
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
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
SHOTS = {
    "report.png": "body",
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
    rows = read_manifest(PREPARED / domain).query("split == @split")
    return [rows.iloc[number] for number in numbers]


def write(name: str, content: Figure | np.ndarray) -> None:
    """Write a plot, or a picture uint8 [H, W, 3], below `docs/`."""
    path = Path("docs") / name
    if isinstance(content, Figure):
        plots.save_png(content, path)
    else:
        with atomic_file(path) as partial:
            write_image(partial, content)
    print(path)


def picture(row: pd.Series, classes: LabelSpace, *labels: Path | np.ndarray) -> list[np.ndarray]:
    """A target image and its label maps, files or arrays, in the classes' colours."""
    arrays = [read_label(label) if isinstance(label, Path) else label for label in labels]
    colored = [colorize(array, classes.palette_array) for array in arrays]
    return [read_image(TARGET / row["image"]), *colored]


def draw_domains(classes: LabelSpace) -> None:
    """Source images with their labels beside target images without labels."""
    source, target = (rows_of(domain, "train", [2, 5, 11]) for domain in ("source", "target"))
    folder, rows = PREPARED / "source", []
    for labelled, unlabelled in zip(source, target, strict=True):
        image, label = picture(unlabelled, classes, folder / labelled["label"])
        rows.append([read_image(folder / labelled["image"]), label, image])
    titles = ["source image", "its label", "target image"]
    write("images/domains.png", plots.panel(rows, titles))


def draw_pseudo_labels(classes: LabelSpace, first: str, last: str, numbers: list[int]) -> None:
    """Target training images with the pseudo-labels of both rules in the first and last round."""
    columns = [(name, rule) for name in dict.fromkeys((first, last)) for rule in RULES]
    rows = [
        picture(row, classes, *(pseudo_labels(*column, row["name"]) for column in columns))
        for row in rows_of("target", "train", numbers)
    ]
    titles = ["target image", *(f"{rule}, {name}" for name, rule in columns)]
    write("images/pseudo_labels.png", plots.panel(rows, titles))


def pseudo_labels(name: str, rule: str, image: str) -> Path:
    """The file of an image's pseudo-labels."""
    return Path(f"data/rounds/{name}/pseudo_labels/{rule}/{image}.png")


def draw_predictions(classes: LabelSpace, last: str) -> None:
    """Validation images with the predictions of both models and the truth."""
    folders = [Path(f"data/evaluation/{model}/predictions") for model in ("pretrain", last)]
    rows = [
        picture(row, classes, *(f / f"{row['name']}.png" for f in folders), TARGET / row["label"])
        for row in rows_of("target", "val", [0, 12, 35])
    ]
    titles = ["validation image", "source only", last, "truth"]
    write("images/predictions.png", plots.panel(rows, titles))


def draw_plots(rounds: list[str]) -> None:
    """Coverage of the rounds' pseudo-labels, and the learning curves."""
    tables = {name: pd.read_csv(f"data/rounds/{name}/coverage.csv") for name in rounds}
    write("images/coverage.png", plots.coverage_figure(tables))
    curves = {name: pd.read_csv(f"data/curves/{name}.csv") for name in ("pretrain", *rounds)}
    write("images/curves.png", plots.curves_figure(curves))


def draw_overview(classes: LabelSpace, last: str, numbers: list[int]) -> None:
    """The README's picture: target training images with both models' predictions."""
    class_map, fabric = read_class_map(Path("classes/cityscapes.yaml")), make_fabric("32-true")
    paths = [Path(f"data/models/{name}.safetensors") for name in ("pretrain", last)]
    networks = [load_model(path).network for path in paths]
    rows = []
    for number, row in zip(numbers, rows_of("target", "train", numbers), strict=True):
        image = read_image(TARGET / row["image"])
        rendered, ids = render("target", 0, number, *image.shape[:2])
        if not np.array_equal(rendered, image):
            raise UserError(f"{row['name']} is not scene {number}: run preset `scenes` first")
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        before, after = (
            full_resolution_prediction(predict(net, tensor, fabric).logits[0], image.shape[:2])
            for net in networks
        )
        pseudo = pseudo_labels(last, "anchor", row["name"])
        truth = class_map.encode(ids)
        rows.append(picture(row, classes, before.numpy(), pseudo, after.numpy(), truth))
    titles = ["target image", "source only", "pseudo-label", "adapted", "truth"]
    write("overview.png", plots.panel(rows, titles))


def photograph_report() -> None:
    """The report in a browser: its top, the feature space, and the explorer with a moved slider."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = shutil.which("chromedriver")  # without a path selenium would download one
    if driver is None:
        raise UserError("chromedriver: not found; install chromium and its driver")
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        view = {"width": 1280, "height": 1250, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        browser.get(Path("data/report/index.html").resolve().as_uri())
        # The last image is a validation image, whose truth gives a precision.
        browser.execute_script(EXPLORE)
        for name, selector in SHOTS.items():
            elements = browser.find_elements("css selector", selector)
            shown = next(element for element in elements if element.is_displayed())
            whole = selector == "body"
            png = browser.get_screenshot_as_png() if whole else shown.screenshot_as_png
            write(f"images/{name}", np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))


@click.command(help=__doc__)
@click.option("--images", default="3,41,88,150", show_default=True, help="Numbers, with commas.")
def main(images: str) -> None:
    """Write `docs/overview.png` and `docs/images/`."""
    classes, rounds = read_label_space(TARGET), list(load_all().rounds)
    numbers = list(map(int, images.split(",")))
    draw_domains(classes)
    draw_pseudo_labels(classes, rounds[0], rounds[-1], numbers)
    draw_predictions(classes, rounds[-1])
    draw_plots(rounds)
    draw_overview(classes, rounds[-1], numbers)
    photograph_report()


if __name__ == "__main__":
    run(main)
