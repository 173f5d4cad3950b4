"""Feature stores: exact sums, a balanced sample in bounded memory, no partial files."""

import errno
import fcntl
import os
import shutil
import time
from operator import setitem
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch
from disk import full_disk
from golden_files import generated_maps

from cag import features
from cag.anchors import read_anchors
from cag.datasets.labels import IGNORE
from cag.features import (
    SOURCE_KEYS,
    TARGET_KEYS,
    TARGET_ROWS,
    create_store,
    cut_shards,
    is_whole,
    join_source,
    link_target,
    merge_samples,
    open_store,
    pixel_draws,
    read_array,
    read_group_name,
    read_names,
    read_target_images,
    read_target_row,
    read_target_rows,
    read_target_store,
    reduced_row,
    sample_pixels,
    source_bytes,
    source_rows,
    source_statistics,
    target_bytes,
    write_group,
    write_source_shard,
    write_target_shard,
)
from cag.projection import span
from cag.pseudo_labels import anchor_distances
from cag.runtime.errors import UserError

B, K, D, H, W = 3, 4, 5, 6, 7
NAMES = ["a", "b/c", "ü"]


def batch(seed=0, count=B):
    """Random features [B, D, h, w], logits [B, K, h, w], labels [B, h, w], some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, D, H, W, generator=generator)
    logits = torch.randn(count, K, H, W, generator=generator)
    labels = torch.randint(0, K + 1, (count, H, W), generator=generator)
    return features, logits, labels.masked_fill(labels == K, IGNORE).byte()


def test_statistics_are_those_of_a_loop_over_pixels():
    features, logits, labels = batch()
    sums, correct_sums = np.zeros((2, B, K, D))
    counts, correct_counts = np.zeros((2, B, K), np.int64)
    for b, y, x in np.ndindex(B, H, W):
        label = int(labels[b, y, x])
        if label == IGNORE:
            continue
        sums[b, label] += features[b, :, y, x].numpy()
        counts[b, label] += 1
        if int(logits[b, :, y, x].argmax()) == label:
            correct_sums[b, label] += features[b, :, y, x].numpy()
            correct_counts[b, label] += 1
    found = source_statistics(features, logits, labels)
    assert [value.dtype for value in found] == [torch.float32, torch.int64] * 2
    assert np.array_equal(found.class_counts, counts)
    assert np.array_equal(found.correct_class_counts, correct_counts)
    assert 0 < correct_counts.sum() < counts.sum()
    np.testing.assert_allclose(found.class_sums, sums, atol=1e-4)
    np.testing.assert_allclose(found.correct_class_sums, correct_sums, atol=1e-4)


# The sample


def numbered(labels, start=0):
    """Features [B, 1, h, w] that number the pixels of labels [B, h, w], from `start`."""
    return (
        torch.arange(start, start + labels.numel()).float().view(len(labels), 1, *labels.shape[1:])
    )


def sampled(features, labels, per_class, seed=0, first=0):
    """The sample of images that are the data set's from `first` on."""
    images = range(first, first + len(labels))
    draws = pixel_draws(seed, images, tuple(labels.shape[1:]))
    return sample_pixels(features, labels, draws, per_class)


def test_a_sample_has_as_many_of_each_class_where_there_are_as_many():
    labels = torch.zeros(1, 20, 20, dtype=torch.uint8)
    labels[0, 0, :3] = 1
    labels[0, 1] = 2
    labels[0, 2] = IGNORE
    parts = [sampled(numbered(labels, 400 * i), labels, 10, first=i) for i in range(2)]
    sample = merge_samples(parts, 10)
    counts = torch.bincount(sample.labels.long(), minlength=4).tolist()
    assert counts == [10, 6, 10, 0]
    assert len(sample.features) == len(sample.labels) == len(sample.draws) == 26
    assert sample.features.dtype == torch.float16 and sample.labels.dtype == torch.uint8


def test_a_sampled_feature_is_one_of_its_class_and_taken_once():
    features, _, labels = batch(count=8)
    parts = [sampled(features[i : i + 1], labels[i : i + 1], 12, first=i) for i in range(8)]
    sample = merge_samples(parts, 12)
    pixels = features.half().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
    same = (sample.features[:, None] == pixels[None]).all(-1)  # (M, B h w)
    assert (same.sum(1) == 1).all() and (same.sum(0) <= 1).all()
    assert torch.equal(labels.flatten()[same.int().argmax(1)], sample.labels)


def test_a_sample_has_the_lowest_draws():
    features, _, labels = batch(count=8)
    draws = pixel_draws(0, range(8), (H, W))
    sample = sample_pixels(features, labels, draws, 5)
    for label in range(K):
        lowest = draws[labels == label].sort().values[:5]
        assert torch.equal(sample.draws[sample.labels == label], lowest)


