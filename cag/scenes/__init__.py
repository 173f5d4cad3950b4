"""The built-in scenes: a deterministic renderer of street scenes with all 19 Cityscapes classes.

Two looks, `source` (a simulator) and `target` (a camera in another city), share classes and street
layout. Shapes, paints, light and camera differ: a domain gap without any download. `both` takes
turns with them. `randomised` draws a look for each image, as a source for real photographs.
"""

from functools import partial
from pathlib import Path

import numpy as np

from cag.datasets.images import write_image, write_label
from cag.scenes.classes import CLASSES, SKY
from cag.scenes.geometry import Camera, Paint, rasterise
from cag.scenes.looks import LOOKS, between, look_of, pick
from cag.scenes.shading import SKY_DOME, bonnet, grade, ragged, shade
from cag.scenes.street import compose

__all__ = ["CLASSES", "LOOKS", "label_palette", "render", "write_dataset"]


def render(
    look: str, seed: int, index: int, height: int = 128, width: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Render image `index` of the data set with this seed, both at least 0.

    Returns an RGB image uint8 [H, W, 3] and Cityscapes label ids uint8 [H, W]. The same arguments
    give the same bytes. Raises ValueError if `look` is unknown or a size is not positive.
    """
    if look not in LOOKS:
        raise ValueError(f"look is {look!r}; expected one of {sorted(LOOKS)}")
    if height < 1 or width < 1:
        raise ValueError(f"size is {height} x {width}; expected positive numbers of pixels")
    style, rng = look_of(look, index, partial(_generator, seed, index))
    camera = Camera(
        height=between(style.camera_height, rng),
        pitch=np.deg2rad(between(style.camera_pitch, rng)),
        yaw=np.deg2rad(between((-style.camera_yaw, style.camera_yaw), rng)),
        focal=between(style.camera_focal, rng),
    )
    zenith, horizon = pick(style.sky, rng)
    sky = Paint(zenith, SKY, SKY_DOME, second=horizon)
    scale = style.supersample
    buffers = rasterise(compose(style, rng), camera, height * scale, width * scale, sky)
    if style.natural:
        ragged(buffers, rng)
    picture = shade(buffers, camera, style, rng)
    parts = [picture[i::scale, j::scale] for i in range(scale) for j in range(scale)]
    picture = sum(parts) / scale**2
    labels = np.ascontiguousarray(buffers.labels[scale // 2 :: scale, scale // 2 :: scale])
    if style.natural and rng.random() < 0.6:
        bonnet(picture, labels, rng)
    return grade(picture, style.grade, rng), labels


def _generator(seed: int, index: int, identity: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, index, identity]))


def label_palette() -> np.ndarray:
    """Official Cityscapes colours by label id, uint8 [34, 3]; ids not drawn here are black."""
    palette = np.zeros((34, 3), np.uint8)
    palette[list(CLASSES)] = [colour for _, colour in CLASSES.values()]
    return palette


def write_dataset(
    folder: Path,
    look: str,
    seed: int,
    count: int,
    height: int = 128,
    width: int = 256,
    first: int = 0,
    labels: bool = True,
) -> None:
    """Write images `first` to `first + count - 1` of a data set.

    Writes `images/<look>_00000.png` in `folder` and, with `labels`, `labels/<look>_00000.png`:
    palette PNGs of label ids in the Cityscapes colours.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if labels:
        (folder / "labels").mkdir(exist_ok=True)
    for index in range(first, first + count):
        image, label_map = render(look, seed, index, height, width)
        name = f"{look}_{index:05d}.png"
        write_image(folder / "images" / name, image)
        if labels:
            write_label(folder / "labels" / name, label_map, label_palette())
