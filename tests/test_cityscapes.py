"""Pseudo-labels in the layout of Cityscapes: names lead back, and no label is lost."""

import os

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cag import cli
from cag.config.datasets import CityscapesTarget
from cag.datasets.images import write_image, write_label
from cag.datasets.labels import ClassMap, LabelSpace, read_class_map
from cag.datasets.layouts import list_split, splits
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS
from cag.deploy import cityscapes
from cag.runtime.errors import UserError

ROOT_PARAMS = "presets/scenes.yaml"
CLASSES = """
classes:
  - {name: road, color: [128, 64, 128], values: [7]}
  - {name: sky, color: [70, 130, 180], values: [23, 5]}
  - {name: car, color: [0, 0, 142], values: [26]}
ignore: [3, 2, -1]
"""
LIKE_CITYSCAPES = ["aachen/aachen_000000_000019", "bad-x/bad-x_000001_000002"]


def test_names_of_cityscapes_stay_and_others_are_numbered():
    assert cityscapes.cityscapes_names(LIKE_CITYSCAPES) == LIKE_CITYSCAPES
    for other in ("x", "ulm/aachen_000000_000019", "aachen/aachen_0_19", "a/b/b_000000_000001"):
        names = cityscapes.cityscapes_names([*LIKE_CITYSCAPES, other])
        assert names == [f"target/target_000000_00000{i}" for i in range(3)]
        assert cityscapes.cityscapes_names(names) == names


def test_a_million_and_one_names_are_all_different():
    names = cityscapes.cityscapes_names(["x"] * (10**6 + 1))
    assert len(set(names)) == len(names) and names[-1] == "target/target_000001_000000"


def test_either_takes_what_one_rule_gives_and_nothing_where_two_differ():
    anchor = np.array([[0, 1, 255, 255, 2]], np.uint8)
    probability = np.array([[0, 2, 1, 255, 255]], np.uint8)
    before = anchor.copy(), probability.copy()
    assert cityscapes.either(anchor, probability).tolist() == [[0, 255, 1, 255, 2]]
    assert np.array_equal(
        cityscapes.either(anchor, probability), cityscapes.either(probability, anchor)
    )
    assert np.array_equal(before, (anchor, probability))


def test_decoding_is_the_inverse_of_encoding(tmp_path):
    (tmp_path / "c.yaml").write_text(CLASSES)
    class_map = read_class_map(tmp_path / "c.yaml")
    table = class_map.decoding()
    assert table[[0, 1, 2, 255]].tolist() == [7, 5, 26, 2]
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    assert np.array_equal(class_map.encode(table[ids]), ids)


SPACE = LabelSpace(("a", "b"), ((1, 1, 1), (2, 2, 2)))


@pytest.mark.parametrize(
    ("train_ids", "rest", "ignored"),
    [
        ({7: 0, 8: 1, 0: 255}, False, 0),
        ({7: 0, 8: 1}, True, 255),
        ({7: 0, 255: 1}, True, 254),
        ({7: 0, 8: 1}, False, None),  # nothing is ignored
        ({7: 0, 0: 255}, False, None),  # b has no value
        ({7: 0, 300: 1, 0: 255}, False, None),
        ({(1, 1, 1): 0, (2, 2, 2): 1, (0, 0, 0): 255}, False, None),
    ],
)
def test_there_is_a_table_only_where_it_is_defined(train_ids, rest, ignored):
    table = ClassMap(SPACE, train_ids, rest).decoding()
    assert (table is None) == (ignored is None)
    assert table is None or table[255] == ignored


# The command


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    """Target images with random pseudo-labels of two rounds."""
    with open(request.config.rootpath / ROOT_PARAMS, encoding="utf-8") as file:
        params = yaml.safe_load(file)
    params["target"]["class_map"] = "classes.yaml"
    params["rounds"]["round2"] = {"teacher": "round1", "anchors": "round2"}
    params["evaluated"] = ["round2"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / "classes.yaml").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    make_target(tmp_path, ["night/b", "a", "night/c"])
    return tmp_path


