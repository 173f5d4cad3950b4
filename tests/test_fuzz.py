"""Damaged files of every kind give their content or one line of error; more: benchmarks/fuzz.py."""

import pytest

from benchmarks.fuzz import READERS, faults

COUNTS = {"parameters": 20, "model": 12, "class map": 60, "encoder weights": 30}  # what takes long
COUNTS |= dict.fromkeys(("coverage", "anchor table", "threshold curves"), 40)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line(tmp_path, name):
    assert READERS[name].read(READERS[name].write(tmp_path)) is not False  # whole, it is read
    assert not faults(name, tmp_path, range(COUNTS.get(name, 100)))
