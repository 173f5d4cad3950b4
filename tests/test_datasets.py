"""Raw layouts and prepared data: pairs, sizes, errors and the manifest."""

import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw import label, listed, picture, raw_data

import cag.datasets.preparation
from cag.datasets.images import read_image, read_label
from cag.datasets.labels import IGNORE, ClassMap, LabelSpace
from cag.datasets.preparation import Item, domain_class_map, prepare_split, write_manifest
from cag.datasets.prepared import (
    COLUMNS,
    evenly_spaced,
    fingerprint,
    read_label_space,
    read_manifest,
)
from cag.runtime.errors import UserError
from cag.runtime.files import sha256

SPACE = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
CLASS_MAP = ClassMap(SPACE, {7: 0, 23: 1, 0: IGNORE})


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# Preparing


def test_void_labels_and_a_single_class_are_refused_before_any_training(tmp_path):
    raw, out = raw_data(tmp_path / "raw"), tmp_path / "out"
    for path in (raw / "labels").rglob("*.png"):
        label(path, value=0)
    with pytest.raises(UserError, match="no pixel of the split 'val' has a class"):
        prepare_split(listed(raw, "images", "labels"), raw, out, "val", CLASS_MAP)
    assert files_below(out) == []
    path = tmp_path / "one.yaml"
    path.write_text("classes: [{name: crack, color: [1, 2, 3], values: [1]}]\nignore: rest\n")
    with pytest.raises(UserError, match="one.yaml: classes: there is one, but anchors"):
        domain_class_map(path)


def test_rows_describe_the_files_that_were_written(tmp_path):
    raw, out = raw_data(tmp_path / "raw"), tmp_path / "out"
    done = []
    rows = prepare_split(
        listed(raw, "images", "labels"),
        raw,
        out,
        "train",
        CLASS_MAP,
        size=(4, 6),
        on_item=lambda: done.append(1),
    )
    assert len(done) == 3
    assert list(rows.columns) == COLUMNS
    assert rows["name"].tolist() == ["a", "b/c", "d"]
    assert rows["image"].tolist()[1] == "images/train/b/c.png"
    assert rows["label"].tolist()[1] == "labels/train/b/c.png"
    assert files_below(out) == sorted([*rows["image"], *rows["label"]])
    for row in rows.to_dict("records"):
        assert row["split"] == "train"
        assert read_image(out / row["image"]).shape == (row["height"], row["width"], 3) == (4, 6, 3)
        assert read_label(out / row["label"]).tolist() == [[0] * 6] * 4
        assert sha256(out / row["image"]) == row["image_sha256"]
        assert sha256(out / row["label"]) == row["label_sha256"]


def test_sizes_stay_without_a_size_and_pixels_are_unchanged(tmp_path):
    raw = raw_data(tmp_path / "raw")
    rows = prepare_split(listed(raw, "images", None), raw, tmp_path / "o", "train", CLASS_MAP)
    assert rows[["height", "width"]].drop_duplicates().values.tolist() == [[8, 12]]
    stored = read_image(tmp_path / "o" / rows["image"][1])
    assert np.array_equal(stored, read_image(raw / "images/b/c.png"))


