"""The online teacher: the exponential mean of a student's weights, and what it says of pixels.

Mean teacher (Tarvainen & Valpola, NeurIPS 2017), for segmentation as in DACS (Tranheden et al.,
WACV 2021).
"""

import copy

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cag.anchors import agreeing_labels, class_sums
from cag.networks import SegmentationNetwork
from cag.runtime.precision import full_precision
from cag.training.cross_entropy import Divisor, own_count

WEIGHTINGS = ("share", "pixel", "threshold")


def first_teacher(student: SegmentationNetwork) -> SegmentationNetwork:
    """A copy of the student that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: SegmentationNetwork, student: SegmentationNetwork, momentum: float) -> None:
    """Move the teacher's weights and batch-norm statistics towards the student's, in place.

    teacher = momentum teacher + (1 - momentum) student, momentum in [0, 1).
    """
    pairs = list(zip(teacher.state_dict().values(), student.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(momentum)(*map(list, zip(*floats, strict=True)), None)
    for goal, value in pairs:
        if not goal.is_floating_point():  # counters of batches
            goal.copy_(value)


def pixel_weights(probability: Tensor, threshold: float, weighting: str) -> Tensor:
    """What each pixel of a teacher's label map counts, float32 [B, H, W] in [0, 1].

    Takes the probabilities of the labels, float [B, H, W]. "share" gives all pixels of an image the
    share of its pixels above the threshold (DACS), "threshold" 1 to these pixels and 0 to the
    others, "pixel" each pixel its probability. Any other is a ValueError.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
    if weighting == "pixel":
        return probability.float()
    above = (probability > threshold).float()
    if weighting == "threshold":
        return above
    return above.mean(dim=(1, 2), keepdim=True).expand_as(above)


def anchor_probabilities(features: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Softmax of -d / temperature over the classes, d a pixel's distances to the anchors.

    ProDA's weights of soft labels (Zhang et al., CVPR 2021, equation 5). From features float [B, D,
    h, w] and anchors float [K, D] to float32 [B, K, h, w]. A class without an anchor, a row of NaN,
    gets 1 / K. The temperature, above 0, is in units of the features.
    """
    seen = ~anchors.isnan().any(dim=1)  # [K]
    with full_precision(features.device.type):
        pixels = features.float().flatten(2).transpose(1, 2)  # [B, h w, D]
        distances = torch.cdist(pixels, anchors.nan_to_num().expand(len(pixels), -1, -1))
    scores = (-distances / temperature).masked_fill(~seen, -torch.inf)
    shares = (scores.softmax(dim=2) * seen.float().mean()).masked_fill(~seen, 1 / len(anchors))
    return shares.transpose(1, 2).unflatten(2, features.shape[2:])


class FollowingAnchors(torch.nn.Module):
    """Anchors that follow the teacher: exponential means of the source batches' class means.

    `values`, float32 [K, D], rows of NaN for a class not seen, are a persistent buffer.
    """

    def __init__(self, anchors: Tensor, momentum: float, min_pixels: int):
        super().__init__()
        self.register_buffer("values", anchors.float().clone())
        self.momentum, self.min_pixels = momentum, min_pixels
        self._totals: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def collect(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add source images: the teacher's output [B, D | K, h, w], and labels [B, h, w]."""
        labels = agreeing_labels(labels, logits)
        sums, counts = class_sums(features, labels, len(self.values))  # [B, K, D], [B, K]
        counted = (counts >= self.min_pixels).float()
        means = sums / counts.clamp(min=1)[..., None] * counted[..., None]
        parts = means.sum(dim=0), counted.sum(dim=0)  # [K, D], [K]
        totals = self._totals
        self._totals = parts if totals is None else (totals[0] + parts[0], totals[1] + parts[1])

    @torch.no_grad()
    def update(self, divisor: Divisor = own_count) -> None:
        """Take the collected images, of all processes, into the means."""
        sums, images = map(divisor, self._totals)
        self._totals = None
        means = sums / images[:, None]  # NaN for a class that the batch lacks
        moved = torch.lerp(self.values, means, 1 - self.momentum)
        moved = torch.where(self.values.isnan(), means, moved)
        self.values.copy_(torch.where(means.isnan(), self.values, moved))


class ClassShares(torch.nn.Module):
    """Running shares of the classes that the teacher predicts in the source and in the target.

    `totals`, float32 [2, K], sums of probabilities, the source's and the target's, are a persistent
    buffer.
    """

    def __init__(self, num_classes: int, momentum: float):
        super().__init__()
        self.register_buffer("totals", torch.zeros(2, num_classes))
        self.momentum = momentum
        self._new: Tensor | float = 0.0

    @torch.no_grad()
    def aligned(self, probabilities: Tensor, source: Tensor, power: float) -> Tensor:
        """Probabilities times (source share / target share) ^ power, normalised, [B, K, H, W].

        Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), with the teacher's
        predictions of the source, float [B, K, h, w], in place of its labels: so a class that the
        teacher exaggerates in both domains stays as it is. The shares are those of the steps
        before; in the first step nothing changes.
        """
        self._new = self._new + torch.stack(
            [part.float().sum(dim=(0, 2, 3)) for part in (source, probabilities)]
        )
        shares = self.totals / self.totals.sum(dim=1, keepdim=True)
        factors = (shares[0] / shares[1].clamp(min=1e-6)).clamp(0.05, 20).nan_to_num(nan=1) ** power
        aligned = probabilities * factors[:, None, None]
        return aligned / aligned.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def update(self, divisor: Divisor = own_count) -> None:
        """Take the step's sums, of all processes, into the running ones."""
        self.totals.mul_(self.momentum).add_(divisor(self._new))
        self._new = 0.0
