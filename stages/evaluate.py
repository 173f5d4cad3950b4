"""Score a model on the labelled target validation images, at the labels' full resolution."""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from cag import metrics, plots
from cag.config import load_params
from cag.datasets import read_label_space
from cag.devices import make_fabric
from cag.files import atomic_folder, inside, write_csv, write_json
from cag.images import colorize, write_image, write_label
from cag.labels import LabelSpace
from cag.networks import load_model
from cag.prediction import image_batches, predict
from cag.prepared import PreparedImages
from cag.stage import progress, run

SOURCE, TARGET = Path("data/prepared/source"), Path("data/prepared/target")
MODEL, EVALUATION = "data/models/{}.safetensors", "data/evaluation/{}"
BATCH_SIZE = 4


def full_resolution_prediction(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The predicted class uint8 [H, W] of logits [K, h, w], upsampled with aligned corners."""
    upsampled = F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=True)
    return upsampled[0].argmax(0).byte()


def write_scores(folder: Path, confusion: Tensor, classes: LabelSpace, images: int) -> None:
    """Write metrics.json, per_class.csv, confusion.csv and confusion.png."""
    iou, accuracy = metrics.iou(confusion).numpy(), metrics.class_accuracy(confusion).numpy()
    scores = {
        "miou": metrics.mean_iou(confusion),
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "mean_accuracy": float(np.nanmean(accuracy)),
        "images": images,
        "iou": dict(zip(classes.names, iou.tolist(), strict=True)),
    }
    write_json(folder / "metrics.json", scores)
    per_class = {"class": classes.names, "iou": iou, "accuracy": accuracy}
    write_csv(folder / "per_class.csv", pd.DataFrame({**per_class, "pixels": confusion.sum(1)}))
    table = pd.DataFrame(confusion.numpy(), columns=list(classes.names))
    table.insert(0, "truth", classes.names)
    write_csv(folder / "confusion.csv", table)
    plots.save_png(
        plots.confusion_figure(confusion.numpy(), classes.names), folder / "confusion.png"
    )


@click.command(help=__doc__)
@click.argument("model")
def main(model: str) -> None:
    """Write `data/evaluation/<model>/`: metrics, tables, predictions and pictures."""
    params = load_params("precision", "evaluate")
    classes = read_label_space(SOURCE)
    network, _, _ = load_model(Path(MODEL.format(model)), classes)
    fabric = make_fabric(params.precision)
    if not fabric.is_global_zero:
        return
    network = fabric.to_device(network.to(memory_format=torch.channels_last))
    images = PreparedImages(TARGET, "val", with_labels=True)
    count, palette = len(images), classes.palette_array
    shown = set(np.linspace(0, count - 1, min(params.evaluate.panels, count)).round().astype(int))
    confusion = torch.zeros(classes.num_classes, classes.num_classes, dtype=torch.int64)
    rows, done = [], 0
    with (
        atomic_folder(Path(EVALUATION.format(model))) as folder,
        progress(f"evaluate {model}", count, "images") as advance,
    ):
        for names, batch, labels in image_batches(images, BATCH_SIZE):
            logits = predict(network, batch, fabric).logits
            for name, image, label, scores in zip(names, batch, labels, logits, strict=True):
                prediction = full_resolution_prediction(scores, label.shape).cpu()
                confusion += metrics.confusion_matrix(prediction, label, classes.num_classes)
                path = inside(folder / "predictions", f"{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_label(path, prediction.numpy(), palette)
                if done in shown:
                    maps = [colorize(m.numpy(), palette) for m in (prediction, label)]
                    rows.append([image.permute(1, 2, 0).numpy(), *maps])
                done += 1
                advance()
        write_scores(folder, confusion, classes, count)
        if rows:
            write_image(folder / "panels.png", plots.panel(rows, ["image", "prediction", "truth"]))
    print(f"evaluate@{model}: mIoU {100 * metrics.mean_iou(confusion):.1f} over {count} images")


if __name__ == "__main__":
    run(main)
