"""Feature stores: source class sums and dense target features in HDF5."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import hdf5plugin
import numpy as np
import torch
from torch import Tensor

from cag.anchors import agreeing_labels, class_sums, resize_labels
from cag.datasets.labels import IGNORE
from cag.projection import Projection
from cag.runtime.errors import UserError, in_one_line, refusal
from cag.runtime.files import atomic_file, atomic_folder, is_local
from cag.runtime.precision import to_half
from cag.runtime.seeds import mix

if TYPE_CHECKING:
    from cag.runtime.processes import Processes

TARGET_ROWS = ("features", "prediction", "probability")
TARGET_KEYS = ("names", "shards", "rows")
PROJECTION_KEYS = Projection._fields  # of a reduced target store, beside TARGET_KEYS
# The data sets of all stores: their dtypes and axes: N images, S shards, M sampled pixels, D
# features, K classes, C stored numbers of a pixel, R directions.
FORMS = {
    **{"names": ("S", "N"), "shards": ("S", "S"), "rows": ("i8", "S")},
    **{"features": ("f2 i2", "NChw"), "prediction": ("u1", "Nhw"), "probability": ("f4", "Nhw")},
    **{"origin": ("f4", "D"), "directions": ("f4", "RD"), "units": ("f4", "C")},
    **{"class_sums": ("f4", "NKD"), "class_counts": ("i8", "NK")},
    **{"correct_class_sums": ("f4", "NKD"), "correct_class_counts": ("i8", "NK")},
    **{"sample_features": ("f2", "MD"), "sample_labels": ("u1", "M"), "sample_draws": ("f4", "M")},
}
# Without loss. With bitshuffle a reduced store would be 3 to 6 % smaller, a full one 22 % larger.
COMPRESSION = {"shuffle": True, **hdf5plugin.Zstd(clevel=1)}
# More times than a filter can make data smaller. One that is not here makes them no smaller.
MOST_COMPRESSED = {h5py.h5z.FILTER_DEFLATE: 1_100, hdf5plugin.Zstd.filter_id: 2**16}
# Bytes that a pixel takes: for a number of its features, and for its prediction and probability.
# `python -m benchmarks.stores` measures 1.07 for a number of a reduced store, 0.94 of a full one,
# and 1.8 for the rest. Features that scatter more take more: 1.3, around the authors' anchors.
NUMBER_BYTES, MAPS_BYTES = 1.15, 1.5
PROBABILITIES = 2**12  # a reduced store rounds a probability to one part of so many
SHARD_BATCHES, IMAGES_AT_ONCE = 4, 256
SHARD_FORMAT = 4
HDF5_FORMAT = ("v110", "v110")  # its entries have checksums, as those of older ones have not
OLDEST_HEADER = 2  # the version of such a group's entry
# Bytes that HDF5 needs at most for its own entries: of a file, of an image's row or a name.
FILE_ENTRIES, ROW_ENTRIES = 2**16, 2**9


class SourceStatistics(NamedTuple):
    """Sufficient statistics of a batch of source images for every kind of anchor."""

    class_sums: Tensor  # [B, K, D] float32, over all labelled pixels
    class_counts: Tensor  # [B, K] int64
    correct_class_sums: Tensor  # [B, K, D] float32, over pixels whose prediction is their label
    correct_class_counts: Tensor  # [B, K] int64


class TargetImage(NamedTuple):
    """A target image's row of the store."""

    name: str
    row: tuple[Tensor, Tensor, Tensor]  # as `read_target_rows` gives it


class TargetStore(NamedTuple):
    """The contents of `target.h5`, without its rows."""

    names: list[str]
    width: int  # D, of the network's features
    num_classes: int
    shards: list[tuple[Path, range]]  # each file and the rows that it holds
    projection: Projection | None  # of a reduced store
    pixels: int | None = None  # the most of a row's maps

    def place(self, anchors: Tensor) -> tuple[Tensor, float]:
        """Anchors float [K, D] in the form of the rows' features, and the error of distances.

        A distance between the two is wrong by no more than this error, beside rounding.
        """
        if self.projection is None:
            return anchors, 0.0
        placed, neglected = self.projection.place(anchors)
        return placed, float(neglected.nan_to_num().max())

    def vectors(self, features: Tensor) -> Tensor:
        """The rows' features, float [n, C], as vectors float32 [n, D].

        Of a reduced store they lack what is beyond the span of the anchors.
        """
        if self.projection is None:
            return features.float()
        return self.projection.features(features)


