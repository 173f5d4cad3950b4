"""The benchmark of feature stores: sizes, times, ratios and roundings are what they say."""

import numpy as np
import pytest
import torch

from benchmarks import stores
from benchmarks.stores import (
    FILTERS,
    FORMS,
    Column,
    comparison,
    filtered,
    labelled,
    require_fewer,
    rounded,
    timed,
)
from cag.datasets.labels import IGNORE
from cag.runtime.errors import UserError


def columns(*sizes: int) -> dict[str, Column]:
    seconds = zip(FORMS, (6.0, 4.0, 2.0), strict=True)
    return {
        form: Column(size, 100, {"a step": second})
        for size, (form, second) in zip(sizes, seconds, strict=True)
    }


def test_each_filter_gives_back_the_numbers_in_fewer_bytes(tmp_path):
    numbers = np.repeat(np.arange(64, dtype=np.int16), 512).reshape(2, 4, 64, 64)
    found = filtered(numbers, FILTERS, tmp_path)
    assert list(found) == list(FILTERS)
    assert found["none"][0] == numbers.nbytes
    assert all(size < numbers.nbytes / 4 for name, (size, _) in found.items() if name != "none")


def test_only_the_reading_is_timed(tmp_path, monkeypatch):
    """The clock stands still but in `read_numbers`."""
    now, read = [0.0], stores.read_numbers

    def reading(path):
        now[0] += 3.0
        return read(path)

    monkeypatch.setattr(stores, "read_numbers", reading)
    monkeypatch.setattr(stores.time, "process_time", lambda: now[0])
    found = filtered(np.zeros((1, 2, 4, 4), np.float16), {"none": {}}, tmp_path)
    assert found["none"][1] == 3.0


def test_a_row_has_each_form_and_its_ratio_to_the_reduced():
    rows = {row[""]: row for row in comparison(columns(51_700, 24_400, 4_400))}
    size = rows["bytes a pixel"]
    assert (size["float16"], size["full"], size["reduced"]) == ("517.0", "244.0", "44.0")
    assert (size["float16 / reduced"], size["full / reduced"]) == ("11.8", "5.5")
    assert rows["GB a round of the preset gta5_to_cityscapes"]["float16"] == "201.6"
    assert rows["a step, s"]["full / reduced"] == "2.0"


def test_a_store_that_is_not_an_eighth_of_float16_fails():
    require_fewer(columns(800, 500, 100))
    with pytest.raises(UserError, match="7.9 times as many bytes as reduced; expected 8 times"):
        require_fewer(columns(790, 500, 100))


def test_numbers_are_rounded_to_bits_of_their_fraction():
    numbers = np.array([1 + 2**-10, 1 + 3 * 2**-4, 1 + 2**-4, 1 + 2**-4 + 2**-10], np.float16)
    assert np.array_equal(rounded(numbers, 10), numbers)
    assert rounded(numbers, 3).tolist() == [1.0, 1.25, 1.0, 1.125]  # ties to even


def test_labels_of_numbers_are_the_nearest_anchor_s():
    numbers = np.array([0.1, 0.5, 0.8], np.float16).reshape(1, 1, 1, 3)
    found = labelled(numbers, torch.tensor([[0.0], [1.0]]), None)
    assert found.flatten().tolist() == [0, IGNORE, 1]


def test_the_form_without_compression_runs_the_stage_itself(tmp_path):
    check = "import sys; from cag import features\n"
    check += "assert sys.argv[1:] == ['a', 'b'] and __name__ == '__main__'\n"
    (tmp_path / "plain.py").write_text(f"{check}assert features.COMPRESSION == {{}}")
    assert timed(tmp_path, "plain", "a", "b", compressed=False) > 0
    with pytest.raises(UserError, match="plain a b` failed: AssertionError"):
        timed(tmp_path, "plain", "a", "b")
