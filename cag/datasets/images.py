"""The one way to open and write images and label maps."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from cag.runtime.errors import UserError, in_one_line, refusal, refuse_special

# By name, so that no other of Pillow's decoders (EPS would start Ghostscript) sees a user's file.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = "CAG_MAX_PIXELS"  # the variable that moves the limit of an image's size
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xff\xd9"  # markers of a JPEG
_GREY, _GREY_ALPHA = 0, 4  # PNG colour types
_CHANNELS = {_GREY: 1, 2: 3, 3: 1, _GREY_ALPHA: 2, 6: 4}
# Adam7's passes: the first column and row, and the steps right and down.
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
_PASSES += [(0, 1, 1, 2)]
_ORIENTATION, _SHORT = 0x0112, 3  # an EXIF tag and a tag's type
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UNDONE_BY = {6: 8, 8: 6}  # the other orientations undo themselves
# TIFF tags, and values of them.
_BITS, _PHOTOMETRIC, _PLANES, _EXTRA, _KIND = 258, 262, 284, 338, 339
_MIN_IS_WHITE, _APART, _MULTIPLIED, _UNSIGNED, _SIGNED = 0, 2, 1, 1, 2
_UPPER_8 = "expected 16 bits, of which the upper 8 are used: save it with 8 bits"
# Pillow refuses a PNG of larger texts or a larger colour profile; editors and printers make some.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**28
LARGEST_FILE = 2**32  # bytes: of a PNG or JPEG, which is read as a whole
warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata that nobody needs, and of sizes
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # our own error says what is damaged


def read_image(path: Path, turn_by_exif: bool = True) -> np.ndarray:
    """Read a picture of any kind as uint8 [H, W, 3], RGB; a UserError if it cannot be read.

    Alpha is dropped, 16 bits become the upper 8, and the EXIF orientation is applied, unless
    `turn_by_exif` is False. Floating-point numbers, and integers that would all become black or be
    cut off, are refused.
    """
    return read_picture(path, turn_by_exif).image


class Picture(NamedTuple):
    """A picture that was read."""

    image: np.ndarray  # uint8 [H, W, 3], as `read_image` gives it
    orientation: int  # of its EXIF data, 1 to 8 (1: as it is stored)
    pages: int  # of its file, of which the first was read


def read_picture(path: Path, turn_by_exif: bool = True) -> Picture:
    """Read a picture as `read_image` does, with what else its file says."""
    with _opened(path) as picture:
        pages, png = _pages(picture), _read_png(Path(path))
        if picture.format != "TIFF":  # which Pillow turns as soon as it is loaded
            picture.load()
        orientation = _orientation(picture)
        image = to_rgb(picture)
        if png:
            _check_rows(picture, png)
        if picture.format in ("JPEG", "MPO"):
            _check_end(_content(Path(path)))
        if not image.any() and _has_lower_bytes(picture, png):
            raise ValueError(f"its values are below 256; {_UPPER_8}")
    if not turn_by_exif:
        image = turned(image, _UNDONE_BY.get(orientation, orientation))
    return Picture(image, orientation, pages)


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Decode an open picture as `read_image` does; a ValueError if its pixels have another form."""
    picture.load()
    return turned(_rgb(picture), _orientation(picture))


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W, ...], turned and mirrored as an EXIF orientation, 1 to 8, says."""
    if orientation in (3, 4, 6, 7):
        image = image[::-1]
    if orientation in (2, 3, 7, 8):
        image = image[:, ::-1]
    if orientation in _TURNED:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def resize(
    array: np.ndarray, size: tuple[int, int] | None, resample=Image.Resampling.BILINEAR
) -> np.ndarray:
    """Resize uint8 [H, W, ...] to (height, width), with antialiasing; None keeps the size."""
    if size is None or array.shape[:2] == tuple(size):
        return array
    height, width = size
    return np.array(Image.fromarray(array).resize((width, height), resample, reducing_gap=3.0))


def read_label(path: Path, colors: bool = False) -> np.ndarray:
    """Read the raw values of a label map: integers [H, W], or uint8 or uint16 colours [H, W, 3].

    Values are those that the file holds, whatever they look like: of a palette the indices, or with
    `colors` the colours; of grey with few bits, or whose 0 is white, the numbers; of 16-bit PNGs
    all 16 bits; alpha is dropped. A UserError if the file cannot be read, holds no integers or
    several pages, or is of a form that changes label values, as lossy formats do.
    """
    with _opened(path) as picture:
        png = _read_png(Path(path))
        if _is_lossy(Path(path), picture):
            problem = f"a lossy {picture.format} file, whose label values are not those drawn"
            raise UserError(f"{path}: {problem}; make the labels anew from their source as PNG")
        if (pages := _pages(picture)) > 1:
            problem = f"{pages} pages or frames; expected one label map in a file"
            raise UserError(f"{path}: {problem}; save the right page as a file of its own")
        return _decode_label(picture, png, colors)


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) that `read_image` would give, from the header; a UserError as there."""
    with _opened(path) as picture:
        width, height = picture.size
        # Pillow exchanges the two of a TIFF itself.
        is_turned = picture.format != "TIFF" and _orientation(picture) in _TURNED
    return (width, height) if is_turned else (height, width)


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
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image of the known formats; any error, also of the body, becomes a UserError."""
    try:
        _set_limit()
        refuse_special(path)
        with Image.open(path, formats=FORMATS) as picture:
            yield picture
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder and the file's name") from None
    except MemoryError:
        raise UserError(f"{path}: too large for the memory; scale it down") from None
    except Image.DecompressionBombError:
        limit = f"more than {2 * Image.MAX_IMAGE_PIXELS} pixels, the limit"
        remedy = f"scale it down or cut it up, or set {MAX_PIXELS} to a larger number"
        raise UserError(f"{path}: {limit}; {remedy}") from None
    except Image.UnidentifiedImageError:
        problem = f"its content is none of {', '.join(FORMATS)}, or its pixels are of a rare kind"
        problem = f"not a readable image ({problem})"
        raise UserError(f"{path}: {problem}; convert, replace or remove the file") from None
    except Exception as error:  # Pillow raises errors of any type for a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # nothing is said of its content
            problem = f"{path}: cannot be read ({error.strerror}); check the disk or network drive"
            raise refusal(error, path) or UserError(problem) from None
        problem = f"not a readable image ({in_one_line(error)})"
        raise UserError(f"{path}: {problem}; replace or remove the file") from error


def _set_limit() -> None:
    """Let Pillow open images of up to $CAG_MAX_PIXELS, if that is given."""
    given = os.environ.get(MAX_PIXELS, "")
    if given and not (given.isdecimal() and len(given) < 19 and int(given)):
        raise UserError(f"{MAX_PIXELS} is {given!r}; expected a number of pixels, as 400000000")
    if given:
        Image.MAX_IMAGE_PIXELS = -(-int(given) // 2)  # Pillow refuses twice as many


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 if there is none, or none that can be read."""
    for read in (_stored_orientation, lambda image: image.getexif().get(_ORIENTATION)):
        try:
            orientation = read(picture)
        except Exception:  # of any type, for whatever is wrong with the other tags
            continue
        if orientation in range(1, 9):
            return int(orientation)
    return 1


