"""Feature stores: exact sums, a balanced sample in bounded memory, files whole or not there."""

import shutil
from collections import namedtuple

import h5py
import numpy as np
import pytest
import torch

from cag.errors import UserError
from cag.features import (
    SOURCE_KEYS,
    TARGET_KEYS,
    BalancedSample,
    SourceWriter,
    TargetWriter,
    create_store,
    open_store,
    read_anchors,
    read_array,
    read_names,
    source_bytes,
    source_statistics,
    target_bytes,
)
from cag.labels import IGNORE

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


def test_a_sample_has_as_many_of_each_class_where_there_are_as_many():
    labels = torch.zeros(1, 20, 20, dtype=torch.uint8)
    labels[0, 0, :3] = 1
    labels[0, 1] = 2
    labels[0, 2] = IGNORE
    sample = BalancedSample(per_class=10, width=1, seed=0)
    for start in (0, 400):
        sample.update(numbered(labels, start), labels)
    counts = torch.bincount(sample.labels.long(), minlength=4).tolist()
    assert counts == [10, 6, 10, 0]
    assert len(sample.features) == len(sample.labels) == 26
    assert sample.features.dtype == torch.float16 and sample.labels.dtype == torch.uint8


def test_a_sampled_feature_is_one_of_its_class_and_taken_once():
    features, _, labels = batch(count=8)
    sample = BalancedSample(per_class=12, width=D, seed=0)
    for i in range(8):
        sample.update(features[i : i + 1], labels[i : i + 1])
    pixels = features.half().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
    same = (sample.features[:, None] == pixels[None]).all(-1)  # (M, B h w)
    assert (same.sum(1) == 1).all() and (same.sum(0) <= 1).all()
    assert torch.equal(labels.flatten()[same.int().argmax(1)], sample.labels)


def test_memory_does_not_grow_with_the_images():
    sample = BalancedSample(per_class=5, width=D, seed=0)
    for seed in range(30):
        features, _, labels = batch(seed)
        sample.update(features, labels)
        held = (sample.features, sample.labels, sample.draws)
        assert {len(value) for value in held} == {5 * K}
        assert sample.features.untyped_storage().nbytes() == 5 * K * D * 2


def test_the_sample_is_the_seeds_alone():
    def draw(seed):
        sample = BalancedSample(per_class=3, width=D, seed=seed)
        for i in range(4):
            features, _, labels = batch(i)
            sample.update(features, labels)
        return sample.features, sample.labels

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(0), strict=True))
    assert not torch.equal(first[0], draw(1)[0])


def test_early_and_late_pixels_are_sampled_alike():
    labels = torch.zeros(1, 5, 10, dtype=torch.uint8)
    taken = torch.zeros(200)
    for seed in range(150):
        sample = BalancedSample(per_class=20, width=1, seed=seed)
        for image in range(4):
            sample.update(numbered(labels, 50 * image), labels)
        taken[sample.features[:, 0].long()] += 1
    quarters = taken.view(4, 50).sum(1) / taken.sum()
    assert torch.allclose(quarters, torch.tensor(0.25), atol=0.03)  # 3.8 standard deviations
    assert taken.max() < 40  # 15 expected


def test_a_sample_of_nothing_is_empty():
    features, _, labels = batch()
    sample = BalancedSample(per_class=0, width=D, seed=0)
    sample.update(features, labels)
    assert sample.features.shape == (0, D)
    sample = BalancedSample(per_class=5, width=D, seed=0)
    sample.update(features, torch.full_like(labels, IGNORE))
    assert sample.features.shape == (0, D) and sample.labels.shape == (0,)


# Stores


def write_source(path, names=NAMES, size=2):
    """A source store of as many random images, in batches of `size`; its statistics and sample."""
    features, logits, labels = batch(count=len(names))
    statistics = source_statistics(features, logits, labels)
    sample = BalancedSample(4, D, seed=0)
    with create_store(path, 0) as file:
        writer = SourceWriter(file, names, K, D)
        for start in range(0, len(names), size):
            rows = slice(start, start + size)
            writer.write(source_statistics(features[rows], logits[rows], labels[rows]))
            sample.update(features[rows], labels[rows])
        writer.write_sample(sample)
    return statistics, sample


def write_target(path, names=NAMES, size=2):
    """A target store of as many random images, in batches of `size`; its features and logits."""
    features, logits, _ = batch(count=len(names))
    with create_store(path, 0) as file:
        writer = TargetWriter(file, names, (D, H, W))
        for start in range(0, len(names), size):
            writer.write(features[start : start + size], logits[start : start + size])
    return features, logits


def test_a_source_store_gives_back_what_was_written(tmp_path):
    path = tmp_path / "source.h5"
    statistics, sample = write_source(path)
    with open_store(path, SOURCE_KEYS) as file:
        assert set(file) == set(SOURCE_KEYS)
        assert read_names(file) == NAMES
        for key, value in statistics._asdict().items():
            assert torch.equal(read_array(file, key), value)
            assert torch.equal(read_array(file, key, slice(1, 3)), value[1:3])
        assert file["class_sums"].chunks == (1, K, D)
        assert torch.equal(read_array(file, "sample_features"), sample.features)
        assert torch.equal(read_array(file, "sample_labels"), sample.labels)
        assert file["sample_features"].dtype == np.float16


