"""Class sums of features, and the anchors (one feature vector per class) made from them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cag.datasets.labels import IGNORE
from cag.runtime.errors import UserError
from cag.runtime.precision import full_precision
from cag.runtime.validation import readable


def agreeing(labels: Tensor, prediction: Tensor) -> Tensor:
    """Keep the labels, integer [...], that equal another map of labels; 255 elsewhere."""
    return labels.masked_fill(labels != prediction, IGNORE)


def agreeing_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Keep the labels, integer [B, h, w], that equal argmax(logits [B, K, h, w]); 255 elsewhere.

    The pixels that are left make the anchors.
    """
    # max gives the same index as argmax, in half the time on a CPU
    return agreeing(labels, logits.max(dim=1).indices)


def resize_labels(
    labels: Tensor, size: tuple[int, int] | torch.Size, align_corners: bool = False
) -> Tensor:
    """Bring label maps [B, H, W] of any integer dtype to `size` (h, w) by nearest neighbour.

    To shrink: row i of the result is row floor(i H / h), as in the released code. To enlarge, with
    `align_corners`: the row nearest to i (H - 1) / (h - 1), as in the networks' bilinear
    interpolation. Anything else would shift the map by half a feature pixel.
    """

    def nearest(old: int, new: int) -> Tensor:
        indices = torch.arange(new, device=labels.device)
        if align_corners:
            gaps = max(new - 1, 1)
            return (2 * indices * (old - 1) + gaps) // (2 * gaps)
        return indices * old // new

    rows, columns = map(nearest, labels.shape[1:], size)
    return labels[:, rows[:, None], columns]


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum the feature vectors of each class in each image. Differentiable in the features.

    Every definition of the anchors can be computed from these sums and counts.

    Args:
        features: float [B, D, h, w]; half precision is summed in float32.
        labels: integer [B, h, w]; values outside 0..num_classes-1 are ignored. For anchors, mask
            them first with `agreeing_labels`. Another size than the features' is a ValueError.
        num_classes: K.

    Returns:
        sums float32 [B, K, D], and counts int64 [B, K].
    """
    if features.shape[0] != labels.shape[0] or features.shape[2:] != labels.shape[1:]:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} differ in size; "
            "bring the labels to the features' size first"
        )
    return _ClassSums.apply(features, labels, num_classes)


def anchors(sums: Tensor, counts: Tensor, average: str = "images", min_pixels: int = 10) -> Tensor:
    """Average class sums into anchors (paper section 3.2; released code `cac.py`).

    Args:
        sums: float [N, K, D], as `class_sums` gives them.
        counts: integer [N, K].
        average: "images" is the released code: the mean of the images' class means, without those
            of fewer than `min_pixels` pixels and those that are all zero. (Its cap at 3000 vectors,
            which turns the mean into a moving average, is left out.) "pixels" is the paper: the
            mean over all pixels of the class. Any other is a ValueError.
        min_pixels: the least pixels of a class in an image; "images" only.

    Returns:
        float32 [K, D]; a row of NaN for a class never seen.
    """
    mean = AnchorMean(average, min_pixels)
    mean.update(sums, counts)
    return mean.compute()


def class_recall(correct_counts: Tensor, counts: Tensor) -> Tensor:
    """The correctly predicted share of each class's pixels, float32 [K]; NaN without pixels.

    Both counts are integer [N, K]: each image's correctly predicted and its labelled pixels.
    """
    return correct_counts.sum(dim=0) / counts.sum(dim=0)


def nearest_other_anchor(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest other anchor of each of float [K, D]; rows of NaN are none.

    Gives its class, int64 [K], or -1; and the L2 distance to it, float64 [K], or NaN.
    """
    anchors = anchors.double()
    distances = torch.cdist(anchors, anchors).nan_to_num(torch.inf).fill_diagonal_(torch.inf)
    distance, nearest = distances.min(dim=1)
    none = distance == torch.inf
    return nearest.masked_fill(none, -1), distance.masked_fill(none, torch.nan)


def reliable(anchors: Tensor, recall: Tensor, min_recall: float) -> Tensor:
    """Leave out the anchors of classes that the network hardly finds on its own training data.

    Such an anchor is the mean of a few odd pixels and near to everything, so that its pseudo-labels
    are wrong. It becomes a row of NaN in float [K, D] where the `class_recall` [K] is below
    `min_recall`, in [0, 1]; 0 keeps all.
    """
    return anchors.masked_fill((recall < min_recall)[:, None], torch.nan)


