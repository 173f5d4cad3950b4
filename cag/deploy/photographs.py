"""Labels for files of photographs: read, predicted and written at once."""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cag.datasets.images import overlay, read_image, resize, write_image, write_jpeg, write_label
from cag.datasets.labels import IGNORE
from cag.deploy.segmenter import SMALLEST_TILE, TILE, WHOLE_PIXELS, Segmenter, Size
from cag.prediction import NO_NUMBERS, full_resolution
from cag.runtime.errors import UserError, in_one_line
from cag.runtime.files import atomic_file, write_json
from cag.runtime.overlap import in_order, threads, to_cpu
from cag.runtime.progress import progress

LABELS, OVERLAYS, CONFIDENCE = OUTPUTS = ("labels", "overlays", "confidence")


class Photograph(NamedTuple):
    """An image that was read."""

    name: str  # of its files below the output folders: a posix path without extension
    path: Path  # its own
    image: np.ndarray  # uint8 [H, W, 3]
    scaled: np.ndarray  # the same at the size to predict at, uint8 [h, w, 3]


Predicted = tuple[Photograph, Callable[[], tuple]]
TOO_LARGE = "too large for the memory; scale it down or cut it up"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what no other image will overcome


@dataclass
class Labelled:
    """The outcome for a number of photographs."""

    pixels: np.ndarray  # int64 [K], of each class
    images: int = 0
    seconds: float = 0.0
    failures: list[tuple[Path, str]] = field(default_factory=list)  # other images, and why

    @property
    def shares(self) -> np.ndarray:
        """The share of each class in the pixels, float64 [K]."""
        return self.pixels / max(1, self.pixels.sum())


def label_photographs(
    segmenter: Segmenter,
    files: Sequence[tuple[str, Path]],
    out: Path,
    kinds: Sequence[str],
    size: Size | None = None,
    tile: int | None = None,
    batch: int = 4,
    turn_by_exif: bool = True,
) -> Labelled:
    """Predict the images of `list_images` and write files of each for the wanted `OUTPUTS`.

    Each of `kinds` is a folder below `out`. `size` and `tile` are those of a call of the segmenter;
    up to `batch` images of one size are predicted together; `turn_by_exif` is that of `read_image`.
    A UserError if the tile is too small, or nothing can be written; an image that cannot be read,
    that is too large for the memory or whose files cannot be written is passed over.
    """
    if tile and tile < SMALLEST_TILE:
        raise UserError(f"--tile is {tile}; expected 0 or at least {SMALLEST_TILE} pixels")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be a folder to write to ({error.strerror})") from None
    write_json(out / "classes.json", segmenter.label_space.to_dict())
    labelled, began = Labelled(np.zeros(segmenter.num_classes, np.int64)), time.monotonic()

    def write(predicted: Predicted) -> np.ndarray | tuple[Path, str]:
        photograph, arrived = predicted
        try:
            labels, *probability = (part.numpy() for part in arrived())
            if (labels == IGNORE).any():
                return photograph.path, f"{photograph.path}: {NO_NUMBERS}"
            for kind in kinds:
                _write(out, kind, photograph, labels, probability, segmenter.palette)
            return np.bincount(labels.ravel(), minlength=segmenter.num_classes)
        except _NotWritten as error:
            return photograph.path, str(error)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            return photograph.path, f"{photograph.path}: {TOO_LARGE}"

    with progress("predict", len(files), "images") as advance:
        seen = segmenter.seen_size(size)
        images = advance.waiting(_read(files, seen, turn_by_exif, labelled.failures))
        options = (tile, batch, CONFIDENCE in kinds, labelled.failures)
        predicted = _predictions(segmenter, images, *options)
        with closing(predicted), closing(in_order(write, predicted, threads())) as written:
            for result in written:
                if isinstance(result, tuple):
                    labelled.failures.append(result)
                    continue
                labelled.pixels += result
                labelled.images += 1
                advance()
    labelled.seconds = time.monotonic() - began
    return labelled


class _NotWritten(Exception):
    """Files of one image cannot be written; those of others can."""