def test_a_target_store_gives_back_what_was_written(tmp_path):
    path = tmp_path / "target.h5"
    features, logits = write_target(path)
    with open_store(path, TARGET_KEYS) as file:
        assert set(file) == set(TARGET_KEYS)
        assert read_names(file) == NAMES
        assert torch.equal(read_array(file, "features"), features.half())
        assert torch.equal(read_array(file, "prediction"), logits.argmax(1).byte())
        exponentials = np.exp(logits.double().numpy())
        expected = exponentials.max(1) / exponentials.sum(1)
        np.testing.assert_allclose(read_array(file, "probability"), expected, rtol=1e-5)
        kinds = {key: file[key].dtype.str[1:] for key in TARGET_KEYS[1:]}
        assert kinds == {"features": "f2", "prediction": "u1", "probability": "f4"}
        assert file["features"].chunks == (1, D, H, W)
        assert file["prediction"].chunks == file["probability"].chunks == (1, H, W)


def test_stores_have_the_same_bytes_each_time(tmp_path):
    for write in (write_source, write_target):
        write(tmp_path / "first.h5")
        write(tmp_path / "second.h5")
        assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_a_store_takes_about_as_much_as_estimated(tmp_path):
    names = [str(i) for i in range(40)]
    count, width, height, breadth, per_class = 40, 16, 32, 64, 300
    with create_store(tmp_path / "target.h5", 0) as file:
        writer = TargetWriter(file, names, (width, height, breadth))
        writer.write(torch.zeros(count, width, height, breadth), torch.zeros(count, 2, 32, 64))
    estimate = target_bytes(count, width, height, breadth)
    assert 0.9 < (tmp_path / "target.h5").stat().st_size / estimate < 1.1
    classes, width = 20, 64
    sample = BalancedSample(per_class, width, seed=0)
    labels = torch.arange(classes, dtype=torch.uint8).repeat(per_class, 1)[None]
    sample.update(torch.zeros(1, width, per_class, classes), labels)
    with create_store(tmp_path / "source.h5", 0) as file:
        writer = SourceWriter(file, names, classes, width)
        one_hot = torch.zeros(count, classes, 1, 1)
        writer.write(
            source_statistics(torch.ones(count, width, 1, 1), one_hot, labels[0, :40, :1, None])
        )
        writer.write_sample(sample)
    estimate = source_bytes(count, classes, width, per_class)
    assert 0.9 < (tmp_path / "source.h5").stat().st_size / estimate < 1.1


def test_a_store_is_not_there_before_it_is_complete(tmp_path):
    path = tmp_path / "features" / "target.h5"
    with pytest.raises(KeyboardInterrupt), create_store(path, 0) as file:
        TargetWriter(file, NAMES, (D, H, W)).write(*batch()[:2])
        assert not path.exists()
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_a_failed_store_leaves_the_old_one(tmp_path):
    path = tmp_path / "target.h5"
    write_target(path)
    before = path.read_bytes()
    with pytest.raises(ValueError), create_store(path, 0):
        raise ValueError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2000, 1001, 999))
    path = tmp_path / "features" / "source.h5"
    with pytest.raises(UserError, match="the features of source.h5 needs about") as caught:
        create_store(path, 1000).__enter__()
    assert str(path.parent) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with create_store(path, 999):
        pass
    assert path.is_file()


def error(path, keys=TARGET_KEYS, read=()):
    """The message about a store that cannot be opened, or whose data sets cannot be read."""
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
def test_a_truncated_store_is_named(tmp_path, kept):
    path = tmp_path / "target.h5"
    write_target(path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged HDF5 file" in error(path, read=TARGET_KEYS[1:])


def test_another_kind_of_file_is_named(tmp_path):
    (tmp_path / "target.h5").write_text("features")
    assert "damaged HDF5 file" in error(tmp_path / "target.h5")


def test_a_store_without_a_data_set_is_named(tmp_path):
    path = tmp_path / "target.h5"
    write_target(path)
    with h5py.File(path, "a") as file:
        del file["prediction"], file["probability"]
    assert "lacks prediction, probability" in error(path)
    assert "lacks class_sums, class_counts" in error(path, SOURCE_KEYS)


def test_a_group_in_place_of_a_data_set_is_damage(tmp_path):
    path = tmp_path / "target.h5"
    write_target(path)
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_group("features")
    assert "damaged HDF5 file" in error(path, read=["features"])


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "target.h5"
    with h5py.File(path, "w") as file:
        for key in TARGET_KEYS:
            file.create_dataset(key, data=np.arange(1000), chunks=(100,), compression="gzip")
        offset = file["features"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    assert "damaged HDF5 file" in error(path, read=["features"])


def test_an_error_of_the_reader_is_not_blamed_on_the_store(tmp_path):
    path = tmp_path / "target.h5"
    write_target(path)
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
    with pytest.raises(UserError, match=r"anchors\.npy: damaged \.npy file"):
        read_anchors(path, K, D)
    assert not Trap.opened


@pytest.mark.parametrize("content", [b"", b"anchors", b"PK\x03\x04 no archive"])
def test_another_kind_of_anchor_file_is_named(tmp_path, content):
    (tmp_path / "anchors.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"anchors\.npy: damaged \.npy file") as caught:
        read_anchors(tmp_path / "anchors.npy", K, D)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_no_anchor_file(tmp_path):
    with open(tmp_path / "anchors.npy", "wb") as file:
        np.savez(file, anchors=np.zeros((K, D), np.float32))
    with pytest.raises(UserError, match=r"anchors\.npy: damaged \.npy file"):
        read_anchors(tmp_path / "anchors.npy", K, D)


def test_missing_anchors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"anchors\.npy: no such file; `dvc repro` makes it"):
        read_anchors(tmp_path / "anchors.npy", K, D)
