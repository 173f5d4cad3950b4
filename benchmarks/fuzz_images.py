"""Try the readers of images and label maps on damaged files: python -m benchmarks.fuzz_images.

Whatever is in a file, it is read or refused by a UserError. Each chunk of files is tried in a
process of its own, so that a crash of a decoder is found and named.
"""

import io
import multiprocessing
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from cag.datasets.images import image_size, read_image, read_label
from cag.runtime.errors import UserError

SHAPE, CHUNK = (12, 16), 250
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
MAX_PIXELS = 2**20  # a damaged size takes no memory


def saved(mode: str, kind: str, **options) -> Callable[[], bytes]:
    """A function that makes a small file of random pixels."""

    def make() -> bytes:
        pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[274], exif[270] = 6, "text"
        keeps_exif = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
        picture = Image.fromarray(pixels)
        if mode == "I;16":
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        elif mode != "RGB":
            picture = picture.convert(mode)
        picture.save(buffer, kind, **keeps_exif, **options)
        return buffer.getvalue()

    return make


def wide(color_type: int, interlaced: int = 0) -> Callable[[], bytes]:
    """A function that makes a 16-bit PNG, as SYNTHIA's labels are."""

    def make() -> bytes:
        def part(name: bytes, data: bytes) -> bytes:
            checksum = struct.pack(">I", zlib.crc32(name + data))
            return struct.pack(">I", len(data)) + name + data + checksum

        height, width = SHAPE
        channels = {2: 3, 4: 2, 6: 4}[color_type]
        rows = np.random.default_rng(0).integers(0, 3, (height, 1 + 2 * width * channels))
        head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, interlaced)
        stream = zlib.compress(rows.astype(np.uint8).tobytes() + bytes(40 * interlaced))
        parts = part(b"IHDR", head) + part(b"IDAT", stream) + part(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    return make


SEEDS: dict[str, Callable[[], bytes]] = {
    "rgb.png": saved("RGB", "PNG"),
    "grey.png": saved("L", "PNG"),
    "palette.png": saved("P", "PNG", transparency=1),
    "bits.png": saved("1", "PNG"),
    "wide_grey.png": saved("I;16", "PNG"),
    "wide_rgb.png": wide(2),
    "wide_rgba.png": wide(6),
    "wide_grey_alpha.png": wide(4),
    "interlaced.png": wide(2, 1),
    "rgb.jpg": saved("RGB", "JPEG"),
    "progressive.jpg": saved("RGB", "JPEG", progressive=True),
    "cmyk.jpg": saved("CMYK", "JPEG"),
    "rgb.bmp": saved("RGB", "BMP"),
    "palette.bmp": saved("P", "BMP"),
    "rgb.tif": saved("RGB", "TIFF"),
    "wide.tif": saved("I;16", "TIFF"),
    "float.tif": saved("F", "TIFF"),
    "deflate.tif": saved("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "lzw.tif": saved("RGB", "TIFF", compression="tiff_lzw"),
    "jpeg.tif": saved("RGB", "TIFF", compression="jpeg"),
    "fax.tif": saved("1", "TIFF", compression="group4"),
    "packbits.tif": saved("P", "TIFF", compression="packbits"),
    "lossy.webp": saved("RGB", "WEBP"),
    "lossless.webp": saved("RGBA", "WEBP", lossless=True),
    "rgb.ppm": saved("RGB", "PPM"),
    "wide.pgm": saved("I;16", "PPM"),
}


def mutated(seed: bytes, number: int) -> bytes:
    """The seed with some bytes changed, cut off, doubled or filled; `number` chooses which.

    Checksums of a PNG's parts are made anew in every second file, so that its content is decoded.
    """
    random = np.random.default_rng(number)
    data = bytearray(seed)
    for _ in range(random.integers(1, 5)):
        start = int(random.integers(0, len(data)))
        kind = random.integers(0, 6)
        if kind < 3:
            data[start] = int(random.integers(0, 256)) if kind else data[start] ^ 1 << number % 8
        elif kind == 3:
            data[start : start + 4] = EXTREMES[number % 3]
        elif kind == 4:
            del data[start : start + int(random.integers(1, 9))]
        else:
            data[start:start] = data[start : start + int(random.integers(1, 30))]
        if len(data) < 2:
            return bytes(data)
    return with_checksums(bytes(data)) if number % 2 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG with correct checksums of all parts; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, start = bytearray(data), 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if end > len(data):
            break
        out[end - 4 : end] = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4)
        start = end
    return bytes(out)


def try_reading(path: Path, data: bytes) -> int:
    """Read a file of these bytes in every way; how many of the ways refuse it."""
    path.write_bytes(data)
    refused = 0
    ways = (read_image, image_size, read_label, lambda path: read_label(path, colors=True))
    for read in (*ways, lambda path: read_image(path, turn_by_exif=False)):
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    return refused


def _try_chunk(name: str, first: int, count: int, folder: str, report) -> None:
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    seed, path = SEEDS[name](), Path(folder) / name
    for number in range(first, first + count):
        report.value = number
        try_reading(path, mutated(seed, number))


@click.command(help=__doc__)
@click.option("--files", default=2000, show_default=True, help="Damaged files of each kind.")
@click.option("--first", default=0, show_default=True, help="The number of the first.")
@click.option("--only", help="A kind's name, such as wide_rgb.png.")
def main(files: int, first: int, only: str | None) -> None:
    """Try all kinds; the exit status is 1 if a file was neither read nor refused."""
    failures = 0
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        for name in SEEDS if only is None else [only]:
            for start in range(first, first + files, CHUNK):
                report = context.Value("q", start)
                count = min(CHUNK, first + files - start)
                arguments = (name, start, count, folder, report)
                process = context.Process(target=_try_chunk, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    failures += 1
                    print(f"{name}: file {report.value}: exit status {process.exitcode}")
            print(f"{name}: {files} files tried", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
