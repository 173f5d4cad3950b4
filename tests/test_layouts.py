"""Raw layouts: listed files, pairs of image and label, and errors."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw import (
    label,
    listed,
    picture,
    raw_data,
    write_cityscapes,
    write_gta5,
    write_synthia,
)

from cag.config.datasets import CityscapesSource, CityscapesTarget, FolderTarget, GameSource
from cag.datasets.checks import refuse_label_maps
from cag.datasets.images import read_image, read_label, write_image
from cag.datasets.labels import read_class_map
from cag.datasets.layouts import (
    DEEPEST,
    Split,
    describe_files,
    index_folder,
    list_split,
    passed_over,
    splits,
)
from cag.datasets.preparation import Item
from cag.datasets.prepared import read_manifest
from cag.deploy.image_files import list_images
from cag.networks import load_model
from cag.project.raw_data import check_domain
from cag.runtime.errors import UserError
from cag.runtime.validation import read_yaml
from cag.scenes import label_palette, render
from stages.prepare import prepare

CLASSES = Path(__file__).parent.parent / "classes"
CITYSCAPES = str(CLASSES / "cityscapes.yaml")
SIZE = (32, 64)

# Listing


def test_images_and_labels_are_matched_by_path_without_extension(tmp_path):
    picture(tmp_path / "day/images/b.x.jpg")
    picture(tmp_path / "day/images/a/z.PNG")
    label(tmp_path / "day/labels/b.x.png")
    label(tmp_path / "day/labels/a/z.png")
    (tmp_path / "day/images/readme.txt").touch()
    picture(tmp_path / "day/images/.hidden.png")
    assert listed(tmp_path, "day/images", "day/labels") == [
        Item("a/z", "day/images/a/z.PNG", "day/labels/a/z.png"),
        Item("b.x", "day/images/b.x.jpg", "day/labels/b.x.png"),
    ]


def test_without_a_label_folder_no_label_is_listed(tmp_path):
    raw_data(tmp_path)
    items = listed(tmp_path, "images", None)
    assert [item.name for item in items] == ["a", "b/c", "d"]
    assert {item.label for item in items} == {None}
    assert listed(tmp_path / "images", ".", None)[0] == Item("a", "a.png", None)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="none/images: no such folder"):
        listed(tmp_path / "none", "images", None)
    picture(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="labels: no such folder"):
        listed(tmp_path, "images", "labels")
    with pytest.raises(UserError, match="none: no such folder"):
        index_folder(tmp_path / "none")


@pytest.mark.parametrize(("given", "shown"), [(None, "not set"), ("/data", "/data")])
def test_a_missing_folder_names_what_leads_to_it(tmp_path, monkeypatch, given, shown):
    monkeypatch.delenv("CAG_DATA", raising=False)
    if given:
        monkeypatch.setenv("CAG_DATA", given)
    with pytest.raises(UserError, match=rf"or correct `folder` in .* CAG_DATA \({shown}\)$"):
        index_folder(tmp_path / "none", ["street"])
    with pytest.raises(UserError, match="street: no such .*, or correct 'street' in params.yaml$"):
        index_folder(tmp_path, ["street"])


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.txt").touch()
    with pytest.raises(
        UserError, match=r"images: no image found; .*jpg.* 1 .txt \(images/a.txt\)$"
    ):
        listed(tmp_path, "images", "labels")
    (tmp_path / "images/a.txt").unlink()
    with pytest.raises(UserError, match="images: no image found; .*, found no file$"):
        listed(tmp_path, "images", None)


@pytest.mark.parametrize(("kept", "lost"), [("image", "label"), ("label", "image")])
def test_the_first_unpaired_file_is_named(tmp_path, kept, lost):
    raw_data(tmp_path)
    for name in ("d", "b/c"):
        (tmp_path / f"{lost}s/{name}.png").unlink()
    message = rf"{kept}s/b/c\.png: this {kept} has no {lost} \(and 1 more\); expected .*{lost}s/b/c"
    with pytest.raises(UserError, match=message):
        listed(tmp_path, "images", "labels")


def test_what_other_programs_put_there_is_left_out(tmp_path):
    names = ["@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/a.png", "._a.png", "Thumbs.db"]
    more = ["SYNOPHOTO_THUMB_XL.jpg", "x/@SynoResource/a.png", "P.lrdata/1/a.jpg", "_thumbs/a.png"]
    for name in (*names, *more, "#recycle/a.png", "__MACOSX/a.png", "x/@eaDir/a.png", "a.png"):
        picture(tmp_path / "images" / name.replace(".db", ".db.png"))
    (tmp_path / "images/Thumbs.db.png").rename(tmp_path / "images/Thumbs.db")
    assert [item.name for item in listed(tmp_path, "images", None)] == ["a"]
    assert index_folder(tmp_path)["path"].tolist() == ["images/a.png"]
    assert passed_over(tmp_path, Split("train", "images", None)) == []


def test_files_that_are_passed_over_are_listed(tmp_path):
    raw_data(tmp_path)
    for name in ("images/x.HEIC", "images/b/y.heic", "labels/z.json", "images/n"):
        (tmp_path / name).touch()
    found = ["images/b/y.heic", "images/n", "images/x.HEIC", "labels/z.json"]
    assert passed_over(tmp_path, Split("train", "images", "labels")) == found
    shown = (
        "2 .heic (images/b/y.heic, ...), 1 without extension (images/n), 1 .json (labels/z.json)"
    )
    assert describe_files(found) == shown
    assert passed_over(tmp_path, Split("t", "images", "labels", label_suffix="_x")) == found[:3]


def test_images_of_other_names_than_a_layouts_are_listed(tmp_path):
    folder = "leftImg8bit/train/ulm"
    others = ["a.png", "a_LeftImg8bit.png", "a_leftImg8bit_foggy_beta_0.02.png"]
    for name in ("a_leftImg8bit.png", *others):
        picture(tmp_path / folder / name)
    label(tmp_path / "gtFine/train/ulm/a_gtFine_labelIds.png")
    label(tmp_path / "gtFine/train/ulm/a_gtFine_color.png")
    for labelled, domain in ((CityscapesSource, "source"), (CityscapesTarget, "target")):
        train = splits(domain, cityscapes(labelled=labelled))[0]
        assert [item.name for item in list_split(tmp_path, train)] == ["ulm/a"]
        assert passed_over(tmp_path, train) == [f"{folder}/{name}" for name in others]


def test_names_match_in_both_forms_of_unicode(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Straße_München_é") for form in ("NFC", "NFD"))
    picture(tmp_path / f"images/{apart}.png")
    label(tmp_path / f"labels/{composed}.png")
    items = [Item(apart, f"images/{apart}.png", f"labels/{composed}.png")]
    assert listed(tmp_path, "images", "labels") == items
    label(tmp_path / f"labels/{apart}.png")
    with pytest.raises(UserError, match="has the same name as .* form of an accent"):
        listed(tmp_path, "images", "labels")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    raw_data(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"images: cannot be listed \(Permission denied\)"):
        listed(tmp_path, "images", None)


def test_two_files_of_one_name_are_named(tmp_path):
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/a.jpg")
    with pytest.raises(UserError, match=r"images/a\.png: has the same name as .*images/a\.jpg"):
        listed(tmp_path, "images", None)


@pytest.mark.parametrize(("images", "labels"), [("x", "x"), (".", "x"), ("x", "x/y")])
def test_labels_among_the_images_are_refused(tmp_path, images, labels):
    picture(tmp_path / "x/y/a.png")
    with pytest.raises(UserError, match="two separate folders"):
        listed(tmp_path, images, labels)


@pytest.mark.parametrize("folder", ["../other", "/etc"])
def test_listed_folders_stay_inside_the_data_set(tmp_path, folder):
    picture(tmp_path / "other/a.png")
    raw_data(tmp_path / "data")
    with pytest.raises(UserError, match="leaves this folder"):
        listed(tmp_path / "data", folder, None)
    with pytest.raises(UserError, match="leaves this folder"):
        listed(tmp_path / "data", "images", folder)


# Index


def test_index_lists_every_visible_file_with_its_size(tmp_path):
    for name, size in [("b", 3), ("a/z.txt", 0), ("a.txt", 5), (".git/config", 1), ("a/.x", 1)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    index = index_folder(tmp_path)
    assert list(index.columns) == ["path", "bytes"]
    assert index.values.tolist() == [["a.txt", 5], ["a/z.txt", 0], ["b", 3]]


def test_index_of_an_empty_folder_has_its_columns(tmp_path):
    assert list(index_folder(tmp_path).columns) == ["path", "bytes"]
    assert index_folder(tmp_path).empty


def test_links_inside_the_folder_are_followed_and_others_refused(tmp_path):
    data = tmp_path / "data"
    picture(data / "images/a.png")
    (data / "copy").symlink_to(data / "images")
    (tmp_path / "link").symlink_to(data)
    assert index_folder(tmp_path / "link")["path"].tolist() == ["copy/a.png", "images/a.png"]
    secret = picture(tmp_path / "secret.png")
    (data / "images/b.png").symlink_to(secret)
    for listing in (lambda: index_folder(data), lambda: listed(data, "images", None)):
        with pytest.raises(UserError, match=r"images/b\.png: this link leaves the data set"):
            listing()


@pytest.mark.parametrize(("target", "message"), [(".", "leads back to"), ("gone", "to nothing")])
def test_circular_and_broken_links_are_refused(tmp_path, target, message):
    picture(tmp_path / "images/a.png")
    (tmp_path / "images/b").symlink_to(tmp_path / "images" / target)
    with pytest.raises(UserError, match=rf"images/b: this link .*{message}"):
        index_folder(tmp_path)


def test_links_in_a_circle_of_two_folders_end(tmp_path):
    for here, there in ("ab", "ba"):
        (tmp_path / here).mkdir()
        (tmp_path / here / "x").symlink_to(tmp_path / there)
    with pytest.raises(UserError, match="leads back to"):
        index_folder(tmp_path)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png")).touch()
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(UserError, match="valid UTF-8"):
        index_folder(tmp_path)


def test_index_of_some_sub_folders_lists_those_alone(tmp_path):
    for name in ("a/1.png", "a/b/2.png", "c/3.png"):
        picture(tmp_path / name)
    assert index_folder(tmp_path, ["a"])["path"].tolist() == ["a/1.png", "a/b/2.png"]
    listed = index_folder(tmp_path, ["c", "a/b", "a"])["path"].tolist()
    assert listed == ["a/1.png", "a/b/2.png", "c/3.png"]


# The data sets' own layouts


def game(layout: str, classes: str, size=None) -> GameSource:
    return GameSource(
        layout=layout, folder=layout, class_map=str(CLASSES / f"{classes}.yaml"), size=size
    )


def cityscapes(kind="labelIds", classes="cityscapes", labelled=CityscapesTarget):
    return labelled(
        layout="cityscapes",
        folder="cityscapes",
        labels=kind,
        class_map=str(CLASSES / f"{classes}.yaml"),
        size=None,
    )


def expected(look: str, index: int, classes: str = "cityscapes") -> np.ndarray:
    """Train ids of a scene, from the renderer's Cityscapes label ids."""
    return read_class_map(CLASSES / f"{classes}.yaml").encode(render(look, 0, index, *SIZE)[1])