def _stored_orientation(picture: Image.Image) -> int | None:
    """The orientation in the EXIF data's first directory; Pillow gives up at a broken tag."""
    data = picture.info["exif"].removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for index in range(count):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, start + 2 + 12 * index)
        if (tag, kind) == (_ORIENTATION, _SHORT):
            return value
    return None


def _pages(picture: Image.Image) -> int:
    """The number of a TIFF's pages, or of an animation's frames."""
    return getattr(picture, "n_frames", 1)


def _rgb(picture: Image.Image) -> np.ndarray:
    """The pixels of a picture as they are stored, uint8 [H, W, 3]."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    is_apart = _first(picture, _PLANES) == _APART and picture.info.get("compression") == "raw"
    if is_apart and _first(picture, _BITS) == 16:  # Pillow takes their bytes for pixels
        raise ValueError("its 16-bit channels lie one after another; save it compressed")
    if picture.mode.startswith("I"):  # Pillow would clip 16-bit grey to 255
        values = np.asarray(picture).astype(np.int64)
        if _first(picture, _BITS) == 12:
            values <<= 4
        low, high = values.min(), values.max()
        if low < 0 or high > 0xFFFF or 0 < high < 256:
            raise ValueError(f"its values are {low} to {high}; {_UPPER_8}")
        if _first(picture, _PHOTOMETRIC) == _MIN_IS_WHITE:
            values = 0xFFFF - values  # Pillow does so with 8 bits alone
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if "transparency" in picture.info:  # Pillow warns when a palette's alpha is dropped at once
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def _has_lower_bytes(picture: Image.Image, png: _Png | None) -> bool:
    """Whether a colour picture has 16 bits and, as far as is known, lower bytes other than 0."""
    if png:
        return png.is_wide_color and _decode_png_16(picture, png).any()
    return picture.mode[0] != "I" and _first(picture, _BITS) == 16


def _first(picture: Image.Image, tag: int) -> int | None:
    """The first value of a TIFF's tag; None if it has none, or is of another format."""
    value = getattr(picture, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _is_lossy(path: Path, picture: Image.Image) -> bool:
    if picture.format == "WEBP":
        return b"VP8 " in _webp_chunks(path.read_bytes())
    return picture.format in ("JPEG", "MPO") or picture.info.get("compression") in ("jpeg", "webp")


def _webp_chunks(data: bytes) -> set[bytes]:
    """The names of a WebP's chunks, those of an animation's frames among them."""
    names, start = set(), 12
    while start + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, start)
        names.add(kind)
        start += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame's chunks are in it
    return names


