"""Checks of raw data: errors are listed, and target training labels are never opened."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib import get_data_path
from PIL import Image
from raw import label, picture, raw_data, raw_png, write_cityscapes, write_gta5, write_synthia

import cag.project.raw_data
from cag import cli
from cag.config.parameters import load_all
from cag.datasets.checks import oddity
from cag.datasets.images import read_image, turned, write_label
from cag.datasets.labels import IGNORE, ClassMap, LabelSpace, read_class_map
from cag.datasets.layouts import Split, list_split
from cag.deploy.export import FullResolution
from cag.networks import SegmentationNetwork
from cag.project.raw_data import (
    COMPLETE,
    SplitCheck,
    check_split,
    crop_warnings,
    disk_needed,
    network_form,
    step_memory,
)
from cag.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
SIZE = (32, 64)
SPACE = LabelSpace(("road", "sky", "train"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
CLASS_MAP = ClassMap(SPACE, {7: 0, 23: 1, 0: IGNORE})
SPLIT = Split("train", "images", "labels")


def check(folder, split=SPLIT, class_map=CLASS_MAP, **options):
    return check_split(list_split(folder, split), folder, split, class_map, **options)


def test_values_and_absent_classes_are_counted(tmp_path):
    raw_data(tmp_path, ("a", "b", "c"))  # 8 x 12 pixels of 7 each
    label(tmp_path / "labels/b.png", value=0)
    done = []
    found = check(tmp_path, absent_is_wrong=False, on_item=lambda: done.append(1))
    assert found.values.values.tolist() == [
        [7, "road", 192, 2, "labels/a.png"],
        [0, "(ignored)", 96, 1, "labels/b.png"],
    ]
    assert (found.images, found.pixels, found.size, len(done)) == (3, 288, (8, 12), 3)
    assert found.absent == ["sky", "train"]
    assert found.problems == []


def test_a_class_that_never_occurs_is_wrong_unless_the_map_says_so(tmp_path):
    raw_data(tmp_path)
    (problem,) = check(tmp_path).problems  # "train" has no values in the map
    assert problem.startswith(f"{tmp_path}: the class 'sky' never occurs in the split 'train'")


def test_labels_without_a_class_are_one_problem(tmp_path):
    raw_data(tmp_path)
    for path in (tmp_path / "labels").rglob("*.png"):
        label(path, value=0)
    for absent_is_wrong in (True, False):
        (problem,) = check(tmp_path, absent_is_wrong=absent_is_wrong).problems
        assert "no pixel of the split 'train' has a class" in problem


def test_everything_wrong_is_listed(tmp_path):
    raw_data(tmp_path, ("a", "b", "c", "d", "e"))
    label(tmp_path / "labels/a.png", height=9)
    label(tmp_path / "labels/b.png", value=23)
    label(tmp_path / "labels/c.png", value=99)
    picture(tmp_path / "labels/d.png")  # colours
    (tmp_path / "images/e.png").write_text("no image")
    found = check(tmp_path, complete=6)
    assert [problem.partition(":")[0] for problem in found.problems] == [
        str(tmp_path / "images"),
        f"{tmp_path / 'images/a.png'} is 12 x 8 pixels, but its label "
        f"{tmp_path / 'labels/a.png'} is 12 x 9; they must have one size",
        str(tmp_path / "labels/d.png"),
        str(tmp_path / "images/e.png"),
        str(tmp_path / "labels/c.png"),
        str(tmp_path),  # no road
    ]
    assert "5 images, the data set has 6" in found.problems[0]
    assert "label value 99 (in 1 images) not in the class map" in found.problems[4]
    assert check(tmp_path, complete=5).problems == found.problems[1:]


def test_unknown_label_values_are_one_problem(tmp_path):
    raw_data(tmp_path, "abcdefghijkl")
    for number, name in enumerate("abcdefghij"):
        label(tmp_path / f"labels/{name}.png", value=90 + number)
    problem, *_ = check(tmp_path).problems
    assert problem.startswith(f"{tmp_path / 'labels/a.png'}: label values 90 (in 1 images), 91 (")
    assert "97 (in 1 images) and 2 more not in the class map; list each under" in problem


def test_several_sizes_are_wrong_once_where_there_must_be_one(tmp_path):
    raw_data(tmp_path, ("a", "b", "c"))
    for name in ("b", "c"):
        picture(tmp_path / f"images/{name}.png", height=16)
        label(tmp_path / f"labels/{name}.png", height=16)
    (problem,) = check(tmp_path, absent_is_wrong=False, one_size=True).problems
    assert problem.startswith(f"{tmp_path}/images/b.png: 12 x 16 pixels, those before it 12 x 8;")
    assert check(tmp_path, absent_is_wrong=False).problems == []


def test_a_layout_that_leaves_out_counts_what_it_leaves_out(tmp_path):
    write_gta5(tmp_path, 2, SIZE, mismatched=1)
    class_map = ClassMap(SPACE, {7: 0}, ignore_rest=True)
    found = check(tmp_path, Split("train", "images", "labels", drop_mismatched=True), class_map)
    assert (found.images, found.left_out, found.problems) == (3, 1, [])
    assert found.pixels == 2 * SIZE[0] * SIZE[1] == found.values["pixels"].sum()
    assert len(check(tmp_path, SPLIT, class_map).problems) == 1


def test_without_labels_none_is_opened(tmp_path, monkeypatch):
    raw_data(tmp_path)
    monkeypatch.setattr(cag.project.raw_data, "read_raw_label", lambda *_: pytest.fail("opened"))
    found = check(tmp_path, Split("train", "images", None))
    assert (found.images, found.values, found.absent, found.problems) == (3, None, [], [])


def shapes(height=40, width=60, value=7):
    """An image with two edges and its label map."""
    label = np.zeros((height, width), np.uint8)
    label[:10], label[:, 40:] = value, value
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    return (label[..., None] * 20 + noise).astype(np.uint8), label


@pytest.mark.parametrize("as_shown", [True, False])
@pytest.mark.parametrize("turn", [True, False, None])  # None: a layout without the parameter
def test_label_maps_that_fit_turned_images_the_other_way_are_noticed(tmp_path, as_shown, turn):
    image, label = shapes()
    exif = Image.Exif()
    exif[0x0112] = 3
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in "abc":
        stored = image[::-1, ::-1] if as_shown else image
        options = {"exif": exif} if name != "c" else {}
        Image.fromarray(stored).save(tmp_path / f"images/{name}.png", **options)
        Image.fromarray(label).save(tmp_path / f"labels/{name}.png")
    found = check(
        tmp_path, Split("train", "images", "labels", turn_by_exif=turn), absent_is_wrong=False
    )
    assert found.turned == {"turned by 180 degrees": 2}
    assert found.plain()["turned"] == found.turned
    if (turn is not False) == as_shown:
        assert found.warnings == []
    else:
        (warning,) = found.warnings
        assert "label maps fit the 2 images" in warning
        remedy = f"set turn_by_exif: {str(as_shown).lower()}"
        assert warning.endswith("look at them" if turn is None else remedy)


def test_a_label_of_exchanged_sides_points_to_the_parameter(tmp_path):
    picture(tmp_path / "images/a.png")
    label(tmp_path / "labels/a.png", height=12, width=8)
    split = Split("train", "images", "labels", turn_by_exif=True)
    assert "another turn_by_exif" in check(tmp_path, split).problems[0]
    assert "turn_by_exif" not in check(tmp_path).problems[0]  # a layout without the parameter


@pytest.mark.parametrize(
    ("pixels", "oddity"),
    [
        (np.zeros((40, 40, 3)), "nearly black"),
        (np.full((40, 40, 3), 250), "nearly white"),
        (np.full((40, 40, 3), (200, 0, 100)), "of one colour"),
        (
            np.arange(160)[:, None, None]
            // 40
            * np.array([9, 60, 20]).repeat(200).reshape(1, 200, 3),
            "of few colours",
        ),
    ],
)
def test_odd_images_are_named(tmp_path, pixels, oddity):
    picture(tmp_path / "images/a.png", 40, 40)
    for name in "bc":
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"images/{name}.png")
    (warning,) = check(tmp_path, Split("train", "images", None)).warnings
    assert f"2 of 3 images are {oddity}" in warning and "such as images/b.png" in warning


def test_a_jpeg_that_ends_early_is_named_and_a_photograph_is_not(tmp_path):
    photograph = Path(get_data_path(), "sample_data/grace_hopper.jpg")
    data, image = photograph.read_bytes(), read_image(photograph)
    assert oddity(image) is None
    for rows in (image.copy(), np.rot90(image).copy()):
        rows[:80] = rows[-80:] = 0  # a film's bars
        assert oddity(rows) is None
    for part in (1 / 3, 0.8):
        (tmp_path / "a.jpg").write_bytes(data[: int(part * len(data))] + b"\xff\xd9")
        for orientation in (1, 3, 6, 8):
            assert "cut off" in oddity(turned(read_image(tmp_path / "a.jpg"), orientation))


def test_12_and_14_bits_saved_as_16_are_odd(tmp_path):
    for bits, kind in ((12, "nearly black"), (14, "dark"), (16, None)):
        values = np.random.default_rng(0).integers(0, 2**bits, (40, 40, 3))
        (tmp_path / "a.png").write_bytes(raw_png(values, 16, 2))
        found = oddity(read_image(tmp_path / "a.png"))
        assert found is None if kind is None else found.startswith(kind)


def test_images_of_several_pages_are_named(tmp_path):
    pages = [Image.fromarray(np.full((40, 40, 3), value, np.uint8)) for value in (50, 100)]
    (tmp_path / "images").mkdir()
    pages[0].save(tmp_path / "images/a.tif", save_all=True, append_images=pages[1:])
    (warning,) = check(tmp_path, Split("train", "images", None)).warnings
    assert "1 of 1 images are of several pages or frames, of which only the first" in warning


def test_colours_of_a_palette_are_counted(tmp_path):
    picture(tmp_path / "images/a.png")
    palette = np.array([[128, 64, 128], [70, 130, 180]], np.uint8)
    (tmp_path / "labels").mkdir()
    write_label(tmp_path / "labels/a.png", np.arange(96).reshape(8, 12) % 2, palette)
    class_map = ClassMap(SPACE, {(128, 64, 128): 0, (70, 130, 180): 1})
    found = check(tmp_path, class_map=class_map)
    assert found.problems == []
    assert sorted(found.values["class"]) == ["road", "sky"]


def test_colours_with_transparency_are_counted(tmp_path):
    picture(tmp_path / "images/a.png")
    colours = np.array([[128, 64, 128, 7], [70, 130, 180, 255]], np.uint8)
    (tmp_path / "labels").mkdir()
    Image.fromarray(colours[np.arange(96).reshape(8, 12) % 2]).save(tmp_path / "labels/a.png")
    found = check(tmp_path, class_map=ClassMap(SPACE, {(128, 64, 128): 0, (70, 130, 180): 1}))
    assert sorted(found.values["class"]) == ["road", "sky"]


def test_a_mask_of_0_and_255_has_two_classes(tmp_path):
    raw_data(tmp_path, ("a", "b"))
    label(tmp_path / "labels/a.png", value=0)
    label(tmp_path / "labels/b.png", value=255)
    found = check(tmp_path, class_map=ClassMap(SPACE, {0: 0, 255: 1})).values
    assert dict(zip(found["value"], found["class"], strict=True)) == {0: "road", 255: "sky"}


def test_disk_by_hand():
    params = load_all(ROOT / "presets/gta5_to_cityscapes.yaml")
    split = [SplitCheck("train", 10, left_out=2), SplitCheck("val", 4)]
    needed = disk_needed("source", params.source, split[:1], params, 19, (256, 4))
    assert needed.prepare == 8 * 1052 * 1914 * 2
    per_image, samples = 2 * 19 * (4 * 256 + 8), 19 * 200 * (2 * 256 + 1)
    assert needed.features == 3 * (8 * per_image + samples)
    needed = disk_needed("target", params.target, split, params, 19, (256, 4))
    assert needed.prepare == 12 * 1024 * 2048 * 2
    assert needed.features == 3 * int(8 * 256 * 512 * (1.15 * 41 + 1.5))
    own = params.target.model_copy(update={"size": None})
    split = [SplitCheck("train", 2, pixels=2 * 30 * 50, size=(30, 50))]
    needed = disk_needed("target", own, split, params, 19, (16, 4))
    assert needed == (2 * 30 * 50 * 2, 3 * int(2 * 8 * 13 * (1.15 * 17 + 1.5)))


def test_network_form_is_the_networks():
    assert network_form(load_all(ROOT / "presets/scenes.yaml"), 5) == (128, 4)


def test_a_network_that_does_not_fit_the_crops_is_found_before_any_training():
    params = load_all(ROOT / "presets/scenes.yaml")
    network = params.network.model_copy(
        update={"architecture": "PAN", "encoder": "resnet18", "options": {}}
    )
    assert network_form(params.model_copy(update={"network": network}), 5) == (32, 4)
    augmentation = params.adapt.augmentation.model_copy(update={"crop": (64, 64)})
    adapt = params.adapt.model_copy(update={"augmentation": augmentation})
    with pytest.raises(UserError, match="cannot take images of 64 x 64 pixels .* larger images"):
        network_form(params.model_copy(update={"network": network, "adapt": adapt}), 5)


def test_a_network_of_one_size_of_images_is_found_before_any_training():
    params = load_all(ROOT / "presets/scenes.yaml")
    network = {"architecture": "Linear", "encoder": "tu-test_vit", "options": {}}
    network = params.network.model_copy(update=network)
    assert network_form(params.model_copy(update={"network": network}), 5) == (64, 16)
    fixed = network.model_copy(update={"options": {"dynamic_img_size": False}})
    with pytest.raises(UserError, match="cannot take images of 112 x 224 pixels .* another netw"):
        network_form(params.model_copy(update={"network": fixed}), 5)


def test_the_memory_is_that_of_the_training_that_takes_most():
    params = load_all(ROOT / "presets/scenes.yaml")
    small = {"encoder": "tu-test_efficientnet", "encoder_weights": None, "options": {}}
    network = params.network.model_copy(update=small)
    params = params.model_copy(update={"network": network, "precision": "bf16-mixed"})

    def most(**changes):
        sections = {k: getattr(params, k).model_copy(update=v) for k, v in changes.items()}
        return step_memory(params.model_copy(update=sections), 5)

    adapt = most()
    assert adapt[1:] == ("adapt", "bf16-mixed")
    pretrain = most(pretrain={"batch_size": 16})
    assert pretrain.training == "pretrain" and pretrain.bytes > adapt.bytes
    assert most(warmup={"batch_size": 8}) == adapt  # of 0 steps
    warmup = most(warmup={"batch_size": 8, "iterations": 1})
    assert warmup.training == "warmup" and warmup.bytes > adapt.bytes


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a folder with a preset, a small network and raw data beside it."""
    shutil.copytree(ROOT / "classes", tmp_path / "project/classes")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("CAG_DATA", str(tmp_path / "raw"))
    counts = {**COMPLETE, ("cityscapes", "train"): 3, ("cityscapes", "val"): 2}
    counts |= {("gta5", "train"): 4, ("synthia", "train"): 3}
    monkeypatch.setattr(cag.project.raw_data, "COMPLETE", counts)
    monkeypatch.setattr(cag.project.raw_data, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(cag.project.raw_data, "trace", lambda _: None)  # it takes seconds

    def choose(name):
        params = yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text())
        params["network"] |= {"encoder": "tu-test_efficientnet", "encoder_weights": None}
        for domain in ("source", "target"):
            params[domain]["size"] = list(SIZE)
        Path("params.yaml").write_text(yaml.safe_dump(params))
        write_cityscapes(tmp_path / "raw/cityscapes", {"train": 3, "val": 2}, SIZE)
        for path in (tmp_path / "raw/cityscapes/gtFine/train").rglob("*.png"):
            path.write_text("not to be opened")
        return tmp_path / "raw"

    return choose


