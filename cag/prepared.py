"""Prepared images and their label maps as tensors."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cag.datasets import MANIFEST, read_manifest
from cag.errors import UserError
from cag.images import read_image, read_label


class PreparedImages(Dataset):
    """One split of a prepared data set, in the manifest's order.

    Args:
        folder: The prepared folder.
        split: "train" or "val".
        with_labels: Whether to read label maps; if not, none is ever opened.

    Attributes:
        names: The images' names.
        sizes: Their heights and widths in pixels.

    Raises:
        UserError: The manifest is missing or broken, has no such split, or an image of the split
            has no label although `with_labels` is set.
    """

    def __init__(self, folder: Path, split: str, with_labels: bool):
        self.folder = Path(folder)
        self.with_labels = with_labels
        manifest = read_manifest(self.folder)
        rows = manifest[manifest["split"] == split]
        _check_rows(self.folder / MANIFEST, split, rows, manifest, with_labels)
        self.names: list[str] = rows["name"].tolist()
        self.sizes: list[tuple[int, int]] = list(zip(rows["height"], rows["width"], strict=True))
        self._images: list[str] = rows["image"].tolist()
        self._labels: list[str] = rows["label"].tolist()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None, str]:
        """Read one image.

        Returns:
            The image uint8 [3, H, W]; its train ids uint8 [h, w] (255 = ignored; of the image's
            size or the label's own, as prepared) or None without labels; its name.

        Raises:
            UserError: A file is missing or damaged, or the image is not of the manifest's size.
        """
        path = self.folder / self._images[index]
        image = torch.from_numpy(read_image(path))  # (H, W, 3)
        if image.shape[:2] != self.sizes[index]:
            raise UserError(
                f"{path}: height and width are {tuple(image.shape[:2])}, {MANIFEST} has "
                f"{self.sizes[index]}; prepare the data set again"
            )
        labels = None
        if self.with_labels:
            labels = torch.from_numpy(read_label(self.folder / self._labels[index]))  # (h, w)
        return image.permute(2, 0, 1).contiguous(), labels, self.names[index]

    def batches(self, size: int, indices: Sequence[int] | None = None) -> list[list[int]]:
        """Cut indices, all or the given ones, into batches of one image size, in their order.

        Which images go together depends on nothing else: not on who predicts which batch.
        """
        runs = groupby(range(len(self)) if indices is None else indices, self.sizes.__getitem__)
        groups = (list(run) for _, run in runs)
        return [run[i : i + size] for run in groups for i in range(0, len(run), size)]


def _check_rows(path: Path, split: str, rows, manifest, with_labels: bool) -> None:
    if rows.empty:
        splits = ", ".join(sorted(manifest["split"].unique())) or "none"
        raise UserError(f"{path}: no image of the split '{split}'; splits found: {splits}")
    unlabelled = rows["name"][rows["label"] == ""]
    if with_labels and len(unlabelled):
        raise UserError(
            f"{path}: {unlabelled.iloc[0]!r} of the split '{split}' has no label map; "
            "labels are needed here; prepare the data set with its labels"
        )
