"""The whole pipeline on a tiny data set, as a user runs it."""

import json
import re
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from project import (
    SEPARATE,
    digests,
    dvc,
    execute,
    finished_project,
    git,
    make_project,
    merged,
    ran,
    read_params,
    tiny_params,
    write_params,
)
from safetensors import safe_open
from torch import Tensor

from benchmarks.miniature import SIZE
from cag.anchors import nearest_other_anchor, read_anchors
from cag.cli import cli
from cag.config.watch import MEASURES
from cag.datasets.labels import IGNORE
from cag.features import TargetStore, read_target_images, read_target_store
from cag.projection import UNIT
from cag.pseudo_labels import (
    THRESHOLDS,
    MarginHistogram,
    Pixels,
    label_pixels,
    measure,
)
from cag.report.feature_space import principal_axes
from cag.report.gather import read_features, training_maps
from cag.runtime.errors import UserError
from cag.scenes import write_dataset

ROUNDS = ("round1", "round2")
EVALUATED = ("pretrain", "round2")
MODELS = ("pretrain", "warmup", *ROUNDS)
HEIGHT, WIDTH = SIZE
KINDS = ("json", "csv")  # of files of measures
CLASSES, TRAINING, VALIDATION = 7, 6, 4  # classes, target images
DEADLINE = 400  # seconds


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project after `dvc repro`; tests change only copies."""
    return finished_project(tmp_path_factory)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished project."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def label_map(path: Path) -> np.ndarray:
    """Train ids of a palette PNG in the Cityscapes colours, uint8 [H, W]."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3)
        assert palette[0].tolist() == [128, 64, 128]  # drivable
        assert palette[255].tolist() == [0, 0, 0]
        labels = np.array(image)
    assert set(np.unique(labels)) <= {*range(CLASSES), 255}
    return labels


# Artifacts


def test_images_of_another_size_are_prepared_anew(tmp_path):
    project = make_project(tmp_path / "project")
    params = read_params(project)
    for size in ([32, 64], [48, 96], [32, 64]):  # DVC's cache of runs ignores the size
        params["source"]["size"] = size
        write_params(project, params)
        dvc(project, "repro", "prepare@source")
        manifest = pd.read_csv(project / "data/prepared/source/manifest.csv")
        assert set(manifest["height"]) == {size[0]} and set(manifest["width"]) == {size[1]}


def test_index_lists_nothing_of_scenes(finished):
    for domain in ("source", "target"):
        table = pd.read_csv(finished / f"data/index/{domain}.csv")
        assert list(table.columns) == ["path", "bytes"]
        assert table.empty
    for given in ("weights", "warmup"):
        assert pd.read_csv(finished / f"data/index/{given}.csv").empty
    scored = pd.read_csv(finished / "data/evaluation/models.csv")
    assert scored["model"].tolist() == list(EVALUATED)


@pytest.mark.parametrize(
    ("domain", "images", "labels"),
    [
        ("source", {"train": 8}, {"train": 8}),
        ("target", {"train": TRAINING, "val": VALIDATION}, {"val": VALIDATION}),
    ],
)
def test_prepared_form(finished, domain, images, labels):
    folder = finished / "data/prepared" / domain
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    assert list(manifest.columns) == [
        *("split", "name", "image", "label", "height", "width", "image_sha256", "label_sha256")
    ]
    assert manifest["split"].value_counts().to_dict() == images
    assert manifest[manifest["label"] != ""]["split"].value_counts().to_dict() == labels
    for row in manifest.itertuples():
        with Image.open(folder / row.image) as image:
            assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
        if row.label:
            assert label_map(folder / row.label).shape == (HEIGHT, WIDTH)
    classes = json.loads((folder / "classes.json").read_text())["classes"]
    assert [classes[0]["name"], len(classes)] == ["drivable", CLASSES]
    # Nothing lies there that the manifest does not name.
    named = {*manifest["image"], *manifest["label"], "manifest.csv", "classes.json"} - {""}
    assert set(digests(folder)) == named


def test_models_carry_their_description(finished):
    for model in MODELS:
        with safe_open(finished / f"data/models/{model}.safetensors", "numpy") as file:
            metadata, names = file.metadata(), list(file.keys())
        assert "tu-test_efficientnet" in json.dumps(metadata)
        assert any("encoder" in name for name in names)
    assert len(set(digests(finished / "data/models").values())) == len(MODELS)


