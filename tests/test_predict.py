"""`cag predict`: folders of photographs of every kind, also damaged ones."""

import errno
import json
import os
import shutil

import click
import numpy as np
import pytest
import torch
from PIL import Image
from raw import raw_png

from cag import cli
from cag.config.networks import Network, Normalization
from cag.datasets.images import colorize, read_image, read_label
from cag.datasets.labels import LabelSpace
from cag.deploy import photographs
from cag.deploy.image_files import list_images, other_files
from cag.deploy.segmenter import Segmenter
from cag.networks import build, save_model
from cag.runtime.errors import UserError
from cag.runtime.files import sha256

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
CONFIG = Network(
    architecture="DeepLabV3Plus",
    encoder="resnet18",
    encoder_weights=None,
    options={"decoder_channels": 16},
    normalization=Normalization(mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = build(CONFIG, SPACE.num_classes)
    with torch.no_grad():
        network.train()(torch.rand(2, 3, 64, 96))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network.eval(), CONFIG, SPACE)
    return path


def photograph(path, height=40, width=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Photographs of three sizes in folders."""
    photos = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.jpg", "one/c.png", "one/two/d.png", "one/two/e.JPG")):
        photograph(photos / name, height=40 + 10 * (i // 2), seed=i)
    (photos / "notes.txt").write_text("no image")
    return photos


def predict(model, *arguments):
    command = ["predict", str(model), *map(str, arguments), "--device", "cpu"]
    cli.cli.main(command, standalone_mode=False)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


NAMES = ["a", "b", "one/c", "one/two/d", "one/two/e"]


@pytest.mark.parametrize("batch", [1, 4])
def test_each_image_gets_its_files_under_its_name(model, folder, tmp_path, batch, capsys):
    out = tmp_path / "out"
    before = {path: sha256(path) for path in folder.rglob("*.*")}
    predict(model, folder, "--out", out, "--confidence", "--batch", batch)
    suffixes = {"labels": "png", "overlays": "jpg", "confidence": "png"}
    expected = [f"{kind}/{name}.{suffix}" for kind, suffix in suffixes.items() for name in NAMES]
    assert files(out) == sorted([*expected, "classes.json"])
    assert before == {path: sha256(path) for path in folder.rglob("*.*")}

    segmenter, counts = Segmenter.from_file(model, "cpu"), np.zeros(3)
    for path in (path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg")):
        name = path.relative_to(folder).with_suffix("")
        labels = read_label(out / "labels" / f"{name}.png")
        assert np.array_equal(labels, segmenter(path))
        counts += np.bincount(labels.ravel(), minlength=3)
        image = read_image(path)
        seen = read_image(out / "overlays" / f"{name}.jpg").astype(float)
        blend = (image.astype(float) + colorize(labels, SPACE.palette_array)) / 2
        assert seen.shape == image.shape
        assert np.abs(seen.mean((0, 1)) - blend.mean((0, 1))).max() < 4
        confidence = read_label(out / "confidence" / f"{name}.png")
        assert np.abs(confidence / 255 - segmenter.probabilities(path).max(0)).max() < 0.003
    with Image.open(out / "labels/a.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:9] == [channel for color in SPACE.palette for channel in color]
    printed = capsys.readouterr().out
    assert printed.startswith("predict: 5 images in ") and "images/s" in printed
    shares = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()[2:]}
    assert shares == pytest.approx(
        dict(zip(SPACE.names, 100 * counts / counts.sum(), strict=True)), abs=0.006
    )
    assert json.loads((out / "classes.json").read_text()) == SPACE.to_dict()


def test_sizes_and_tiles_are_the_segmenters(model, folder, tmp_path):
    predict(model, folder, "--out", tmp_path / "out", "--size", "32,48", "--no-overlay")
    assert not (tmp_path / "out/overlays").exists()
    segmenter = Segmenter.from_file(model, "cpu")
    for name, suffix in (("a", "png"), ("one/two/d", "png"), ("b", "jpg")):
        labels = read_label(tmp_path / f"out/labels/{name}.png")
        assert np.array_equal(labels, segmenter(folder / f"{name}.{suffix}", size=(32, 48)))
    large = photograph(tmp_path / "large.png", 100, 130)
    predict(model, large, "--out", tmp_path / "tiled", "--tile", "64")
    labels = read_label(tmp_path / "tiled/labels/large.png")
    assert np.array_equal(labels, segmenter(large, tile=64))


def test_every_kind_of_image_is_seen_as_it_is_meant(model, tmp_path):
    random = np.random.default_rng(0)
    photos = tmp_path / "photos"
    color = read_image(photograph(photos / "color.png"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(np.rot90(color)).save(photos / "turned.png", exif=exif)
    alpha = random.integers(0, 256, color.shape[:2]).astype(np.uint8)
    Image.fromarray(np.dstack([color, alpha])).save(photos / "alpha.png")
    wide = color.astype(np.uint16) * 256 + random.integers(0, 256, color.shape).astype(np.uint16)
    (photos / "wide.png").write_bytes(raw_png(wide, 16, 2))
    Image.fromarray(color[..., 0]).save(photos / "grey.png")
    (photos / "wide_grey.png").write_bytes(raw_png(wide[..., 0], 16, 0))
    Image.fromarray(color).quantize(64).save(photos / "palette.png")
    Image.fromarray(color).convert("CMYK").save(photos / "cmyk.tif")
    predict(model, photos, "--out", tmp_path / "out")
    labels = {p.stem: read_label(p) for p in (tmp_path / "out/labels").iterdir()}
    assert len(labels) == 8
    for name in ("turned", "alpha", "wide"):
        assert np.array_equal(labels[name], labels["color"]), name
    assert np.array_equal(labels["grey"], labels["wide_grey"])
    predict(model, photos / "turned.png", "--out", tmp_path / "stored", "--as-stored")
    stored = Segmenter.from_file(model, "cpu")(np.rot90(color).copy())
    assert np.array_equal(read_label(tmp_path / "stored/labels/turned.png"), stored)


def test_unreadable_images_are_passed_over_and_listed(model, folder, tmp_path, capsys):
    whole = (folder / "one/c.png").read_bytes()
    (folder / "one/c.png").write_bytes(whole[: len(whole) // 2])
    (folder / "one/two/d.png").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 5 images could not be labelled; listed above"):
        predict(model, folder, "--out", tmp_path / "out", "--json")
    printed = capsys.readouterr()
    listed = [line for line in printed.err.splitlines() if line.startswith("passed over: ")]
    assert "c.png: not a readable image" in listed[0] and "d.png: not a readable" in listed[1]
    assert files(tmp_path / "out/labels") == ["a.png", "b.png", "one/two/e.png"]
    summary = json.loads(printed.out)
    assert summary["images"] == 3 and len(summary["failed"]) == 2
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1, abs=1e-5)
    assert sum(entry["pixels"] for entry in summary["classes"]) == 60 * (40 + 40 + 60)
    assert [entry["class"] for entry in summary["classes"]] == list(SPACE.names)


def test_results_are_no_input_of_the_next_run(model, folder):
    for _ in range(2):
        predict(model, folder, "--out", folder / "labelled")
    assert files(folder / "labelled/labels") == [f"{name}.png" for name in NAMES]


def test_nothing_is_written_where_it_cannot_be_right(model, folder, tmp_path):
    out = tmp_path / "out"
    refused = {
        (tmp_path / "none",): "none: no such file or folder",
        ("a" * 300,): "no such file or folder",
        (folder / "*.t*",): r"\*.t\*: no image found",
        (folder / "a.png", photograph(tmp_path / "a.jpg")): r"a.jpg: .* same name .*/a.png \(a\)",
        (photograph(out / "labels/x.png"),): "x.png: lies where the results go",
        (folder, "--tile", 10): "--tile is 10; expected 0 or at least 64",
    }
    before = files(tmp_path)
    for given, message in refused.items():
        with pytest.raises(UserError, match=message):
            predict(model, *given, "--out", out)
    photograph(folder / "a.jpg")
    with pytest.raises(UserError, match="same name as .* but for the extension"):
        predict(model, folder, "--out", out)
    (folder / "a.jpg").unlink()
    with pytest.raises(UserError, match="no such model"):
        predict(tmp_path / "none.safetensors", folder, "--out", out)
    with pytest.raises(UserError, match="notes.txt: cannot be a folder to write to"):
        predict(model, folder / "a.png", "--out", folder / "notes.txt")
    for size in ("0,5", "5", "20000,5", f"{'9' * 5000},5"):
        with pytest.raises(Exception, match="is neither height,width, such as .* 1 to 16384"):
            predict(model, folder, "--out", out, "--size", size)
    assert files(tmp_path) == before


def test_a_result_that_cannot_be_written_is_listed_and_the_rest_goes_on(
    model, folder, tmp_path, capsys
):
    (tmp_path / "out/labels/one").mkdir(parents=True)
    (tmp_path / "out/labels/one/two").write_text("in the way")
    photograph(folder / f"{'a' * 250}.png")
    with pytest.raises(UserError, match="3 of 6 images could not be labelled; listed above"):
        predict(model, folder, "--out", tmp_path / "out", "--batch", 1)
    listed = [line for line in capsys.readouterr().err.splitlines() if "passed over: " in line]
    assert len(listed) == 3 and all("cannot be written (" in line for line in listed)
    assert files(tmp_path / "out/labels") == ["a.png", "b.png", "one/c.png", "one/two"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_full_disk_ends_the_run(model, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(photographs, "write_label", full)
    with pytest.raises(UserError, match=r"labels/a\.png: cannot be written \(No space left"):
        predict(model, folder, "--out", tmp_path / "out")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: ...")])
def test_what_is_too_large_is_predicted_alone_and_in_smaller_tiles(
    model, tmp_path, monkeypatch, error, capsys
):
    tried, logits = [], Segmenter.logits

    def small_alone(segmenter, images, tile=None):
        tried.append((len(images), tile))
        if len(images) > 1 or not tile or tile > fits:
            raise error
        return logits(segmenter, images, tile)

    monkeypatch.setattr(Segmenter, "logits", small_alone)
    for name in "ab":
        photograph(tmp_path / f"in/{name}.png", 90, 300)
    fits = 100
    predict(model, tmp_path / "in", "--out", tmp_path / "out")
    assert tried == [(2, None), *[(1, None), (1, 150), (1, 75)] * 2]
    for name in "ab":
        expected = Segmenter.from_file(model, "cpu")(tmp_path / f"in/{name}.png", tile=75)
        assert np.array_equal(read_label(tmp_path / f"out/labels/{name}.png"), expected)
    fits = 10
    with pytest.raises(UserError, match="2 of 2 images could not be labelled"):
        predict(model, tmp_path / "in", "--out", tmp_path / "out2")
    assert "a.png: too large for the memory; scale it down" in capsys.readouterr().err


def test_files_that_are_left_out_are_named(model, folder, tmp_path, capsys):
    for name in ("x.HEIC", "one/y.heic", "z\x1b]0;.gif", ".hidden.heic", "@eaDir/z.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    out = folder / "labelled"
    predict(model, folder, "--out", out, "--json")
    printed = capsys.readouterr()
    left_out = [
        str(folder / name) for name in ("notes.txt", "one/y.heic", "x.HEIC", "z\x1b]0;.gif")
    ]
    assert json.loads(printed.out)["left_out"] == left_out
    assert f"left out, no images: 2 .heic ({folder}/one/y.heic, ...), 1 .txt" in printed.err
    assert r"z\x1b]0;.gif" in printed.err and "\x1b" not in printed.err
    own = [out]
    assert other_files([str(folder)], own) == left_out
    assert other_files([f"{folder}/one/**/*.jpg"], own) == [str(folder / "one/two/e.JPG")]
    assert other_files([f"{folder}/*"], own) == [name for name in left_out if "/one/" not in name]
    shutil.rmtree(out)
    for _ in range(2):  # also where the results go to the images: they alone are not named
        predict(model, folder, "--out", folder, "--json")
        assert json.loads(capsys.readouterr().out)["left_out"] == left_out


def test_outputs_that_are_no_numbers_are_no_labels(folder, tmp_path, capsys):
    """As of finite weights that overflow."""
    network = build(CONFIG, SPACE.num_classes)
    network.classifier.weight.data[1] = 3e38
    save_model(tmp_path / "model.safetensors", network.eval(), CONFIG, SPACE)
    with pytest.raises(UserError, match="5 of 5 images could not be labelled"):
        predict(tmp_path / "model.safetensors", folder, "--out", tmp_path / "out", "--confidence")
    assert "a.png: the model's outputs are NaN or infinite" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["classes.json"]
    with pytest.raises(UserError, match="the model's outputs are NaN or infinite"):
        Segmenter.from_file(tmp_path / "model.safetensors", "cpu")(folder / "a.png")


def test_an_empty_name_is_not_the_current_folder(model, folder, tmp_path, monkeypatch):
    """As of a variable that is not set."""
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="a name of images is empty"):
        predict(model, "", "--out", tmp_path / "out")
    for arguments in (("predict", str(model), "a.png", "--out", ""), ("init", ""), ("scenes", "")):
        with pytest.raises(click.BadParameter, match="the name is empty"):
            cli.cli.main(list(arguments), standalone_mode=False)


def test_what_a_pattern_finds_beside_files_is_named(model, folder, tmp_path, capsys):
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    predict(model, f"{folder}/*.png", "--out", tmp_path / "out", "--json")
    left_out = [str(folder / f"{name}.png") for name in ("circle", "gone", "pipe")]
    assert json.loads(capsys.readouterr().out)["left_out"] == left_out


def test_a_pattern_does_not_go_round_in_circles(folder):
    for name in ("one/back", "one/two/back"):  # to follow both would take 2^40 steps
        (folder / name).symlink_to("..")
    with pytest.raises(UserError, match="back: this link leads back to .*; remove it"):
        list_images([f"{folder}/**/*.png"])


def test_files_folders_and_patterns_are_named_below_their_base(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [name for name, _ in list_images([str(folder)])] == NAMES
    assert [name for name, _ in list_images([f"{folder}/one/two/d.png"])] == ["d"]
    assert [name for name, _ in list_images([f"{folder}/**/*.png"])] == ["a", "one/c", "one/two/d"]
    assert [name for name, _ in list_images([f"{folder}/one/*/*"])] == ["two/d", "two/e"]
    assert [name for name, _ in list_images(["*.png", "a.png", "."])] == NAMES  # each once