def set_crops(size):
    params = yaml.safe_load(Path("params.yaml").read_text())
    for training in ("pretrain", "warmup", "adapt"):
        params[training]["augmentation"]["crop"] = list(size)
    Path("params.yaml").write_text(yaml.safe_dump(params))


def call(*arguments):
    cli.cli.main(["data", "check", *arguments], standalone_mode=False)


def every_class(path, ids, form):
    """Write a row of each id at the top of a label, so that all classes occur."""
    rows = np.resize(np.array(ids), SIZE)
    if form == "synthia":
        rows = np.stack([rows, rows * 0 + 5, rows * 0], axis=2)
        path.write_bytes(raw_png(rows.astype(np.uint16), 16, 2))
    else:
        Image.fromarray(rows.astype(np.uint8)).save(path)


def test_good_gta5_and_cityscapes(project, capsys):
    raw = project("gta5_to_cityscapes")
    write_gta5(raw / "gta5", 3, SIZE, mismatched=1)
    every_class(raw / "gta5/labels/00001.png", range(35), "gta5")
    call()
    shown = capsys.readouterr().out
    assert "train: 4 images, 1 left out (label of another size)" in shown
    assert "train: 3 images\n" in shown and "val: 2 images\n" in shown
    assert "wrong" not in shown
    assert "disk: prepare 0.0 GB, features 0.0 GB in 3 rounds; free 1.0 GB" in shown
    form = r"memory: a step of warmup takes most, (\d+\.\d) GB in 32-true on one device; `cag plan`"
    (memory,) = re.findall(form, shown)
    assert 0.1 < float(memory) < 14.9  # a small network, and the preset's own
    assert [line.split()[:2] for line in shown.splitlines() if "bicycle" in line][0] == [
        *("33", "bicycle"),
    ]