def test_learning_curves(finished):
    params = read_params(finished)
    terms = ["source_ce", "target_ce", "source_distance", "target_distance"]
    for model, stage, losses in (
        ("pretrain", "pretrain", ["source_ce"]),
        ("warmup", "warmup", ["source_ce", "adversarial", "discriminator"]),
        *((name, "adapt", terms) for name in ROUNDS),
    ):
        curve = pd.read_csv(finished / f"data/curves/{model}.csv")
        assert list(curve.columns) == ["iteration", "learning_rate", "loss", *losses]
        assert curve["iteration"].iloc[-1] == params[stage]["iterations"]
        assert np.isfinite(curve).all(axis=None)


@pytest.mark.parametrize("name", ROUNDS)
def test_feature_stores(finished, name):
    folder = finished / "data/features" / name
    manifests = {
        domain: pd.read_csv(finished / f"data/prepared/{domain}/manifest.csv").query(
            "split == 'train'"
        )["name"]
        for domain in ("source", "target")
    }
    with h5py.File(folder / "source.h5") as file:
        assert list(file["names"].asstr()) == list(manifests["source"])
        n, k, d = file["class_sums"].shape
        assert (n, k) == (8, CLASSES)
        for kind in ("", "correct_"):
            sums, counts = file[f"{kind}class_sums"], file[f"{kind}class_counts"]
            assert (sums.shape, sums.dtype) == ((n, k, d), np.float32)
            assert (counts.shape, counts.dtype) == ((n, k), np.int64)
        assert (file["correct_class_counts"][:] <= file["class_counts"][:]).all()
        assert file["sample_features"].dtype == np.float16
        assert file["sample_features"].shape == (len(file["sample_labels"]), d)
    with h5py.File(folder / "target.h5") as file:
        assert list(file["names"].asstr()) == list(manifests["target"])
        assert list(file["shards"].asstr()) == ["target/00000.h5"]  # so few images need only one
        directions, width = file["directions"].shape
    with h5py.File(folder / "target/00000.h5") as file:
        n, numbers, h, w = file["features"].shape
        assert (n, numbers, width) == (TRAINING, directions + 1, d)
        assert file["features"].dtype == np.int16
        assert (file["prediction"].shape, file["prediction"].dtype) == ((n, h, w), np.uint8)
        assert (file["probability"].shape, file["probability"].dtype) == ((n, h, w), np.float32)
        assert file["features"].chunks == (1, numbers, h, w)
    assert {path.name for path in folder.iterdir()} == {"source.h5", "target.h5", "target"}


@pytest.fixture(scope="module")
def with_full_store(finished, tmp_path_factory) -> Path:
    """A copy of the finished project whose first round has the full store of its features."""
    copy = tmp_path_factory.mktemp("full") / "project"
    shutil.copytree(finished, copy, symlinks=True)
    write_params(copy, merged(read_params(copy), {"extract": {"directions": None}}))
    execute(copy, "python", "-m", "stages.extract_target", "round1", "warmup", "round1")
    return copy


def both_stores(with_full_store: Path, finished: Path) -> tuple[TargetStore, TargetStore, Tensor]:
    """The full and the reduced store of the first round, and its anchors [K, D]."""
    paths = [project / "data/features/round1/target.h5" for project in (with_full_store, finished)]
    full, reduced = (read_target_store(path, CLASSES) for path in paths)
    anchors = read_anchors(finished / "data/rounds/round1/anchors.npy", CLASSES, full.width)
    return full, reduced, anchors


def bound(reduced: TargetStore, share: float = 4e-3) -> float:
    """What rounding changes of a distance at most: a share of the anchors' spread."""
    return float(share * reduced.projection.units[-1] / UNIT)


def close_margin(reduced: TargetStore) -> float:
    """What rounding changes of a margin at most: 0.01, and less where the anchors are close."""
    return min(1e-2, bound(reduced, 1.5e-3))


def store_pixels(store: TargetStore, anchors: Tensor) -> Pixels:
    """The pixels of all images of a store, maps [N, h, w]."""
    rows = (image.row for image in read_target_images(store, store.shards))
    features, *maps = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return measure(features.float(), *maps, store.place(anchors)[0])


def class_quantiles(pixels: Pixels) -> Tensor:
    """The relative margin that half of the pixels of each class reach, [K]."""
    histogram = MarginHistogram(CLASSES)
    histogram.update(pixels.nearest, pixels.relative_margin())
    return histogram.thresholds(0.5)


