"""Score a model on the labelled target validation images, at the labels' full resolution."""

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from cag.analysis import plots
from cag.config.base import Precision, Section, load_params
from cag.config.evaluation import Evaluate
from cag.datasets.images import colorize, read_label, write_image, write_label
from cag.datasets.prepared import PreparedImages, evenly_spaced, read_shared_label_space
from cag.evaluation import BATCH_SIZE, in_words, predict_labelled, write_scores
from cag.networks import load_model
from cag.runtime.devices import make_fabric
from cag.runtime.files import inside
from cag.runtime.processes import Processes
from cag.runtime.program import run_stage

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, EVALUATION = "data/models/{}.safetensors", "data/evaluation/{}"


class Params(Section):
    """The declared parameters."""

    precision: Precision
    evaluate: Evaluate


def draw_panels(
    images: PreparedImages, count: int, predictions: Path, palette: np.ndarray, path: Path
) -> None:
    """Draw `count` images beside their prediction and truth."""
    rows = []
    for index in evenly_spaced(len(images), count):
        image, label, name = images[index]
        maps = (read_label(predictions / f"{name}.png"), label.numpy())
        rows.append([image.permute(1, 2, 0).numpy(), *(colorize(m, palette) for m in maps)])
    if rows:
        write_image(path, plots.panel(rows, ["image", "prediction", "truth"]))


@click.command(help=__doc__)
@click.argument("model")
def main(model: str) -> None:
    """Write `data/evaluation/<model>/`: metrics, tables, predictions and pictures."""
    params = load_params(Params)
    classes = read_shared_label_space(SOURCE, TARGET)
    network = load_model(Path(MODEL.format(model)), classes).network
    images = PreparedImages(TARGET, "val", with_labels=True)
    fabric = make_fabric(params.precision)
    torch.backends.cudnn.benchmark = False  # else each process chooses its own algorithms
    processes, palette = Processes(fabric), classes.palette_array
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    batches = images.batches(BATCH_SIZE)[processes.rank :: processes.count]
    count = sum(map(len, batches))
    with processes.folder(Path(EVALUATION.format(model))) as folder:

        def write(index: int, prediction: Tensor) -> None:
            path = inside(folder / "predictions", f"{images.names[index]}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label(path, prediction.numpy(), palette)

        with processes.progress(f"evaluate {model}", count, len(images)) as advance:
            confusion = predict_labelled(network, images, batches, fabric, advance, write)
        confusion = processes.total(confusion)
        if processes.main:
            write_scores(folder, confusion, classes, len(images))
            figure = plots.confusion_figure(confusion.numpy(), classes.names)
            plots.save_png(figure, folder / "confusion.png")
            count = params.evaluate.panels
            draw_panels(images, count, folder / "predictions", palette, folder / "panels.png")
    if processes.main:
        print(f"evaluate@{model}: {in_words(confusion, len(images))}")


if __name__ == "__main__":
    run_stage(main)