def test_gta5_leaves_out_and_lists_what_differs_in_size(tmp_path, capsys):
    write_gta5(tmp_path / "raw", 2, SIZE, mismatched=1)
    with Image.open(tmp_path / "raw/labels/00001.png") as picture:
        assert picture.mode == "P"
    out = tmp_path / "out"
    out.mkdir()
    assert prepare("source", game("gta5", "gta5", (16, 32)), tmp_path / "raw", out) == 2
    assert "prepare source: 1 images left out" in capsys.readouterr().out
    rows = read_manifest(out)
    assert rows["name"].tolist() == ["00001", "00002"]
    assert read_label(out / rows["label"][1]).shape == (16, 32)
    assert pd.read_csv(out / "excluded.csv", dtype=str).values.tolist() == [
        ["00003", *map(str, SIZE), str(SIZE[0] - 2), str(SIZE[1])]
    ]


def test_gta5_label_maps_are_the_train_ids(tmp_path):
    write_gta5(tmp_path / "raw", 2, SIZE)
    out = tmp_path / "out"
    out.mkdir()
    prepare("source", game("gta5", "gta5"), tmp_path / "raw", out)
    for index, row in read_manifest(out).iterrows():
        assert np.array_equal(read_label(out / row["label"]), expected("source", index))
        assert np.array_equal(read_image(out / row["image"]), render("source", 0, index, *SIZE)[0])
    assert pd.read_csv(out / "excluded.csv").empty