def _decode_label(picture: Image.Image, png: _Png | None, colors: bool) -> np.ndarray:
    if png and png.is_wide_color:
        return _decode_png_16(picture, png)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA") and picture.mode[0] != "I":
        raise ValueError(f"its pixels have the form {picture.mode}, not label values")
    if picture.format == "PPM":
        _check_largest(picture)
    array = np.array(picture)
    if png:
        _check_rows(picture, png)
    if colors and picture.mode == "P":
        return _rgb(picture)
    if picture.mode in ("1", "L"):
        depth = png.depth if png else _first(picture, _BITS) or 8
        return _stored_grey(array, depth, _is_inverted(picture), _first(picture, _KIND))
    if picture.mode == "I" and _first(picture, _KIND) == _UNSIGNED:
        array = array.view(np.uint32)
    if picture.format == "TIFF":
        _check_colors(picture, array)
    return _drop_alpha(array)


def _is_inverted(picture: Image.Image) -> bool:
    """Whether Pillow has exchanged black and white in grey of up to 8 bits."""
    if picture.format == "PPM":
        return picture.mode == "1"
    return picture.format == "TIFF" and not _first(picture, _PHOTOMETRIC)


def _stored_grey(array: np.ndarray, depth: int, is_inverted: bool, kind: int | None) -> np.ndarray:
    """The numbers uint8 or int8 [H, W] of so many bits behind grey that Pillow shows, [H, W]."""
    if array.dtype == bool:
        return (array ^ is_inverted).astype(np.uint8)
    if is_inverted:
        array = 255 - array
    if depth in (2, 4):
        array = array // (255 // (2**depth - 1))  # Pillow spreads low-bit grey over 0..255
    return array.view(np.int8) if kind == _SIGNED else array


def _check_colors(picture: Image.Image, array: np.ndarray) -> None:
    """Raise a ValueError if Pillow has changed a TIFF's colours [H, W, ...]."""
    if picture.mode[0] != "I" and _first(picture, _BITS) == 16:
        raise ValueError("its colours have 16 bits, which are read from PNG alone; save it as PNG")
    if _first(picture, _EXTRA) == _MULTIPLIED and (array[..., -1] != 255).any():
        raise ValueError("its colours are multiplied by its alpha; save it without alpha")


def _check_largest(picture: Image.Image) -> None:
    """Raise a ValueError if Pillow would stretch or shrink the values of a PGM or PPM."""
    decoder, _, _, options = picture.tile[0]
    if decoder.startswith("ppm") and picture.mode != "1":
        largest, kept = options[-1], 65535 if picture.mode == "I" else 255
        if largest != kept:
            problem = f"the largest value (maxval) in its header is {largest}"
            raise ValueError(f"{problem}; expected {kept}: save the same values as PNG")


class _Png(NamedTuple):
    """What of a PNG is not Pillow's to tell."""

    depth: int  # bits
    color_type: int
    interlaced: int  # 0 or 1
    stream: bytes  # its pixels, compressed

    @property
    def is_wide_color(self) -> bool:
        """Whether Pillow drops the lower bytes of its pixels."""
        return self.depth == 16 and _CHANNELS.get(self.color_type, 1) > 1


