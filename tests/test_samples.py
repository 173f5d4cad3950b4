"""Training samples: epochs shuffled by the seed, shared without overlap, resumed exactly."""

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from raw import picture

from cag.config.training import Augmentation, Photometric
from cag.datasets.images import read_label, write_image, write_label
from cag.datasets.labels import LabelSpace
from cag.datasets.preparation import write_manifest
from cag.datasets.prepared import COLUMNS
from cag.runtime.errors import UserError
from cag.training.samples import (
    Sample,
    TrainingSamples,
    batches,
    labelled_samples,
    pseudo_labelled_samples,
    unlabelled_samples,
)
from cag.training.transforms import apply_seeded

SPACE = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
COUNT = 7
PLAIN = Augmentation(scale=(1.0, 1.0), crop=(8, 12), flip=0.0, photometric=None)
RANDOM = Augmentation(
    scale=(0.5, 2.0),
    crop=(8, 12),
    flip=0.5,
    photometric=Photometric(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, gamma=1.0),
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Noise; the first value is the image's number i; the labels are i, and 10 + i."""
    folder = tmp_path_factory.mktemp("samples")
    found = []
    for i in range(COUNT):
        image = np.random.default_rng(i).integers(0, 256, (8, 12, 3)).astype(np.uint8)
        image[0, 0, 0] = i
        write_image(folder / f"{i}.png", image)
        maps = tuple(folder / f"{i}-{rule}.png" for rule in range(2))
        for rule, path in enumerate(maps):
            write_label(path, np.full((8, 12), 10 * rule + i, np.uint8), SPACE.palette_array)
        found.append(Sample(folder / f"{i}.png", maps))
    return found


def numbers(images):
    """The images' numbers in a batch [b, 3, h, w] without augmentation."""
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def same(first, second):
    """Whether two batches or samples are equal in every bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_sample_is_an_image_with_its_label_maps(samples):
    image, labels = TrainingSamples(samples, PLAIN, seed=0)[0]
    assert image.dtype == torch.float32 and image.shape == (3, 8, 12)
    assert labels.dtype == torch.uint8 and labels.shape == (2, 8, 12)
    (number,) = numbers(image[None])
    assert labels[0].unique().tolist() == [number]
    assert labels[1].unique().tolist() == [10 + number]


@pytest.mark.parametrize("changed", [(3, 3), (8, 12, 3)])
def test_label_maps_that_somebody_changed_are_refused(samples, tmp_path, changed):
    write_image(tmp_path / "1.png", np.zeros(changed, np.uint8))
    sample = Sample(samples[0].image, (samples[0].labels[0], tmp_path / "1.png"))
    with pytest.raises(UserError, match=r"1.png: holds uint8 of .*; expected uint8 of \(8, 12\)"):
        TrainingSamples([sample], PLAIN, seed=0)[0]


def test_each_image_comes_once_in_an_epoch_in_another_order_each_time(samples):
    dataset = TrainingSamples(samples, PLAIN, seed=0)
    read = [numbers(dataset[p][0][None])[0] for p in range(4 * COUNT)]
    epochs = [read[i : i + COUNT] for i in range(0, len(read), COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_is_the_seeds_alone(samples):
    def order(seed):
        dataset = TrainingSamples(samples, PLAIN, seed)
        return [numbers(dataset[p][0][None])[0] for p in range(2 * COUNT)]

    torch.manual_seed(1)
    first = order(5)
    torch.manual_seed(2)
    assert order(5) == first
    assert order(6) != first


def test_a_sample_does_not_depend_on_what_was_read_before(samples):
    dataset = TrainingSamples(samples, RANDOM, seed=3)
    forwards = [dataset[p] for p in range(2 * COUNT)]
    backwards = [dataset[p] for p in reversed(range(2 * COUNT))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert same(TrainingSamples(samples, RANDOM, seed=3)[9], forwards[9])


def test_an_image_is_augmented_anew_in_each_epoch(samples):
    dataset = TrainingSamples(samples[:1], RANDOM, seed=3)
    assert not torch.equal(dataset[0][0], dataset[1][0])


def test_a_range_of_steps_gives_its_batches(samples):
    dataset = TrainingSamples(samples, RANDOM, seed=0)
    images, labels = next(batches(dataset, 3, range(4, 5), workers=0))
    expected = [dataset[p] for p in (12, 13, 14)]
    assert torch.equal(images, torch.stack([image for image, _ in expected]))
    assert torch.equal(labels, torch.stack([maps for _, maps in expected]))


def test_a_resumed_training_reads_on_where_it_stopped(samples):
    dataset = TrainingSamples(samples, RANDOM, seed=0)
    whole = list(batches(dataset, 2, range(9), workers=0))
    parts = [b for r in (range(4), range(4, 9)) for b in batches(dataset, 2, r, workers=0)]
    assert len(whole) == len(parts) == 9
    assert all(same(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(samples, world_size):
    dataset = TrainingSamples(samples, RANDOM, seed=0)
    whole = list(batches(dataset, 4, range(3), workers=0))
    shares = [
        list(batches(dataset, 4, range(3), 0, rank, world_size)) for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        joined = [torch.cat(parts) for parts in zip(*(s[step] for s in shares), strict=True)]
        assert same(batch, joined)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(samples):
    dataset = TrainingSamples(samples, PLAIN, seed=0)
    with pytest.raises(UserError, match="batch_size is 3; expected a multiple of 2"):
        next(batches(dataset, 3, range(1), workers=0, rank=0, world_size=2))


def test_loader_processes_change_nothing(samples):
    dataset = TrainingSamples(samples, RANDOM, seed=0)
    alone, helped = (list(batches(dataset, 2, range(4), workers)) for workers in (0, 2))
    assert len(alone) == 4
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_in_one_line(samples, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    missing = tmp_path / "gone.png"
    dataset = TrainingSamples([Sample(missing, samples[0].labels)], PLAIN, seed=0)
    with pytest.raises(UserError) as caught:
        list(batches(dataset, 1, range(1), workers))
    assert str(caught.value).startswith(f"{missing}: no such file")
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # ends the loader's processes, for which torch waits as long as set above


# The samples of a prepared data set


def prepared(folder: Path, rows) -> Path:
    """A manifest with rows (split, name, whether labelled)."""
    table = [
        {
            "split": split,
            "name": name,
            "image": f"images/{split}/{name}.png",
            "label": f"labels/{split}/{name}.png" if labelled else "",
            "height": 8,
            "width": 12,
        }
        for split, name, labelled in rows
    ]
    folder.mkdir(exist_ok=True)
    write_manifest(folder, pd.DataFrame(table, columns=COLUMNS).fillna(""), SPACE)
    return folder


def test_labelled_samples_are_the_splits_in_the_manifests_order(tmp_path):
    folder = prepared(tmp_path, [("val", "c", True), ("train", "b/x", True), ("train", "a", True)])
    assert labelled_samples(folder) == [
        Sample(
            folder / f"images/train/{n}.png", (folder / f"labels/train/{n}.png",), SPACE.num_classes
        )
        for n in ("b/x", "a")
    ]
    assert [s.image.stem for s in labelled_samples(folder, "val")] == ["c"]


def test_images_without_labels_or_no_images_at_all_are_refused(tmp_path):
    folder = prepared(tmp_path, [("train", "a", True), ("train", "b", False)])
    with pytest.raises(UserError, match="'train' has images without labels"):
        labelled_samples(folder)
    with pytest.raises(UserError, match="no images of the split 'val'"):
        labelled_samples(folder, "val")


def test_unlabelled_samples_have_no_label_map_even_where_there_is_one(tmp_path):
    rows = [("train", "b/x", True), ("val", "c", True), ("train", "a", False)]
    folder = prepared(tmp_path, rows)
    assert unlabelled_samples(folder) == [
        Sample(folder / f"images/train/{name}.png", ()) for name in ("b/x", "a")
    ]
    with pytest.raises(UserError, match="no images of the split 'train'"):
        unlabelled_samples(prepared(tmp_path / "empty", [("val", "c", True)]))


def test_without_label_maps_an_image_is_the_same_with_none(samples):
    bare = [Sample(sample.image, ()) for sample in samples]
    with_maps, without = (TrainingSamples(s, RANDOM, seed=0) for s in (samples, bare))
    for p in range(2 * COUNT):
        image, labels = without[p]
        assert labels.dtype == torch.uint8 and labels.shape == (0, 8, 12)
        assert torch.equal(image, with_maps[p][0])
    images, labels = next(batches(without, 3, range(1), workers=0))
    assert labels.shape == (3, 0, 8, 12)


def test_pseudo_labels_come_anchor_rule_first_and_replace_the_truth(tmp_path):
    folder = prepared(tmp_path / "target", [("train", "d/a", True)])
    maps = [tmp_path / "maps" / rule / "d/a.png" for rule in ("anchor", "probability")]
    for value, path in enumerate(maps):
        path.parent.mkdir(parents=True)
        write_label(path, np.full((8, 12), value, np.uint8), SPACE.palette_array)
    (sample,) = pseudo_labelled_samples(folder, tmp_path / "maps")
    assert sample.image == folder / "images/train/d/a.png"
    assert [int(read_label(path).max()) for path in sample.labels] == [0, 1]
    write_label(maps[1], np.full((8, 12), SPACE.num_classes, np.uint8), SPACE.palette_array)
    picture(sample.image)
    with pytest.raises(UserError, match=r"d/a\.png: holds the train id \d; expected 0 to \d, or"):
        TrainingSamples([sample], PLAIN, seed=0)[0]
    maps[1].unlink()
    with pytest.raises(UserError, match=r"probability/d/a\.png: no such pseudo-label map"):
        pseudo_labelled_samples(folder, tmp_path / "maps")


def test_the_sample_is_the_transforms(samples):
    dataset = TrainingSamples(samples, RANDOM, seed=0)
    seeds = []

    def record(transform, image, labels, seed):
        seeds.append(seed)
        return apply_seeded(transform, image, labels, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cag.training.samples.apply_seeded", record)
        for p in range(3 * COUNT):
            dataset[p]
    assert len(set(seeds)) == 3 * COUNT  # no two samples share their draws