@pytest.mark.parametrize("count", [16, 13])
def test_synthia_gives_the_classes_of_the_first_of_16_bit_channels(tmp_path, count):
    write_synthia(tmp_path / "raw", 2, SIZE)
    path = tmp_path / "raw/GT/LABELS/0000001.png"
    with Image.open(path) as picture:  # what makes these files a trap: eight bits, all 0
        assert not np.array(picture)[..., 0].any()
    out = tmp_path / "out"
    out.mkdir()
    config = game("synthia", f"synthia_{count}")
    assert prepare("source", config, tmp_path / "raw", out) == 2
    for index, row in read_manifest(out).iterrows():
        labels = read_label(out / row["label"])
        assert np.array_equal(labels, expected("source", index, f"cityscapes_{count}"))
        assert len(np.unique(labels)) > 3


@pytest.mark.parametrize(
    ("kind", "classes"), [("labelIds", "cityscapes"), ("labelTrainIds", "cityscapes_train_ids")]
)
def test_cityscapes_gives_labels_of_validation_images_alone(tmp_path, kind, classes):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_cityscapes(raw, {"train": 3, "val": 2}, SIZE, kind=kind)
    for path in (raw / "gtFine/train").rglob("*.png"):
        path.write_text("not to be opened")
    out.mkdir()
    assert prepare("target", cityscapes(kind, classes), raw, out) == 5
    rows = read_manifest(out)
    assert rows["name"].tolist() == [
        *("aachen/aachen_000000_000019", "aachen/aachen_000002_000019"),
        "bochum/bochum_000001_000019",
        *("aachen/aachen_000000_000019", "bochum/bochum_000001_000019"),
    ]
    assert rows["split"].tolist() == ["train"] * 3 + ["val"] * 2
    assert rows["label"].tolist()[:3] == [""] * 3
    for index, label_path in ((3, rows["label"][3]), (4, rows["label"][4])):
        assert np.array_equal(read_label(out / label_path), expected("target", index))