class AnchorStatistics(NamedTuple):
    """The statistics of some source images that anchors come from."""

    correct_class_sums: Tensor  # [n, K, D] float32, over pixels whose prediction is their label
    correct_class_counts: Tensor  # [n, K] int64
    class_counts: Tensor  # [n, K] int64, of all labelled pixels


def source_statistics(features: Tensor, logits: Tensor, labels: Tensor) -> SourceStatistics:
    """Class sums and counts of a batch, over all labelled and over correctly predicted pixels.

    `labels` are train ids uint8 [B, h, w] at the features' size, 255 = ignore.
    """
    agreed, num_classes = agreeing_labels(labels, logits), logits.shape[1]
    labelled = class_sums(features, labels, num_classes)
    return SourceStatistics(*labelled, *class_sums(features, agreed, num_classes))


def reduced_row(
    features: Tensor, prediction: Tensor, probability: Tensor, projection: Projection
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of target rows in the form of a reduced store.

    Features float [B, D, h, w] become int16 [B, r + 1, h, w]. The probability, float32 [B, h, w],
    is rounded to a 4096th, so that it is compressed well.
    """
    rounded = (probability * PROBABILITIES).round() / PROBABILITIES
    return projection.reduce(features), prediction, rounded


class PixelSample(NamedTuple):
    """A class-balanced random sample of single-pixel features, by class and then by draw."""

    features: Tensor  # [M, D] float16
    labels: Tensor  # [M] uint8
    draws: Tensor  # [M] float32, each pixel's random number in [0, 1)


SAMPLE_ROWS = tuple(f"sample_{field}" for field in PixelSample._fields)
SOURCE_KEYS = ("names", *SourceStatistics._fields, "sample_features", "sample_labels")
SOURCE_SHARD_KEYS = (*SourceStatistics._fields, *SAMPLE_ROWS)


def pixel_draws(seed: int, images: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Random numbers float32 [B, h, w] in [0, 1); an image's depend on its index and the seed."""
    generators = (torch.Generator().manual_seed(mix(seed, image)) for image in images)
    return torch.stack([torch.rand(*size, generator=generator) for generator in generators])


def sample_pixels(features: Tensor, labels: Tensor, draws: Tensor, per_class: int) -> PixelSample:
    """The at most `per_class` pixels of each class with the lowest draws.

    Features float [B, D, h, w] on any device, where the sample's stay; labels uint8 [B, h, w],
    255 = ignore, and draws float32 [B, h, w] on the CPU.
    """
    labels, draws = labels.flatten(), draws.flatten()  # [B h w]
    keep = _lowest(labels, draws, per_class)
    columns = features.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, D]
    chosen = to_half(columns[keep.to(columns.device, non_blocking=True)])
    return PixelSample(chosen, labels[keep], draws[keep])


def merge_samples(samples: Sequence[PixelSample], per_class: int) -> PixelSample:
    """The sample of a whole data set from those of its parts, in the images' order."""
    joined = PixelSample(*(torch.cat(parts) for parts in zip(*samples, strict=True)))
    keep = _lowest(joined.labels, joined.draws, per_class)
    return PixelSample(*(part[keep] for part in joined))


def _lowest(labels: Tensor, draws: Tensor, per_class: int) -> Tensor:
    """Indices of each class's lowest draws, by class, then by draw, then by position."""
    order = (labels.double() + draws).argsort(stable=True)  # exact: 8 + 24 bits
    ordered = labels[order]
    rank = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return order[(rank < per_class) & (ordered != IGNORE)]