def test_json_has_what_was_found_and_what_is_wrong(project, capsys):
    raw = project("gta5_to_cityscapes")
    write_gta5(raw / "gta5", 3, SIZE, mismatched=1)
    with pytest.raises(UserError, match="found to be wrong"):
        call("--json", "source")
    found = json.loads(capsys.readouterr().out)
    (train,) = found["domains"]["source"]
    assert (train["images"], train["left_out"], train["size"]) == (4, 1, list(SIZE))
    assert sum(row["pixels"] for row in train["values"]) == 3 * SIZE[0] * SIZE[1]
    assert len(found["problems"]) == len(train["absent"])
    assert found["disk_bytes"]["free"] == 10**9


def test_good_synthia(project, capsys):
    raw = project("synthia_to_cityscapes")
    write_synthia(raw / "synthia", 3, SIZE)
    every_class(raw / "synthia/GT/LABELS/0000000.png", range(23), "synthia")
    call("source")
    shown = capsys.readouterr().out
    assert "wrong" not in shown and "cityscapes" not in shown
    assert "never" not in shown


def test_broken_data_end_with_status_1_and_a_list(project, capsys, monkeypatch):
    raw = project("synthia13_to_cityscapes")
    write_synthia(raw / "synthia", 2, SIZE)
    every_class(raw / "synthia/GT/LABELS/0000000.png", range(24), "synthia")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(raw / "synthia/GT/LABELS/0000001.png")
    shutil.rmtree(raw / "cityscapes/gtFine/val")
    monkeypatch.setattr(cag.project.raw_data, "free_bytes", lambda _: 10)
    monkeypatch.setattr("sys.argv", ["cag", "data", "check"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    wrong = [line for line in printed.out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 5
    for line, words in zip(
        wrong,
        (
            "RGB: 2 images, the data set has 3",
            "0000001.png: the label has one channel, the class map classes/synthia_13.yaml reads",
            "0000000.png: label value 23 (in 1 images) not in the class map classes/synthia_13",
            "gtFine/val: no such folder",
            "the disk has 0.0 GB for 0.0 GB",
        ),
        strict=True,
    ):
        assert words in line
    assert printed.err == "error: 5 found to be wrong; listed above\n"


def test_part_of_a_data_set_and_classes_that_differ(project, capsys):
    raw = project("synthia13_to_cityscapes")
    write_synthia(raw / "synthia", 2, SIZE)
    every_class(raw / "synthia/GT/LABELS/0000000.png", range(23), "synthia")
    call("source", "--partial")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["source"]["class_map"] = "classes/synthia_16.yaml"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match="1 found to be wrong"):
        call("source", "--partial")
    assert "the source has 16 classes, the target 13; train id 3 is 'wall' in the" in (
        capsys.readouterr().out
    )


def test_scenes_have_no_files_to_check(project, capsys):
    project("scenes")
    set_crops(SIZE)
    call()
    said = capsys.readouterr().out
    assert "target: scenes, rendered by prepare" in said and "warning" not in said


def test_a_network_that_cannot_be_exported_is_named_before_it_is_trained(monkeypatch):
    params = load_all(ROOT / "presets/scenes.yaml")
    network = params.network.model_copy(update={"encoder": "tu-test_efficientnet"})
    params = params.model_copy(update={"network": network})
    assert cag.project.raw_data.export_warnings(params, 3) == []

    def forward(self, images):
        if images.mean() > 0:  # which a trace cannot follow
            images = 2 * images
        return given(self, images)

    given = SegmentationNetwork.forward
    monkeypatch.setattr(
        FullResolution, "forward", lambda self, images: forward(self.network, images)
    )
    (warning,) = cag.project.raw_data.export_warnings(params, 3)
    assert warning.startswith(
        "`cag export` of this network will fail: this network cannot be traced"
    )
    assert "try the other --format, or train another network.architecture" in warning


def test_weights_that_only_the_hub_has_are_named_before_they_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    network = load_all(ROOT / "presets/camvid_day_to_dusk.yaml").network
    (warning,) = cag.project.raw_data.weights_warnings(network)
    file = tmp_path / "mobilenet_v2_imagenet.safetensors"
    assert str(file) in warning and "`pretrain` will ask the hub" in warning
    assert warning.endswith("take an encoder with a package: tu-tf_efficientnet_lite0")
    file.touch()
    others = [{}, {"encoder_weights": None}, {"encoder": "tu-tf_efficientnet_lite0"}]
    for update in others:  # a file, none, an installed package
        assert cag.project.raw_data.weights_warnings(network.model_copy(update=update)) == []


# Crops


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_crops_of_the_presets_suit_their_images(path):
    params = load_all(path)
    sizes = {domain: getattr(params, domain).size for domain in ("source", "target")}
    assert crop_warnings(params, sizes) == []


def test_crops_that_do_not_suit_their_images_are_named_once_for_all_trainings():
    params = load_all(ROOT / "presets/cityscapes_to_idd_lite.yaml")  # crops of [112, 160]
    sizes = {"source": (256, 512), "target": (60, 96)}
    small, large = crop_warnings(params, sizes)
    assert small.startswith("augmentation.crop of pretrain, adapt is [112, 160], 14% of the source")
    assert large.startswith("augmentation.crop of adapt is [112, 160], larger than the target")
    assert "[60, 96], even at scale 1.75: each crop has black borders" in large
    assert crop_warnings(params, {"source": (64, 92)}) == []  # 1.75 times as large, the crop's size
    (large,) = crop_warnings(params, {"source": (256, 91)})
    assert "of pretrain, adapt is" in large and "black borders" in large


def test_the_command_warns_of_crops(project, capsys):
    project("scenes")
    set_crops((32, 128))
    call("source")
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "crop of pretrain, adapt is [32, 128], larger than the source images" in warning


# Many problems


def test_files_with_the_same_problem_are_one_line_and_none_is_lost(tmp_path):
    raw_data(tmp_path, [f"{i:02}" for i in range(31)])
    for i in range(31):
        picture(tmp_path / f"labels/{i:02}.png")  # colours
    (tmp_path / "images/30.png").write_text("no image")
    found = check(tmp_path)
    assert len(found.problems) == 31
    colours, broken = found.summary()
    assert colours.startswith(f"{tmp_path / 'labels/00.png'}: the label holds colours, ")
    assert colours.endswith(" (and 29 more files)") and "30.png: not a readable" in broken


def test_a_split_with_many_kinds_of_problems_leaves_room_for_the_others(tmp_path):
    raw_data(tmp_path, [f"{i:02}" for i in range(14)])
    for i in range(14):
        label(tmp_path / f"labels/{i:02}.png", height=9 + i)
    found = check(tmp_path)
    assert len(found.problems) == 14 and len(found.summary()) == 11
    assert found.summary()[-1] == "4 more kinds of problems in the split 'train'"


def test_the_command_lists_kinds_and_counts_all(project, capsys):
    raw = project("gta5_to_cityscapes")
    write_gta5(raw / "gta5", 4, SIZE)
    for path in (raw / "gta5/images").iterdir():
        path.write_text("no image")
    shutil.rmtree(raw / "cityscapes/gtFine/val")
    with pytest.raises(UserError, match=r"5 found to be wrong; listed above by kind; --json has"):
        call()
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 2 and "(and 3 more files)" in wrong[0] and "gtFine/val" in wrong[1]


def test_the_class_map_is_named(tmp_path):
    raw_data(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("classes: [{name: sky, color: [1, 2, 3], values: [8]}]")
    problem, *_ = check(tmp_path, class_map=read_class_map(path)).problems
    assert f"label value 7 (in 3 images) not in the class map {path}; list it" in problem


def test_a_missing_file_of_weights_is_wrong_and_the_data_are_checked_too(project, capsys):
    project("scenes")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["network"]["encoder_weights"] = "mine.safetensors"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match="1 found to be wrong"):
        call()
    shown = capsys.readouterr().out
    path = Path("data/weights/mine.safetensors").absolute()
    assert f"wrong: network.encoder_weights: no file at {path}; put it there" in shown
    assert "target: scenes" in shown
