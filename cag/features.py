"""Feature stores: source class sums and dense target features in HDF5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from cag.anchors import agreeing_labels, class_sums
from cag.errors import UserError
from cag.files import atomic_file, require_space
from cag.labels import IGNORE

SOURCE_KEYS = (
    "names",
    "class_sums",
    "class_counts",
    "correct_class_sums",
    "correct_class_counts",
    "sample_features",
    "sample_labels",
)
TARGET_KEYS = ("names", "features", "prediction", "probability")


class SourceStatistics(NamedTuple):
    """Sufficient statistics of a batch of source images for every kind of anchor."""

    class_sums: Tensor  # [B, K, D] float32, over all labelled pixels
    class_counts: Tensor  # [B, K] int64
    correct_class_sums: Tensor  # [B, K, D] float32, over pixels whose prediction is their label
    correct_class_counts: Tensor  # [B, K] int64


def source_statistics(features: Tensor, logits: Tensor, labels: Tensor) -> SourceStatistics:
    """Class sums and counts of a batch, over all labelled and over correctly predicted pixels.

    Args:
        features: float [B, D, h, w].
        logits: float [B, K, h, w].
        labels: uint8 [B, h, w] train ids, 255 = ignore.
    """
    num_classes = logits.shape[1]
    return SourceStatistics(
        *class_sums(features, labels, num_classes),
        *class_sums(features, agreeing_labels(labels, logits), num_classes),
    )


class BalancedSample:
    """A class-balanced random sample of single-pixel features, in memory that does not grow.

    Each labelled pixel draws a number; per class the pixels with the lowest numbers stay.
    """

    def __init__(self, per_class: int, width: int, seed: int):
        self.per_class = per_class
        self.generator = torch.Generator().manual_seed(seed)
        self.features = torch.zeros(0, width, dtype=torch.float16)  # (M, D)
        self.labels = torch.zeros(0, dtype=torch.uint8)  # (M,)
        self.draws = torch.zeros(0)  # (M,)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features [B, D, h, w] with their label maps uint8 [B, h, w], 255 = ignore."""
        flat = labels.flatten().cpu()  # (B h w,)
        draws = torch.rand(flat.shape, generator=self.generator)
        keep = self._lowest(flat, draws)
        columns = features.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
        chosen = columns[keep.to(columns.device)].to("cpu", torch.float16)
        self.features = torch.cat([self.features, chosen])
        self.labels = torch.cat([self.labels, flat[keep]])
        self.draws = torch.cat([self.draws, draws[keep]])
        keep = self._lowest(self.labels, self.draws)
        self.features, self.labels = self.features[keep], self.labels[keep]
        self.draws = self.draws[keep]

    def _lowest(self, labels: Tensor, draws: Tensor) -> Tensor:
        order = draws.argsort(stable=True)
        order = order[labels[order].argsort(stable=True)]  # by class, then by draw
        ordered = labels[order]
        starts = torch.searchsorted(ordered, ordered)
        rank = torch.arange(len(order)) - starts
        return order[(rank < self.per_class) & (ordered != IGNORE)]


class SourceWriter:
    """Writes `source.h5` batch by batch."""

    def __init__(self, file: h5py.File, names: Sequence[str], num_classes: int, width: int):
        self.file, self.done = file, 0
        count = len(names)
        _write_names(file, names)
        for prefix in ("", "correct_"):
            file.create_dataset(
                f"{prefix}class_sums",
                (count, num_classes, width),
                "f4",
                chunks=(1, num_classes, width),
            )
            file.create_dataset(f"{prefix}class_counts", (count, num_classes), "i8")

    def write(self, statistics: SourceStatistics) -> None:
        """Append a batch."""
        end = self.done + len(statistics.class_counts)
        for key, value in statistics._asdict().items():
            self.file[key][self.done : end] = value.cpu().numpy()
        self.done = end

    def write_sample(self, sample: BalancedSample) -> None:
        """Write the sample of single-pixel features."""
        self.file["sample_features"] = sample.features.numpy()
        self.file["sample_labels"] = sample.labels.numpy()