@pytest.mark.parametrize("draws", ["random", "equal"])
@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [1, 2, 3, 4, 5, 6, 7]])
def test_a_merged_sample_is_that_of_the_whole(cuts, draws):
    """This holds for any cut of the images into parts, and for equal draws."""
    features, _, labels = batch(count=8)
    drawn = pixel_draws(7, range(8), (H, W)) if draws == "random" else torch.zeros(8, H, W)
    whole = sample_pixels(features, labels, drawn, 6)
    ranges = zip([0, *cuts], [*cuts, 8], strict=True)
    parts = [
        sample_pixels(features[first:end], labels[first:end], drawn[first:end], 6)
        for first, end in ranges
    ]
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = merge_samples((one_by_one, part), 6)
    for merged in (merge_samples(parts, 6), one_by_one):
        assert all(torch.equal(a, b) for a, b in zip(merged, whole, strict=True))
    assert len(whole.labels) == 6 * K


def test_draws_are_an_images_own():
    together = pixel_draws(3, range(5), (H, W))
    assert torch.equal(together[2:4], pixel_draws(3, [2, 3], (H, W)))
    assert len(together.unique()) > 0.99 * together.numel()
    assert not torch.equal(together, pixel_draws(4, range(5), (H, W)))
    assert together.dtype == torch.float32 and together.min() >= 0 and together.max() < 1


def test_early_and_late_pixels_are_sampled_alike():
    labels = torch.zeros(4, 5, 10, dtype=torch.uint8)
    taken = torch.zeros(200)
    for seed in range(150):
        taken[sampled(numbered(labels), labels, 20, seed).features[:, 0].long()] += 1
    quarters = taken.view(4, 50).sum(1) / taken.sum()
    assert torch.allclose(quarters, torch.tensor(0.25), atol=0.03)  # 3.8 standard deviations
    assert taken.max() < 40  # 15 expected


def test_a_sample_of_nothing_is_empty():
    features, _, labels = batch()
    assert sampled(features, labels, 0).features.shape == (0, D)
    sample = sampled(features, torch.full_like(labels, IGNORE), 5)
    assert sample.features.shape == (0, D) and sample.labels.shape == (0,)


# Stores


def write_source(folder, names=NAMES, size=1, per_class=4):
    """A source store of as many random images, in batches of `size`; statistics and sample."""
    features, logits, labels = batch(count=len(names))
    draws = pixel_draws(0, range(len(names)), (H, W))
    paths = []
    for shard in shards_of(len(names), size):
        paths.append(folder / "parts" / shard.name)
        outputs = (
            (
                *source_statistics(features[rows], logits[rows], labels[rows]),
                *sample_pixels(features[rows], labels[rows], draws[rows], per_class),
            )
            for rows in map(list, shard.batches)
        )
        write_source_shard(paths[-1], shard.count, outputs, per_class)
    join_source(folder / "source.h5", names, paths, per_class)
    shutil.rmtree(folder / "parts")
    statistics = source_statistics(features, logits, labels)
    return statistics, sample_pixels(features, labels, draws, per_class)


def write_target(folder, names=NAMES, size=1, projection=None):
    """A target store of as many random images, in batches of `size`; its features and logits."""
    features, logits, _ = batch(count=len(names))
    probability, prediction = logits.softmax(1).max(1)
    rows = (features.half(), prediction.byte(), probability)
    rows = rows if projection is None else reduced_row(*rows, projection)
    paths = []
    for shard in shards_of(len(names), size):
        paths.append(folder / "target" / shard.name)
        outputs = (tuple(part[list(indices)] for part in rows) for indices in shard.batches)
        write_target_shard(paths[-1], shard.count, outputs)
    link_target(folder / "target.h5", names, paths, projection)
    return features, logits


def read_target(folder):
    """All features, predictions and probabilities of a target store."""
    store = read_target_store(folder / "target.h5", K)
    images = read_target_images(store, store.shards)
    return tuple(map(torch.cat, zip(*(image.row for image in images), strict=True)))


def shards_of(count, size):
    """The shards of `count` images in batches of `size`."""
    return cut_shards([list(range(count))[i : i + size] for i in range(0, count, size)])


MANY = [f"image {i}" for i in range(11)]


def test_shards_hold_consecutive_batches():
    shards = shards_of(11, 1)
    assert [shard.name for shard in shards] == ["00000.h5", "00001.h5", "00002.h5"]
    assert [shard.count for shard in shards] == [4, 4, 3]
    assert [i for shard in shards for batch in shard.batches for i in batch] == list(range(11))
    assert [len(batch) for batch in shards_of(11, 2)[1].batches] == [2, 1]