def source_rows(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    seed: int,
    per_class: int,
) -> tuple[Tensor, ...]:
    """A batch's part of a source shard: fields of its `SourceStatistics` and of its `PixelSample`.

    `labels` are train ids uint8 [B, H, W], 255 = ignore, on the CPU; `indices` the images'
    positions in their data set; the seed draws the sample.
    """
    labels = resize_labels(labels, logits.shape[2:])
    statistics = source_statistics(features, logits, labels.to(features.device))
    draws = pixel_draws(seed, indices, tuple(labels.shape[1:]))
    return *statistics, *sample_pixels(features, labels, draws, per_class)


# Shards: files of a few batches' rows, the same whichever process writes them


@dataclass(frozen=True)
class Shard:
    """Consecutive batches of a data set, whose rows are in one file."""

    name: str
    batches: tuple[tuple[int, ...], ...]  # indices of images

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(map(len, self.batches))


def cut_shards(batches: Sequence[Sequence[int]]) -> list[Shard]:
    """Cut batches into shards of `SHARD_BATCHES`; the last holds the rest."""
    batches, starts = tuple(map(tuple, batches)), range(0, len(batches), SHARD_BATCHES)
    parts = (batches[start : start + SHARD_BATCHES] for start in starts)
    return [Shard(f"{number:05d}.h5", part) for number, part in enumerate(parts)]


@dataclass(frozen=True)
class Shards:
    """The shards of a data set, in one folder."""

    folder: Path
    keys: tuple[str, ...]  # of a shard's rows
    parts: list[Shard]
    write: Callable[[Path, int, Iterable[tuple[Tensor, ...]]], None]

    @property
    def paths(self) -> list[Path]:
        """The files of all shards."""
        return [self.folder / shard.name for shard in self.parts]

    def missing(self) -> list[Shard]:
        """The shards whose file is missing or damaged."""
        return [s for s in self.parts if not is_whole(self.folder / s.name, s.count, self.keys)]


def source_shards(folder: Path, batches: Sequence[Sequence[int]], per_class: int) -> Shards:
    """The shards of the source's batches."""
    write = partial(write_source_shard, per_class=per_class)
    return Shards(folder, SOURCE_SHARD_KEYS, cut_shards(batches), write)


def target_shards(folder: Path, batches: Sequence[Sequence[int]]) -> Shards:
    """The shards of the target's batches."""
    return Shards(folder, TARGET_ROWS, cut_shards(batches), write_target_shard)


def count_images(shards: Sequence[Shard]) -> int:
    """Number of images in shards."""
    return sum(shard.count for shard in shards)


def is_whole(path: Path, count: int, keys: Sequence[str]) -> bool:
    """Whether a shard's file exists, is undamaged and holds `count` images.

    A UserError if the system refuses to open it, so that nobody can say.
    """
    try:
        with open_store(path, keys) as file:
            return len(file[keys[0]]) == count
    except Refused:
        raise
    except UserError:
        return False


def write_target_shard(path: Path, count: int, outputs: Iterable[tuple[Tensor, ...]]) -> None:
    """Write the features, predictions and probabilities of batches of `count` target images."""
    first = 0
    with create_store(path) as file:
        for rows in outputs:
            first = _write_rows(file, first, count, dict(zip(TARGET_ROWS, rows, strict=True)))


def write_source_shard(
    path: Path, count: int, outputs: Iterable[tuple[Tensor, ...]], per_class: int
) -> None:
    """Write the `source_rows` of batches of `count` source images, their samples merged."""
    with create_store(path) as file:
        first, samples, fields = 0, [], SourceStatistics._fields
        for rows in outputs:
            first = _write_rows(file, first, count, dict(zip(fields, rows, strict=False)))
            samples.append(PixelSample(*rows[len(fields) :]))
        _write_tensors(file, SAMPLE_ROWS, merge_samples(samples, per_class))


