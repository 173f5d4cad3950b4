"""Training samples: which image comes when, and how it is augmented, from the seed alone."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cag.config.base import RULES
from cag.config.training import Augmentation
from cag.datasets.images import read_image
from cag.datasets.labels import IGNORE
from cag.datasets.prepared import read_label_space, read_manifest, read_train_ids
from cag.runtime.errors import UserError
from cag.runtime.seeds import mix
from cag.training.transforms import apply_seeded, training_transform

COUNTED_LABELS = 1000


@dataclass(frozen=True)
class Sample:
    """A training image and its label maps."""

    image: Path
    labels: tuple[Path, ...]
    num_classes: int = IGNORE  # K, of which the maps' train ids are


def labelled_samples(folder: Path, split: str = "train") -> list[Sample]:
    """The images of a prepared data set's split with their label maps.

    A UserError says that the split is empty, or that a label map is missing.
    """
    rows = _rows(folder, split)
    if (rows["label"] == "").any():
        raise UserError(
            f"{folder}: the split '{split}' has images without labels; prepare it again"
        )
    count = read_label_space(folder).num_classes
    return [Sample(folder / r.image, (folder / r.label,), count) for r in rows.itertuples()]


def unlabelled_samples(folder: Path) -> list[Sample]:
    """A prepared data set's training images; a UserError if none. No label is ever opened."""
    return [Sample(folder / row.image, ()) for row in _rows(folder, "train").itertuples()]


def pseudo_labelled_samples(folder: Path, pseudo_labels: Path) -> list[Sample]:
    """A prepared data set's training images with their anchor and probability pseudo-labels.

    A UserError names a missing pseudo-label map.
    """
    rows, count = _rows(folder, "train"), read_label_space(folder).num_classes
    samples = [
        Sample(folder / image, tuple(pseudo_labels / rule / f"{name}.png" for rule in RULES), count)
        for name, image in zip(rows["name"], rows["image"], strict=True)
    ]
    missing = [path for sample in samples for path in sample.labels if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such pseudo-label map; rerun pseudo_label")
    return samples


def _rows(folder: Path, split: str) -> pd.DataFrame:
    manifest = read_manifest(folder)
    rows = manifest[manifest["split"] == split]
    if rows.empty:
        raise UserError(f"{folder}: no images of the split '{split}'; prepare it again")
    return rows


def class_pixels(samples: Sequence[Sample], num_classes: int) -> Tensor:
    """Labelled pixels of each class, int64 [K], in all label maps, or in 1,000 drawn from more."""
    chosen = samples
    if len(samples) > COUNTED_LABELS:  # at random: every third image may be of the same camera
        drawn = np.random.default_rng(0).permutation(len(samples))[:COUNTED_LABELS]
        chosen = [samples[number] for number in sorted(drawn)]

    def count(sample: Sample) -> np.ndarray:
        train_ids = read_train_ids(sample.labels[:1], num_classes)
        return np.bincount(train_ids.ravel(), minlength=IGNORE + 1)

    with ThreadPoolExecutor() as pool:
        total = sum(pool.map(count, chosen))
    return torch.from_numpy(total[:num_classes])


class TrainingSamples(Dataset):
    """An endless shuffled sequence of augmented samples, by position.

    A sample does not depend on those read before it, so a resumed training continues exactly. Each
    image comes once before any comes again.
    """

    def __init__(self, samples: Sequence[Sample], augmentation: Augmentation, seed: int):
        self.samples = samples
        self.transform = training_transform(augmentation)
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """The image, float [3, h, w] in [0, 1], and its label maps, uint8 [n, h, w]."""
        epoch, offset = divmod(position, len(self.samples))
        if epoch != self._epoch:  # the time of the draw grows with the data set
            generator = np.random.default_rng(mix(self.seed, epoch))
            self._epoch, self._order = epoch, generator.permutation(len(self.samples))
        sample = self.samples[self._order[offset]]
        image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)
        labels = image.new_empty(0, *image.shape[1:])
        if sample.labels:
            maps = read_train_ids(sample.labels, sample.num_classes)
            labels = torch.from_numpy(maps)  # (n, H, W)
        return apply_seeded(self.transform, image, labels, mix(self.seed, epoch, offset))


def batches(
    dataset: TrainingSamples,
    batch_size: int,
    iterations: range,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A process's share of the batches of a range of steps.

    Yields images float [b, 3, h, w] in [0, 1] and label maps uint8 [b, n, h, w], b = batch_size /
    world_size. So many `workers` load them; 0: this process does. A UserError says that the
    processes cannot share a batch evenly, or that a file cannot be read.
    """
    if batch_size % world_size:
        expected = f"expected a multiple of {world_size}, the number of processes"
        raise UserError(f"batch_size is {batch_size}; {expected}")
    share, pinned = batch_size // world_size, torch.cuda.is_available()
    starts = (step * batch_size + rank * share for step in iterations)
    positions = (range(start, start + share) for start in starts)
    loader = DataLoader(dataset, batch_sampler=positions, num_workers=workers, pin_memory=pinned)
    try:
        yield from loader
    except UserError as error:
        # The message of a loader process is its traceback, with the error in the last line.
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None
