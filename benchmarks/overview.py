"""Draw the README's picture from the last run of preset `scenes`: python -m benchmarks.overview.

Target training images with their pseudo-labels. No stage has labels of these; the truth is rendered
here, from the scenes' own numbers.
"""

from pathlib import Path

import click
import numpy as np

from cag.datasets import read_label_space, read_manifest
from cag.devices import make_fabric
from cag.evaluation import full_resolution_prediction
from cag.files import atomic_file
from cag.images import colorize, read_image, read_label, write_image
from cag.labels import read_class_map
from cag.networks import load_model
from cag.plots import panel
from cag.prediction import predict
from cag.scenes import render
from cag.stage import run

TARGET = Path("data/prepared/target")
LABELS = Path("data/rounds/round3/pseudo_labels/anchor")
OUT = Path("docs/overview.png")


@click.command(help=__doc__)
@click.option("--images", default="3,41,88,150", show_default=True, help="Numbers, with commas.")
def main(images: str) -> None:
    """Write `docs/overview.png`."""
    import torch

    classes, class_map = read_label_space(TARGET), read_class_map(Path("classes/cityscapes.yaml"))
    names = read_manifest(TARGET).query("split == 'train'")["name"].tolist()
    fabric, palette = make_fabric("32-true"), classes.palette_array
    networks = [load_model(Path(f"data/models/{m}.safetensors"))[0] for m in ("pretrain", "round3")]
    rows = []
    for number in map(int, images.split(",")):
        image = read_image(TARGET / f"images/train/{names[number]}.png")
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        before, after = (
            full_resolution_prediction(predict(net, tensor, fabric).logits[0], image.shape[:2])
            for net in networks
        )
        pseudo = read_label(LABELS / f"{names[number]}.png")
        rendered, ids = render("target", 0, number, *image.shape[:2])
        if not np.array_equal(rendered, image):
            raise SystemExit(f"{names[number]} is not scene {number}: run preset `scenes` first")
        maps = (before.numpy(), pseudo, after.numpy(), class_map.encode(ids))
        rows.append([image, *(colorize(labels, palette) for labels in maps)])
    titles = ["target image", "source only", "pseudo-label", "adapted", "truth"]
    with atomic_file(OUT) as partial:
        write_image(partial, panel(rows, titles))
    print(OUT)


if __name__ == "__main__":
    run(main)