@pytest.mark.parametrize(("names", "size"), [(NAMES, 2), (MANY, 1)])
def test_a_source_store_gives_back_what_was_written(tmp_path, names, size):
    statistics, sample = write_source(tmp_path, names, size)
    with open_store(tmp_path / "source.h5", SOURCE_KEYS) as file:
        assert set(file) == set(SOURCE_KEYS)
        assert read_names(file) == names
        for key, value in statistics._asdict().items():
            assert torch.equal(read_array(file, key), value)
            assert torch.equal(read_array(file, key, slice(1, 3)), value[1:3])
        assert file["class_sums"].chunks == (1, K, D)
        assert torch.equal(read_array(file, "sample_features"), sample.features)
        assert torch.equal(read_array(file, "sample_labels"), sample.labels)
        assert file["sample_features"].dtype == np.float16


@pytest.mark.parametrize(("names", "size"), [(NAMES, 2), (MANY, 1)])
def test_a_target_store_gives_back_what_was_written(tmp_path, names, size):
    features, logits = write_target(tmp_path, names, size)
    with open_store(tmp_path / "target.h5", TARGET_KEYS) as file:
        assert set(file) == set(TARGET_KEYS)
        assert read_names(file) == names
    read, prediction, probability = read_target(tmp_path)
    assert torch.equal(read, features.half())
    assert torch.equal(prediction, logits.argmax(1).byte())
    exponentials = np.exp(logits.double().numpy())
    expected = exponentials.max(1) / exponentials.sum(1)
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    with open_store(tmp_path / "target/00000.h5", TARGET_ROWS) as file:
        kinds = {key: file[key].dtype.str[1:] for key in TARGET_ROWS}
        assert kinds == {"features": "f2", "prediction": "u1", "probability": "f4"}
        assert file["features"].chunks == (1, D, H, W)
        assert file["prediction"].chunks == file["probability"].chunks == (1, H, W)


def test_a_target_store_is_read_shard_by_shard(tmp_path):
    features, _ = write_target(tmp_path, MANY)
    store = read_target_store(tmp_path / "target.h5", K)
    assert (store.names, store.width) == (MANY, D)
    assert [(path.name, rows) for path, rows in store.shards] == [
        ("00000.h5", range(4)),
        ("00001.h5", range(4, 8)),
        ("00002.h5", range(8, 11)),
    ]
    for (path, rows), start in zip(store.shards, (0, 4, 8), strict=True):
        read = [row[0] for row in read_target_rows(path, len(rows), K)]
        assert torch.equal(torch.cat(read), features[start : start + len(rows)].half())


def random_span(most=3):
    sums = torch.randn(4, K, D, generator=torch.Generator().manual_seed(1))
    return span([(10 * sums, torch.full((4, K), 10))], most)


def test_a_reduced_store_keeps_the_distances_to_the_anchors(tmp_path):
    projection = random_span()
    features, logits = write_target(tmp_path, MANY, 1, projection)
    store = read_target_store(tmp_path / "target.h5", K)
    anchors = torch.randn(2, 3) @ projection.directions + projection.origin
    placed, error = store.place(anchors)
    assert store.width == D and error < 1e-5
    read, prediction, probability = read_target(tmp_path)
    assert torch.equal(prediction, logits.argmax(1).byte())
    torch.testing.assert_close(probability, logits.softmax(1).amax(1), atol=2**-13, rtol=0)
    for found, true in zip(
        anchor_distances(read, placed)[1:], anchor_distances(features, anchors)[1:], strict=True
    ):
        torch.testing.assert_close(found, true, atol=0.01, rtol=0)
    inside = (features - projection.origin[:, None, None]).movedim(1, -1) @ projection.directions.T
    expected = inside @ projection.directions + projection.origin
    vectors = store.vectors(read.movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(vectors, expected.flatten(0, 2), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("key", "change", "expected"),
    [
        ("units", lambda v: v[:-1], "one number more than directions"),
        ("directions", lambda v: v[:-1], "one number more than directions"),
        ("directions", lambda v: v[:, :-1], "do not belong together"),
        ("origin", lambda v: v * np.nan, "origin holds NaN"),
    ],
)
def test_a_damaged_projection_is_one_line(tmp_path, key, change, expected):
    write_target(tmp_path, NAMES, 2, random_span())
    with h5py.File(tmp_path / "target.h5", "a") as file:
        values = change(file[key][:])
        del file[key]
        file[key] = values
    with pytest.raises(UserError, match=expected):
        read_target_store(tmp_path / "target.h5", K)


def test_shards_of_another_form_than_the_store_are_damage(tmp_path):
    for folder, projection in (("full", None), ("reduced", random_span())):
        write_target(tmp_path / folder, NAMES, 2, projection)
    shutil.rmtree(tmp_path / "reduced/target")
    shutil.copytree(tmp_path / "full/target", tmp_path / "reduced/target")
    store = read_target_store(tmp_path / "reduced/target.h5", K)
    with pytest.raises(UserError, match="another form than target.h5"):
        list(read_target_rows(store.shards[0][0], 3, K, store.projection))


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree, "link"])
def test_a_target_store_can_be_moved_and_read_from_anywhere(tmp_path, monkeypatch, move):
    """The store reads the shards beside it, wherever the reader and other stores are."""
    features, _ = write_target(tmp_path / "old", MANY)
    elsewhere = tmp_path / "elsewhere"
    write_target(elsewhere, [*MANY, "more"])
    monkeypatch.chdir(elsewhere)  # its shards have the same relative names
    new = tmp_path / "a folder" / "new"
    if move == "link":  # as DVC links its outputs to its cache
        for path in (tmp_path / "old").rglob("*.h5"):
            linked = new / path.relative_to(tmp_path / "old")
            linked.parent.mkdir(parents=True, exist_ok=True)
            linked.hardlink_to(path)
    else:
        new.parent.mkdir()
        move(tmp_path / "old", new)
    shutil.rmtree(tmp_path / "old", ignore_errors=True)
    assert torch.equal(read_target(new)[0], features.half())
    assert all(
        path.is_relative_to(new) for path, _ in read_target_store(new / "target.h5", K).shards
    )


