"""Prepared images as tensors: aligned, typed, and only requested labels are opened."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import cag.datasets.prepared
from cag.datasets.images import write_image, write_label
from cag.datasets.labels import IGNORE, LabelSpace
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS, PreparedImages, read_manifest, require_same_classes
from cag.runtime.errors import UserError

SPACE = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
RANDOM = np.random.default_rng(0)
IMAGES = {name: RANDOM.integers(0, 256, (4, 6, 3)).astype(np.uint8) for name in ("b", "a", "c/d")}
LABELS = {name: RANDOM.choice([0, 1, IGNORE], (8, 12)).astype(np.uint8) for name in IMAGES}


@pytest.fixture
def folder(tmp_path):
    rows = []
    for split, name in [("train", "b"), ("val", "b"), ("val", "a"), ("val", "c/d")]:
        paths = {kind: f"{kind}s/{split}/{name}.png" for kind in ("image", "label")}
        for path in paths.values():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / paths["image"], IMAGES[name])
        if split == "train":
            paths["label"] = ""
        else:
            write_label(tmp_path / paths["label"], LABELS[name], SPACE.palette_array)
        rows.append({"split": split, "name": name, "height": 4, "width": 6, **paths})
    write_manifest(tmp_path, pd.DataFrame(rows, columns=COLUMNS).fillna(""), SPACE)
    return tmp_path


def test_items_are_the_stored_pixels_in_the_manifests_order(folder):
    dataset = PreparedImages(folder, "val", with_labels=True)
    assert len(dataset) == 3
    assert dataset.names == ["b", "a", "c/d"]
    for image, labels, name in (dataset[i] for i in range(3)):
        assert image.dtype == labels.dtype == torch.uint8
        assert image.is_contiguous() and image.shape == (3, 4, 6)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), IMAGES[name])
        assert np.array_equal(labels.numpy(), LABELS[name])


@pytest.mark.parametrize("changed", [np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint16)])
def test_labels_that_somebody_changed_are_refused(folder, changed):
    Image.fromarray(changed).save(folder / "labels/val/a.png")
    dataset = PreparedImages(folder, "val", with_labels=True)
    with pytest.raises(UserError, match=r"val/a.png: holds uint\d+ of shape .*; expected uint8 of"):
        dataset[1]


def test_train_ids_beyond_the_classes_are_refused(folder):
    labels = LABELS["a"].copy()
    labels[0, :2] = SPACE.num_classes, 254
    write_label(folder / "labels/val/a.png", labels, SPACE.palette_array)
    dataset = PreparedImages(folder, "val", with_labels=True)
    expected = f"holds the train id 254; expected 0 to {SPACE.num_classes - 1}, or 255: it was"
    with pytest.raises(UserError, match=rf"val/a\.png: {expected} changed; delete it, then"):
        dataset[1]


def test_training_labels_have_their_images_size(folder):
    rows = read_manifest(folder)
    rows.loc[0, "label"] = rows.loc[1, "label"]  # its own, in the split "val"
    write_manifest(folder, rows, SPACE)
    with pytest.raises(UserError, match=r"of shape \(8, 12\); expected uint8 of \(4, 6\)"):
        PreparedImages(folder, "train", with_labels=True)[0]


def test_names_may_hold_line_breaks(folder):
    rows = read_manifest(folder)
    rows["name"] = names = ["a\rb", "c\nd", "e\r\nf", 'g"h']
    write_manifest(folder, rows, SPACE)
    assert read_manifest(folder)["name"].tolist() == names


def test_a_size_that_no_image_has_is_refused(folder):
    rows = read_manifest(folder)
    rows["height"] = rows["width"] = 999_999_999
    write_manifest(folder, rows, SPACE)
    with pytest.raises(
        UserError, match=r"manifest\.csv: the size of 'b' is above 268,435,456 pixels"
    ):
        read_manifest(folder)


def test_without_labels_none_is_opened(folder, monkeypatch):
    monkeypatch.setattr(
        cag.datasets.prepared, "read_label", lambda path: pytest.fail(f"opened {path}")
    )
    for split in ("train", "val"):
        image, labels, name = PreparedImages(folder, split, with_labels=False)[0]
        assert (image.shape, labels, name) == ((3, 4, 6), None, "b")


def test_a_split_without_labels_is_refused_where_labels_are_needed(folder):
    with pytest.raises(
        UserError, match=r"manifest\.csv: 'b' of the split 'train' has no label map"
    ):
        PreparedImages(folder, "train", with_labels=True)


def test_a_missing_split_is_named_with_those_found(folder):
    with pytest.raises(UserError, match="no image of the split 'test'; splits found: train, val"):
        PreparedImages(folder, "test", with_labels=False)


def test_loader_processes_can_use_it(folder):
    dataset = PreparedImages(folder, "val", with_labels=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=1)
    images, labels, names = next(iter(loader))
    assert images.shape == (3, 3, 4, 6) and labels.shape == (3, 8, 12)
    assert list(names) == dataset.names


def test_classes_that_differ_are_named():
    def space(*names):
        return LabelSpace(names, ((0, 0, 0),) * len(names))

    with pytest.raises(UserError, match=r"^train id 0 is 'sky' in the source and 'road' in the t"):
        require_same_classes(space("sky", "road"), space("road", "sky"))
    expected = "the source has 3 classes, the target 2; train id 2 is 'car' .* and missing in the"
    with pytest.raises(UserError, match=expected):
        require_same_classes(space("sky", "road", "car"), space("sky", "road"))
    require_same_classes(space("sky", "road"), LabelSpace(("sky", "road"), ((1, 1, 1),) * 2))


def batches(folder, sizes, *arguments):
    """Batches of images of these heights, by name."""
    rows = [
        {"split": "train", "name": f"{i}", "image": f"{i}.png", "height": height, "width": 6}
        for i, height in enumerate(sizes)
    ]
    write_manifest(folder, pd.DataFrame(rows, columns=COLUMNS).fillna(""), SPACE)
    return PreparedImages(folder, "train", with_labels=False).batches(*arguments)


def test_batches_are_consecutive_images_of_one_size(tmp_path):
    assert batches(tmp_path, [4] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert batches(tmp_path, [4, 4, 4, 8, 8, 4], 2) == [[0, 1], [2], [3, 4], [5]]
    assert batches(tmp_path, [4, 8, 4, 8], 3, [0, 2, 1, 3]) == [[0, 2], [1, 3]]
    assert batches(tmp_path, [4] * 6, 2, [1, 3, 5]) == [[1, 3], [5]]


def test_an_image_of_another_size_than_prepared_is_refused(folder):
    write_image(folder / "images/val/a.png", np.zeros((5, 6, 3), np.uint8))
    dataset = PreparedImages(folder, "val", with_labels=True)
    assert dataset[0][2] == "b"
    with pytest.raises(UserError, match=r"a\.png: height and width are \(5, 6\), .*\(4, 6\)"):
        dataset[1]