def test_images_are_averaged_when_shrunk_and_labels_never_mixed(tmp_path):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    values = np.where(stripes[..., 0] > 0, 23, 0).astype(np.uint8)
    for folder, array in (("images", stripes), ("labels", values)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    out = tmp_path / "out"
    prepare_split(listed(tmp_path, "images", "labels"), tmp_path, out, "train", CLASS_MAP, (8, 8))
    image = read_image(out / "images/train/a.png").astype(int)
    assert np.abs(image[:, 1:-1] - 127).max() < 40  # without antialiasing 0 or 255
    assert set(np.unique(read_label(out / "labels/train/a.png"))) <= {1, IGNORE}


@pytest.mark.parametrize(("label_size", "shape"), [("prepared", (4, 6)), ("own", (8, 12))])
def test_label_size_is_the_images_or_its_own(tmp_path, label_size, shape):
    raw, out = raw_data(tmp_path / "raw"), tmp_path / "out"
    items = listed(raw, "images", "labels")
    rows = prepare_split(items, raw, out, "val", CLASS_MAP, (4, 6), label_size)
    assert read_label(out / rows["label"][0]).shape == shape
    assert rows["height"][0] == 4


def test_no_label_is_opened_for_items_without_one(tmp_path, monkeypatch):
    raw = raw_data(tmp_path / "raw")
    opened = []
    monkeypatch.setattr(cag.datasets.preparation, "read_label", opened.append)
    rows = prepare_split(listed(raw, "images", None), raw, tmp_path / "o", "train", CLASS_MAP)
    assert opened == []
    assert not (rows["label"] + rows["label_sha256"]).any()
    assert not any(name.startswith("labels") for name in files_below(tmp_path / "o"))


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    raw = raw_data(tmp_path / "raw", names=[f"n{i:02}" for i in range(20)])
    items = listed(raw, "images", "labels")[::-1]
    tables = [
        prepare_split(items, raw, tmp_path / str(n), "train", CLASS_MAP, (4, 6), workers=n)
        for n in (1, 7)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["name"].tolist() == [item.name for item in items]


def test_few_items_are_in_memory_at_a_time(tmp_path, monkeypatch):
    started, finished, most = 0, 0, 0
    lock = threading.Lock()
    original = cag.datasets.preparation._prepare_item

    def counted(*arguments):
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - finished)
        return original(*arguments)

    def consumed():
        nonlocal finished
        with lock:
            finished += 1

    monkeypatch.setattr(cag.datasets.preparation, "_prepare_item", counted)
    raw = raw_data(tmp_path / "raw", names=[f"n{i:02}" for i in range(30)])
    items = listed(raw, "images", None)
    prepare_split(items, raw, tmp_path / "o", "train", CLASS_MAP, workers=2, on_item=consumed)
    assert most <= 6


def break_size(raw):
    label(raw / "labels/n05.png", height=9)


def break_value(raw):
    label(raw / "labels/n05.png", value=77)


def break_image(raw):
    path = raw / "images/n05.png"
    path.write_bytes(path.read_bytes()[:-60])


def break_label(raw):
    (raw / "labels/n05.png").write_text("not an image")


def break_link(raw):
    (raw / "images/n05.png").unlink()
    (raw / "images/n05.png").symlink_to(picture(raw.parent / "secret.png"))


@pytest.mark.parametrize(
    ("break_item", "message"),
    [
        (
            break_size,
            r"images/n05\.png is 12 x 8 pixels, but its label .*labels/n05\.png is 12 x 9",
        ),
        (break_value, r"labels/n05\.png: label value 77 not in the class map"),
        (break_image, r"images/n05\.png: not a readable image"),
        (break_label, r"labels/n05\.png: not a readable image"),
        (break_link, r"'images/n05\.png' leaves this folder"),
    ],
)
def test_the_first_bad_item_is_named_and_nothing_is_left(tmp_path, break_item, message):
    raw, out = raw_data(tmp_path / "raw", names=[f"n{i:02}" for i in range(9)]), tmp_path / "out"
    items = listed(raw, "images", "labels")
    label(raw / "labels/n07.png", value=99)
    break_item(raw)
    with pytest.raises(UserError, match=message):
        prepare_split(items, raw, out, "train", CLASS_MAP, workers=4)
    assert files_below(out) == []


def test_the_first_bad_item_wins_even_when_a_later_one_fails_sooner(tmp_path, monkeypatch):
    raw = raw_data(tmp_path / "raw", names=["n0", "n1"])
    original = cag.datasets.preparation._prepare_item

    def slow_first(item, *arguments):
        time.sleep(0.2 if item.name == "n0" else 0)
        return original(item, *arguments)

    monkeypatch.setattr(cag.datasets.preparation, "_prepare_item", slow_first)
    for name in ("n0", "n1"):
        label(raw / f"labels/{name}.png", value=77)
    with pytest.raises(UserError, match="n0"):
        prepare_split(
            listed(raw, "images", "labels"), raw, tmp_path / "o", "train", CLASS_MAP, workers=2
        )


def test_an_interrupt_leaves_nothing(tmp_path):
    raw = raw_data(tmp_path / "raw", names=[f"n{i:02}" for i in range(20)])

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_split(
            listed(raw, "images", "labels"),
            raw,
            tmp_path / "o",
            "train",
            CLASS_MAP,
            workers=3,
            on_item=interrupt,
        )
    assert files_below(tmp_path / "o") == []


def test_items_that_share_a_name_or_leave_the_folder_are_refused(tmp_path):
    raw, out = raw_data(tmp_path / "raw"), tmp_path / "out"
    twice = [Item("a", "images/a.png", None), Item("a", "images/d.png", None)]
    with pytest.raises(UserError, match=r"images/d\.png: has the same name as images/a\.png"):
        prepare_split(twice, raw, out, "train", CLASS_MAP)
    for item in (
        Item("a", "../secret.png", None),
        Item("a", "images/a.png", "/etc/passwd"),
        Item("../../../a", "images/a.png", None),
    ):
        with pytest.raises(UserError, match="leaves this folder"):
            prepare_split([item], raw, out, "train", CLASS_MAP, (4, 6))
    with pytest.raises(UserError, match="'val' has no images"):
        prepare_split([], raw, out, "val", CLASS_MAP)
    assert files_below(out) == [] and not (tmp_path / "a.png").exists()


def test_a_full_disk_is_found_before_anything_is_written(tmp_path):
    raw = raw_data(tmp_path / "raw")
    with pytest.raises(UserError, match=r"the prepared split 'train' needs about"):
        prepare_split(
            listed(raw, "images", None),
            raw,
            tmp_path / "o",
            "train",
            CLASS_MAP,
            (10**8, 10**8),
        )
    assert not (tmp_path / "o").exists()


# Manifest


def prepared(tmp_path: Path) -> Path:
    raw, out = raw_data(tmp_path / "raw", names=("a", "NA", "x,y")), tmp_path / "out"
    train = prepare_split(listed(raw, "images", None), raw, out, "train", CLASS_MAP)
    val = prepare_split(listed(raw, "images", "labels"), raw, out, "val", CLASS_MAP)
    write_manifest(out, pd.concat([train, val]), SPACE)
    return out


def test_manifest_and_classes_round_trip(tmp_path):
    out = prepared(tmp_path)
    rows = read_manifest(out)
    assert list(rows.columns) == COLUMNS
    assert rows["name"].tolist() == ["NA", "a", "x,y"] * 2
    assert rows["label"].tolist()[2:4] == ["", "labels/val/NA.png"]
    assert rows["height"].tolist() == [8] * 6 and rows["width"].dtype == np.int64
    assert read_label_space(out) == SPACE


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", "../../secret.png", r"the image '\.\./\.\./secret\.png' is not a path below"),
        ("image", "/etc/passwd", "the image '/etc/passwd' is not"),
        ("image", "", "the image '' is not"),
        ("label", "/etc/passwd", "the label '/etc/passwd' is not"),
        ("name", "../a", r"the name '\.\./a' is not"),
        ("height", "x", "height of 'NA' is 'x'; expected a number of pixels"),
        ("width", "0", "width of 'NA' is '0'"),
        ("name", "a", "'a' is listed twice"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path, column, value, message):
    out = prepared(tmp_path)
    rows = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False)
    rows.loc[0, column] = value
    rows.to_csv(out / "manifest.csv", index=False)
    with pytest.raises(UserError, match=rf"manifest\.csv: .*{message}"):
        read_manifest(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"split,name\n", "found the columns split, name; expected split, name, image"),
        (b"", "not a readable table"),
        (b"a,b\n1,2,3\n1,2,3,4\n", "not a readable table"),
        (b"\xff\xfe\x00", "not a readable table"),
    ],
)
def test_a_table_that_is_no_manifest_is_named(tmp_path, content, message):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"manifest\.csv: {message}"):
        read_manifest(tmp_path)


def test_missing_and_broken_parts_are_named(tmp_path):
    for read, name in (
        (read_manifest, "manifest"),
        (read_label_space, "classes"),
        (fingerprint, "manifest"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.\w+: no such file; run `dvc repro`"):
            read(tmp_path)
    for content in ("{}", "[", '{"classes": [{"name": "a", "color": [1, 2]}]}'):
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(UserError, match=r"classes\.json: not a list of classes"):
            read_label_space(tmp_path)


def test_fingerprint_follows_the_content(tmp_path):
    first, second = prepared(tmp_path / "1"), prepared(tmp_path / "2")
    assert fingerprint(first) == fingerprint(second)
    classes = (second / "classes.json").read_text()
    (second / "classes.json").write_text(classes.replace("sky", "air"))
    assert fingerprint(first) != fingerprint(second)
    (second / "classes.json").write_text(classes)
    assert fingerprint(first) == fingerprint(second)
    with open(second / "manifest.csv", "a") as manifest:
        manifest.write("train,b,images/train/b.png,,8,12,0,\n")
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [0]), (3, [0, 4, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_evenly_spaced(count, expected):
    assert evenly_spaced(10, count) == expected
    assert evenly_spaced(0, count) == []