def test_stores_have_the_same_bytes_each_time(tmp_path):
    for write in (write_source, write_target):
        write(tmp_path / "first", MANY)
    time.sleep(1.1)  # HDF5 can date its objects, in seconds
    for write in (write_source, write_target):
        write(tmp_path / "second", MANY)
    for name in ("source.h5", "target.h5", *(f"target/0000{i}.h5" for i in range(3))):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_a_store_takes_about_as_much_as_estimated(tmp_path):
    count, width, height, breadth, per_class = 40, 16, 32, 64, 300
    features = torch.randn(count, width, height, breadth).relu()  # half zeros, as a network's
    maps = features.max(dim=1).indices.byte() // 8, features.mean(dim=1).sigmoid()
    write_target_shard(tmp_path / "target.h5", count, [(features.half(), *maps)])
    estimate = target_bytes(count, width, height, breadth)
    assert 0.8 < (tmp_path / "target.h5").stat().st_size / estimate < 1.2
    classes, width = 20, 64
    labels = torch.arange(classes, dtype=torch.uint8).repeat(per_class, 1)[None]
    sample = sampled(torch.zeros(1, width, per_class, classes), labels, per_class)
    one_hot = torch.zeros(count, classes, 1, 1)
    statistics = source_statistics(
        torch.ones(count, width, 1, 1), one_hot, labels[0, :40, :1, None]
    )
    write_source_shard(tmp_path / "part.h5", count, [(*statistics, *sample)], per_class)
    names = [str(i) for i in range(count)]
    join_source(tmp_path / "source.h5", names, [tmp_path / "part.h5"], per_class)
    estimate = source_bytes(count, classes, width, per_class)
    for path in ("part.h5", "source.h5"):
        assert 0.9 < (tmp_path / path).stat().st_size / estimate < 1.15


def test_a_reduced_store_takes_about_as_much_as_estimated(tmp_path):
    """With features around the authors' anchors, which all directions are needed for."""
    golden = generated_maps()
    chosen, features, logits = (golden[key].float() for key in ("anchors", "features", "logits"))
    counts = torch.full((1, len(chosen)), 10)
    projection = span([(counts[..., None] * chosen, counts)], 40)
    probability, prediction = logits.softmax(1).max(1)
    rows = reduced_row(features, prediction.byte(), probability, projection)
    count, width, height, breadth = features.shape
    write_target_shard(tmp_path / "target.h5", count, [rows])
    estimate = target_bytes(count, width, height, breadth, len(projection.directions))
    assert 0.8 < (tmp_path / "target.h5").stat().st_size / estimate < 1.2


def test_a_round_of_the_papers_experiment_takes_a_tenth_of_float16():
    """2975 images of 2048 x 1024 at stride 4, whose features have 256 channels."""
    images, directions, plain = (2975, 256, 256, 512), 40, 2 * 256 + 1 + 4  # bytes of a pixel
    reduced = target_bytes(*images, directions)
    assert reduced <= 20e9
    assert 2975 * 256 * 512 * plain >= 10 * reduced
    assert target_bytes(*images) >= 5 * reduced


def test_a_shard_is_not_there_before_it_is_complete(tmp_path):
    path = tmp_path / "target" / "00000.h5"
    rows = (torch.zeros(1, D, H, W).half(), torch.zeros(1, H, W).byte(), torch.zeros(1, H, W))

    def outputs():
        yield rows
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_target_shard(path, 2, outputs())
    assert list(path.parent.iterdir()) == []


def test_a_failed_store_leaves_the_old_one(tmp_path):
    path = tmp_path / "target.h5"
    with create_store(path) as file:
        file["names"] = [1]
    before = path.read_bytes()
    with pytest.raises(ValueError), create_store(path):
        raise ValueError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [None, 0, 100, 3000, -1])
