"""The online teacher: the exponential mean of a student's weights, and what it says of pixels.

Mean teacher (Tarvainen & Valpola, NeurIPS 2017), for segmentation as in DACS (Tranheden et al.,
WACV 2021).
"""

import copy

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cag.anchors import agreeing_labels, class_sums, resize_labels
from cag.config.anchors import Anchors
from cag.networks import SegmentationNetwork
from cag.runtime.precision import full_precision
from cag.training.cross_entropy import Divisor, own_count

WEIGHTINGS = ("share", "pixel", "threshold")
SHARE_RATIOS = (0.05, 20)  # the least and the largest correction of a class's share


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


def inside(images: Tensor) -> Tensor:
    """Where crops float [B, 3, H, W] show their image, bool [B, H, W].

    Elsewhere a whole row or column is black: the crop is larger than the scaled image there, or the
    film has black bars. Nobody can say what is to be seen in it.
    """
    bright = images.amax(dim=1) > 0  # [B, H, W]
    return bright.any(dim=2, keepdim=True) & bright.any(dim=1, keepdim=True)


def mean_inside(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of each map of values float [B, H, W] over its counted pixels, [B, 1, 1]; or 0."""
    total = (values * counted).sum(dim=(1, 2), keepdim=True)
    return total / counted.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def pixel_weights(probability: Tensor, threshold: float, weighting: str, counted: Tensor) -> Tensor:
    """What each pixel of a teacher's label map counts, float32 [B, H, W] in [0, 1].

    Takes the probabilities of the labels, float [B, H, W], and which pixels count at all, bool [B,
    H, W]; the others get 0. "share" gives all pixels of an image the share of its pixels above the
    threshold (DACS), "threshold" 1 to these pixels and 0 to the others, "pixel" each pixel its
    probability. Any other is a ValueError.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
    if weighting == "pixel":
        return probability.float() * counted
    above = (probability > threshold).float() * counted
    if weighting == "threshold":
        return above
    return mean_inside(above, counted) * counted


def distances_to_anchors(features: Tensor, anchors: Tensor) -> Tensor:
    """Each pixel's L2 distances to all anchors, float32 [B, K, h, w]; infinite without an anchor.

    From features float [B, D, h, w] and anchors float [K, D], where a row of NaN is none. Unlike
    `pseudo_labels.anchor_distances` it holds all distances at once, waits for no device, and close
    to an anchor has fewer right digits.
    """
    seen = ~anchors.isnan().any(dim=1)  # [K]
    with full_precision(features.device.type):
        pixels = features.float().flatten(2).transpose(1, 2)  # [B, h w, D]
        distances = torch.cdist(pixels, anchors.nan_to_num().expand(len(pixels), -1, -1))
    distances = distances.masked_fill(~seen, torch.inf)
    return distances.transpose(1, 2).unflatten(2, features.shape[2:])


def anchor_probabilities(features: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Softmax of -d / temperature over the classes, d a pixel's distances to the anchors.

    ProDA's weights of soft labels (Zhang et al., CVPR 2021, equation 5). From features float [B, D,
    h, w] and anchors float [K, D] to float32 [B, K, h, w]. A class without an anchor, a row of NaN,
    gets 1 / K; the S others share S / K. The temperature, above 0, is in units of the features.
    """
    seen = ~anchors.isnan().any(dim=1)  # [K]
    scores = -distances_to_anchors(features, anchors) / temperature
    shares = scores.softmax(dim=1) * seen.float().mean()
    return shares.masked_fill(~seen[:, None, None], 1 / len(anchors))


class FollowingAnchors(torch.nn.Module):
    """Anchors that follow the teacher: exponential means of the source batches' means of a class.

    Such a mean is that of the images' class means or of all pixels, as for the round's anchors.
    `values`, float32 [K, D], rows of NaN for a class not seen, are a persistent buffer. A class
    without an anchor gets its first from the first batch in which the teacher predicts it rightly
    in enough pixels.
    """

    def __init__(self, anchors: Tensor, momentum: float, config: Anchors):
        super().__init__()
        self.register_buffer("values", anchors.float().clone())
        self.momentum, self.config = momentum, config
        self._totals: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def collect(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add source images: the teacher's output [B, D | K, h, w], and labels [B, h, w]."""
        labels = agreeing_labels(labels, logits)
        sums, counts = class_sums(features, labels, len(self.values))  # [B, K, D], [B, K]
        if self.config.average == "images":  # the mean of an image counts as one pixel
            counted = (counts >= self.config.min_pixels).float()
            sums = sums / counts.clamp(min=1)[..., None] * counted[..., None]
            counts = counted
        parts = sums.sum(dim=0), counts.float().sum(dim=0)  # [K, D], [K]
        totals = self._totals
        self._totals = parts if totals is None else (totals[0] + parts[0], totals[1] + parts[1])

    @torch.no_grad()
    def update(self, divisor: Divisor = own_count) -> None:
        """Take the collected images, of all processes, into the means."""
        sums, counts = map(divisor, self._totals)
        self._totals = None
        means = sums / counts[:, None]  # NaN for a class that the batch lacks
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
        self._new: list[Tensor | float] = [0.0, 0.0]  # the running step's sums

    @torch.no_grad()
    def collect(self, domain: int, probabilities: Tensor, seen: Tensor) -> None:
        """Add what the teacher predicts in images of the source, domain 0, or the target, 1.

        Takes probabilities float [B, K, h, w], and which pixels count, bool [B, H, W].
        """
        seen = resize_labels(seen, probabilities.shape[2:])  # [B, h, w]
        with full_precision(seen.device.type):
            sums = torch.einsum("bkhw,bhw->k", probabilities.float(), seen.float())
        self._new[domain] = self._new[domain] + sums

    @torch.no_grad()
    def aligned(self, probabilities: Tensor, power: float) -> Tensor:
        """The target's probabilities times (source share / target share) ^ power, [B, K, H, W].

        Normalised. Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), with the
        teacher's predictions of the source in place of its labels: so a class that the teacher
        exaggerates in both domains stays as it is. The shares are those of the steps before; in the
        first step nothing changes.
        """
        shares = self.totals / self.totals.sum(dim=1, keepdim=True)
        ratios = (shares[0] / shares[1]).clamp(*SHARE_RATIOS).nan_to_num(nan=1)
        factors = ratios**power
        aligned = probabilities * factors[:, None, None]
        return aligned / aligned.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def update(self, divisor: Divisor = own_count) -> None:
        """Take the step's sums, of all processes, into the running ones."""
        self.totals.mul_(self.momentum).add_(divisor(torch.stack(self._new)))
        self._new = [0.0, 0.0]
