"""Pictures inside the page: photographs, label maps and figures as data URIs."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from cag.analysis import plots
from cag.anchors import resize_labels
from cag.datasets.images import full_palette

THUMBNAIL = 512  # widest picture of the page, in pixels


class Picture(NamedTuple):
    """A picture for the template."""

    uri: str
    kind: str  # photo or labels
    height: int
    width: int
    caption: str
    alt: str
    key: str = ""  # its id on the page, if any


def css_color(color: Sequence[int]) -> str:
    """A colour (red, green, blue) in 0..255, for CSS."""
    return f"rgb({','.join(str(int(part)) for part in color)})"


def figure(alt: str, draw: Callable[..., Figure], *contents) -> dict[str, str]:
    """Draw a figure for light and for dark screens: two URIs and the alternative text."""
    themes = {"light": plots.LIGHT, "dark": plots.DARK}
    uris = {name: _uri(_reduced(draw(*contents, theme=themes[name]))) for name in themes}
    return {"alt": alt, **uris}


def photo(image: np.ndarray, name: str, key: str = "") -> Picture:
    """A photograph uint8 [H, W, 3], with `key` as its id if there is one."""
    height, width = _shown_size(image.shape[:2])
    shown = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    uri = _uri(_encoded(shown, format="JPEG", quality=90), "jpeg")
    return Picture(uri, "photo", height, width, "image", f"{name}: image", key)


def label_map(labels: np.ndarray, caption: str, name: str, palette: np.ndarray) -> Picture:
    """A map of an image's size, uint8 [H, W], in colours uint8 [K, 3]; other values are black."""
    height, width = _shown_size(labels.shape)
    small = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    small.putpalette(full_palette(palette).tobytes())
    uri = _uri(_encoded(small, format="PNG", optimize=True))
    return Picture(uri, "labels", height, width, caption, f"{name}: {caption}")


def enlarged(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map uint8 [h, w] of the features' size, brought to the (height, width) of a picture."""
    return resize_labels(torch.from_numpy(labels)[None], size, align_corners=True)[0].numpy()


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, THUMBNAIL / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _reduced(drawn: Figure) -> bytes:
    """Encode a figure in 256 colours: a third of the size, without a lost hue."""
    picture = Image.open(io.BytesIO(plots.png_bytes(drawn))).convert("RGB")
    return _encoded(picture.quantize(256, dither=Image.Dither.NONE), format="PNG")


def _encoded(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def _uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
