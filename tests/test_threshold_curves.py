"""At each threshold, the curves count the pixels that the rule labels."""

import numpy as np
import pandas as pd
import pytest
import torch

from cag.analysis.threshold_curves import (
    ALL,
    COLUMNS,
    LabelledCounts,
    ThresholdCounts,
    class_thresholds_at,
    curve_table,
    read_thresholds,
    threshold_grid,
)
from cag.config.pseudo_labels import PseudoLabel
from cag.pseudo_labels import THRESHOLDS, Pixels, active, anchor_distances, confident
from cag.runtime.errors import UserError
from cag.runtime.files import write_csv

NAMES = ("road", "null", "car", "train")  # of the last, no pixel
K = len(NAMES)
CONFIG = PseudoLabel(
    margin=0.123, relative_margin=1 / 3, quantile=0.667, agreement=False, probability=0.95
)


@pytest.fixture(scope="module")
def anchors():
    anchors = torch.randn(K, 8, generator=torch.Generator().manual_seed(0))
    anchors[3] = torch.nan
    return anchors


@pytest.fixture(scope="module")
def grid(anchors):
    return threshold_grid(anchors, CONFIG)


@pytest.fixture(scope="module")
def pixels(anchors, grid):
    """The pixels of 3 maps; some are exactly at a threshold."""
    random = torch.Generator().manual_seed(1)
    features = torch.randn(3, 8, 20, 30, generator=random)
    nearest, first, second = anchor_distances(features, anchors)
    first[0, 0], second[0, 0] = 0, grid["margin"][:30]
    first[0, 1], second[0, 1] = 1 - grid["relative_margin"][:30], 1 + grid["relative_margin"][:30]
    prediction = torch.randint(0, 3, nearest.shape, generator=random).byte()
    probability = torch.rand(nearest.shape, generator=random)
    probability[0, :4] = grid["probability"][-30:]
    return Pixels(nearest, first, second, prediction, probability)


@pytest.fixture(scope="module")
def truth(pixels):
    """The true classes of the pixels; a fifth are unknown."""
    random, shape = torch.Generator().manual_seed(2), pixels.nearest.shape
    truth = torch.randint(0, 3, shape, generator=random).byte()
    return truth.masked_fill(torch.rand(shape, generator=random) < 0.2, 255)


def counted(grid, *parts):
    counts = ThresholdCounts(K, grid)
    for pixels in parts:
        counts.update(pixels)
    return counts


def labels_at(rule, pixels, threshold, cuts, place):
    """The label map of one rule alone, at the threshold of this index in the grid."""
    if rule == "probability":
        return confident(pixels.prediction, pixels.probability, threshold)
    return active(*pixels[:3], **{rule: cuts[:, place] if rule == "quantile" else threshold})


def per_class(labels):
    return np.bincount(labels.flatten().numpy(), minlength=256)[:K]


def test_counts_are_those_of_the_rules(grid, pixels):
    counts = counted(grid, pixels)
    cuts = counts.class_thresholds(grid["quantile"])
    table = curve_table(NAMES, grid, counts, cuts)
    assert tuple(table.columns) == COLUMNS
    for rule in THRESHOLDS:
        rows = table[table["rule"] == rule]
        assert len(rows) == K * len(grid[rule]) and len(grid[rule]) >= 50
        whole = per_class(pixels.prediction if rule == "probability" else pixels.nearest)
        for i, (threshold, own) in enumerate(rows.groupby("threshold")):
            expected = per_class(labels_at(rule, pixels, threshold, cuts, i))
            assert own["pixels"].tolist() == expected.tolist(), (rule, threshold)
            shares = expected[:3] / whole[:3]
            assert own["share"].tolist()[:3] == pytest.approx(shares, abs=1e-6)
            assert np.isnan(own["share"].iloc[3])


def test_margins_reach_as_far_as_any_pixel(anchors):
    """Pixels beyond one of two anchors have the greatest margin, the anchors' distance."""
    two = anchors[:2]
    beyond = torch.linspace(0, 9, 50)[None, None, :] * (two[0] - two[1])[None, :, None]
    _, first, second = anchor_distances((two[0][None, :, None] + beyond)[..., None], two)
    last = threshold_grid(two, CONFIG)["margin"][-1]
    assert 0.9 * last < (second - first).max() <= last


def test_configured_thresholds_are_in_the_grid(grid):
    for rule in THRESHOLDS:
        assert np.float32(getattr(CONFIG, rule)) in grid[rule].numpy()
        assert (grid[rule].diff() > 0).all()