def test_cityscapes_needs_no_label_at_all(tmp_path):
    write_cityscapes(tmp_path, {"train": 2}, SIZE, labelled=())
    assert not (tmp_path / "gtFine").exists()
    (train,) = splits("target", cityscapes(None))
    assert {item.label for item in list_split(tmp_path, train)} == {None}
    assert train.folders == ["leftImg8bit/train"]


def test_cityscapes_as_a_source_has_training_labels(tmp_path):
    write_cityscapes(tmp_path, {"train": 2, "val": 1}, SIZE)
    (train,) = splits("source", cityscapes(labelled=CityscapesSource))
    assert [item.label for item in list_split(tmp_path, train)] == [
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        "gtFine/train/bochum/bochum_000001_000019_gtFine_labelIds.png",
    ]


@pytest.mark.parametrize(("on_disk", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_said_to_be_so(tmp_path, on_disk, asked):
    (tmp_path / unicodedata.normalize(on_disk, "für größe") / "images").mkdir(parents=True)
    folder = tmp_path / unicodedata.normalize(asked, "für größe")
    if folder.exists():
        pytest.skip("this disk does not tell the forms apart")
    for look in (
        lambda: index_folder(folder, ["images"]),
        lambda: list_images([str(folder / "images")]),
        lambda: read_yaml(folder / "images", "", ""),
        lambda: load_model(folder / "images"),
    ):
        with pytest.raises(UserError, match="no such .*; its name .* look the same but have other"):
            look()
    with pytest.raises(UserError, match="no such folder; put the data set there"):
        index_folder(tmp_path / "other", ["images"])


FORMS = {"values": lambda x: x, "bright": lambda x: 12 * x, "palette": None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["labels/{}.png", "images/{}_mask.png", "{}.bmp"])
def test_label_maps_among_the_targets_images_are_refused(tmp_path, form, place):
    for index in range(5):
        image, labels = render("target", 0, index, 64, 128)
        for path in (tmp_path / f"images/{index}.png", tmp_path / place.format(index)):
            path.parent.mkdir(exist_ok=True)
        write_image(tmp_path / f"images/{index}.png", image)
        picture = Image.fromarray(labels if form == "palette" else FORMS[form](labels))
        if form == "palette":
            picture.putpalette(label_palette().tobytes())
        picture.save(tmp_path / place.format(index))
    items = list_split(tmp_path, Split("train", "", None))
    assert len(items) == 10
    with pytest.raises(
        UserError, match=f"{place.format(0)}: 5 such files have the names .*images/0"
    ):
        refuse_label_maps(items, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    target = FolderTarget(layout="folder", folder=".", images=".", size=None, class_map=CITYSCAPES)
    with pytest.raises(UserError, match="which would be trained on; move them"):
        prepare("target", target, tmp_path, out)
    (check,) = check_domain("target", target, tmp_path, read_class_map(Path(CITYSCAPES)))
    assert "would be trained on" in check.problems[0]


def test_label_maps_of_two_kinds_do_not_hide_each_other(tmp_path):
    for index in range(2):
        image, labels = render("target", 0, index, 64, 128)
        for name, pixels in {"fine": labels, "coarse": labels // 8, "photographs": image}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{name}/{index}.png")
    split = Split("train", "", None)
    with pytest.raises(UserError, match=r"(fine|coarse)/0\.png: 2 such files"):
        refuse_label_maps(list_split(tmp_path, split), tmp_path)
    for name in ("fine", "coarse", "photographs"):
        (tmp_path / name / "1.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: this file has the name of another \(.*0\.png\)"):
        refuse_label_maps(list_split(tmp_path, split), tmp_path)


def test_photographs_beside_photographs_are_no_label_maps(tmp_path):
    """Of another camera, in grey, at night; and drawings in which all is flat."""
    for index in range(3):
        image, labels = render("target", 0, index, 64, 128)
        dark = np.random.default_rng(index).integers(0, 16, (64, 128)).astype(np.uint8)
        folders = {"day": image, "grey": image[..., 1], "night": dark, "black": 0 * dark}
        for name, pixels in (folders | {"drawn": labels, "redrawn": labels}).items():
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{name}/{index}.png")
    for pair in (folders, ("drawn", "redrawn")):
        items = [item for item in list_split(tmp_path, Split("train", "", None))]
        refuse_label_maps([item for item in items if item.image.split("/")[0] in pair], tmp_path)


def test_a_link_to_nothing_is_said_to_be_one(tmp_path):
    """As of a disk that is not there: no name in another Unicode form."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for look in (
        lambda: index_folder(link / "city", ["images"]),
        lambda: list_images([str(link)]),
        lambda: read_yaml(link, "", ""),
        lambda: load_model(link / "model.safetensors"),
    ):
        with pytest.raises(UserError, match="no such .*; it is, or lies below, a link that leads"):
            look()


def test_a_pipe_is_refused_before_anybody_waits_for_it(tmp_path):
    pipe = raw_data(tmp_path) / "images/e.png"
    os.mkfifo(pipe)
    for look in (
        lambda: index_folder(tmp_path),
        lambda: listed(tmp_path, "images", "labels"),
        lambda: list_images([str(pipe)]),
    ):
        with pytest.raises(UserError, match=f"{pipe}: is no file and no folder, but a pipe"):
            look()


def test_folders_that_are_too_deep_are_one_line(tmp_path):
    deepest = tmp_path
    for _ in range(DEEPEST + 2):
        deepest = deepest / "a"
        deepest.mkdir()
    picture(deepest / "b.png")
    for look in (
        lambda: index_folder(tmp_path),
        lambda: list_images([str(tmp_path)]),
        lambda: list_images([f"{tmp_path}/**/*.png"]),
    ):
        with pytest.raises(UserError, match="a/a: more than 100 folders below each other"):
            look()


def test_images_of_one_column_have_no_neighbours_to_compare(tmp_path):
    for name in ("a", "a_mask"):
        picture(tmp_path / f"images/{name}.png", width=1)
    refuse_label_maps(listed(tmp_path, "images", None), tmp_path)


def test_missing_cityscapes_files_are_named_in_full(tmp_path):
    write_cityscapes(tmp_path, {"train": 1, "val": 2}, SIZE)
    val = splits("target", cityscapes())[1]
    missing = "gtFine/val/bochum/bochum_000001_000019_gtFine_labelIds"
    (tmp_path / f"{missing}.png").unlink()
    with pytest.raises(UserError, match=f"has no label; expected {tmp_path / missing} with"):
        list_split(tmp_path, val)
    shutil.rmtree(tmp_path / "gtFine/val")
    with pytest.raises(UserError, match="gtFine/val: no such folder"):
        list_split(tmp_path, val)
    for path in (tmp_path / "leftImg8bit/train").rglob("*.png"):
        path.rename(path.with_name("other.png"))
    with pytest.raises(UserError, match=r"no image found; .*_leftImg8bit\.png"):
        list_split(tmp_path, splits("target", cityscapes())[0])