def make_target(folder, names):
    random, target = np.random.default_rng(0), folder / "data/prepared/target"
    space, rows = read_class_map(folder / "classes.yaml").label_space, []
    for name in names:
        image = target / f"images/train/{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        write_image(image, random.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        for round_name in ("round1", "round2"):
            for rule in ("anchor", "probability"):
                path = folder / f"data/rounds/{round_name}/pseudo_labels/{rule}/{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                labels = random.choice([0, 1, 2, 255], (6, 8)).astype(np.uint8)
                write_label(path, labels, space.palette_array)
        paths = {"name": name, "image": f"images/train/{name}.png"}
        rows.append({"split": "train", "height": 6, "width": 8, **paths})
    rows.append(rows[0] | {"split": "val"})
    write_manifest(target, pd.DataFrame(rows, columns=COLUMNS).fillna(""), space)


def pseudo_export(*arguments):
    cli.cli.main(["pseudo", "export", *map(str, arguments)], standalone_mode=False)


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.mark.parametrize("rule", ["anchor", "probability", "both"])
@pytest.mark.parametrize("chosen", [(), ("--round", "1"), ("--round", "round2", "--copy")])
def test_every_image_is_there_with_its_labels(project, rule, chosen, capsys):
    pseudo_export("--out", project / "out", "--rule", rule, *chosen)
    out, name = project / "out", "round1" if "1" in chosen else "round2"
    table = pd.read_csv(out / "names.csv").set_index("name")["image"]
    assert list(table.index) == ["a", "night/b", "night/c"]
    for image_name, relative in table.items():
        prepared = project / f"data/prepared/target/images/train/{image_name}.png"
        assert (out / relative).read_bytes() == prepared.read_bytes()
        assert os.path.samefile(out / relative, prepared) == ("--copy" not in chosen)
        folder = project / f"data/rounds/{name}/pseudo_labels"
        maps = [pixels(folder / kind / f"{image_name}.png") for kind in ("anchor", "probability")]
        expected = {"anchor": maps[0], "probability": maps[1], "both": cityscapes.either(*maps)}
        stem = relative.replace("leftImg8bit/", "gtFine/", 1).removesuffix("_leftImg8bit.png")
        with Image.open(out / f"{stem}_gtFine_labelTrainIds.png") as picture:
            assert picture.mode == "L"  # not every program reads palettes
            assert np.array_equal(picture, expected[rule])
        values = pixels(out / f"{stem}_gtFine_labelIds.png")
        encoded = read_class_map(project / "classes.yaml").encode(values)
        assert np.array_equal(encoded, expected[rule])
    printed = capsys.readouterr().out
    assert f"({name}, rule {rule})" in printed and "3 images" in printed


def test_our_own_reader_of_cityscapes_finds_every_pair(project):
    make_target(project, LIKE_CITYSCAPES)
    pseudo_export("--out", "out")
    target = CityscapesTarget(
        layout="cityscapes", folder="", labels="labelTrainIds", class_map="", size=None
    )
    (train,) = [split for split in splits("source", target) if split.name == "train"]
    items = list_split(project / "out", train)
    assert [item.name for item in items] == sorted(LIKE_CITYSCAPES)
    assert all(item.label.endswith("_gtFine_labelTrainIds.png") for item in items)


def test_without_raw_values_there_are_train_ids_alone(project):
    (project / "classes.yaml").write_text(CLASSES.replace("[23, 5]", "[]"))
    pseudo_export("--out", "out")
    assert len(list((project / "out").rglob("*labelTrainIds.png"))) == 3
    assert not list((project / "out").rglob("*labelIds.png"))


def test_bad_input_is_one_line_and_leaves_nothing(project):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message):
            pseudo_export("--out", project / "out", *arguments)
        assert not (project / "out").exists() and not list(project.glob(".out*"))

    refused("--round is '3'; params.yaml has round1, round2", "--round", "3")
    (project / "classes.yaml").write_text(CLASSES.replace("sky", "heaven"))
    refused("classes.yaml: has other classes than data/prepared/target")
    (project / "classes.yaml").write_text(CLASSES)
    path = project / "data/rounds/round2/pseudo_labels/anchor/night/c.png"
    write_image(path, np.zeros((3, 4), np.uint8))
    refused(r"c.png: holds uint8 of shape \(3, 4\); expected uint8 of \(6, 8\)")
    path.unlink()
    refused("c.png: no such pseudo-label map; run `dvc repro`")
    (project / "data/prepared/target/images/train/a.png").unlink()
    refused("images/train/a.png: no such file", "--rule", "probability")
    (project / "full").mkdir()
    (project / "full/x").write_text("")
    with pytest.raises(UserError, match="full: is not an empty folder"):
        pseudo_export("--out", "full")
    assert (project / "full/x").exists()
