"""Reduced features: the few numbers of a pixel that its distances to the anchors depend on.

||f - a||^2 = ||U(f - m) - U(a - m)||^2 + ||f_perp||^2 for each anchor a in the span of the rows of
U around the origin m, where f_perp is what is left of f - m beyond the span. So a pixel needs its
coordinates in the span and one length, whatever the number of channels.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cag.anchors import AnchorMean
from cag.runtime.precision import full_precision

RELEASED_MEAN = ("images", 10)  # the average and least pixels whose span comes first
# The other anchors that a user may ask for: the paper's, and other least pixels.
OTHER_MEANS = (("pixels", 1), *(("images", count) for count in (1, 2, 5, 20, 50)))
NEGLIGIBLE = 1e-3  # of the anchors' spread: beyond it, a class mean needs another direction
# A number's unit as a share of the anchors' spread: so a margin of the paper's network, whose
# anchors have a spread of 6.6, is exact to 0.01. The unit is up to COARSER times as large along a
# direction in which the anchors hardly differ, because a margin depends on it that much less.
UNIT, COARSER, HARDLY = 1 / 2000, 8, 0.1
LIMIT = 2**15 - 1  # of a stored number, in its unit


class Projection(NamedTuple):
    """A span of anchors, and the units in which a pixel's numbers are stored; r <= D."""

    origin: Tensor  # [D] float32, m
    directions: Tensor  # [r, D] float32, the orthonormal rows of U
    units: Tensor  # [r + 1] float32

    def reduce(self, features: Tensor) -> Tensor:
        """The stored numbers of features float [B, D, h, w]: int16 [B, r + 1, h, w].

        A pixel with a number beyond the limit, 16 times the anchors' spread away or more, is drawn
        towards the origin until it fits. From so far away, the order of the anchors and the
        differences of their distances depend on the direction, which stays.
        """
        origin, directions, units = (part.to(features.device) for part in self)
        with full_precision(features.device.type):
            centred = features.float() - origin[:, None, None]  # (B, D, h, w)
            inside = torch.einsum("rd,bdhw->brhw", directions, centred)
            beyond = centred.square().sum(1) - inside.square().sum(1)  # (B, h, w)
        numbers = torch.cat([inside, beyond.clamp(min=0).sqrt()[:, None]], dim=1)
        numbers = numbers / units[:, None, None]
        largest = numbers.abs().amax(dim=1, keepdim=True)
        return (numbers * (LIMIT / largest).clamp(max=1)).round().clamp(-LIMIT, LIMIT).short()

    def coordinates(self, stored: Tensor) -> Tensor:
        """Coordinates and length beyond the span, float32, of stored numbers int16 [B, r + 1, ...].

        Their distances to the anchors that `place` gives are those of the features.
        """
        units = self.units.to(stored.device)
        return stored.float() * units.view(-1, *[1] * (stored.dim() - 2))

    def place(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors float [K, D] in the coordinates, float32 [K, r + 1]; rows of NaN stay so.

        The second result, float32 [K], is the length of each anchor beyond the span. A distance to
        it is wrong by no more than that, beside the rounding to units, if the pixel was in the
        limit.
        """
        origin, directions, _ = (part.to(anchors.device) for part in self)
        with full_precision(anchors.device.type):
            centred = anchors.float() - origin
            inside = centred @ directions.T  # (K, r)
            neglected = (centred - inside @ directions).norm(dim=1)
        return torch.cat([inside, 0 * neglected[:, None]], dim=1), neglected

    def features(self, coordinates: Tensor) -> Tensor:
        """The points of the span, float32 [n, D], at coordinates float [n, r + 1]."""
        return self.origin + coordinates[:, :-1].float() @ self.directions


def span(statistics: Iterable[tuple[Tensor, Tensor]], most: int) -> Projection:
    """The span of the class means of source images, with at most `most` directions.

    First come the directions of the released average, by importance. Then come those of the paper's
    average and of other least pixels, until each mean is in the span but for a thousandth of the
    anchors' spread.

    Args:
        statistics: class sums float [N, K, D] and pixel counts integer [N, K] of the correctly
            predicted pixels, piece by piece.
        most: the limit of r; fewer if D or the classes are fewer.
    """
    kinds = [AnchorMean(*kind) for kind in (RELEASED_MEAN, *OTHER_MEANS)]
    for sums, counts in statistics:
        for kind in kinds:
            kind.update(sums, counts)
    released, *means = (mean[~mean.isnan().any(1)] for mean in (kind.compute() for kind in kinds))
    first, rest = released.double(), torch.cat([released, *means]).double()
    origin = (first if len(first) else rest).mean(dim=0).nan_to_num()  # (D,)
    first, rest = first - origin, rest - origin
    spread = float(rest.square().sum(dim=1).mean().sqrt().nan_to_num()) or 1.0
    directions = _leading(first, NEGLIGIBLE * spread, most)
    left = rest - rest @ directions.T @ directions
    directions = torch.cat(
        [directions, _leading(left, NEGLIGIBLE * spread, most - len(directions))]
    )
    along = (rest @ directions.T).square().mean(dim=0).sqrt() / spread  # (r,)
    units = UNIT * spread * (HARDLY / along.clamp(min=1e-9)).clamp(1, COARSER)
    units = torch.cat([units, units.new_tensor([UNIT * spread])])
    return Projection(origin.float(), directions.float(), units.float())


def _leading(vectors: Tensor, negligible: float, most: int) -> Tensor:
    """The fewest principal directions [r, D] beyond which vectors [n, D] are negligibly long."""
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    inside = (vectors @ directions.T).square()  # (n, rank)
    beyond = inside.flip(1).cumsum(1).flip(1).amax(dim=0) if len(vectors) else inside.new_zeros(0)
    needed = int((beyond > negligible**2).sum())  # `beyond` falls from direction to direction
    return directions[: min(needed, max(most, 0))]
