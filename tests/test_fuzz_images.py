"""Damaged images and label maps: read, or refused in one line; never a crash or another error."""

import pytest
from PIL import Image

from benchmarks.fuzz_images import SEEDS, mutated, try_reading

MUTATIONS = 12  # of each seed; `python -m benchmarks.fuzz_images` makes thousands


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_read_or_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)  # a damaged size takes no memory
    seed = SEEDS[name]()
    try_reading(tmp_path / name, seed)
    for number in range(MUTATIONS):
        try_reading(tmp_path / name, mutated(seed, number))