def join_source(path: Path, names: Sequence[str], shards: Sequence[Path], per_class: int) -> None:
    """Write `source.h5` from its shards, and merge their samples."""
    with create_store(path) as file:
        _write_texts(file, "names", names)
        first, samples = 0, []
        for shard in shards:
            with open_store(shard, SOURCE_SHARD_KEYS) as part:
                rows = {key: read_array(part, key) for key in SourceStatistics._fields}
                samples.append(PixelSample(*(read_array(part, key) for key in SAMPLE_ROWS)))
            first = _write_rows(file, first, len(names), rows)
            samples = [merge_samples(samples, per_class)]
        _write_tensors(file, ("sample_features", "sample_labels"), samples[0])


def move_target(
    shards: Shards, folder: Path, names: Sequence[str], projection: Projection | None
) -> None:
    """Move the shards to `target/` below a folder, and link them in `target.h5` beside it.

    A reduced store has the projection that its features went through.
    """
    with atomic_folder(folder / "target") as unfinished:
        for path in shards.paths:
            shutil.move(path, unfinished / path.name)  # it may lie on another disk
    paths = [folder / "target" / shard.name for shard in shards.parts]
    link_target(folder / "target.h5", names, paths, projection)


def link_target(
    path: Path, names: Sequence[str], shards: Sequence[Path], projection: Projection | None = None
) -> None:
    """Write `target.h5`: the images, the shards with their rows in sequence, and the projection.

    The shards lie below the folder of `path` and can be moved with it.
    """
    counts = []
    for shard in shards:
        with open_store(shard, TARGET_ROWS) as part:
            counts.append(len(part[TARGET_ROWS[0]]))
    with create_store(path) as file:
        _write_texts(file, "names", names)
        relative = [shard.relative_to(path.parent) for shard in shards]
        _write_texts(file, "shards", [shard.as_posix() for shard in relative])
        _write_tensors(file, ("rows",), [torch.tensor(counts)])
        if projection is not None:
            _write_tensors(file, PROJECTION_KEYS, projection)


