"""Miniature raw data: single files; GTA5, SYNTHIA, Cityscapes and plain folders."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cag.datasets.images import write_image, write_label
from cag.datasets.labels import read_class_map
from cag.datasets.layouts import Split, list_split
from cag.datasets.preparation import Item
from cag.scenes import label_palette, render

# Cityscapes label id of a scene -> SYNTHIA id; what SYNTHIA lacks becomes void.
SYNTHIA_IDS = {
    **{7: 3, 8: 4, 11: 2, 12: 21, 13: 5, 17: 7, 19: 15, 20: 9, 21: 6, 22: 16, 23: 1, 24: 10},
    **{25: 17, 26: 8, 27: 18, 28: 19, 31: 20, 32: 12, 33: 11},
}


def picture(path: Path, height=8, width=12, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(array).save(path)
    return path


def label(path: Path, height=8, width=12, value=7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, np.uint8)).save(path)
    return path


def raw_data(root: Path, names=("a", "b/c", "d")) -> Path:
    for seed, name in enumerate(names):
        picture(root / f"images/{name}.png", seed=seed)
        label(root / f"labels/{name}.png")
    return root


def listed(folder: Path, images: str, labels: str | None) -> list[Item]:
    """The items of a data set's folders."""
    return list_split(folder, Split("train", images, labels))


def raw_png(array: np.ndarray, depth: int, color_type: int) -> bytes:
    """A PNG made by hand from rows of big-endian samples (depth 16) or packed bytes (below 8)."""
    height, width = array.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in array]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in array]
    else:
        bits = (array[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits]

    stream = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png_of_stream((height, width), depth, color_type, stream)


def png_of_stream(
    size: tuple[int, int], depth: int, color_type: int, stream: bytes, interlaced: int = 0
) -> bytes:
    """A PNG of (height, width) made by hand around its zlib stream."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, color_type, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def raw_tiff(array: np.ndarray, bits: int, **tags: int) -> bytes:
    """A TIFF made by hand from numbers [H, W] or [H, W, C], in one strip, without compression.

    Values of tags are given as tag_262=0. With tag_284=2 the channels lie one after another.
    """
    array = array.reshape(*array.shape[:2], -1)
    height, width, count = array.shape
    rows = array.reshape(height, -1)
    if tags.get("tag_284") == 2:
        rows = array.transpose(2, 0, 1).reshape(-1, width)
    if bits < 8 or bits == 12:
        ones = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        strip = b"".join(np.packbits(row.reshape(-1)).tobytes() for row in ones)
    else:
        strip = rows.astype(f"<i{bits // 8}").tobytes()
    planes = count if tags.get("tag_284") == 2 else 1
    starts = [8 + i * len(strip) // planes for i in range(planes)]
    entries = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [1], 273: starts}
    entries |= {277: [count], 278: [height], 279: [len(strip) // planes] * planes}
    entries |= {int(name[4:]): [value] for name, value in tags.items()}
    body, fields = strip + bytes(len(strip) % 2), b""
    for tag, values in sorted(entries.items()):
        content = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            content, body = struct.pack("<I", 8 + len(body)), body + content
        fields += struct.pack("<HHI", tag, 4, len(values)) + content
    start = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    return start + body + struct.pack("<H", len(entries)) + fields + bytes(4)


def write_gta5(folder: Path, count: int, size: tuple[int, int], mismatched: int = 0) -> None:
    """GTA5: images/ and labels/, palette PNGs of label ids.

    Args:
        folder: The data set's folder.
        count: Number of images.
        size: Height, width.
        mismatched: Number of additional images whose labels have another size.
    """
    for index in range(count + mismatched):
        image, labels = render("source", 0, index, *size)
        labels = labels if index < count else labels[:-2]
        _write(folder / "images", f"{index + 1:05d}.png", image)
        path = _parent(folder / "labels" / f"{index + 1:05d}.png")
        write_label(path, labels, label_palette())


def write_synthia(folder: Path, count: int, size: tuple[int, int]) -> None:
    """SYNTHIA: RGB/, GT/LABELS/ (16-bit PNGs of class, instance and zeros, without Pillow)."""
    table = np.zeros(256, np.uint16)
    table[list(SYNTHIA_IDS)] = list(SYNTHIA_IDS.values())
    for index in range(count):
        image, labels = render("source", 0, index, *size)
        instances = np.arange(labels.size, dtype=np.uint16).reshape(labels.shape)
        label = np.stack([table[labels], instances, np.zeros_like(instances)], axis=2)
        _write(folder / "RGB", f"{index:07d}.png", image)
        _parent(folder / f"GT/LABELS/{index:07d}.png").write_bytes(raw_png(label, 16, 2))


def write_cityscapes(
    folder: Path,
    counts: Mapping[str, int],
    size: tuple[int, int],
    labelled: tuple[str, ...] = ("train", "val"),
    kind: str = "labelIds",
) -> None:
    """Cityscapes: leftImg8bit/ and gtFine/, grey PNGs of label ids or of train ids.

    Args:
        folder: The data set's folder.
        counts: Images of each split, in two cities.
        size: Height, width.
        labelled: Splits that have labels.
        kind: "labelIds" or "labelTrainIds".
    """
    train_ids = np.full(256, 255, np.uint8)
    train_ids[list(SYNTHIA_IDS)] = range(19)
    index = 0
    for split, count in counts.items():
        for number in range(count):
            image, labels = render("target", 0, index, *size)
            city = ("aachen", "bochum")[number % 2]
            name = f"{city}_{number:06d}_000019"
            _write(folder / f"leftImg8bit/{split}/{city}", f"{name}_leftImg8bit.png", image)
            if split in labelled:
                path = _parent(folder / f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png")
                raw = labels if kind == "labelIds" else train_ids[labels]
                Image.fromarray(raw).save(path)
                write_image(path.with_name(f"{name}_gtFine_color.png"), label_palette()[labels])
            index += 1


def write_photographs(
    folder: Path, counts: Mapping[str, int], size: tuple[int, int], classes: Path
) -> None:
    """Plain folders images/<split>/*.jpg and labels/<split>/*.png with unsure pixels, 255.

    Args:
        folder: The data set's folder.
        counts: Images of each split.
        size: Height, width.
        classes: The class map that translates Cityscapes ids to the values of the label files.
    """
    class_map = read_class_map(classes)
    for split, count in counts.items():
        for index in range(count):
            image, labels = render("target", 0, index, *size)
            labels = labels if "cityscapes" in folder.name else class_map.encode(labels)
            labels[:2] = 255
            Image.fromarray(image).save(_parent(folder / f"images/{split}/{index:04d}.jpg"))
            Image.fromarray(labels).save(_parent(folder / f"labels/{split}/{index:04d}.png"))


def _write(folder: Path, name: str, image: np.ndarray) -> None:
    write_image(_parent(folder / name), image)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
