"""Images and label maps read as they were stored, in any format."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from raw import png_of_stream, raw_png, raw_tiff

from cag.datasets.images import (
    FORMATS,
    LARGEST_FILE,
    colorize,
    image_size,
    read_image,
    read_label,
    read_picture,
    write_image,
    write_label,
)
from cag.runtime.errors import UserError

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7 += [(0, 1, 1, 2)]  # first column and row, steps of both
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


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_large_texts_and_colour_profiles_have_no_influence(tmp_path, kind):
    """Of editors, of programs that keep their graph in a picture, and of printers."""
    pixels, texts = random((8, 12, 3)), PngImagePlugin.PngInfo()
    profile = random(2_000_000).tobytes() if kind == "iCCP" else None
    for i in range(70 if kind == "tEXt" else 1):
        if kind == "iTXt":
            texts.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
        elif kind != "iCCP":
            texts.add_text(f"text {i}", "x" * (1_000_000 * (1 + (kind == "zTXt"))), kind == "zTXt")
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path, pnginfo=texts, icc_profile=profile)
    assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_far_larger_than_its_image_is_not_read_into_memory(tmp_path, suffix):
    """As a repaired disk leaves it: with zeros, of which the disk keeps none, after its end."""
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(random((8, 12, 3))).save(path)
    expected = read_image(path)
    os.truncate(path, 2**24)
    assert np.array_equal(read_image(path), expected)
    os.truncate(path, LARGEST_FILE + 1)
    with pytest.raises(UserError, match=f"it has {LARGEST_FILE + 1:,} bytes; expected at most"):
        read_image(path)


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows_and_can_be_left(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random((8, 12, 3))).save(path, exif=exif)
    Image.fromarray(random((8, 12, 3))).save(tmp_path / f"stored.{suffix}")
    with Image.open(path) as picture:
        expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    image, found, _ = read_picture(path)
    assert (found, image_size(path)) == (orientation, image.shape[:2])
    assert np.array_equal(image, expected)
    stored = read_image(tmp_path / f"stored.{suffix}")
    assert np.array_equal(read_image(path, turn_by_exif=False), stored)


def exif_jpeg(tag: int, kind: int, value: bytes) -> bytes:
    """A JPEG to be turned by 90 degrees, with one more tag of a given type."""
    buffer = io.BytesIO()
    Image.fromarray(random((4, 6, 3))).save(buffer, "JPEG")
    entries = sorted([(274, 3, b"\6\0\0\0"), (tag, kind, value)])
    fields = b"".join(struct.pack("<HHI", *entry[:2], 1) + entry[2] for entry in entries)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4) + bytes(20)
    part = b"Exif\0\0" + tiff
    jpeg = buffer.getvalue()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + jpeg[2:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [1, 2, 3, 5, 10, 12, 99])
@pytest.mark.parametrize("tag", [270, 282, 34665, 40962])
def test_other_tags_have_no_influence(tmp_path, tag, kind):
    (tmp_path / "a.jpg").write_bytes(exif_jpeg(tag, kind, b"\x48\0\0\0"))
    (tmp_path / "b.jpg").write_bytes(exif_jpeg(305, 2, b"x\0\0\0"))
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))
    assert image_size(tmp_path / "a.jpg") == (6, 4)


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


@pytest.mark.parametrize(
    ("bits", "white"), [(bits, white) for bits in (1, 2, 4, 8, 16) for white in (0, 1)] + [(12, 1)]
)
def test_grey_tiffs_are_labels_as_stored_and_images_as_shown(tmp_path, bits, white):
    """`white` is the photometric interpretation; 0: the number 0 is white."""
    stored, path, most = random((5, 7), 2**bits, np.uint16), tmp_path / "a.tif", 2**bits - 1
    stored[0, 0] = most
    path.write_bytes(raw_tiff(stored, bits, tag_262=white))
    assert np.array_equal(read_label(path), stored)
    shown = stored if white else most - stored
    expected = shown >> bits - 8 if bits >= 8 else shown * 255 // most
    assert np.array_equal(read_image(path)[..., 1], expected)


@pytest.mark.parametrize("form", ["P1", "P4"])
def test_bits_of_a_netpbm_file_are_labels_as_stored(tmp_path, form):
    """The number 1 is black."""
    stored, path = random((5, 7), 2), tmp_path / "a.ppm"
    packed = np.packbits(stored, axis=1).tobytes()
    path.write_bytes(f"{form}\n7 5\n".encode() + packed)
    if form == "P1":
        path.write_text(f"P1\n7 5\n{' '.join(map(str, stored.ravel()))}\n")
    assert np.array_equal(read_label(path), stored)
    assert np.array_equal(read_image(path)[..., 0], 255 * (1 - stored))


@pytest.mark.parametrize(
    ("bits", "kind", "low", "high"),
    [(8, 2, -128, 127), (16, 2, -(2**15), 2**15 - 1), (32, 2, -(2**31), 7), (32, 1, 0, 2**32 - 1)],
)
def test_a_tiffs_numbers_keep_their_sign(tmp_path, bits, kind, low, high):
    stored = np.array([[low, -1 if low else 0, 0], [1, 7, high]])
    (tmp_path / "a.tif").write_bytes(raw_tiff(stored, bits, tag_339=kind))
    assert read_label(tmp_path / "a.tif").astype(np.int64).tolist() == stored.tolist()


def test_colours_of_a_tiff_that_pillow_changes_are_no_labels(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(raw_tiff(random((5, 7, 3), 2**16, np.uint16), 16, tag_262=2))
    assert read_image(path).shape == (5, 7, 3)
    with pytest.raises(UserError, match=r"a\.tif: .*its colours have 16 bits.*save it as PNG"):
        read_label(path)
    colors = random((5, 7, 4))
    path.write_bytes(raw_tiff(colors, 8, tag_262=2, tag_338=1))
    with pytest.raises(UserError, match=r"a\.tif: .*multiplied by its alpha; save it without"):
        read_label(path)
    colors[..., 3] = 255
    path.write_bytes(raw_tiff(colors, 8, tag_262=2, tag_338=1))
    assert np.array_equal(read_label(path), colors[..., :3])


def test_channels_one_after_another_are_an_image_or_refused(tmp_path):
    path, colors = tmp_path / "a.tif", random((5, 7, 3))
    path.write_bytes(raw_tiff(colors, 8, tag_262=2, tag_284=2))
    assert np.array_equal(read_image(path), colors)
    path.write_bytes(raw_tiff(colors.astype(np.uint16) << 8, 16, tag_262=2, tag_284=2))
    with pytest.raises(UserError, match=r"a\.tif: .*16-bit channels lie one after another"):
        read_image(path)


def test_what_a_decoder_notes_is_not_printed(tmp_path, caplog):
    path = tmp_path / "a.tif"
    path.write_bytes(raw_tiff(random((5, 7, 3)), 8, tag_262=2, tag_277=300))
    with pytest.raises(UserError, match=r"a\.tif"):
        read_image(path)
    assert caplog.text == ""


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
    with pytest.raises(UserError, match="Is a directory"):
        read(tmp_path)


def test_a_jpeg_that_ends_in_zeros_is_refused(tmp_path):
    """As a download does that was broken off, in a file of the whole length."""
    buffer, thumbnail = io.BytesIO(), io.BytesIO()
    Image.fromarray(random((8, 8, 3))).save(thumbnail, "JPEG")  # has an end of its own
    Image.fromarray(random((64, 64, 3))).save(
        buffer, "JPEG", exif=b"Exif\0\0" + thumbnail.getvalue()
    )
    path, data = tmp_path / "a.jpg", buffer.getvalue()
    for end in (b"", b"\0" * 100, b"a maker's notes"):
        path.write_bytes(data + end)
        assert read_image(path).shape == (64, 64, 3)
    for share in (0.5, 0.75, 0.95):
        path.write_bytes(data[: int(share * len(data))].ljust(2 * len(data), b"\0"))
        with pytest.raises(UserError, match=r"a\.jpg: not a readable image \(it ends early"):
            read_image(path)


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


@pytest.mark.parametrize("read", [read_image, read_label, image_size])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EMFILE, "Too many open files"),
        (errno.EIO, "check the disk or the network drive"),
        (errno.ESTALE, "check the disk or the network drive"),
    ],
)
def test_a_file_that_cannot_be_opened_is_not_called_damaged(
    tmp_path, monkeypatch, read, number, words
):
    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Image, "open", fail)
    write_image(tmp_path / "a.png", random((4, 4)))
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path / "a.png")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_label, image_size])
@pytest.mark.parametrize("kind", ["EPS", "PCX", "DDS", "GIF", "ICO", "SGI", "TGA", "PDF"])
def test_other_formats_reach_no_decoder(tmp_path, monkeypatch, read, kind):
    path = tmp_path / "a.png"
    Image.fromarray(random((4, 6, 3))).save(path, format=kind)
    for name in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (lambda *_: pytest.fail("decoded"), None))
    with pytest.raises(UserError, match=r"a\.png: .* none of PNG, JPEG, BMP, TIFF, WEBP, PPM"):
        read(path)


@pytest.mark.parametrize("high", [1.0, 65535.0])
def test_floating_point_images_are_refused(tmp_path, high):
    Image.fromarray(np.full((3, 3), high, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: .*floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int32, -1, 7000), (np.int32, 0, 70000), (np.int32, 0, 255), (np.uint16, 0, 255)],
)
def test_integers_that_would_be_lost_are_refused(tmp_path, dtype, low, high):
    Image.fromarray(np.array([[low, high]], dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif: .*values are {low} to {high}"):
        read_image(tmp_path / "a.tif")


def test_integers_of_16_bits_are_kept(tmp_path):
    for name, values in (("a.tif", [[0, 256, 65535]]), ("b.tif", [[0, 0, 0]])):
        Image.fromarray(np.array(values, np.int32)).save(tmp_path / name)
    assert read_image(tmp_path / "a.tif")[..., 1].tolist() == [[0, 1, 255]]
    assert not read_image(tmp_path / "b.tif").any()


def test_the_limit_of_pixels_is_named_and_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: more than 16 pixels.* CAG_MAX_PIXELS") as caught:
        read_image(tmp_path / "a.png")
    assert "attack" not in str(caught.value)
    monkeypatch.setenv("CAG_MAX_PIXELS", "48")
    assert read_image(tmp_path / "a.png").shape == (4, 6, 3)
    monkeypatch.setenv("CAG_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="CAG_MAX_PIXELS is 'many'; expected a number"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("part", [b"IHDR", b"IDAT", b"PLTE"])
@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_changed_byte_of_a_png_is_noticed(tmp_path, read, part):
    write_label(tmp_path / "a.png", random((40, 40), 3), PALETTE)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(part) + 11] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["checksum", "cut", "short", "filter"])
def test_a_16_bit_label_with_damaged_pixels_is_refused(tmp_path, kind):
    rows = b"".join(b"\0" + random(24).tobytes() for _ in range(5))  # 4 x 5 colours
    rows = {"short": rows[:-25], "filter": b"\7" + rows[1:]}.get(kind, rows)
    stream = bytearray(zlib.compress(rows))
    stream = {"checksum": stream[:-1] + bytes([stream[-1] ^ 1]), "cut": stream[:-9]}.get(
        kind, stream
    )
    (tmp_path / "a.png").write_bytes(png_of_stream((5, 4), 16, 2, bytes(stream)))
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_label(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize(
    ("depth", "color_type", "row_bytes"),
    [(8, 0, 7), (8, 2, 21), (8, 4, 14), (8, 6, 28), (16, 0, 14), (16, 2, 42), (16, 4, 28)]
    + [(1, 0, 1), (2, 0, 2), (4, 0, 4)],  # rows of 7 pixels, filled up to whole bytes
)
def test_a_whole_stream_of_too_few_rows_is_refused(tmp_path, read, depth, color_type, row_bytes):
    path, size = tmp_path / "a.png", (5, 7)
    for rows in (5, 4, 1):
        for row in (b"\0" + b"\xf9" * row_bytes, bytes(1 + row_bytes)):  # black ones are right
            path.write_bytes(png_of_stream(size, depth, color_type, zlib.compress(row * rows)))
            if rows == 5:
                assert read(path).shape[:2] == size
            else:
                with pytest.raises(UserError, match=r"a\.png: .*incomplete"):
                    read(path)


@pytest.mark.parametrize("height", [1, 2, 5])
def test_an_interlaced_stream_of_too_few_rows_is_refused(tmp_path, height):
    stored, rows = np.full((height, 7), 249, np.uint8), []
    for x0, y0, dx, dy in ADAM7:
        rows += [b"\0" + row.tobytes() for row in stored[y0::dy, x0::dx]]
    path = tmp_path / "a.png"
    path.write_bytes(png_of_stream((height, 7), 8, 0, zlib.compress(b"".join(rows)), 1))
    assert np.array_equal(read_label(path), stored)
    path.write_bytes(png_of_stream((height, 7), 8, 0, zlib.compress(b"".join(rows[:-1])), 1))
    for read in (read_image, read_label):
        with pytest.raises(UserError, match=r"a\.png: .*incomplete"):
            read(path)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colours_that_would_be_lost_are_refused(tmp_path, color_type, channels):
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(random((4, 6, channels)), 16, color_type))
    with pytest.raises(UserError, match=r"a\.png: .*values are below 256; expected 16 bits"):
        read_image(path)
    path.write_bytes(raw_png(np.zeros((4, 6, channels)), 16, color_type))
    assert not read_image(path).any()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_adobe_deflate"}])
def test_16_bits_whose_0_is_white_are_inverted(tmp_path, options):
    stored = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    stored.save(tmp_path / "a.tif", tiffinfo={262: 0}, **options)
    assert read_image(tmp_path / "a.tif")[..., 1].tolist() == [[255, 254, 0]]


@pytest.mark.parametrize(
    ("form", "largest", "pixels"),
    [("P5", 18, b"\1\2"), ("P2", 18, b"1 2"), ("P5", 300, b"\0\1\0\2"), ("P5", 255, b"\1\2")]
    + [("P2", 255, b"1 2"), ("P5", 65535, b"\0\1\0\2"), ("P2", 65535, b"1 2")]
    + [("P3", 65535, b"1 1 1 2 2 2"), ("P3", 255, b"1 1 1 2 2 2")],
)
def test_a_label_whose_values_would_be_stretched_is_refused(tmp_path, form, largest, pixels):
    (tmp_path / "a.pgm").write_bytes(f"{form}\n2 1\n{largest}\n".encode() + pixels)
    if largest == 255 or largest == 65535 and form != "P3":
        assert read_label(tmp_path / "a.pgm").reshape(2, -1)[:, 0].tolist() == [1, 2]
    else:
        with pytest.raises(UserError, match=rf"a\.pgm: .*maxval.* is {largest}; expected"):
            read_label(tmp_path / "a.pgm")


def test_a_lossless_webp_label_may_hold_other_parts(tmp_path):
    stored, exif = random((8, 8, 3)), Image.Exif()
    exif[305] = "a program"
    options = {"exif": exif, "icc_profile": bytes(131)}
    Image.fromarray(stored).save(tmp_path / "a.webp", lossless=True, **options)
    assert np.array_equal(read_label(tmp_path / "a.webp"), stored)
    Image.fromarray(stored).save(tmp_path / "b.webp", **options)
    with pytest.raises(UserError, match=r"b\.webp: a lossy WEBP"):
        read_label(tmp_path / "b.webp")


@pytest.mark.parametrize("color_type", [2, 4, 6])
def test_interlaced_16_bit_labels(tmp_path, color_type):
    stored = random((5, 7, {2: 3, 4: 2, 6: 4}[color_type]), 2**16, np.uint16)
    rows = b""
    for x0, y0, dx, dy in ADAM7:
        rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored[y0::dy, x0::dx])
    stream = zlib.compress(rows)
    (tmp_path / "a.png").write_bytes(png_of_stream((5, 7), 16, color_type, stream, interlaced=1))
    expected = stored[..., 0] if color_type == 4 else stored[..., :3]
    assert np.array_equal(read_label(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 100}), ("a.webp", {}), ("a.tif", {"compression": "jpeg"})],
)
def test_lossy_labels_are_refused(tmp_path, name, options):
    Image.fromarray(random((8, 8, 3))).save(tmp_path / name, **options)
    read_image(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: a lossy .*; make the labels anew .* as PNG"):
        read_label(tmp_path / name)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_of_several_pages_the_first_is_an_image_but_no_label(tmp_path, suffix):
    path, pages = tmp_path / f"a.{suffix}", [Image.fromarray(random((8, 8, 3))) for _ in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert read_picture(path).pages == 3
    assert np.array_equal(read_image(path), np.array(pages[0]))
    with pytest.raises(UserError, match="3 pages or frames; expected one label map .*; save"):
        read_label(path)


def test_lossless_labels_of_other_formats_are_read(tmp_path):
    stored = random((8, 8, 3))
    for name, options in (("a.webp", {"lossless": True}), ("a.tif", {}), ("a.bmp", {})):
        Image.fromarray(stored).save(tmp_path / name, **options)
        assert np.array_equal(read_label(tmp_path / name), stored), name


def test_a_palettes_colours_are_read_where_they_are_asked_for(tmp_path):
    write_label(tmp_path / "a.png", random((5, 4), 3), PALETTE)
    indices, colors = read_label(tmp_path / "a.png"), read_label(tmp_path / "a.png", colors=True)
    assert np.array_equal(colors, PALETTE[indices])
    Image.fromarray(colors).save(tmp_path / "b.png")
    assert np.array_equal(read_label(tmp_path / "b.png", colors=True), colors)


def test_floating_point_labels_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: .*not label values"):
        read_label(tmp_path / "a.tif")
