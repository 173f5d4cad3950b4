"""Images and label maps read as they were stored, in any format."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from raw import raw_png

from cag.datasets.images import (
    colorize,
    image_size,
    read_image,
    read_label,
    write_image,
    write_label,
)
from cag.runtime.errors import UserError

PALETTE = np.array([[128, 64, 128], [244, 35, 232], [70, 70, 70]], np.uint8)


def random(shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def test_importing_images_does_not_import_torch():
    code = "import sys, cag.datasets.preparation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_round_trip_and_equal_bytes(tmp_path):
    image = random((5, 7, 3))
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "b.partial", image[:, ::-1][:, ::-1])
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.partial").read_bytes()


def test_grey_and_rgba_images_become_rgb(tmp_path):
    grey, rgba = random((4, 6)), random((4, 6, 4))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "rgba.png"), rgba[..., :3])


def test_16_bit_images_keep_their_upper_byte(tmp_path):
    grey, color = random((4, 6), 2**16, np.uint16), random((4, 6, 3), 2**16, np.uint16)
    (tmp_path / "grey.png").write_bytes(raw_png(grey, 16, 0))
    (tmp_path / "color.png").write_bytes(raw_png(color, 16, 2))
    assert np.array_equal(read_image(tmp_path / "grey.png")[..., 1], grey >> 8)
    assert np.array_equal(read_image(tmp_path / "color.png"), color >> 8)


def test_palette_image_with_transparency_shows_its_colours(tmp_path):
    indices = random((4, 6), 3)
    picture = Image.fromarray(indices)
    picture.putpalette(PALETTE.tobytes())
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert np.array_equal(read_image(tmp_path / "a.png"), PALETTE[indices])


def test_exif_orientation_is_applied(tmp_path):
    stored = random((4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(stored, -1))
    assert image_size(tmp_path / "a.png") == (6, 4)
    Image.fromarray(stored).save(tmp_path / "b.png")
    assert image_size(tmp_path / "b.png") == (4, 6)


def test_label_round_trip_is_a_palette_png(tmp_path):
    labels = np.array([[0, 1, 2], [255, 255, 0]], np.uint8)
    write_label(tmp_path / "a.png", labels, PALETTE)
    assert np.array_equal(read_label(tmp_path / "a.png"), labels)
    assert read_label(tmp_path / "a.png").dtype == np.uint8
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
    shown = read_image(tmp_path / "a.png")
    assert np.array_equal(shown[0], PALETTE)
    assert not shown[1, :2].any()
    assert np.array_equal(shown, colorize(labels, PALETTE))


@pytest.mark.parametrize(
    ("depth", "color_type", "shape", "dtype"),
    [
        (16, 2, (5, 7, 3), np.uint16),  # SYNTHIA's form
        (16, 6, (5, 7, 4), np.uint16),
        (16, 4, (5, 7, 2), np.uint16),
        (16, 0, (5, 7), np.uint16),
        (8, 0, (5, 7), np.uint8),
        (8, 2, (5, 7, 3), np.uint8),
        (8, 6, (5, 7, 4), np.uint8),
        (8, 4, (5, 7, 2), np.uint8),
        (4, 0, (5, 7), np.uint8),
        (2, 0, (5, 7), np.uint8),
        (1, 0, (5, 7), np.uint8),
    ],
)
def test_labels_of_every_png_form_give_their_stored_values(
    tmp_path, depth, color_type, shape, dtype
):
    stored = random(shape, 2**depth, dtype)
    (tmp_path / "a.png").write_bytes(raw_png(stored, depth, color_type))
    expected = {4: stored[..., :3], 2: stored[..., 0]}.get(shape[-1] if len(shape) == 3 else 0)
    raw = read_label(tmp_path / "a.png")
    assert raw.dtype == dtype
    assert np.array_equal(raw, stored if expected is None else expected)


def test_negative_labels_are_kept(tmp_path):
    stored = np.array([[-1, 7], [33, -1]], np.int32)
    Image.fromarray(stored).save(tmp_path / "a.tif")
    assert np.array_equal(read_label(tmp_path / "a.tif"), stored)


@pytest.mark.parametrize("read", [read_image, read_label, image_size])
def test_unreadable_files_are_named(tmp_path, read):
    path = tmp_path / "a.png"
    with pytest.raises(UserError, match=r"a\.png: no such file"):
        read(path)
    path.write_text("no picture at all, but longer than the header of a PNG file")
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read(path)
    with pytest.raises(UserError, match="not a readable image"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("form", ["8-bit", "16-bit"])
def test_truncated_files_are_refused_at_any_length(tmp_path, read, form):
    path = tmp_path / "a.png"
    if form == "8-bit":
        whole = raw_png(random((40, 40, 3)), 8, 2)
    else:
        whole = raw_png(random((40, 40, 3), 2**16, np.uint16), 16, 2)
    for length in (20, 40, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.png: not a readable image"):
            read(path)


def test_floating_point_labels_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: .*not label values"):
        read_label(tmp_path / "a.tif")
