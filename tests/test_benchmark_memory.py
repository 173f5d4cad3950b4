"""The memory benchmark measures programs of known size."""

import pandas as pd
import pytest

from benchmarks.memory import comparison, growth, measure
from cag.runtime.errors import UserError

MEBIBYTE = 2**20


def peak(folder, program: str) -> float:
    return measure(["-c", program], folder)[2]


def test_the_peak_is_found_even_where_it_is_short(tmp_path):
    big = bytearray(300 * MEBIBYTE)  # this process's own memory counts for nothing
    freed = peak(tmp_path, f"a = bytearray({200 * MEBIBYTE}); del a")
    grown = freed - peak(tmp_path, "pass")
    assert grown == pytest.approx(200 * MEBIBYTE / 1e6, rel=0.03)
    assert freed < len(big) / 1e6


def test_workers_are_added_up(tmp_path):
    hold = f"import time; a = bytearray({50 * MEBIBYTE}); time.sleep(1.5)"
    program = f"import subprocess, sys; c = [sys.executable, '-c', {hold!r}]; "
    program += "[p.wait() for p in [subprocess.Popen(c), subprocess.Popen(c)]]"
    assert peak(tmp_path, program) >= 100 * MEBIBYTE / 1e6


def test_a_failure_says_what_the_program_said(tmp_path):
    with pytest.raises(UserError, match="failed: no disk"):
        measure(["-c", "import sys; sys.exit('no disk')"], tmp_path)


def test_the_table_keeps_the_stages_order_and_gives_ratios():
    rows = pd.DataFrame(
        {
            "stage": ["b", "a", "b", "a"],
            "n": [10, 10, 1000, 1000],
            "MB": [100.0, 200.0, 150.0, 200.0],
            "s": [1.0, 2.0, 10.0, 20.0],
            "images/s": [10.0, 5.0, 1000.0, 50.0],
        }
    )
    assert growth(rows).to_dict() == {"a": 1.0, "b": 1.5}
    first, second = comparison(rows)
    assert (first["stage"], second["stage"]) == ("b", "a")
    assert list(first.items())[1:] == [
        *(("MB at 10", "100"), ("MB at 1,000", "150"), ("ratio", "1.50")),
        *(("s at 10", "1.0"), ("s at 1,000", "10.0")),
        *(("images/s at 10", "10"), ("images/s at 1,000", "1,000")),
    ]