def _write_rows(file: h5py.File, first: int, count: int, rows: Mapping[str, Tensor]) -> int:
    """Write rows from number `first` on into data sets of `count` rows; return the next number."""
    new = [value for key, value in rows.items() if key not in file]
    # What cannot be compressed takes a little more: a hundredth at most.
    _reserve(file, sum(count * (value[:1].nbytes * 101 // 100 + ROW_ENTRIES) for value in new))
    end = first
    for key, value in rows.items():
        array, end = value.numpy(), first + len(value)
        if key not in file:
            shape = array.shape[1:]
            chunks = (1, *shape) if len(shape) > 1 else None
            options = COMPRESSION if key in TARGET_ROWS else {}
            file.create_dataset(key, (count, *shape), array.dtype, chunks=chunks, **options)
        file[key][first:end] = array
    return end


def _write_tensors(file: h5py.File, keys: Sequence[str], values: Sequence[Tensor]) -> None:
    """Write the first fields of a sample or of a projection under as many names."""
    arrays = [value.numpy() for value in values[: len(keys)]]
    _reserve(file, sum(array.nbytes for array in arrays))
    for key, array in zip(keys, arrays, strict=True):
        file[key] = array


@contextmanager
def create_store(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that appears at `path` only when it is complete.

    Who writes it reserves the space before: HDF5 crashes the process where a write fails.
    """
    with atomic_file(path) as partial:
        with open(partial, "wb") as empty:
            _allocate(empty.fileno(), FILE_ENTRIES)
        with h5py.File(partial, "w", libver=HDF5_FORMAT, locking=False) as file:
            _reserve(file, 0)
            yield file
        h5py.File(partial, "r+", locking=False).close()  # cuts off what is reserved and unused


def _reserve(file: h5py.File, count: int) -> None:
    """Reserve the disk for so many more bytes of a new file; an OSError if it is too full."""
    _allocate(file.id.get_vfd_handle(), file.id.get_filesize() + count + FILE_ENTRIES)


def _allocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # not every system or disk can
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


@contextmanager
def shared_groups(path: Path, processes: Processes, count: int) -> Iterator[h5py.File]:
    """Make an HDF5 file of the groups "0" to `count` - 1, which several processes write.

    Yields the file for this process's groups; process 0 joins the files at the end.
    """
    parts = [path.with_name(f"{path.stem}.{rank}.h5") for rank in range(processes.count)]
    with create_store(parts[processes.rank]) as part:
        yield part
    processes.wait()
    if processes.main:
        with ExitStack() as stack, create_store(path) as whole:
            files = [stack.enter_context(open_store(part, ())) for part in parts]
            for key in map(str, range(count)):
                group, part = whole.create_group(key), next(f for f in files if key in f)[key]
                _reserve(whole, sum(data.nbytes + ROW_ENTRIES for data in part.values()))
                for name in part:  # the group as a whole has an order that differs by its file
                    part.copy(name, group)
        for part in parts:
            part.unlink()


def write_group(file: h5py.File, key: str, name: str, maps: Mapping[str, Tensor]) -> None:
    """Write an image's name, one text, and its maps [h, w] as a group."""
    arrays = {map_key: pixel_map.cpu().numpy() for map_key, pixel_map in maps.items()}
    _reserve(file, sum(array.nbytes + ROW_ENTRIES for array in arrays.values()))
    group = file.create_group(key)
    _write_texts(group, "name", [name])
    for map_key, array in arrays.items():
        group[map_key] = array


def source_bytes(count: int, num_classes: int, width: int, per_class: int) -> int:
    """Size of `source.h5` in bytes."""
    return 2 * count * num_classes * (4 * width + 8) + num_classes * per_class * (2 * width + 1)


def target_bytes(
    count: int, width: int, height: int, breadth: int, directions: int | None = None
) -> int:
    """Size of `target.h5` with its shards in bytes, as far as compression can be foreseen.

    A reduced store has up to so many `directions`.
    """
    numbers = width if directions is None else min(width, directions) + 1
    return int(count * height * breadth * (NUMBER_BYTES * numbers + MAPS_BYTES))


@contextmanager
def open_store(path: Path, keys: Sequence[str]) -> Iterator[h5py.File]:
    """Open a feature store; a UserError says that it is missing, damaged, or lacks a data set.

    It needs no lock, which not every network drive grants: a store appears when it is complete.

    Damaged is a store whose data sets have other forms than `FORMS`, differ in their numbers of
    images, features or classes, declare more than the file holds, or lie in other files.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such feature store; `dvc repro` makes it")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        with _readable(file):
            _check_self_contained(file)
            missing = [key for key in keys if key not in file]
        if missing:
            raise UserError(f"{path}: lacks {', '.join(missing)}; delete it and rerun")
        with _readable(file):
            _check_forms(file, keys)
        yield file


def _check_self_contained(file: h5py.File) -> None:
    """Raise a ValueError if something in the file lies elsewhere, or is larger than it can be."""
    for name, data in _data_sets(file):
        if data.external or data.is_virtual:
            raise ValueError(f"{name} has its data in other files")
        most = _most_compressed(data) if name in TARGET_ROWS else 1  # all else is not compressed
        if data.nbytes > most * data.id.get_storage_size():
            raise ValueError(f"{name} declares the shape {data.shape}, more than the file holds")


def _data_sets(group: h5py.Group, deepest: int = 2) -> Iterator[tuple[str, h5py.Dataset]]:
    """The data sets in a group and in its groups; no link is followed.

    HDF5 takes all memory over a damaged group of its older form, which has no checksum.
    """
    if h5py.h5o.get_info(group.id).hdr.version < OLDEST_HEADER:
        raise ValueError("an older form, without checksums")
    for key in group:
        name = f"{group.name}/{key}".lstrip("/")
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        found = group[key]
        if not isinstance(found, h5py.Group):
            yield name, found
        elif deepest > 1:
            yield from _data_sets(found, deepest - 1)
        else:
            raise ValueError(f"{name} is a group in a group")


def _most_compressed(data: h5py.Dataset) -> int:
    """More times than a data set's filters can make it smaller."""
    properties = data.id.get_create_plist()
    filters = (properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    return prod(MOST_COMPRESSED.get(number, 1) for number in filters)


def _check_forms(file: h5py.File, keys: Sequence[str]) -> None:
    """Raise a ValueError unless the data sets have the dtypes and axes of `FORMS`."""
    sizes = {}
    for key in keys:
        data, (dtypes, axes) = file[key], FORMS[key]
        kinds = dtypes.split()
        if not any(_is_of(data.dtype, kind) for kind in kinds) or data.ndim != len(axes):
            known = ("text of one length" if kind == "S" else np.dtype(kind) for kind in kinds)
            expected = f"{' or '.join(map(str, known))} of {len(axes)} dimensions"
            raise ValueError(f"{key} is {data.dtype} of shape {data.shape}; expected {expected}")
        for axis, size in zip(axes, data.shape, strict=True):
            other, known = sizes.setdefault(axis, (key, size))
            if size != known or not (size or axis in "MR"):
                shapes = f"{data.shape}, {other} {file[other].shape}"
                raise ValueError(f"{key} has the shape {shapes}; they do not belong together")


def _is_of(dtype: np.dtype, kind: str) -> bool:
    return dtype.kind == "S" if kind == "S" else dtype == np.dtype(kind)


def read_anchor_statistics(path: Path, num_classes: int) -> Iterator[AnchorStatistics]:
    """Read what anchors need of `source.h5`, IMAGES_AT_ONCE at a time.

    A UserError says that the file is missing or damaged, or has other classes.
    """
    with open_store(path, SOURCE_KEYS) as file:
        count, classes = file["correct_class_counts"].shape
        if classes != num_classes:
            raise UserError(f"{path}: {classes} classes, the data have {num_classes}; delete it")
        for start in range(0, count, IMAGES_AT_ONCE):
            rows = slice(start, start + IMAGES_AT_ONCE)
            yield AnchorStatistics(*(read_array(file, k, rows) for k in AnchorStatistics._fields))


def read_target_store(path: Path, num_classes: int, pixels: int | None = None) -> TargetStore:
    """Read `target.h5` without its shards; a UserError says that it is missing or damaged.

    No image has more than so many `pixels` (None: any number), so no row's maps are larger.
    """
    with open_store(path, TARGET_KEYS) as file:
        names = read_names(file)
        shards, counts = _read_texts(file, "shards"), read_array(file, "rows").tolist()
        projection = _read_projection(file)
    if not all(map(is_local, shards)):
        raise _damaged(path, "a shard lies outside of the store's folder")
    if min(counts) < 1 or sum(counts) != len(names):
        raise _damaged(path, "its shards do not have a row for each name")
    paths, ends = [path.parent / shard for shard in shards], accumulate(counts)
    rows = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
    if projection is None:
        with open_store(paths[0], TARGET_ROWS) as file:
            width = file["features"].shape[1]
    else:
        width = len(projection.origin)
    shards = list(zip(paths, rows, strict=True))
    return TargetStore(names, width, num_classes, shards, projection, pixels)


def _read_projection(file: h5py.File) -> Projection | None:
    """The projection of a reduced store, or None."""
    with _readable(file):
        if not set(PROJECTION_KEYS) <= set(file):
            return None
        _check_forms(file, PROJECTION_KEYS)
    projection = Projection(*(read_array(file, key) for key in PROJECTION_KEYS))
    if len(projection.units) != len(projection.directions) + 1:
        raise _damaged(file.filename, "it has not one number more than directions")
    return projection


def read_target_rows(
    shard: Path,
    count: int,
    num_classes: int,
    projection: Projection | None = None,
    pixels: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Read the `count` rows of a shard one by one.

    Yields features float16 [1, D, h, w], of a reduced store float32 [1, r + 1, h, w] as
    `Projection.coordinates` gives them, prediction uint8 and probability float32 [1, h, w]. A
    UserError says that the shard is missing or damaged, predicts a class that does not exist, or
    has maps of more than so many `pixels` (None: any number), which compressed take no space.
    """
    with open_store(shard, TARGET_ROWS) as file:
        for i in range(count):
            yield _target_row(file, i, count, num_classes, projection, pixels)


def read_target_images(
    store: TargetStore, shards: Sequence[tuple[Path, range]]
) -> Iterator[TargetImage]:
    """Read the images of shards of a store; errors are those of `read_target_rows`."""
    for path, numbers in shards:
        form = store.num_classes, store.projection, store.pixels
        rows = read_target_rows(path, len(numbers), *form)
        for number, row in zip(numbers, rows, strict=True):
            yield TargetImage(store.names[number], row)


def read_target_row(store: TargetStore, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read one image's row; form and errors are those of `read_target_rows`."""
    path, rows = next((path, rows) for path, rows in store.shards if index in rows)
    with open_store(path, TARGET_ROWS) as file:
        place = rows.index(index), len(rows)
        return _target_row(file, *place, store.num_classes, store.projection, store.pixels)


def _target_row(
    shard: h5py.File,
    index: int,
    count: int,
    num_classes: int,
    projection: Projection | None,
    pixels: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _, channels, height, breadth = shard["features"].shape
    if pixels is not None and height * breadth > pixels:
        raise _damaged(shard.filename, f"maps of {height} x {breadth}, more than an image's pixels")
    numbers = None if projection is None else len(projection.units)
    if numbers != (channels if shard["features"].dtype == np.int16 else None):
        raise _damaged(shard.filename, "its features have another form than target.h5 says")
    row = tuple(read_array(shard, key, slice(index, index + 1)) for key in TARGET_ROWS)
    if any(len(part) != 1 for part in row):
        raise UserError(f"{shard.filename}: fewer than {count} rows; delete it and rerun")
    features, prediction, probability = row
    require_classes(shard, prediction, num_classes)
    if projection is not None:
        features = projection.coordinates(features)
    return features, prediction, probability


def require_classes(file: h5py.File, labels: Tensor, num_classes: int) -> None:
    """Raise a UserError if a store's labels uint8 [...] hold other classes than 0..K-1."""
    if labels.numel() and labels.max() >= num_classes:
        raise _damaged(file.filename, f"class {labels.max()} of {num_classes}")


def read_group_name(file: h5py.File, key: str) -> str:
    """Read the image's name of a group that `write_group` wrote; a UserError if it is damaged."""
    names = _read_texts(file, f"{key}/name")
    if len(names) != 1:
        raise _damaged(file.filename, f"group {key} has {len(names)} names")
    return names[0]


def read_names(file: h5py.File) -> list[str]:
    """Read the images' names, in the order of the rows; a UserError if the file is damaged."""
    names = _read_texts(file, "names")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise _damaged(file.filename, f"the name {repeated[0]!r} is there twice")
    return names


def _read_texts(file: h5py.File, key: str) -> list[str]:
    with _readable(file):
        if not _is_of(file[key].dtype, "S"):  # HDF5 trusts the lengths of others, whatever they are
            raise ValueError(f"{key} has texts of several lengths")
        return [str(text) for text in file[key].asstr()[:]]


def read_array(file: h5py.File, key: str, rows: slice = slice(None)) -> Tensor:
    """Read rows of a data set as a tensor; a UserError if the file is damaged.

    So is one with features, sums or probabilities that are no finite numbers.
    """
    with _readable(file):
        array = torch.from_numpy(file[key][rows])
        if key in FORMS and not array.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinite values")
    return array


@contextmanager
def _readable(file: h5py.File) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _unreadable(file.filename, error) from None


class Refused(UserError):
    """The system refuses to read a file, whose content may be right."""


def _unreadable(path: Path | str, error: Exception) -> UserError:
    if (refused := refusal(error, path)) is not None:
        return Refused(str(refused))
    if "already open for" in str(error):  # its mark of a program that writes it
        return Refused(f"{path}: another program writes to it; close it there, then run it again")
    return _damaged(path, in_one_line(error))


def _damaged(path: Path | str, problem: str) -> UserError:
    return UserError(f"{path}: damaged HDF5 file ({problem}); delete it and rerun")


def _write_texts(group: h5py.Group, key: str, texts: Sequence[str]) -> None:
    """Write texts in UTF-8, all with the space of the longest."""
    encoded = [text.encode() for text in texts]
    array = np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
    _reserve(group.file, array.nbytes + ROW_ENTRIES)
    group[key] = array