class TargetWriter:
    """Writes `target.h5` batch by batch."""

    def __init__(self, file: h5py.File, names: Sequence[str], features: tuple[int, int, int]):
        self.file, self.done = file, 0
        count, (width, height, breadth) = len(names), features
        _write_names(file, names)
        file.create_dataset(
            "features",
            (count, width, height, breadth),
            "f2",
            chunks=(1, width, height, breadth),
        )
        shape, chunk = (count, height, breadth), (1, height, breadth)
        file.create_dataset("prediction", shape, "u1", chunks=chunk)
        file.create_dataset("probability", shape, "f4", chunks=chunk)

    def write(self, features: Tensor, logits: Tensor) -> None:
        """Append a batch of features [B, D, h, w] and logits [B, K, h, w]."""
        end = self.done + len(features)
        probability, prediction = logits.float().softmax(1).max(1)  # (B, h, w)
        self.file["features"][self.done : end] = features.half().cpu().numpy()
        self.file["prediction"][self.done : end] = prediction.byte().cpu().numpy()
        self.file["probability"][self.done : end] = probability.cpu().numpy()
        self.done = end


@contextmanager
def create_store(path: Path, bytes_needed: int) -> Iterator[h5py.File]:
    """An HDF5 file that appears at `path` only when it is complete.

    Raises:
        UserError: The disk cannot hold `bytes_needed`.
    """
    require_space(path.parent, bytes_needed, f"the features of {path.name}")
    with atomic_file(path) as partial, h5py.File(partial, "w") as file:
        yield file


def source_bytes(count: int, num_classes: int, width: int, per_class: int) -> int:
    """Bytes that `source.h5` takes."""
    return 2 * count * num_classes * (4 * width + 8) + num_classes * per_class * (2 * width + 1)


def target_bytes(count: int, width: int, height: int, breadth: int) -> int:
    """Bytes that `target.h5` takes."""
    return count * height * breadth * (2 * width + 5)


@contextmanager
def open_store(path: Path, keys: Sequence[str]) -> Iterator[h5py.File]:
    """A feature store for reading.

    Raises:
        UserError: The file is missing, damaged, or lacks a data set.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such feature store; `dvc repro` makes it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: damaged HDF5 file ({error}); delete it and rerun") from None
    with file:
        missing = [key for key in keys if key not in file]
        if missing:
            raise UserError(f"{path}: lacks {', '.join(missing)}; delete it and rerun")
        yield file


def read_names(file: h5py.File) -> list[str]:
    """The images' names, in the order of the other data sets.

    Raises:
        UserError: They cannot be read.
    """
    with _readable(file):
        return [str(name) for name in file["names"].asstr()[:]]


def read_array(file: h5py.File, key: str, rows: slice = slice(None)) -> Tensor:
    """Rows of a data set as a tensor.

    Raises:
        UserError: They cannot be read.
    """
    with _readable(file):
        return torch.from_numpy(file[key][rows])


@contextmanager
def _readable(file: h5py.File) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file.filename}: damaged HDF5 file ({error}); delete it and rerun"
        ) from None


def _write_names(file: h5py.File, names: Sequence[str]) -> None:
    file.create_dataset("names", data=np.array(names, dtype=object), dtype=h5py.string_dtype())


def read_anchors(path: Path, num_classes: int, width: int) -> Tensor:
    """Anchors float32 [K, D] from a .npy file; a row of NaN is a class without an anchor.

    Raises:
        UserError: The file is missing, damaged, or of other classes or another feature width.
    """
    try:
        with open(path, "rb") as file:
            anchors = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged .npy file ({error}); delete it and rerun") from None
    if anchors.shape != (num_classes, width) or anchors.dtype.kind != "f":
        raise UserError(
            f"{path}: {anchors.dtype} of shape {anchors.shape}; expected floats of shape "
            f"({num_classes}, {width}), one row per class as wide as the features"
        )
    return torch.from_numpy(anchors.astype(np.float32))
