"""The span of the anchors: distances stay, and what is neglected is known."""

import pytest
import torch
from golden_files import generated_maps, stored_maps

from cag.anchors import anchors
from cag.projection import COARSER, LIMIT, NEGLIGIBLE, OTHER_MEANS, RELEASED_MEAN, UNIT, span
from cag.pseudo_labels import active, anchor_distances

K, D, N = 5, 24, 30


def statistics(seed=0, num_classes=K):
    """Class sums [N, K, D] and counts [N, K] of images whose class means scatter, some unseen."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 80, (N, num_classes), generator=generator)
    means = 3 * torch.randn(num_classes, D, generator=generator)
    means = means + 0.3 * torch.randn(N, num_classes, D, generator=generator)
    return counts[..., None] * means, counts


def pixels(seed=1, height=20, breadth=30):
    """Features float32 [2, D, h, w] at the scale of `statistics`, half of them zeros."""
    return 3 * torch.randn(2, D, height, breadth, generator=torch.Generator().manual_seed(seed))


def test_directions_are_orthonormal_and_no_more_than_asked():
    for most in (1, 4, 9, D, 100):
        projection = span([statistics()], most)
        rows = projection.directions
        assert len(rows) <= min(most, D)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-6, rtol=0)
        assert projection.units.shape == (len(rows) + 1,)


def test_pieces_give_the_span_of_the_whole():
    sums, counts = statistics()
    whole = span([(sums, counts)], 12)
    pieces = span(zip(sums.split(7), counts.split(7), strict=True), 12)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other)


def test_the_released_average_comes_first_and_the_others_follow():
    """K means span K - 1 directions around their centre."""
    sums, counts = statistics()
    released = anchors(sums, counts, *RELEASED_MEAN)
    spread = (released - released.mean(dim=0)).norm(dim=1).square().mean().sqrt()
    _, neglected = span([(sums, counts)], K - 1).place(released)
    assert neglected.max() < 1e-5 * spread
    for kind in OTHER_MEANS:
        few, many = (
            span([(sums, counts)], most).place(anchors(sums, counts, *kind))[1].max()
            for most in (K - 1, D)
        )
        assert few > 2 * NEGLIGIBLE * spread
        assert many <= 1.1 * NEGLIGIBLE * spread


@pytest.mark.parametrize("kind", [RELEASED_MEAN, *OTHER_MEANS])
def test_distances_stay_but_for_rounding(kind):
    sums, counts = statistics()
    projection, features = span([(sums, counts)], D), pixels()
    chosen = anchors(sums, counts, *kind)
    placed, neglected = projection.place(chosen)
    reduced = projection.coordinates(projection.reduce(features))
    _, *found = anchor_distances(reduced, placed)
    _, *true = anchor_distances(features, chosen)
    spread = projection.units[-1] / UNIT
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, atol=4e-3 * spread, rtol=0)
    margins = (found[1] - found[0]) - (true[1] - true[0])
    assert margins.abs().mean() < UNIT * spread and margins.abs().max() < 1e-3 * spread


@pytest.mark.parametrize("maps", [stored_maps, generated_maps])
def test_the_papers_network_gets_the_labels_of_its_whole_features(maps):
    """Features around the authors' anchors, but for pixels whose margin is next to the paper's."""
    golden, paper = maps(), 2.5
    chosen, features = golden["anchors"].float(), golden["features"].float()
    counts = torch.full((1, len(chosen)), 100)
    projection = span([(counts[..., None] * chosen, counts)], 40)
    placed, neglected = projection.place(chosen)
    assert neglected.max() < 1e-4
    whole = anchor_distances(features, chosen)
    stored = projection.reduce(features)
    assert stored.abs().max() < LIMIT  # no pixel is too far
    reduced = anchor_distances(projection.coordinates(stored), placed)
    margin, found = (second - first for _, first, second in (whole, reduced))
    assert (found - margin).abs().max() < 1e-2
    differ = active(*whole, margin=paper) != active(*reduced, margin=paper)
    assert differ.float().mean() < 5e-4
    assert ((margin[differ] - paper).abs() < 1e-2).all()


def test_a_distance_is_wrong_by_no_more_than_what_is_neglected():
    projection, features = span([statistics()], 6), pixels()
    far = 3 * torch.randn(7, D, generator=torch.Generator().manual_seed(5))  # not in the span
    placed, neglected = projection.place(far)
    reduced = projection.coordinates(projection.reduce(features))  # (B, r + 1, h, w)
    found = torch.cdist(reduced.movedim(1, -1).flatten(0, 2), placed)  # (n, 7)
    true = torch.cdist(features.movedim(1, -1).flatten(0, 2), far)
    rounding = projection.units.norm()
    assert ((found - true).abs() <= neglected + rounding).all()
    assert neglected.min() > 1  # so that the bound is of use


def test_rounding_is_at_most_half_a_unit_and_units_follow_the_anchors():
    projection, features = span([statistics()], D), pixels()
    inside = (features - projection.origin[:, None, None]).movedim(1, -1) @ projection.directions.T
    found = projection.coordinates(projection.reduce(features)).movedim(1, -1)[..., :-1]
    assert ((found - inside).abs() <= 0.5001 * projection.units[:-1] + 1e-5).all()
    units = projection.units / projection.units.min()
    assert units[0] == 1 and units[:-1].max() == pytest.approx(COARSER)


def test_unseen_classes_have_no_place():
    sums, counts = statistics()
    counts[:, 2] = 0
    placed, neglected = span([(sums, counts)], D).place(anchors(sums, counts))
    assert placed[2].isnan().all() and neglected[2].isnan()
    assert placed[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("seen", [0, 1])
def test_fewer_than_two_classes_span_nothing(seen):
    sums, counts = statistics()
    counts[:, seen:] = 0
    projection = span([(sums, counts)], D)
    stored = projection.reduce(pixels())
    assert len(projection.directions) <= (D if seen else 0)
    assert stored.shape[1] == len(projection.directions) + 1
    assert projection.coordinates(stored).isfinite().all()


def test_pixels_far_from_all_anchors_keep_the_differences_of_their_distances():
    sums, counts = statistics()
    sums = counts[..., None] + sums / 300  # means that differ little, beside the pixels
    projection, features = span([(sums, counts)], D), 3 * pixels()
    chosen = anchors(sums, counts, *RELEASED_MEAN)
    stored = projection.reduce(features)
    assert (stored.abs().amax(dim=1) == 2**15 - 1).all()  # each pixel was too far
    found = torch.cdist(_rows(projection.coordinates(stored)), projection.place(chosen)[0])
    true = torch.cdist(_rows(features), chosen)
    found, true = (distances - distances.mean(1, keepdim=True) for distances in (found, true))
    assert (found - true).abs().max() < 0.1 * true.abs().max()
    assert (found.argmin(dim=1) == true.argmin(dim=1)).float().mean() > 0.97


def _rows(features):
    """Pixels [n, C] of features [B, C, h, w]."""
    return features.movedim(1, -1).flatten(0, 2)