def test_counts_of_parts_add_up(grid, pixels):
    parts = [counted(grid, Pixels(*(values[i] for values in pixels))) for i in range(3)]
    sums = [[], [], []]
    for part, tensors in zip(parts, sums, strict=True):
        part.add_up(lambda tensor, tensors=tensors: tensors.append(tensor) or tensor)
    totals = iter([sum(tensors) for tensors in zip(*sums, strict=True)])
    parts[0].add_up(lambda _: next(totals))
    cuts = parts[0].class_thresholds(grid["quantile"])
    whole = curve_table(NAMES, grid, counted(grid, pixels), cuts)
    pd.testing.assert_frame_equal(curve_table(NAMES, grid, parts[0], cuts), whole)


def test_a_pixel_of_nan_passes_nothing(grid):
    nan, zero = torch.full((1,), torch.nan), torch.zeros(1, dtype=torch.uint8)
    counts = counted(grid, Pixels(zero, nan, nan, zero, nan))
    labelled = counts.labelled(torch.full((K, 1), 0.5))
    assert not any(labelled[rule].sum() for rule in THRESHOLDS)
    assert counts.totals()["margin"].tolist() == [1, 0, 0, 0]


def test_thresholds_are_read_back_as_they_were(grid, pixels, tmp_path):
    counts = counted(grid, pixels)
    cuts = counts.class_thresholds(grid["quantile"])
    write_csv(tmp_path / "curves.csv", curve_table(NAMES, grid, counts, cuts))
    read, own = read_thresholds(tmp_path / "curves.csv", NAMES)
    assert all(torch.equal(read[rule], grid[rule]) for rule in THRESHOLDS)
    assert torch.equal(own, cuts)
    used = class_thresholds_at(CONFIG.quantile, read, own)
    assert torch.equal(used, counts.class_thresholds(torch.tensor([CONFIG.quantile]))[:, 0])
    assert class_thresholds_at(None, read, own) is None
    with pytest.raises(UserError, match="lack pseudo_label.quantile 0.111;"):
        class_thresholds_at(0.111, read, own)


def test_precision_and_recall_equal_numpys(grid, pixels, truth):
    counts = LabelledCounts(K, grid)
    for i in range(3):
        counts.update(Pixels(*(values[i] for values in pixels)), truth[i])
    cuts = counted(grid, pixels).class_thresholds(grid["quantile"])
    table = counts.table(NAMES, grid, cuts)
    assert list(table["class"][: K + 1]) == [*NAMES, ALL]
    known = truth.numpy() < 255
    for rule in THRESHOLDS:
        rows = table[table["rule"] == rule]
        for i, (threshold, own) in enumerate(rows.groupby("threshold")):
            labels = labels_at(rule, pixels, threshold, cuts, i).numpy()
            for name, row in own.set_index("class").iterrows():
                c = NAMES.index(name) if name != ALL else None
                mine = labels < 255 if c is None else labels == c
                right = (mine & known & (labels == truth.numpy())).sum()
                true = known if c is None else truth.numpy() == c
                assert row["pixels"] == mine.sum()
                for column, whole in (("precision", (mine & known).sum()), ("recall", true.sum())):
                    if whole:
                        assert row[column] == pytest.approx(right / whole, abs=1e-6)
                    else:
                        assert np.isnan(row[column])


def test_no_labelled_pixels_no_rows(grid):
    table = LabelledCounts(K, grid).table(NAMES, grid, torch.zeros(K, len(grid["quantile"])))
    assert table.empty and list(table.columns) == [*COLUMNS, "precision", "recall"]


def test_damaged_tables_are_one_line(grid, pixels, tmp_path):
    counts, path = counted(grid, pixels), tmp_path / "curves.csv"
    with pytest.raises(UserError, match="no such file"):
        read_thresholds(path, NAMES)
    table = curve_table(NAMES, grid, counts, counts.class_thresholds(grid["quantile"]))
    for damaged, complaint in (
        (table.iloc[:-1], "rule probability has not one row for each threshold and class"),
        (table.drop(columns="pixels"), "lacks the column pixels"),
        (table.replace({"class": {"car": "tram"}}), "rule margin has not one row"),
    ):
        write_csv(path, damaged)
        with pytest.raises(UserError, match=complaint):
            read_thresholds(path, NAMES)
    path.write_text(path.read_text().replace(",road,", ",road,many"))
    with pytest.raises(UserError, match="not a readable table .*; delete it and rerun"):
        read_thresholds(path, NAMES)