@pytest.mark.parametrize("key", THRESHOLDS)
def test_a_reduced_store_labels_as_the_full_one(finished, with_full_store, key):
    """But for pixels that are next to the threshold, which half of the pixels pass."""
    full, reduced, anchors = both_stores(with_full_store, finished)
    assert full.projection is None and full.width == reduced.width
    assert reduced.place(anchors)[1] < 1e-3 * nearest_other_anchor(anchors)[1].nan_to_num().max()
    assert full.names == reduced.names and len(full.names) == TRAINING
    whole, less = (store_pixels(store, anchors) for store in (full, reduced))
    assert torch.equal(whole.prediction, less.prediction)
    close = close_margin(reduced)
    torch.testing.assert_close(less.margin(), whole.margin(), atol=close, rtol=0)
    threshold = THRESHOLDS[key]
    values = threshold.value(whole)
    if threshold.per_class:
        one, other = map(class_quantiles, (whole, less))
        limit = one[whole.nearest.long()]
    else:
        one = other = limit = values.median()
    labels = label_pixels(threshold.rule, whole, {key: one})
    differ = labels != label_pixels(threshold.rule, less, {key: other})
    assert 0.3 < (labels < IGNORE).float().mean() < 0.7
    assert differ.float().mean() <= 0.003
    # What a relative margin is wrong by is a margin by the sum of the distances.
    sums = whole.nearest_distance + whole.second_distance
    within = {"margin": close, "probability": 2**-13 + 1e-7}.get(key, 2 * close / sums)
    assert ((values - limit).abs() <= within)[differ].all()


def test_the_reports_maps_of_a_reduced_store_are_those_of_the_full_one(finished, with_full_store):
    full, reduced, anchors = both_stores(with_full_store, finished)
    one, other = (training_maps(store, anchors, full.names) for store in (full, reduced))
    close = bound(reduced)
    for name in full.names:
        true, found = one[name], other[name]
        assert np.array_equal(true.prediction, found.prediction)
        assert np.abs(true.probability - found.probability).max() <= 2**-13 + 1e-7
        for key in ("nearest_distance", "second_distance"):
            assert np.abs(getattr(true, key) - getattr(found, key)).max() < close
        margins = true.second_distance - true.nearest_distance
        assert (margins[true.nearest != found.nearest] < close).all()
    assert close < 0.1 * np.mean([true.second_distance.mean() for true in one.values()])


def test_the_reports_feature_space_of_a_reduced_store_is_that_of_the_full_one(
    finished, with_full_store
):
    """The same pixels are drawn at the same places, because both axes are in the span."""
    *stores, anchors = both_stores(with_full_store, finished)
    folders = [project / "data/features/round1" for project in (with_full_store, finished)]
    one, other = (
        read_features(folder, store, anchors, seed=0)
        for folder, store in zip(folders, stores, strict=True)
    )
    for key in ("anchors", "source", "source_labels", "target_labels"):
        assert np.array_equal(getattr(one, key), getattr(other, key), equal_nan=True), key
    centre, axes, _ = principal_axes(one.anchors)
    true, found = ((part.target - centre) @ axes.T for part in (one, other))
    close = bound(stores[1])
    assert np.abs(true - found).max() < close
    assert close < 0.05 * np.ptp(true, axis=0).max()
    assert len(true) > 20 and not np.allclose(one.target, other.target, atol=close)