def _read_png(path: Path) -> _Png | None:
    """Read and check a PNG's parts; a ValueError if one is damaged, over which Pillow reads on.

    None for another format.
    """
    chunks = list(_png_chunks(path))
    if not chunks:
        return None
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ValueError("it does not begin with its header")
    depth, color_type, _, _, interlaced = chunks[0][1][8:]
    stream = b"".join(content for kind, content in chunks if kind == b"IDAT")
    return _Png(depth, color_type, interlaced, stream)


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of a PNG's critical chunks; a ValueError if one is damaged.

    There are none in another format, and none where the file is cut off, which its decoder notices.
    """
    with open(path, "rb") as file:
        if file.read(8) != _PNG_SIGNATURE:
            return
    data, start, kind = _content(path), 8, b""
    while kind != b"IEND" and start + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + size
        if kind[:1].isupper() and end <= len(data):
            if zlib.crc32(data[start + 4 : end - 4]).to_bytes(4) != data[end - 4 : end]:
                raise ValueError(f"its part {kind.decode('latin-1')!r} is damaged")
            yield kind, data[start + 8 : end - 4]
        start = end


def _content(path: Path) -> bytes:
    """The bytes of a file; a ValueError if there are more than any image needs."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"it has {size:,} bytes; expected at most {LARGEST_FILE:,}")
    return path.read_bytes()


def _check_rows(picture: Image.Image, png: _Png) -> None:
    """Raise a ValueError if a PNG lacks rows, which Pillow, when it has loaded it, leaves at 0."""
    width, height = picture.size
    # Pixels are unpacked a second time only where the last row may be one of them.
    if png.interlaced or not np.any(picture.crop((0, height - 1, width, height))):
        _check_stream(picture.size, png)


def _check_end(data: bytes) -> None:
    """Raise a ValueError if a JPEG has no end, as where a broken download left zeros."""
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != _START_OF_SCAN:
        # A segment, such as a thumbnail with an end of its own. Padding may come before it.
        is_padding = data[start + 1 : start + 2] == b"\xff"
        start += 1 if is_padding else 2 + int.from_bytes(data[start + 2 : start + 4])
    if _END_OF_IMAGE not in data[start:]:
        raise ValueError("it ends early: no end-of-image marker")


def _decode_png_16(picture: Image.Image, png: _Png) -> np.ndarray:
    """16-bit grey with alpha uint16 [H, W], or colours [H, W, 3], of which Pillow drops a byte."""
    _check_stream(picture.size, png)

    def pixels(mode: str, form: str) -> np.ndarray:
        options = ("zip", form, png.interlaced)
        return np.array(Image.frombytes(mode, picture.size, png.stream, *options)).astype(np.uint16)

    if png.color_type == _GREY_ALPHA:  # four bytes a pixel
        both = pixels("RGBA", "RGBA")
        return np.ascontiguousarray(both[..., 0] << 8 | both[..., 1])
    mode = picture.mode  # RGB or RGBA
    return _drop_alpha(pixels(mode, f"{mode};16B") << 8 | pixels(mode, f"{mode};16L"))


def _unpacked_bytes(width: int, height: int, pixel_bits: int, interlaced: int) -> int:
    """The bytes of a PNG's rows, each with a byte of its own, in all passes."""
    total = 0
    for x, y, right, down in _PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, rows = len(range(x, width, right)), len(range(y, height, down))
        total += rows * (1 + -(-columns * pixel_bits // 8)) if columns else 0
    return total


def _check_stream(size: tuple[int, int], png: _Png) -> None:
    """Raise a ValueError unless a PNG's zlib stream is whole and unpacks to (width, height)."""
    expected = _unpacked_bytes(*size, png.depth * _CHANNELS[png.color_type], png.interlaced)
    data, stream, total = png.stream, zlib.decompressobj(), 0
    while not stream.eof:
        part = stream.decompress(data, 2**20)
        data, total = stream.unconsumed_tail, total + len(part)
        if total > expected or not (part or stream.eof):
            raise ValueError("its pixels are incomplete or damaged")
    if total < expected:
        raise ValueError("its pixels are incomplete")


def _drop_alpha(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] <= 2 else array[..., :3]
    return np.ascontiguousarray(array)