class AnchorMean:
    """`anchors` from class sums that arrive piece by piece, in flat memory.

    `images` and `pixels`, int64 [K], are the images that count for each class, and its pixels in
    them.

    Example:
        >>> mean = AnchorMean("images", min_pixels=1)
        >>> mean.update(torch.tensor([[[2.0, 4.0]]]), torch.tensor([[2]]))
        >>> mean.update(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[1]]))
        >>> mean.compute()
        tensor([[2., 1.]])
    """

    def __init__(self, average: str = "images", min_pixels: int = 10) -> None:
        if average not in ("images", "pixels"):
            raise ValueError(f"average must be 'images' or 'pixels', not {average!r}")
        self.average = average
        self.min_pixels = max(min_pixels, 1) if average == "images" else 1
        self.images = self.pixels = torch.zeros((), dtype=torch.int64)
        self._total = torch.zeros((), dtype=torch.float64)

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Add class sums float [N, K, D] with their counts integer [N, K]."""
        sums = sums.double()
        counted = counts >= self.min_pixels  # [N, K]
        if self.average == "images":
            counted &= (sums != 0).any(dim=-1)
            weight = counted / counts.clamp(min=1).double()
        else:
            weight = counted.double()
        self._total = self._total + torch.einsum("nk,nkd->kd", weight, sums)
        self.images = self.images + counted.sum(dim=0)
        self.pixels = self.pixels + (counts * counted).sum(dim=0)

    def compute(self) -> Tensor:
        """Return the anchors so far, float32 [K, D]; NaN for a class never seen."""
        divisor = self.images if self.average == "images" else self.pixels
        return (self._total / divisor[..., None]).float()  # 0 / 0 is the NaN


class _ClassSums(torch.autograd.Function):
    """A one-hot matrix product that saves only the labels and gives a contiguous gradient."""

    @staticmethod
    def forward(ctx, features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(labels)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        # A CPU multiplies four rows at a time, and is slower at the rest. (Few classes stay as they
        # are: rounding up would change the order in which two threads add.)
        rows = num_classes if num_classes <= 16 else -(-num_classes // 4) * 4
        one_hot = _one_hot(labels, rows)
        counts = one_hot.sum(dim=-1)[:, :num_classes].long()  # [B, K]
        ctx.mark_non_differentiable(counts)
        with full_precision(features.device.type):
            pixels = features.flatten(2).float().transpose(1, 2)  # [B, hw, D]
            return torch.bmm(one_hot, pixels)[:, :num_classes], counts  # [B, K, D]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
        (labels,) = ctx.saved_tensors
        num_classes = gradient.shape[1]
        none = (labels < 0) | (labels >= num_classes)
        classes = labels.long().masked_fill(none, num_classes).flatten(1)[:, None]  # [B, 1, hw]
        # an additional column of zeros serves the pixels without a class
        columns = F.pad(gradient.to(ctx.dtype).transpose(1, 2), (0, 1))  # [B, D, K + 1]
        pixels = columns.gather(2, classes.expand(-1, columns.shape[1], -1))  # [B, D, hw]
        return pixels.view(ctx.shape), None, None


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels [B, h, w] as float32 [B, K, hw]; zeros for a pixel without a class."""
    labels = labels.flatten(1)[:, None]
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)[:, None]
    one_hot = labels.new_empty((labels.shape[0], num_classes, labels.shape[2]), dtype=torch.float32)
    return torch.eq(labels, classes, out=one_hot)


def read_anchors(path: Path, num_classes: int, width: int) -> Tensor:
    """Read anchors float32 [K, D] from a .npy file; a row of NaN is a class without an anchor.

    A UserError says that the file is missing or damaged, that K or D differs, or that a row holds
    an infinite number, or NaN beside numbers.
    """
    with readable(path, "an undamaged .npy file", "`dvc repro` makes it", "delete it and rerun"):
        # It allocates nothing for a declared shape that the file does not hold.
        anchors = np.lib.format.open_memmap(path, mode="r")
    if anchors.shape != (num_classes, width) or anchors.dtype.kind != "f":
        raise UserError(
            f"{path}: {anchors.dtype} of shape {anchors.shape}; expected floats of shape "
            f"({num_classes}, {width}), one row per class as wide as the features"
        )
    anchors = torch.from_numpy(anchors.astype(np.float32))
    finite = anchors.isfinite()
    if not (finite.all(dim=1) | anchors.isnan().all(dim=1)).all():
        problem = "holds NaN beside numbers, or an infinite number"
        raise UserError(f"{path}: {problem}; delete it and rerun")
    return anchors