def test_inspect_says_of_a_reduced_store_what_it_says_of_the_full_one(
    finished, with_full_store, monkeypatch, capsys
):
    close = bound(both_stores(with_full_store, finished)[1])

    def inspected(project: Path, xy: str) -> dict:
        monkeypatch.chdir(project)
        arguments = ["inspect", "00003", "--xy", xy, "--round", "1", "--json"]
        cli.main(arguments, standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    for xy in ("0,0", "40,20", f"{WIDTH - 1},{HEIGHT - 1}"):
        one, other = (inspected(project, xy) for project in (with_full_store, finished))
        true, found = (
            {row["class"]: row["distance"] for row in description["pixel"]["distances"]}
            for description in (one, other)
        )
        assert len(true) > 2 and true == pytest.approx(found, abs=close)
        for key in ("feature_pixel", "prediction"):
            assert one["pixel"][key] == other["pixel"][key]
        if one["pixel"]["margin"] > close:
            assert one["pixel"]["nearest"] == other["pixel"]["nearest"]
        assert one["pixel"]["probability"] == pytest.approx(
            other["pixel"]["probability"], abs=2**-12
        )
    for key in ("margin", "probability"):
        true, found = (
            {row["quantile"]: row[key] for row in description["quantiles"]}
            for description in (one, other)
        )
        assert true == pytest.approx(found, abs=max(close, 2**-12))


def test_what_a_store_leaves_out_is_said_by_the_stage_and_by_inspect(copied, monkeypatch, capsys):
    """Of anchors that are a little beyond the span, so that margins are wrong."""
    path = copied / "data/rounds/round1/anchors.npy"
    store = read_target_store(copied / "data/features/round1/target.h5", CLASSES)
    anchors = read_anchors(path, CLASSES, store.width)
    length = 0.005 * float(nearest_other_anchor(anchors)[1].nan_to_num().max())
    directions = store.projection.directions
    beyond = torch.ones(store.width) - directions.T @ directions.sum(dim=1)
    np.save(path, (anchors + length * beyond / beyond.norm()).numpy())
    expected = f"leave out up to {length:.2g} of an anchor"
    assert expected in execute(copied, "python", "-m", "stages.pseudo_label", "round1")
    monkeypatch.chdir(copied)
    cli.main(["inspect", "00003", "--round", "1", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["distance_error"] == pytest.approx(length, rel=0.01)
    assert expected in found["left_out"]
    cli.main(["inspect", "00003", "--round", "1"], standalone_mode=False)
    assert found["left_out"] in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ROUNDS)
def test_round_tables_and_pseudo_labels(finished, name):
    folder = finished / "data/rounds" / name
    anchors = np.load(folder / "anchors.npy")
    with h5py.File(finished / f"data/features/{name}/target.h5") as file:
        (d,) = file["origin"].shape
    with h5py.File(finished / f"data/features/{name}/target/00000.h5") as file:
        *_, h, w = file["features"].shape
    assert (anchors.shape, anchors.dtype) == ((CLASSES, d), np.float32)
    seen = ~np.isnan(anchors).any(axis=1)
    assert seen.sum() >= 2
    table = pd.read_csv(folder / "anchors.csv")
    assert list(table.columns) == [
        *("class", "images", "pixels", "recall", "norm", "nearest_anchor", "distance")
    ]
    assert ((table["images"] > 0) == seen).all()

    coverage = pd.read_csv(folder / "coverage.csv")
    assert list(coverage.columns) == ["class", "nearest", "anchor", "probability", "agree"]
    assert coverage["nearest"].sum() == TRAINING * h * w
    assert (coverage["anchor"] <= coverage["nearest"]).all()
    assert (coverage["agree"] <= coverage[["anchor", "probability"]].min(axis=1)).all()
    assert set(digests(folder)) == {
        *("anchors.npy", "anchors.csv", "coverage.csv", "verdict.json"),
        *("threshold_curves.csv", "threshold_curves.png"),
        *(
            f"pseudo_labels/{rule}/target_{i:05d}.png"
            for rule in ("anchor", "probability")
            for i in range(TRAINING)
        ),
    }
    for rule in ("anchor", "probability"):
        maps = [label_map(path) for path in sorted((folder / "pseudo_labels" / rule).iterdir())]
        assert {labels.shape for labels in maps} == {(HEIGHT, WIDTH)}
        labelled = np.unique(np.concatenate([labels[labels < 255] for labels in maps]))
        assert labelled.tolist() == np.flatnonzero(coverage[rule]).tolist()


@pytest.mark.parametrize("name", ROUNDS)
def test_curves_meet_the_coverage_at_the_configured_thresholds(finished, name):
    folder, config = finished / "data/rounds" / name, read_params(finished)["pseudo_label"]
    curves, coverage = (
        pd.read_csv(folder / file) for file in ("threshold_curves.csv", "coverage.csv")
    )
    for rule, column in (("quantile", "anchor"), ("probability", "probability")):
        used = (curves["rule"] == rule) & np.isclose(curves["threshold"], config[rule])
        assert list(curves.loc[used, "pixels"]) == list(coverage[column])


@pytest.mark.parametrize("name", ROUNDS)
def test_evaluation_of_pseudo_labels(finished, name):
    """The tables follow from the samples, because these are all validation images here."""
    folder = finished / "data/pseudo_label_evaluation" / name
    assert set(digests(folder)) == {"curves.csv", "curves.png", "metrics.json", "samples.h5"}
    config, curves = read_params(finished)["pseudo_label"], pd.read_csv(folder / "curves.csv")
    manifest = pd.read_csv(finished / "data/prepared/target/manifest.csv").query("split == 'val'")
    with h5py.File(folder / "samples.h5") as file:
        groups = [file[str(i)] for i in range(VALIDATION)]
        assert len(file) == VALIDATION
        assert [group["name"].asstr()[0] for group in groups] == list(manifest["name"])
        keys = set(groups[0]) - {"name"}
        maps = {key: np.stack([group[key][:] for group in groups]) for key in keys}
    integers = ("nearest", "prediction", "truth")
    assert all(maps[key].dtype == np.uint8 for key in integers)
    floats = ("nearest_distance", "second_distance", "probability")
    assert all(maps[key].dtype == np.float32 for key in floats)
    assert set(maps) == {*integers, *floats}
    first, second = maps["nearest_distance"], maps["second_distance"]
    relative = (second - first) / (second + first)
    used = (curves["rule"] == "quantile") & np.isclose(curves["threshold"], config["quantile"])
    own = curves.loc[used, "class_threshold"].dropna().to_numpy()
    assert len(own) == CLASSES
    labels = {
        "anchor": np.where(relative >= own[maps["nearest"]], maps["nearest"], 255),
        "probability": np.where(
            maps["probability"] > np.float32(config["probability"]), maps["prediction"], 255
        ),
    }
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["images"] == VALIDATION
    known = maps["truth"] < 255
    for rule, column in (("anchor", "quantile"), ("probability", "probability")):
        labelled, right = labels[rule] < 255, (labels[rule] == maps["truth"]) & known
        expected = {
            "coverage": labelled.mean(),
            "precision": right.sum() / (labelled & known).sum(),
            "recall": right.sum() / known.sum(),
        }
        assert scores[rule] == pytest.approx(expected)
        at = (curves["rule"] == column) & np.isclose(curves["threshold"], config[column])
        row = curves[at & (curves["class"] == "all")].iloc[0]
        assert row["pixels"] == labelled.sum()
        assert row["precision"] == pytest.approx(expected["precision"], abs=1e-6)
        assert row["recall"] == pytest.approx(expected["recall"], abs=1e-6)


def test_inspect_tells_what_the_label_maps_hold(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    picture = tmp_path / "inspection.png"
    names = json.loads((finished / "data/prepared/target/classes.json").read_text())["classes"]
    for out, (x, y) in zip(
        (["--out", str(picture)], [], []), ((0, 0), (40, 20), (WIDTH - 1, HEIGHT - 1)), strict=True
    ):
        arguments = ["inspect", "00003", "--xy", f"{x},{y}", "--round", "1", "--json"]
        cli.main([*arguments, *out], standalone_mode=False)
        found = json.loads(capsys.readouterr().out)
        assert (found["image"], found["round"], found["as_written"]) == (
            *("target_00003", "round1"),
            True,
        )
        assert found["left_out"] is None
        for rule in ("anchor", "probability"):
            path = finished / f"data/rounds/round1/pseudo_labels/{rule}/target_00003.png"
            label = label_map(path)[y, x]
            assert found["pixel"]["labels"][rule] == (names[label]["name"] if label < 255 else None)
    with Image.open(picture) as image:
        assert min(image.size) > HEIGHT
    with pytest.raises(UserError, match="'nothing' is none of the 6 target training images"):
        cli.main(["inspect", "nothing"], standalone_mode=False)


def test_inspect_says_what_is_of_other_images(finished, tmp_path, monkeypatch, capsys):
    project = shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(project)
    inspect = ["inspect", "target_00003", "--json"]
    path = project / "data/rounds/round2/pseudo_labels/anchor/target_00003.png"
    path.unlink()
    Image.new("P", (5, 3)).save(path)
    cli.main(inspect, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["as_written"] is False
    manifest = project / "data/prepared/target/manifest.csv"
    text = manifest.read_text().replace(",target_00003,", ",other,")
    manifest.unlink()
    manifest.write_text(text)
    with pytest.raises(UserError, match="no training image target_00003 any more; run `dvc repro`"):
        cli.main(inspect, standalone_mode=False)


@pytest.mark.parametrize("model", EVALUATED)
def test_evaluation(finished, model):
    folder = finished / "data/evaluation" / model
    scores = json.loads((folder / "metrics.json").read_text())
    assert set(scores) == {*("miou", "miou_7", "pixel_accuracy", "mean_accuracy", "images", "iou")}
    assert scores["miou_7"] == scores["miou"]
    assert scores["images"] == VALIDATION
    confusion = pd.read_csv(folder / "confusion.csv", index_col="truth")
    assert list(confusion.columns) == list(confusion.index) == list(scores["iou"])

    # The tables follow from the prediction and label PNGs.
    manifest = pd.read_csv(finished / "data/prepared/target/manifest.csv").query("split == 'val'")
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for row in manifest.itertuples():
        truth = label_map(finished / "data/prepared/target" / row.label)
        prediction = label_map(folder / f"predictions/{row.name}.png")
        known = truth < 255
        np.add.at(expected, (truth[known], prediction[known]), 1)
    assert (confusion.to_numpy() == expected).all()
    hits = np.diag(expected)
    union = expected.sum(axis=0) + expected.sum(axis=1) - hits
    iou = hits[union > 0] / union[union > 0]
    assert scores["miou"] == pytest.approx(iou.mean())
    assert scores["pixel_accuracy"] == pytest.approx(hits.sum() / expected.sum())
    per_class = pd.read_csv(folder / "per_class.csv")
    assert list(per_class.columns) == ["class", "iou", "accuracy", "pixels"]
    assert per_class["iou"].dropna().to_numpy() == pytest.approx(iou)
    for picture in ("panels.png", "confusion.png"):
        with Image.open(folder / picture) as image:
            image.load()
            assert min(image.size) > HEIGHT


def test_report_needs_no_network(finished):
    folder = finished / "data/report"
    pictures = {"miou.png", "per_class.png", "coverage.png", "curves.png"}
    assert {path.name for path in folder.iterdir()} == {"index.html", *pictures}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'\s>]+""", page)


# Rerunning


def test_nothing_reruns_but_the_index(copied):
    began = time.monotonic()
    assert ran(dvc(copied, "repro", **SEPARATE)) == ["index"]
    print(f"dvc repro without changes: {time.monotonic() - began:.1f} s")
    assert [line.split()[-1] for line in git(copied, "status", "--porcelain").splitlines()] == [
        "dvc.lock"
    ]


def test_what_was_pushed_is_not_made_again_elsewhere(copied, tmp_path):
    """In a clone with the results of a remote storage and another folder of raw data."""
    dvc(copied, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    git(copied, "add", "--all")
    git(copied, "commit", "--quiet", "--message=results")
    dvc(copied, "push")
    git(tmp_path, "clone", "--quiet", str(copied), "clone")
    clone = tmp_path / "clone"
    dvc(clone, "pull")
    assert digests(clone / "data") == digests(copied / "data")
    assert ran(dvc(clone, "repro", CAG_DATA=str(tmp_path))) == ["index"]


def test_thresholds_rerun_no_extraction_of_the_same_teacher(finished, copied):
    change = ("-S", "pseudo_label.quantile=0.5")
    printed = dvc(copied, "exp", "run", *change, "evaluate@round2")
    first = ["pseudo_label@round1", "adapt@round1"]
    extract = ("extract_source", "extract_target")
    second = [f"{stage}@round2" for stage in (*extract, "anchors", "pseudo_label", "adapt")]
    assert sorted(ran(printed)) == sorted(["index", *first, *second, "evaluate@round2"])
    scored = [f"{kind}@{name}" for kind in ("watch", "evaluate_pseudo_labels") for name in ROUNDS]
    left = ran(dvc(copied, "repro", "--dry"))
    assert sorted(left) == sorted(["index", *scored, "report"])
    before, after = digests(finished / "data"), digests(copied / "data")
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert "rounds/round1/coverage.csv" in changed
    assert "models/round2.safetensors" in changed
    assert not {path for path in changed if path.startswith(("prepared", "features/round1"))}


def experiments(project: Path) -> dict[str, dict]:
    """The finished experiments by name: their parameters."""
    base = json.loads(dvc(project, "exp", "show", "--json", "--no-pager"))[1]
    return {
        one["name"]: one["revs"][0]["data"]["params"]["params.yaml"]["data"]
        for one in base["experiments"] or []
    }


def wait_for_queue(project: Path, count: int) -> None:
    """Wait until all tasks of the queue have succeeded."""
    began = time.monotonic()
    while True:
        status = dvc(project, "queue", "status")
        assert "Failed" not in status, status
        if len(re.findall(r"\bSuccess\b", status)) == count:
            return
        assert time.monotonic() - began < DEADLINE, status
        time.sleep(2)


def test_queue_with_two_workers(copied):
    """Three thresholds, two at a time, each in DVC's copy of the project."""
    queue = ("exp", "run", "--queue", "-S")
    target = "pseudo_label@round1"
    dvc(copied, *queue, "pseudo_label.quantile=0.3,0.9", target)
    margin = ("pseudo_label.quantile=null", "-S", "++pseudo_label.margin=0.01")
    dvc(copied, *queue, *margin, target)
    before = digests(copied / "data")
    dvc(copied, "queue", "start", "--jobs", "2")
    try:
        wait_for_queue(copied, 3)
    finally:
        dvc(copied, "queue", "stop", "--kill", status=None)
    assert digests(copied / "data") == before

    recorded = experiments(copied)
    coverage = {}
    for name, params in recorded.items():
        path, got = "data/rounds/round1/coverage.csv", copied.with_name(f"{name}.csv")
        dvc(copied, "get", ".", path, "--rev", name, "--out", str(got))
        table = pd.read_csv(got)
        thresholds = tuple(params["pseudo_label"][key] for key in ("quantile", "margin"))
        coverage[thresholds] = (table["anchor"].sum() / table["nearest"].sum()).item()
    assert set(coverage) == {(0.3, None), (0.9, None), (None, 0.01)}
    assert coverage[0.3, None] == pytest.approx(0.3, abs=0.05)
    assert coverage[0.9, None] == pytest.approx(0.9, abs=0.05)
    assert 0 < coverage[None, 0.01] <= 1
    assert len(set(coverage.values())) == 3

    program = ("-c", "from cag.cli import main; main()")
    printed = execute(copied, "python", *program, "sweep", "show", "--json")
    rows = json.loads(printed[printed.index("[") :])
    assert [row["experiment"] for row in rows][0] == "workspace"
    assert {row["experiment"] for row in rows[1:]} == set(recorded)
    for row in rows[1:]:
        thresholds = (row["pseudo_label.quantile"], row["pseudo_label.margin"])
        assert row["round1.coverage.anchor"] == pytest.approx(coverage[thresholds])
        # The copies that DVC made are gone; the records of the stages that ran there are not.
        assert row["seconds"] > 0
        assert row["stages"].split() == ["index", "pseudo_label@round1"]
        # What these experiments did not run is no result of theirs.
        assert (row["round2.coverage.anchor"], row["round2.miou"]) == (None, None)
    scores = json.loads((copied / "data/evaluation/round2/metrics.json").read_text())
    assert rows[0]["round2.miou"] == pytest.approx(scores["miou"])
    assert not {"seed", "adapt.iterations"} & set(rows[0])


def test_experiment_can_be_applied(finished, copied):
    """An experiment's parameters and results replace those of the workspace."""
    # A file may leave out an option that is off; ++ sets it all the same.
    assert "labels" not in read_params(copied)["oracle"]
    settings = ("-S", "report.images=2", "-S", "++oracle.labels=train/labels")
    settings += ("-S", "adapt.augmentation.crop=[24,48]")
    stage = "evaluate_pseudo_labels@round1"
    printed = dvc(copied, "exp", "run", "--temp", "--name", "fewer", *settings, stage)
    assert ran(printed) == ["index", stage]
    assert digests(copied / "data") == digests(finished / "data")
    dvc(copied, "exp", "apply", "fewer")
    assert read_params(copied)["report"]["images"] == 2
    assert read_params(copied)["oracle"]["labels"] == "train/labels"
    assert read_params(copied)["adapt"]["augmentation"]["crop"] == [24, 48]
    before, after = digests(finished / "data"), digests(copied / "data")
    changed = {path for path in before if before[path] != after.get(path)}
    assert "pseudo_label_evaluation/round1/samples.h5" in changed
    assert all(path.startswith("pseudo_label_evaluation/round1/") for path in changed)
    assert ran(dvc(copied, "repro", stage)) == ["index"]


# Folders of images


def folder_params() -> dict:
    """Parameters of one round with a labelled source folder and an unlabelled target folder."""
    common = {"layout": "folder", "class_map": "classes/cityscapes.yaml", "size": None}
    return tiny_params(rounds=1) | {
        "evaluated": [],
        "source": {**common, "folder": "simulator", "images": "images", "labels": "labels"},
        "target": {**common, "folder": "camera", "images": "images"}
        | {"val_images": None, "val_labels": None},
    }


def test_folder_without_any_target_label(tmp_path):
    """Raw data outside the repository, with an absolute and a relative $CAG_DATA."""
    raw = tmp_path / "raw"
    write_dataset(raw / "simulator", "source", 0, 8, *SIZE)
    write_dataset(raw / "camera", "target", 0, TRAINING, *SIZE, labels=False)
    project = make_project(tmp_path / "project", replace=folder_params())
    printed = dvc(project, "repro", CAG_DATA=str(raw))
    assert ran(printed)[-1] == "report"
    assert not [stage for stage in ran(printed) if stage.startswith("evaluate@")]
    models = ("pretrain", "warmup", "round1")
    assert set(digests(project / "data/watch")) == {f"{m}.{kind}" for m in models for kind in KINDS}
    measured = {m: json.loads((project / f"data/watch/{m}.json").read_text()) for m in models}
    assert all(set(numbers) == {*MEASURES, "images"} for numbers in measured.values())
    assert measured["pretrain"] == measured["warmup"] != measured["round1"]
    assert measured["pretrain"]["teacher_agreement"] is None
    assert 0 < measured["round1"]["teacher_agreement"] <= 1
    scored = project / "data/pseudo_label_evaluation/round1"
    assert pd.read_csv(scored / "curves.csv").empty
    assert json.loads((scored / "metrics.json").read_text())["anchor"]["precision"] is None
    with h5py.File(scored / "samples.h5") as file:
        assert not file.keys()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert "round1" in page and "Measures without labels by model" in page
    weights = digests(project / "data/models")
    assert weights["warmup.safetensors"] == weights["pretrain.safetensors"]
    assert pd.read_csv(project / "data/curves/warmup.csv").empty
    index = pd.read_csv(project / "data/index/target.csv")
    assert list(index["path"]) == [f"images/target_{i:05d}.png" for i in range(TRAINING)]
    assert str(tmp_path) not in (project / "dvc.lock").read_text()

    # The same data by another path are the same data, in a copy that DVC makes too: there a
    # relative path would lead elsewhere if it were not taken from the repository's root.
    stage, change = "evaluate_pseudo_labels@round1", ("-S", "report.images=2")
    printed = dvc(project, "exp", "run", "--temp", *change, stage, CAG_DATA="../raw")
    assert ran(printed) == ["index", stage]

    # Another image is noticed.
    write_dataset(raw / "camera", "target", 0, 1, *SIZE, first=TRAINING, labels=False)
    printed = dvc(project, "repro", "prepare", CAG_DATA="../raw")
    assert ran(printed) == ["index", "prepare@target"]


def test_missing_raw_data_is_one_clear_line(tmp_path):
    project = make_project(tmp_path / "project", replace=folder_params())
    printed = dvc(project, "repro", status=None)
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "simulator" in errors[0]
    assert "Traceback" not in printed


# Several processes


def test_two_processes_train_and_one_writes(copied):
    """Two processes on the CPU share each batch; the recorded command is the same."""
    stages = ["pretrain", "warmup"]
    changes = dict.fromkeys(stages, {"iterations": 2, "batch_size": 4})
    write_params(copied, merged(read_params(copied), changes))
    launch = "torchrun --standalone --nproc-per-node=2"
    printed = dvc(copied, "repro", "--single-item", *stages, LAUNCH=launch)
    assert ran(printed) == stages
    for stage in stages:
        assert printed.count(f"{stage}: 2 iterations") == 1
        curve = pd.read_csv(copied / f"data/curves/{stage}.csv")
        assert list(curve["iteration"]) == [1, 2]
    assert not list(copied.rglob("data/**/*.partial"))
    assert "torchrun" not in (copied / "dvc.lock").read_text()
    # Any other number of processes finds the models and runs nothing.
    assert ran(dvc(copied, "repro", "--single-item", *stages)) == []


INFERENCE = (
    "extract_source round1 warmup",
    "extract_target round1 warmup round1",
    "pseudo_label round1",
    "evaluate pretrain",
    "evaluate_pseudo_labels round1 warmup",
)
ONE_LAUNCH = """
import runpy, sys
from torch import distributed

for command in sys.argv[1:]:
    name, *sys.argv[1:] = command.split()
    runpy.run_module(f"stages.{name}", run_name="__main__")
    distributed.barrier()  # the next one reads what process 0 has written
"""


def by_two_processes(project: Path, *commands: str, status: int = 0) -> str:
    """Run stages one after the other in one launch of two processes; return their output."""
    program = project / "one_launch.py"
    program.write_text(ONE_LAUNCH)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return execute(project, "python", *launch, str(program), *commands, status=status)


@pytest.fixture
def several_shards(copied) -> Path:
    """A project whose features fill two shards of each domain."""
    write_params(copied, merged(read_params(copied), {"extract": {"batch_size": 1}}))
    return copied


def test_two_processes_infer_what_one_does(several_shards, tmp_path):
    """The bytes are the same; if one process fails, both end; finished shards are kept."""
    project = several_shards
    alone = shutil.copytree(project, tmp_path / "alone", symlinks=True)
    for command in INFERENCE:
        name, *arguments = command.split()
        execute(alone, "python", "-m", f"stages.{name}", *arguments)
    before = digests(project / "data")

    bad = project / f"data/prepared/target/images/train/target_{TRAINING - 1:05d}.png"
    image = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(image[: len(image) // 2])  # in the second shard: of process 1
    printed = by_two_processes(project, *INFERENCE[:2], status=1)
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and errors[0].startswith("error (process 1): ")
    assert bad.name in errors[0] and "not a readable image" in errors[0]
    bad.write_bytes(image)
    failed = digests(project / "data")
    assert {path for path in before if before[path] != failed.get(path)} == {
        "features/round1/source.h5"
    }
    assert not list(project.rglob("*.partial"))
    assert [path.name for path in project.joinpath(".scratch").rglob("*.h5")] == ["00000.h5"]

    printed = by_two_processes(project, *INFERENCE)
    assert f"extract target: {TRAINING - 4} images" in printed
    assert printed.count(f"pseudo-labels: {TRAINING} images") == 1
    assert printed.count(f"evaluate pretrain: {VALIDATION} images") == 1
    assert len(list(project.glob("data/features/round1/target/*.h5"))) == 2
    after = digests(project / "data")
    assert after == digests(alone / "data")
    assert {path for path in before if before[path] != after.get(path)} >= {
        "features/round1/target.h5",
        "features/round1/source.h5",
    }
    left = [path for path in project.joinpath(".scratch").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} <= {"runs"}