def test_a_shard_is_whole_or_made_again(tmp_path, kept):
    write_target(tmp_path)
    path = tmp_path / "target" / "00000.h5"
    assert is_whole(path, len(NAMES), TARGET_ROWS)
    assert not is_whole(path, len(NAMES) + 1, TARGET_ROWS)
    assert not is_whole(path, len(NAMES), SOURCE_KEYS)
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept])
    assert not is_whole(path, len(NAMES), TARGET_ROWS)


def error(path, keys=TARGET_KEYS, read=()):
    """The message for a store that cannot be opened, or whose data sets cannot be read."""
    with pytest.raises(UserError) as caught, open_store(path, keys) as file:
        for key in read:
            read_array(file, key)
        read_names(file)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_store_is_named(tmp_path):
    assert "no such feature store; `dvc repro` makes it" in error(tmp_path / "target.h5")


@pytest.mark.parametrize("kept", [0, 100, 3000, -1])
@pytest.mark.parametrize("name", ["target.h5", "target/00000.h5"])
def test_a_truncated_store_is_named(tmp_path, kept, name):
    write_target(tmp_path, [f"{i:0500d}" for i in range(9)])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged HDF5 file") as caught:
        for shard, rows in read_target_store(tmp_path / "target.h5", K).shards:
            list(read_target_rows(shard, len(rows), K))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_shard_is_named_and_not_read_as_zeros(tmp_path):
    write_target(tmp_path, MANY)
    (path, rows), *_ = read_target_store(tmp_path / "target.h5", K).shards
    path.unlink()
    with pytest.raises(UserError, match=r"target/00000\.h5: no such feature store"):
        list(read_target_rows(path, len(rows), K))


def test_a_shard_with_too_few_rows_is_named(tmp_path):
    write_target(tmp_path, MANY)
    with pytest.raises(UserError, match=r"00002\.h5: fewer than 4 rows"):
        list(read_target_rows(tmp_path / "target/00002.h5", 4, K))


def test_a_target_store_without_shards_is_damage(tmp_path):
    path = tmp_path / "target.h5"
    write_target(tmp_path)
    for key, value in {"shards": [], "rows": [2]}.items():
        with h5py.File(path, "a") as file:
            del file[key]
            file[key] = value
        with pytest.raises(UserError, match=r"target\.h5: damaged HDF5 file"):
            read_target_store(path, K)


@pytest.mark.parametrize("shard", ["../outside.h5", "/outside.h5"])
def test_a_shard_lies_in_the_stores_folder(tmp_path, shard):
    write_target(tmp_path, NAMES, 2)
    with h5py.File(tmp_path / "target.h5", "a") as file:
        del file["shards"]
        file["shards"] = np.array([shard.encode()])
    with pytest.raises(UserError, match="outside of the store's folder"):
        read_target_store(tmp_path / "target.h5", K)


def test_another_kind_of_file_is_named(tmp_path):
    (tmp_path / "target.h5").write_text("features")
    assert "damaged HDF5 file" in error(tmp_path / "target.h5")


def test_a_store_without_a_data_set_is_named(tmp_path):
    path = tmp_path / "target.h5"
    write_target(tmp_path)
    with h5py.File(path, "a") as file:
        del file["shards"], file["rows"]
    assert "lacks shards, rows" in error(path)
    assert "lacks class_sums, class_counts" in error(path, SOURCE_KEYS)


def test_a_group_in_place_of_a_data_set_is_damage(tmp_path):
    path = tmp_path / "target.h5"
    write_target(tmp_path)
    with h5py.File(path, "a") as file:
        del file["rows"]
        file.create_group("rows")
    assert "damaged HDF5 file" in error(path)


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    write_target(tmp_path, NAMES, 2)
    path = tmp_path / "target/00000.h5"
    with h5py.File(path) as file:
        offset = file["features"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.h5: damaged HDF5 file"):
        list(read_target_rows(path, len(NAMES), K))


@pytest.mark.parametrize("free", [0, 1000, 2**17, 2**19])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, free):
    """HDF5 crashes the process where a write fails."""
    rows = (torch.rand(8, 64, 32, 64).half(), torch.zeros(8, 32, 64).byte(), torch.rand(8, 32, 64))
    with full_disk(free), pytest.raises(OSError) as caught:
        write_target_shard(tmp_path / "a.h5", 8, [rows])
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
    write_target_shard(tmp_path / "a.h5", 8, [rows])
    (row, *_) = read_target_rows(tmp_path / "a.h5", 8, 1)
    assert torch.equal(row[0], rows[0][:1])


