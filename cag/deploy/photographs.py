"""Labels for files of photographs: read, predicted and written at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cag.datasets.images import overlay, read_image, resize, write_image, write_jpeg, write_label
from cag.deploy.segmenter import SMALLEST_TILE, WHOLE_PIXELS, Segmenter, Size
from cag.prediction import full_resolution
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, write_json
from cag.runtime.overlap import in_order, threads, to_cpu
from cag.runtime.progress import progress

LABELS, OVERLAYS, CONFIDENCE = OUTPUTS = ("labels", "overlays", "confidence")


class Photograph(NamedTuple):
    """An image that was read."""

    name: str  # of its files below the output folders: a posix path without extension
    image: np.ndarray  # uint8 [H, W, 3]
    scaled: np.ndarray  # the same at the size to predict at, uint8 [h, w, 3]


Predicted = tuple[Photograph, Callable[[], tuple]]


@dataclass
class Labelled:
    """The outcome for a number of photographs."""

    pixels: np.ndarray  # int64 [K], of each class
    images: int = 0
    seconds: float = 0.0
    failures: list[tuple[Path, str]] = field(default_factory=list)  # unread images, and why

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
) -> Labelled:
    """Predict the images of `list_images` and write files of each for the wanted `OUTPUTS`.

    Each of `kinds` is a folder below `out`. `size` and `tile` are those of a call of the segmenter;
    up to `batch` images of one size are predicted together. A UserError if the tile is too small,
    or something cannot be written; an image that cannot be read is passed over.
    """
    if tile and tile < SMALLEST_TILE:
        raise UserError(f"--tile is {tile}; expected 0 or at least {SMALLEST_TILE} pixels")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be a folder to write to ({error.strerror})") from None
    write_json(out / "classes.json", segmenter.label_space.to_dict())
    labelled, began = Labelled(np.zeros(segmenter.num_classes, np.int64)), time.monotonic()

    def write(predicted: Predicted) -> np.ndarray:
        photograph, arrived = predicted
        labels, *probability = (part.numpy() for part in arrived())
        for kind in kinds:
            _write(out, kind, photograph, labels, probability, segmenter.palette)
        return np.bincount(labels.ravel(), minlength=segmenter.num_classes)

    with progress("predict", len(files), "images") as advance:
        images = advance.waiting(_read(files, segmenter.seen_size(size), labelled.failures))
        predicted = _predictions(segmenter, images, tile, batch, CONFIDENCE in kinds)
        with closing(predicted), closing(in_order(write, predicted, threads())) as written:
            for pixels in written:
                labelled.pixels += pixels
                labelled.images += 1
                advance()
    labelled.seconds = time.monotonic() - began
    return labelled


def _write(
    out: Path,
    kind: str,
    photograph: Photograph,
    labels: np.ndarray,
    probability: Sequence[np.ndarray],
    palette: np.ndarray,
) -> None:
    """Write the file of one of the OUTPUTS; a UserError if the disk refuses it."""
    path = out / kind / f"{photograph.name}{'.jpg' if kind == OVERLAYS else '.png'}"
    try:
        with atomic_file(path) as partial:
            if kind == LABELS:
                write_label(partial, labels, palette)
            elif kind == OVERLAYS:
                write_jpeg(partial, overlay(photograph.image, labels, palette))
            else:
                write_image(partial, (255 * probability[0]).round().astype(np.uint8))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason})") from None


def _read(
    files: Sequence[tuple[str, Path]], size: Size | None, failures: list[tuple[Path, str]]
) -> Iterator[Photograph]:
    """Read images by threads, in order; unreadable ones go to `failures`."""

    def read(entry: tuple[str, Path]) -> Photograph | UserError:
        name, path = entry
        try:
            image = read_image(path)
            return Photograph(name, image, resize(image, size))
        except UserError as error:
            return error
        except MemoryError:
            return UserError(f"{path}: too large for the memory; scale it down")

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
) -> Iterator[Predicted]:
    """Each image with a function that waits for its labels and, if wanted, their probability."""
    for group in _batches(images, batch):
        stacked = torch.from_numpy(np.stack([image.scaled for image in group]))  # (B, h, w, 3)
        try:
            logits = segmenter.logits(stacked.permute(0, 3, 1, 2), tile)
            for image, scores in zip(group, logits, strict=True):
                yield image, to_cpu(*full_resolution(scores, image.image.shape[:2], confidence))
        except torch.OutOfMemoryError:
            memory = f"{segmenter.device} ({len(group)} images of {group[0].scaled.shape[:2]})"
            remedy = "give a smaller --tile or --batch, or --device cpu"
            problem = f"{group[0].name}: too large for the memory of {memory}"
            raise UserError(f"{problem}; {remedy}") from None
