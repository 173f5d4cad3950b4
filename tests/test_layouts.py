"""Raw layouts: what is listed, what belongs together, and what is refused."""

import os
from pathlib import Path

import pytest
from raw import label, picture, raw_data

from cag.datasets import Item
from cag.errors import UserError
from cag.layouts import index_folder, list_folder

# Listing


def test_images_and_labels_are_matched_by_path_without_extension(tmp_path):
    picture(tmp_path / "day/images/b.x.jpg")
    picture(tmp_path / "day/images/a/z.PNG")
    label(tmp_path / "day/labels/b.x.png")
    label(tmp_path / "day/labels/a/z.png")
    (tmp_path / "day/images/readme.txt").touch()
    picture(tmp_path / "day/images/.hidden.png")
    assert list_folder(tmp_path, "day/images", "day/labels") == [
        Item("a/z", "day/images/a/z.PNG", "day/labels/a/z.png"),
        Item("b.x", "day/images/b.x.jpg", "day/labels/b.x.png"),
    ]


def test_without_a_label_folder_no_label_is_listed(tmp_path):
    raw_data(tmp_path)
    items = list_folder(tmp_path, "images", None)
    assert [item.name for item in items] == ["a", "b/c", "d"]
    assert {item.label for item in items} == {None}
    assert list_folder(tmp_path / "images", ".", None)[0] == Item("a", "a.png", None)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="none/images: no such folder"):
        list_folder(tmp_path / "none", "images", None)
    picture(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="labels: no such folder"):
        list_folder(tmp_path, "images", "labels")
    with pytest.raises(UserError, match="none: no such folder"):
        index_folder(tmp_path / "none")


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.txt").touch()
    with pytest.raises(UserError, match=r"images: no image found; .*\.jpg"):
        list_folder(tmp_path, "images", None)


@pytest.mark.parametrize(("kept", "lost"), [("image", "label"), ("label", "image")])
def test_the_first_unpaired_file_is_named(tmp_path, kept, lost):
    raw_data(tmp_path)
    for name in ("d", "b/c"):
        (tmp_path / f"{lost}s/{name}.png").unlink()
    message = rf"{kept}s/b/c\.png: this {kept} has no {lost} \(and 1 more\); expected .*{lost}s/b/c"
    with pytest.raises(UserError, match=message):
        list_folder(tmp_path, "images", "labels")


def test_two_files_of_one_name_are_named(tmp_path):
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/a.jpg")
    with pytest.raises(UserError, match=r"images/a\.png: has the same name as .*images/a\.jpg"):
        list_folder(tmp_path, "images", None)


@pytest.mark.parametrize(("images", "labels"), [("x", "x"), (".", "x"), ("x", "x/y")])
def test_labels_among_the_images_are_refused(tmp_path, images, labels):
    picture(tmp_path / "x/y/a.png")
    with pytest.raises(UserError, match="two separate folders"):
        list_folder(tmp_path, images, labels)


@pytest.mark.parametrize("folder", ["../other", "/etc"])
def test_listed_folders_stay_inside_the_data_set(tmp_path, folder):
    picture(tmp_path / "other/a.png")
    raw_data(tmp_path / "data")
    with pytest.raises(UserError, match="leaves this folder"):
        list_folder(tmp_path / "data", folder, None)
    with pytest.raises(UserError, match="leaves this folder"):
        list_folder(tmp_path / "data", "images", folder)


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
    for listing in (lambda: index_folder(data), lambda: list_folder(data, "images", None)):
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