def _is_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory, of the CPU or of a device."""
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or "DefaultCPUAllocator" in str(error)  # which PyTorch gives no type


def _write(
    out: Path,
    kind: str,
    photograph: Photograph,
    labels: np.ndarray,
    probability: Sequence[np.ndarray],
    palette: np.ndarray,
) -> None:
    """Write the file of one of the OUTPUTS; _NotWritten, or a UserError if the disk is full."""
    path = out / kind / f"{photograph.name}{'.jpg' if kind == OVERLAYS else '.png'}"
    try:
        with atomic_file(path) as partial:
            if kind == LABELS:
                write_label(partial, labels, palette)
            elif kind == OVERLAYS:
                write_jpeg(partial, overlay(photograph.image, labels, palette))
            else:
                write_image(partial, (255 * probability[0]).round().astype(np.uint8))
    except (OSError, ValueError) as error:  # such as a name or a side that is too long
        reason = getattr(error, "strerror", None) or in_one_line(error)
        kind = UserError if getattr(error, "errno", None) in FULL else _NotWritten
        raise kind(f"{path}: cannot be written ({reason})") from None


def _read(
    files: Sequence[tuple[str, Path]],
    size: Size | None,
    turn_by_exif: bool,
    failures: list[tuple[Path, str]],
) -> Iterator[Photograph]:
    """Read images by threads, in order; unreadable ones go to `failures`."""

    def read(entry: tuple[str, Path]) -> Photograph | UserError:
        name, path = entry
        try:
            image = read_image(path, turn_by_exif)
            return Photograph(name, path, image, resize(image, size))
        except UserError as error:
            return error
        except MemoryError:
            return UserError(f"{path}: {TOO_LARGE}")

    with closing(in_order(read, files, threads())) as images:
        for (_, path), image in zip(files, images, strict=True):
            if isinstance(image, UserError):
                failures.append((path, str(image)))
            else:
                yield image


def _batches(images: Iterator[Photograph], count: int) -> Iterator[list[Photograph]]:
    """Group neighbours of one size: up to `count`, and up to `WHOLE_PIXELS` if more than one."""
    batch: list[Photograph] = []
    for image in images:
        shape = image.scaled.shape
        too_many = len(batch) == count or (len(batch) + 1) * shape[0] * shape[1] > WHOLE_PIXELS
        if batch and (too_many or shape != batch[0].scaled.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _predictions(
    segmenter: Segmenter,
    images: Iterator[Photograph],
    tile: int | None,
    batch: int,
    confidence: bool,
    failures: list[tuple[Path, str]],
) -> Iterator[Predicted]:
    """Each image with a function that waits for its labels and, if wanted, their probability.

    What is too large for the memory is tried one by one, in ever smaller tiles, and at last goes to
    `failures`.
    """
    for group in _batches(images, batch):
        waiting = [(group, tile)]
        while waiting:
            part, side = waiting.pop(0)
            try:
                yield from _predict(segmenter, part, side, confidence)
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                if len(part) > 1:
                    waiting = [([image], side) for image in part]
                elif smaller := _smaller(part[0].scaled.shape, side):
                    waiting.insert(0, (part, smaller))
                else:
                    failures.append((part[0].path, f"{part[0].path}: {TOO_LARGE}"))


def _predict(
    segmenter: Segmenter, group: Sequence[Photograph], tile: int | None, confidence: bool
) -> list[Predicted]:
    stacked = torch.from_numpy(np.stack([image.scaled for image in group]))  # (B, h, w, 3)
    logits = segmenter.logits(stacked.permute(0, 3, 1, 2), tile)
    return [
        (image, to_cpu(*full_resolution(scores, image.image.shape[:2], confidence)))
        for image, scores in zip(group, logits, strict=True)
    ]


def _smaller(shape: tuple[int, ...], tile: int | None) -> int | None:
    """The side of tiles to try after `tile` failed for an image [h, w, 3]; None: there is none."""
    largest = max(shape[:2])
    if tile is None:
        tile = TILE if shape[0] * shape[1] > WHOLE_PIXELS else 0
    smaller = min(tile or largest, largest) // 2
    return smaller if smaller >= SMALLEST_TILE else None
