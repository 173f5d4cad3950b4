"""Score a model on the labelled target validation images, at the labels' full resolution."""

from pathlib import Path

import click
import numpy as np
import torch

from cag import metrics, plots
from cag.config import load_params
from cag.datasets import read_shared_label_space
from cag.devices import make_fabric
from cag.evaluation import labelled_predictions, write_scores
from cag.files import atomic_folder, inside
from cag.images import colorize, write_image, write_label
from cag.networks import load_model
from cag.prepared import PreparedImages
from cag.stage import run, tracked

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, EVALUATION = "data/models/{}.safetensors", "data/evaluation/{}"


@click.command(help=__doc__)
@click.argument("model")
def main(model: str) -> None:
    """Write `data/evaluation/<model>/`: metrics, tables, predictions and pictures."""
    params = load_params("precision", "evaluate")
    classes = read_shared_label_space(SOURCE, TARGET)
    network, _, _ = load_model(Path(MODEL.format(model)), classes)
    fabric = make_fabric(params.precision)
    if not fabric.is_global_zero:
        return
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    images = PreparedImages(TARGET, "val", with_labels=True)
    count, palette = len(images), classes.palette_array
    shown = set(np.linspace(0, count - 1, min(params.evaluate.panels, count)).round().astype(int))
    confusion = torch.zeros(classes.num_classes, classes.num_classes, dtype=torch.int64)
    rows = []
    predictions = labelled_predictions(network, images, fabric)
    with atomic_folder(Path(EVALUATION.format(model))) as folder:
        for i, item in enumerate(tracked(predictions, f"evaluate {model}", count, "images")):
            name, image, label, prediction = item
            confusion += metrics.confusion_matrix(prediction, label, classes.num_classes)
            path = inside(folder / "predictions", f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label(path, prediction.numpy(), palette)
            if i in shown:
                maps = [colorize(m.numpy(), palette) for m in (prediction, label)]
                rows.append([image.permute(1, 2, 0).numpy(), *maps])
        write_scores(folder, confusion, classes, count)
        figure = plots.confusion_figure(confusion.numpy(), classes.names)
        plots.save_png(figure, folder / "confusion.png")
        if rows:
            write_image(folder / "panels.png", plots.panel(rows, ["image", "prediction", "truth"]))
    print(f"evaluate@{model}: mIoU {100 * metrics.mean_iou(confusion):.1f} over {count} images")


if __name__ == "__main__":
    run(main)
