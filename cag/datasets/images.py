"""The one way to open and write images and label maps."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from cag.runtime.errors import UserError, in_one_line

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0  # PNG colour type
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path: Path) -> np.ndarray:
    """Read a picture of any kind as uint8 [H, W, 3], RGB; a UserError if it cannot be read.

    Alpha is dropped, 16 bits become the upper 8, and the EXIF orientation is applied.
    """
    with _readable(path), Image.open(path) as picture:
        return to_rgb(picture)


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Decode an open picture as `read_image` does."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # Pillow would clip 16-bit grey to 255
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in picture.info:  # Pillow warns when a palette's alpha is dropped at once
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def resize(
    array: np.ndarray, size: tuple[int, int] | None, resample=Image.Resampling.BILINEAR
) -> np.ndarray:
    """Resize uint8 [H, W, ...] to (height, width), with antialiasing; None keeps the size."""
    if size is None or array.shape[:2] == tuple(size):
        return array
    height, width = size
    return np.array(Image.fromarray(array).resize((width, height), resample, reducing_gap=3.0))


def read_label(path: Path) -> np.ndarray:
    """Read the raw values of a label map: integers [H, W], or uint8 or uint16 colours [H, W, 3].

    Palette PNGs give their indices, low-bit grey PNGs their unscaled values, 16-bit PNGs all 16
    bits; alpha is dropped. A UserError if the file cannot be read or holds no integers.
    """
    with _readable(path):
        return _decode_label(Path(path))


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) that `read_image` would give, from the header; a UserError as there."""
    with _readable(path), Image.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    return (width, height) if turned else (height, width)


def write_image(path: Path, array: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB or [H, W] grey as a PNG, whatever the extension."""
    Image.fromarray(np.ascontiguousarray(array)).save(path, format="PNG", compress_level=1)


def write_label(path: Path, labels: np.ndarray, palette: np.ndarray) -> None:
    """Write train ids uint8 [H, W] as a PNG in their colours uint8 [K, 3], 255 black."""
    picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    picture.putpalette(full_palette(palette).tobytes())
    picture.save(path, format="PNG", compress_level=1)


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The colours uint8 [H, W, 3] of train ids uint8 [H, W]; an id without a colour is black."""
    return full_palette(palette)[labels]


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, 3], half covered by the colours of its train ids uint8 [H, W]."""
    return (image >> 1) + (colorize(labels, palette) >> 1)


def write_jpeg(path: Path, array: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB as a JPEG, whatever the extension."""
    Image.fromarray(np.ascontiguousarray(array)).save(path, format="JPEG", quality=90)


def full_palette(palette: np.ndarray) -> np.ndarray:
    """Extend the colours uint8 [K, 3] to [256, 3] with black."""
    return np.pad(np.asarray(palette, np.uint8), ((0, 256 - len(palette)), (0, 0)))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder and the file's name") from None
    except _UNREADABLE as error:
        problem = f"not a readable image ({in_one_line(error)})"
        raise UserError(f"{path}: {problem}; replace or remove the file") from error


def _decode_label(path: Path) -> np.ndarray:
    depth, color_type = _png_header(path)
    if depth == 16 and color_type != _GREY:
        return _decode_png_16(path)
    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA") and picture.mode[0] != "I":
            raise ValueError(f"its pixels have the form {picture.mode}, not label values")
        array = np.array(picture)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if color_type == _GREY and depth in (2, 4):
        array //= 255 // (2**depth - 1)  # Pillow spreads low-bit grey over 0..255
    return _drop_alpha(array)


def _png_header(path: Path) -> tuple[int | None, int | None]:
    """The bit depth and colour type of a PNG; (None, None) for another format."""
    with open(path, "rb") as file:
        head = file.read(26)
    is_png = len(head) == 26 and head.startswith(_PNG_SIGNATURE)
    return (head[24], head[25]) if is_png else (None, None)


def _decode_png_16(path: Path) -> np.ndarray:
    # Pillow drops the lower byte of 16-bit colour; torchvision does not. Imported here: it is slow.
    import torch
    from torchvision.io import ImageReadMode, decode_png

    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    try:
        decoded: Any = decode_png(data, mode=ImageReadMode.UNCHANGED)  # (C, H, W)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return _drop_alpha(decoded.permute(1, 2, 0).contiguous().numpy())  # (H, W, C)


def _drop_alpha(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] <= 2 else array[..., :3]
    return np.ascontiguousarray(array)
