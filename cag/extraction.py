"""Extraction: a network's outputs for all images of a domain, in shards that processes share."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cag.datasets.prepared import PreparedImages
from cag.features import Shard, Shards, count_images
from cag.prediction import ImageBatch, image_batches
from cag.runtime.files import require_space
from cag.runtime.overlap import overlapped, to_cpu
from cag.runtime.processes import Processes


class Extraction(NamedTuple):
    """A domain's images, the function from a batch of them to its rows, and the rows' files."""

    images: PreparedImages
    rows: Callable[[ImageBatch], tuple[Tensor, ...]]
    shards: Shards

    def missing(self, needed: Callable[[int], int], folder: Path, what: str) -> list[Shard]:
        """The shards that are still to make; those of other parameters beside them are deleted.

        A UserError if the disk of the shards or of `folder` is too small for the bytes `needed` for
        so many images; `what` is in its text.
        """
        mine = self.shards.folder
        mine.mkdir(parents=True, exist_ok=True)
        for other in set(mine.parent.iterdir()) - {mine}:
            shutil.rmtree(other)
        missing = self.shards.missing()
        for path in (folder, mine):
            require_space(path, needed(count_images(missing)), what)
        return missing

    def make(
        self, missing: Sequence[Shard], device: torch.device, processes: Processes, what: str
    ) -> None:
        """Compute and write missing shards, shared by the processes, with a progress bar `what`."""
        share, shards = missing[processes.rank :: processes.count], self.shards
        count, batches = count_images(share), [batch for shard in share for batch in shard.batches]

        def compute(batch: ImageBatch) -> Iterator[tuple[int, Callable[[], tuple[Tensor, ...]]]]:
            yield len(batch.indices), to_cpu(*self.rows(batch))

        def arriving(number: int) -> Iterator[tuple[Tensor, ...]]:
            for images, arrived in islice(computed, number):
                yield arrived()
                advance(images)

        with processes.progress(what, count, count_images(missing)) as advance:
            read = image_batches(self.images, batches, device)
            with closing(overlapped(read, compute, advance)) as computed:
                for shard in share:
                    rows = arriving(len(shard.batches))
                    shards.write(shards.folder / shard.name, shard.count, rows)