@pytest.mark.parametrize("count", [1, 60])
def test_what_is_reserved_is_enough_and_not_kept(tmp_path, monkeypatch, count):
    reserved = {}
    allocate = features._allocate

    def record(descriptor, size):
        allocate(descriptor, size)
        reserved[os.readlink(f"/proc/self/fd/{descriptor}").split(".")[-5]] = size

    monkeypatch.setattr(features, "_allocate", record)
    names = [f"{'long/' * 40}{number}" for number in range(count)]
    write_target(tmp_path, names)
    with create_store(tmp_path / "groups.h5") as file:
        for number in range(count):
            write_group(file, str(number), "name", {"a": torch.zeros(2, 2)})
    made = source_rows(*batch(count=count), range(count), seed=0, per_class=9)
    write_source_shard(tmp_path / "shard.h5", count, [made], 9)
    join_source(tmp_path / "source.h5", names, [tmp_path / "shard.h5"], 9)
    for name in ("target", "groups", "shard", "source"):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path) as file:
            assert file.id.get_filesize() == path.stat().st_size < reserved[name]


def test_a_store_opens_without_a_lock(tmp_path):
    write_target(tmp_path)
    with open(tmp_path / "target.h5", "rb") as viewer:
        fcntl.flock(viewer, fcntl.LOCK_EX)
        with open_store(tmp_path / "target.h5", TARGET_KEYS) as file:
            assert "rows" in file


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "check the disk"),
        (errno.EMFILE, "Too many open files"),
        (errno.EAGAIN, "another program has it open"),
    ],
)
def test_a_refusal_of_the_system_is_no_damage(tmp_path, monkeypatch, number, said):
    write_target(tmp_path)
    path = tmp_path / "target.h5"

    def refuse(*_, **__):
        raise OSError(f"Unable to open file (errno = {number}, error message = '...')")

    monkeypatch.setattr(features.h5py, "File", refuse)
    assert said in error(path) and "delete it and" not in error(path)
    with pytest.raises(UserError, match=said):
        is_whole(path, 1, TARGET_KEYS)  # else its rows would be computed again


def outside(file, data):
    """Raw bytes beside the store."""
    path = Path(file.filename).with_name("outside")
    path.write_bytes(b"\0" * data.nbytes)
    return {"external": [(str(path), 0, data.nbytes)]}


def virtual(file, data):
    """A virtual data set with its source above the store's folder."""
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource("../outside.h5", "features", data.shape, data.dtype)
    return layout


def zeros(file, key, times, **options):
    """A data set of zeros, shuffled, that declares more than so many times the bytes it takes."""
    shape = (1, D, 8, 8)
    data = file.create_dataset(
        key, shape, "f2", chunks=shape, maxshape=(None, *shape[1:]), shuffle=True, **options
    )
    data[:] = 0
    data.resize(times * data.id.get_storage_size() // data.nbytes + 1, axis=0)


FAULTS = {
    "other rows": ("probability", "they do not belong together", lambda v: v[:-1]),
    "other pixels": ("prediction", "they do not belong together", lambda v: v[:, :-1]),
    "nothing": ("features", "they do not belong together", lambda v: v[:, :0]),
    "complex": ("features", "features is complex64", lambda v: v.astype(np.complex64)),
    "integers": ("features", "features is int32", lambda v: v.astype(np.int32)),
    "big-endian": ("features", "features is >f2", lambda v: v.astype(">f2")),
    "two dimensions": (
        "features",
        "expected float16 or int16 of 4 dimensions",
        lambda v: v[..., 0, 0],
    ),
    "NaN": ("features", "features holds NaN or infinite", lambda v: v * np.float16(np.nan)),
    "infinite": ("probability", "holds NaN or infinite", lambda v: v + np.float32(np.inf)),
    "another class": ("prediction", f"class {K} of {K}", lambda v: v * 0 + K),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_shard_of_another_form_is_one_line(tmp_path, name):
    key, expected, change = FAULTS[name]
    write_target(tmp_path)
    with h5py.File(tmp_path / "target/00000.h5", "a") as file:
        values = file[key][:]
        del file[key]
        file[key] = change(values)
    with pytest.raises(UserError, match=r"00000\.h5: damaged HDF5 file") as caught:
        list(read_target_rows(tmp_path / "target/00000.h5", 2, K))
    assert expected in str(caught.value) and str(caught.value).isprintable()


ELSEWHERE = {
    "a link": ("a link", lambda f, k, v: setitem(f, k, h5py.ExternalLink("outside.h5", "/x"))),
    "a soft link": ("a link", lambda f, k, v: setitem(f, k, h5py.SoftLink("/probability"))),
    "raw data": (
        "in other files",
        lambda f, k, v: f.create_dataset(k, v.shape, "f2", **outside(f, v)),
    ),
    "sources": ("in other files", lambda f, k, v: f.create_virtual_dataset(k, virtual(f, v))),
    "a huge shape": (
        "more than the file holds",
        lambda f, k, v: f.create_dataset(k, (4, D, 10**6, 10**6), "f2", chunks=(1, D, 8, 8)),
    ),
    "a huge shape, compressed": (
        "more than the file holds",
        lambda f, k, v: f.create_dataset(k, (4, D, 10**6, 10**6), "f2", compression="gzip"),
    ),
    # Zstd makes data 10,000 times smaller; deflate does not, and shuffled bytes stay as many.
    "a large shape, compressed": (
        "more than the file holds",
        lambda f, k, v: zeros(f, k, 10_000, compression="gzip"),
    ),
    "a large shape, shuffled": ("more than the file holds", lambda f, k, v: zeros(f, k, 2)),
    "other rows, compressed": (
        "do not belong together",
        lambda f, k, v: zeros(f, k, 10_000, **hdf5plugin.Zstd()),
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_store_does_not_leave_its_file(tmp_path, name):
    expected, change = ELSEWHERE[name]
    write_target(tmp_path)
    path = tmp_path / "target/00000.h5"
    with h5py.File(path, "a") as file:
        values = file["features"][:]
        del file["features"]
        change(file, "features", values)
    with pytest.raises(UserError, match=rf"00000\.h5: damaged HDF5 file .*{expected}"):
        list(read_target_rows(path, 2, K))
    assert not is_whole(path, len(NAMES), TARGET_ROWS)


def test_a_row_that_expands_beyond_an_image_is_refused_before_it_is_read(tmp_path):
    write_target(tmp_path)
    path, side = tmp_path / "target/00000.h5", 2**10
    with h5py.File(path, "a") as file:
        for key in TARGET_ROWS:
            shape = (*file[key].shape[:-2], side, side)
            options = {"chunks": (1,) * (len(shape) - 2) + (side, side), **hdf5plugin.Zstd()}
            dtype = file[key].dtype
            del file[key]
            file.create_dataset(key, shape, dtype, fillvalue=0, **options)
            for row in range(shape[0]):
                file[key][row, ..., :1, :1] = 0
    assert path.stat().st_size < 10**5  # for 2 MB a channel
    store = read_target_store(tmp_path / "target.h5", K, pixels=2**16)
    with pytest.raises(UserError, match="maps of 1024 x 1024, more than an image's pixels"):
        read_target_row(store, 0)
    with pytest.raises(UserError, match="maps of 1024 x 1024, more than an image's pixels"):
        list(read_target_images(store, store.shards))


def test_a_source_store_is_not_compressed(tmp_path):
    write_source(tmp_path, NAMES, 2)
    with h5py.File(tmp_path / "source.h5", "a") as file:
        shape, dtype = (*file["class_sums"].shape[:2], 10**4), file["class_sums"].dtype
        del file["class_sums"]
        file.create_dataset("class_sums", shape, dtype, **hdf5plugin.Zstd())[:] = 0
    with (
        pytest.raises(
            UserError, match="class_sums declares the shape .*, more than the file holds"
        ),
        open_store(tmp_path / "source.h5", SOURCE_KEYS),
    ):
        pass


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a", "b"], "a row for each name"), (["a", "b", "a"], "the name 'a' is there twice")],
)
def test_each_row_has_one_name(tmp_path, names, expected):
    write_target(tmp_path)
    with h5py.File(tmp_path / "target.h5", "a") as file:
        del file["names"]
        file["names"] = np.array([name.encode() for name in names])
    with pytest.raises(UserError, match=expected):
        read_target_store(tmp_path / "target.h5", K)


@pytest.mark.parametrize("key", ["names", "shards"])
def test_texts_whose_lengths_lie_elsewhere_are_refused(tmp_path, key):
    """HDF5 takes as much memory as a damaged length says, or does not come back."""
    write_target(tmp_path)
    with h5py.File(tmp_path / "target.h5", "a") as file:
        texts = list(file[key].asstr())
        del file[key]
        file[key] = texts
    with pytest.raises(
        UserError, match=f"{key} is object of shape .*; expected text of one length"
    ):
        read_target_store(tmp_path / "target.h5", K)


@pytest.mark.parametrize("strategy", [None, "page"])
def test_a_store_without_checksums_is_refused(tmp_path, strategy):
    """Nor is one whose first entry alone has a checksum, as with a strategy."""
    write_target(tmp_path)
    path, form = tmp_path / "target.h5", {"libver": "earliest", "fs_strategy": strategy}
    with h5py.File(path) as file, h5py.File(tmp_path / "old.h5", "w", **form) as old:
        for key in file:
            file.copy(key, old)
    os.replace(tmp_path / "old.h5", path)
    said = r"target\.h5: damaged HDF5 file \(an older form, without checksums\)"
    with pytest.raises(UserError, match=said):
        read_target_store(path, K)


def test_groups_are_not_followed_in_circles(tmp_path):
    with create_store(tmp_path / "samples.h5") as file:
        group = file.create_group("0")
        group["0"] = group
    with (
        pytest.raises(UserError, match="0/0 is a group in a group"),
        open_store(tmp_path / "samples.h5", ()),
    ):
        pass


def test_a_group_has_one_name(tmp_path):
    path = tmp_path / "samples.h5"
    with create_store(path) as file:
        write_group(file, "0", "straße/日本", {"truth": torch.zeros(2, 3)})
        file["1/name"] = np.array([], "S3")
    with open_store(path, ()) as file:
        assert read_group_name(file, "0") == "straße/日本"
        with pytest.raises(UserError, match="group 1 has 0 names"):
            read_group_name(file, "1")


def test_names_may_be_long_and_in_any_script(tmp_path):
    names = ["a", "straße/日本" * 40, "ü"]
    write_target(tmp_path, names, 2)
    assert read_target_store(tmp_path / "target.h5", K).names == names


def test_a_source_store_is_checked_as_well(tmp_path):
    write_source(tmp_path, NAMES, 2)
    with h5py.File(tmp_path / "source.h5", "a") as file:
        file["class_sums"][0, 0, 0] = np.nan
    with (
        pytest.raises(UserError, match="class_sums holds NaN"),
        open_store(tmp_path / "source.h5", SOURCE_KEYS) as file,
    ):
        read_array(file, "class_sums")


def test_an_error_of_the_reader_is_not_blamed_on_the_store(tmp_path):
    path = tmp_path / "target.h5"
    write_target(tmp_path)
    with pytest.raises(OSError, match="disk is full"), open_store(path, TARGET_KEYS):
        raise OSError("disk is full")


# Anchors


def test_anchors_come_back_as_float32_with_their_gaps(tmp_path):
    anchors = np.arange(K * D, dtype=np.float64).reshape(K, D)
    anchors[2] = np.nan
    np.save(tmp_path / "anchors.npy", anchors)
    found = read_anchors(tmp_path / "anchors.npy", K, D)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), anchors)


def test_anchors_of_an_old_form_are_read_without_a_warning(tmp_path):
    path = tmp_path / "anchors.npy"
    np.save(path, np.ones((K, D)))
    shape = f"({K}, {D})".encode()
    path.write_bytes(path.read_bytes().replace(shape + b", }  ", f"({K}L, {D}L), }}".encode()))
    assert torch.equal(read_anchors(path, K, D), torch.ones(K, D))


@pytest.mark.parametrize(("column", "value"), [(0, np.nan), (slice(None), np.inf)])
def test_anchors_that_are_no_numbers_are_refused(tmp_path, column, value):
    anchors = np.zeros((K, D))
    anchors[1, column] = value
    np.save(tmp_path / "anchors.npy", anchors)
    with pytest.raises(UserError, match="NaN beside numbers, or an infinite number"):
        read_anchors(tmp_path / "anchors.npy", K, D)


@pytest.mark.parametrize(
    ("anchors", "expected"),
    [
        (np.zeros((K + 1, D), np.float32), f"shape ({K + 1}, {D})"),
        (np.zeros((K, D - 1), np.float32), f"shape ({K}, {D - 1})"),
        (np.zeros(K, np.float32), f"shape ({K},)"),
        (np.zeros((K, D), np.int64), "int64"),
        (np.zeros((K, D), np.complex64), "complex64"),
        (np.array([["x"] * D] * K), "<U1"),
    ],
)
def test_anchors_of_another_form_are_refused(tmp_path, anchors, expected):
    path = tmp_path / "anchors.npy"
    np.save(path, anchors)
    with pytest.raises(UserError) as caught:
        read_anchors(path, K, D)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
    assert f"expected floats of shape ({K}, {D})" in str(caught.value)


class Trap:
    """An object that would run code when it is unpickled."""

    opened = False

    def __reduce__(self):
        return setattr, (Trap, "opened", True)


def test_pickled_anchors_are_not_opened(tmp_path):
    path = tmp_path / "anchors.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"anchors\.npy: not an undamaged \.npy file"):
        read_anchors(path, K, D)
    assert not Trap.opened


HUGE = b"{'descr':'<f4','fortran_order':False,'shape':(1000000000000000,256),}\n"
NPY = b"\x93NUMPY\x01\0"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"anchors", b"PK\x03\x04 no archive", NPY + len(HUGE).to_bytes(2, "little") + HUGE),
        *(NPY + b"\xff\0" + b"(" * 255, NPY + b"\x03\0\\n'"),
    ],
)
def test_another_kind_of_anchor_file_is_named(tmp_path, content):
    (tmp_path / "anchors.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"anchors\.npy: not an undamaged \.npy file") as caught:
        read_anchors(tmp_path / "anchors.npy", K, D)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_no_anchor_file(tmp_path):
    with open(tmp_path / "anchors.npy", "wb") as file:
        np.savez(file, anchors=np.zeros((K, D), np.float32))
    with pytest.raises(UserError, match=r"anchors\.npy: not an undamaged \.npy file"):
        read_anchors(tmp_path / "anchors.npy", K, D)


def test_missing_anchors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"anchors\.npy: no such file; `dvc repro` makes it"):
        read_anchors(tmp_path / "anchors.npy", K, D)
