"""The report page: complete, self-contained, with the right numbers, safe with any text."""

import dataclasses
import json
from html.parser import HTMLParser

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks import ROOT
from cag.analysis import plots
from cag.config.evaluation import Report
from cag.config.parameters import Round, load_all
from cag.config.pseudo_labels import PseudoLabel
from cag.config.watch import MEASURES
from cag.datasets.images import write_image, write_label
from cag.datasets.labels import LabelSpace
from cag.features import (
    create_store,
    link_target,
    open_store,
    read_array,
    read_target_store,
    write_group,
    write_target_shard,
)
from cag.pseudo_labels import anchor_distances
from cag.report import contents, explorer, feature_space, gather, pictures
from cag.report.page import report_page
from cag.report.tables import results_table
from cag.runtime.errors import UserError
from stages import report as stage

NAMES = ("road", "car", "train")
SPACE = LabelSpace(NAMES, ((128, 64, 128), (0, 0, 142), (0, 80, 100)))
RULES = PseudoLabel(
    margin=None, relative_margin=0.2, quantile=None, agreement=True, probability=0.9
)
FOLDERS = stage.FOLDERS
SCORES = {"pretrain": 0.3126, "warmup": 0.3349, "round1": 0.4871}


BLANK = pictures._encoded(Image.new("RGB", (4, 4)), format="PNG")


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch):
    """Figures are made, but not drawn: most tests look at the rest of the page."""
    monkeypatch.setattr(plots, "png_bytes", lambda figure: BLANK)


def draw_figures(patch, drawn=plots.png_bytes):
    """Draw figures, small."""
    patch.setattr(plots, "png_bytes", drawn)
    patch.setattr(plots, "DPI", 20)


@pytest.fixture(scope="module")
def whole_page():
    with pytest.MonkeyPatch.context() as patch:
        draw_figures(patch)
        return report_page(make_run())


def metrics(miou, **iou):
    scores = {"miou": miou, "pixel_accuracy": 0.7531, "mean_accuracy": 0.5012, "images": 2}
    return {**scores, "iou": {"road": miou + 0.1, "car": miou - 0.1, "train": None, **iou}}


def evaluation(miou, **iou):
    return contents.Evaluation(metrics(miou, **iou), np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]]))


def coverage(names=NAMES):
    counts = {"nearest": [100, 40, 0], "anchor": [61, 20, 0], "probability": [80, 10, 0]}
    return pd.DataFrame({"class": names, **counts, "agree": [50, 10, 0]})


def anchors(names=NAMES):
    values = {"images": [5, 4, 0], "pixels": [12345, 400, 0], "recall": [0.875, 0.25, np.nan]}
    values["norm"] = [7.25, 9.5, np.nan]
    nearest = [names[1], names[0], np.nan]
    return pd.DataFrame(
        {"class": names, **values, "nearest_anchor": nearest, "distance": [4.75, 4.75, np.nan]}
    )


def curve():
    return pd.DataFrame({"iteration": [10, 20, 30], "loss": [2.0, 1.5, 1.0]})


def features(classes=3):
    rng = np.random.default_rng(1)
    anchors = rng.normal(size=(classes, 8)).astype(np.float32)
    anchors[-1] = np.nan
    labels = np.arange(12, dtype=np.uint8) % 2
    points = [anchors[labels] + rng.normal(size=(12, 8)) / 4 for _ in range(2)]
    return contents.Features(anchors, points[0], labels, points[1], labels)


def maps(truth=False, size=(4, 8)):
    rng = np.random.default_rng(2)
    distances = np.sort(rng.random((2, *size), np.float32) + 0.1, axis=0)
    classes = rng.integers(0, 2, (3, *size), np.uint8)
    probability = rng.random(size, np.float32)
    return contents.Maps(
        classes[0], *distances, classes[1], probability, classes[2] if truth else None
    )


def make_run(space=SPACE, models=("pretrain", "warmup", "round1"), name="one", size=(16, 32)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.choice([0, 1, 2, 255], size).astype(np.uint8)
    return contents.Run(
        label_space=space,
        summary={"seed": "7"},
        evaluations={model: evaluation(SCORES[model]) for model in models},
        rounds={
            "round1": contents.Round(
                "warmup", "warmup", coverage(space.names), anchors(), {}, features()
            )
        },
        curves={model: curve() for model in models},
        training=[
            contents.TrainingSample(name, image, {"round1": (labels, labels)}, {"round1": maps()})
        ],
        labelled=[contents.LabelledSample(name, image, {"round1": maps(truth=True)})],
        validation=[contents.ValidationSample(name, image, labels, labels, labels)],
        rules=RULES,
        parameters={"seed": 7, "source": {"layout": "scenes", "size": (16, 32)}, "compile": False},
        fingerprints=[("manifest.csv", "0" * 32)],
        locations=[("models", "data/models/")],
    )


class Page(HTMLParser):
    """Collects a page's tables, ids, attributes and open tags."""

    VOID = frozenset({"meta", "img", "source", "br", "input"})

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note a tag; begin a table, row or cell."""
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        """Check that the closed tag is the last opened one."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Add text to the current cell."""
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def test_page_makes_no_external_request(whole_page):
    page = whole_page
    assert "http://" not in page and "https://" not in page
    assert "url(" not in page and "@import" not in page
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "base")
        for key in ("src", "srcset"):
            assert attributes.get(key, "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")


def test_page_is_well_formed_and_its_links_lead_somewhere(whole_page):
    page = Page(whole_page)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert page.open == [] and len(ids) == len(set(ids)) and set(links) <= set(ids)
    assert {"results", "classes", "pseudo-labels", "coverage", "confusion"} <= set(ids)


def test_pictures_have_alternative_texts_and_tables_take_the_keyboard(whole_page):
    tags = Page(whole_page).tags
    # An image without a source is one that the page's script fills.
    assert all(a.get("alt") for tag, a in tags if tag == "img" and "src" in a)
    scrolling = [a for _, a in tags if "scroll" in a.get("class", "").split()]
    assert scrolling and all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)


def test_results_show_the_numbers_of_the_metrics(whole_page):
    results = Page(whole_page).tables[0]
    assert [row[:3] for row in results[1:]] == [
        ["pretrain", "31.3", "\u2013"],
        ["warmup", "33.5", "+2.2"],
        ["round1", "48.7", "+17.4"],  # of the unrounded values: 17.45 in points
    ]
    assert results[1][3:] == ["75.3", "50.1", "30", "2"]


def test_classes_are_sorted_by_change_and_losses_marked():
    run = make_run()
    worse = {"pretrain": evaluation(0.3, road=0.9), "round1": evaluation(0.5, road=0.8)}
    page = report_page(dataclasses.replace(run, evaluations=worse))
    assert Page(page).tables[1][1:] == [
        ["car", "20.0", "40.0", "+20.0"],
        ["road", "90.0", "80.0", "\u221210.0"],
        ["train", "\u2013", "\u2013", "\u2013"],
    ]
    assert '<td class="loss">\u221210.0</td>' in page and "mean over 2 of 3 classes" in page


def test_coverage_and_anchors_are_tabulated(whole_page):
    *_, coverage_table, distances, anchor_table, _, _, _ = Page(whole_page).tables
    assert coverage_table[2] == ["road", "61.0", "80.0", "54.9"]  # 50 / (61 + 80 - 50)
    assert coverage_table[-1] == ["all classes", "57.9", "64.3", "54.1"]
    assert [row[0] for row in distances] == ["class", "road", "car"]  # train has no anchor
    road, car = features().anchors[:2].astype(np.float64)
    assert distances[1][1:] == ["", f"{np.linalg.norm(road - car):.1f}"]
    assert anchor_table[1] == ["road", "5", "12\u202f345", "87.5", "7.25", "car", "4.75"]
    assert anchor_table[3] == ["train", "0", "0", "\u2013", "\u2013", "\u2013", "\u2013"]


def test_run_card_shows_parameters_and_checksums(whole_page):
    checksums, parameters, _ = Page(whole_page).tables[-3:]
    assert checksums[1] == ["manifest.csv", "0" * 32]
    assert ["source.size", "[16, 32]"] in parameters and ["compile", "false"] in parameters


def test_texts_from_data_are_escaped():
    evil = '<script>alert("x")</script>'
    space = LabelSpace((evil, "car", "train"), SPACE.palette)
    run = make_run(space, name=evil)
    sample, shown = run.training[0], {evil: maps()}
    run = dataclasses.replace(
        run,
        summary={evil: evil},
        evaluations={"pretrain": evaluation(0.3), evil: evaluation(0.4)},
        rounds={
            evil: contents.Round(
                evil, evil, coverage(space.names), anchors(space.names), {}, features()
            )
        },
        training=[
            contents.TrainingSample(
                evil, sample.image, {evil: sample.pseudo_labels["round1"]}, shown
            )
        ],
        labelled=[contents.LabelledSample(evil, sample.image, {evil: maps(truth=True)})],
        parameters={evil: evil},
        fingerprints=[(evil, evil)],
        locations=[(evil, evil)],
    )
    page = report_page(run)
    assert evil not in page and "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert page.count("<script") == 2  # the explorer's data, and the page's own
    assert Page(page).open == []


def test_dollar_signs_in_texts_stay():
    run = dataclasses.replace(make_run(), summary={"note": "$body costs $5"})
    assert "$body costs $5" in report_page(run)


def test_page_repeats(whole_page, monkeypatch):
    draw_figures(monkeypatch)
    assert report_page(make_run()) == whole_page


def test_page_without_warmup():
    page = report_page(make_run(models=("pretrain", "round1")))
    assert [row[0] for row in Page(page).tables[0][1:]] == ["pretrain", "round1"]


def test_first_model_is_the_baseline_where_there_is_no_source_only_one():
    table = results_table({"warmup": metrics(0.4), "round1": metrics(0.5)})
    assert table["change"].isna().tolist() == [True, False]
    assert table["change"][1] == pytest.approx(0.1)


def test_page_of_a_target_without_labels():
    run = dataclasses.replace(make_run(), evaluations={}, validation=[], labelled=[])
    ids = {a["id"] for tag, a in Page(report_page(run)).tags if tag == "section"}
    assert ids == {
        *(
            "pseudo-labels",
            "thresholds",
            "coverage",
            "features",
            "anchors",
            "curves",
            "run",
            "files",
        )
    }


def test_page_stays_below_five_megabytes(monkeypatch):
    monkeypatch.undo()  # figures are drawn at their real size
    run = make_run(size=(128, 256))  # noise: the worst picture to compress
    rounds = {f"round{number}": run.rounds["round1"] for number in (1, 2, 3)}
    maps = run.training[0].pseudo_labels["round1"]
    sample = dataclasses.replace(run.training[0], pseudo_labels=dict.fromkeys(rounds, maps))
    run = dataclasses.replace(
        run, rounds=rounds, training=[sample] * 8, validation=list(run.validation) * 8
    )
    assert len(report_page(run).encode()) < 5_000_000


def test_of_nothing_labelled_no_share_is_right():
    rules = RULES.model_copy(update={"probability": 1.0})
    page = report_page(dataclasses.replace(make_run(), rules=rules))
    assert "round1 \u00b7 probability label \u00b7 \u2013 % right" in page


def test_large_pictures_become_thumbnails():
    page = report_page(make_run(size=(500, 1000)))
    widths = [int(a["width"]) for tag, a in Page(page).tags if tag == "img" and "width" in a]
    assert len(widths) == 16 and set(widths) == {pictures.THUMBNAIL}


# ---------------------------------------------------------------------------------------- stage


def write_artifacts(root):
    """Write the earlier stages' files: two training images, two labelled ones."""
    run, rows = make_run(), []
    image, labels = run.training[0].image, np.zeros((16, 32), np.uint8)
    palette = np.array(SPACE.palette, np.uint8)
    for split, names in (("train", ("city/a", "b")), ("val", ("c", "d"))):
        for name in names:
            label = f"labels/val/{name}.png" if split == "val" else ""
            path = f"images/{split}/{name}.png"
            rows.append((split, name, path, label, 16, 32, "0" * 64, "0" * 64 if label else ""))
            put(root / FOLDERS.target / path, lambda file: write_image(file, image))
            folders = [root / FOLDERS.evaluation / model / "predictions" for model in SCORES]
            folders += [root / FOLDERS.target / "labels/val"]
            if split == "train":
                pseudo = root / FOLDERS.rounds / "round1/pseudo_labels"
                folders = [pseudo / "anchor", pseudo / "probability"]
            for folder in folders:
                put(folder / f"{name}.png", lambda file: write_label(file, labels, palette))
    columns = ["split", "name", "image", "label", "height", "width", "image_sha256", "label_sha256"]
    pd.DataFrame(rows, columns=columns).to_csv(root / FOLDERS.target / "manifest.csv", index=False)
    (root / FOLDERS.target / "classes.json").write_text(json.dumps(SPACE.to_dict()))
    for model, one in run.evaluations.items():
        folder = root / FOLDERS.evaluation / model
        (folder / "metrics.json").write_text(json.dumps(one.metrics))
        table = pd.DataFrame(one.confusion, columns=NAMES)
        table.insert(0, "truth", NAMES)
        table.to_csv(folder / "confusion.csv", index=False)
        text = json.dumps(dict.fromkeys(MEASURES, 0.5) | {"agreement": None, "images": 2})
        put(root / FOLDERS.watch / f"{model}.json", lambda file, text=text: file.write_text(text))
        put(root / FOLDERS.curves / f"{model}.csv", lambda file: curve().to_csv(file, index=False))
    write_verdict(root, kept="student", regressed=None, measure=None, teacher=None, student=None)
    coverage().to_csv(root / FOLDERS.rounds / "round1/coverage.csv", index=False)
    anchors().to_csv(root / FOLDERS.rounds / "round1/anchors.csv", index=False)
    put(root / FOLDERS.source / "manifest.csv", lambda file: file.write_text("split,name\n"))
    write_features(root, ("city/a", "b"))
    curves = [
        {"rule": rule, "threshold": 0.5, "class": name, "pixels": 3, "share": 0.5}
        for rule in ("margin", "relative_margin", "quantile", "probability")
        for name in NAMES
    ]
    table = pd.DataFrame(curves)
    table["class_threshold"] = [None] * 6 + [0.25, 0.125, 0.0] + [None] * 3
    table.to_csv(root / FOLDERS.rounds / "round1/threshold_curves.csv", index=False)


def write_verdict(root, **verdict):
    """Write what the round kept."""
    (root / FOLDERS.rounds / "round1/verdict.json").write_text(json.dumps(verdict))


def write_features(root, names):
    """Write a round's anchors and feature stores, with two target images of 4 x 8 pixels."""
    given, rng = features(), np.random.default_rng(3)
    np.save(root / FOLDERS.rounds / "round1/anchors.npy", given.anchors)
    store = root / FOLDERS.features / "round1/target.h5"
    rows = (
        torch.from_numpy(rng.normal(size=(2, 8, 4, 8)).astype(np.float16)),
        torch.from_numpy(rng.integers(0, 3, (2, 4, 8), np.uint8)),
        torch.from_numpy(rng.random((2, 4, 8), np.float32)),
    )
    shards = []
    for index in (0, 1):
        shards.append(store.parent / f"target/{index:05d}.h5")
        write_target_shard(shards[-1], 1, [tuple(row[index : index + 1] for row in rows)])
    link_target(store, names, shards)
    with create_store(store.with_name("source.h5")) as file:
        file["sample_features"] = given.source.astype(np.float16)
        file["sample_labels"] = np.sort(given.source_labels)


def write_labelled(root, name):
    """Write the maps of one labelled image, as `evaluate_pseudo_labels` does."""
    with create_store(root / FOLDERS.labelled / "round1/samples.h5") as file:
        arrays = {key: torch.from_numpy(value) for key, value in vars(maps(truth=True)).items()}
        write_group(file, "0", name, arrays)


def put(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


@pytest.fixture
def params():
    preset = load_all(ROOT / "presets/scenes.yaml")
    changes = {
        "seed": 7,
        "warmup": preset.warmup.model_copy(update={"iterations": 5}),
        "rounds": {"round1": Round(teacher="warmup", anchors="round1")},
        "evaluated": tuple(SCORES),
        "report": Report(images=2),
        "pseudo_label": RULES,
    }
    return preset.model_copy(update=changes)


@pytest.fixture
def project(tmp_path, monkeypatch, params):
    write_artifacts(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "load_params", lambda *sections: params)
    return tmp_path


def run_stage():
    return CliRunner().invoke(stage.main, [], catch_exceptions=False)


def test_stage_writes_page_and_figures_and_says_where(project):
    printed = run_stage().output
    assert {path.name for path in (project / "data/report").iterdir()} == {
        "index.html", "miou.png", "per_class.png", "coverage.png", "curves.png"
    }  # fmt: skip
    assert "data/report/index.html" in printed
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert "city/a" in page and "48.7" in page


def test_stage_shows_the_measures_without_labels(project):
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    start = page.index("Measures without labels by model")
    table = page[start : page.index("</tbody>", start)]
    assert table.count("<td>0.50</td>") == len(SCORES) * (len(MEASURES) - 1)
    assert table.count("<td>–</td>") == len(SCORES)
    assert all(f'<th scope="col">{model}</th>' in table for model in SCORES)
    assert "agreement ↑" in page and "entropy ↓" in page
    assert "Models that the rounds kept" not in page


def test_stage_shows_no_warmup_that_is_a_copy(project, params, monkeypatch):
    warmup = params.warmup.model_copy(update={"iterations": 0})
    copied = params.model_copy(update={"warmup": warmup, "evaluated": ("pretrain", "round1")})
    monkeypatch.setattr(stage, "load_params", lambda model: copied)
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    start = page.index("Measures without labels by model")
    table = page[start : page.index("</tbody>", start)]
    assert '<th scope="col">round1</th>' in table and "warmup" not in table


@pytest.mark.parametrize("kept", ["teacher", "student"])
def test_stage_shows_what_a_round_kept(project, kept):
    values = {"measure": "information", "teacher": 0.80004, "student": 0.7931}
    write_verdict(project, kept=kept, regressed=True, **values)
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    start = page.index("Models that the rounds kept")
    table = page[start : page.index("</tbody>", start)]
    assert "<td>0.8000</td><td>0.7931</td>" in table and "looks worse" in table
    assert f'<td class="word">{kept}</td>' in table


def test_stage_gives_the_same_bytes_twice(project, monkeypatch):
    draw_figures(monkeypatch)

    def written():
        run_stage()
        return {path.name: path.read_bytes() for path in (project / "data/report").iterdir()}

    assert written() == written()


def test_stage_opens_no_label_of_a_training_image(project, monkeypatch):
    opened = []
    read = gather.read_label
    monkeypatch.setattr(gather, "read_label", lambda path: opened.append(str(path)) or read(path))
    run_stage()
    truths = [path for path in opened if "pseudo_labels" not in path and "predictions" not in path]
    assert sorted(truths) == [f"{FOLDERS.target}/labels/val/{name}.png" for name in ("c", "d")]


@pytest.mark.parametrize("there", [True, False])
def test_stage_does_without_a_warmup_curve(project, there):
    path = project / FOLDERS.curves / "warmup.csv"
    path.unlink()
    if there:
        curve().head(0).to_csv(path, index=False)
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert "Learning curves of pretrain, round1." in page


def test_stage_reports_a_target_without_labels(project, params, monkeypatch):
    unlabelled = params.model_copy(update={"evaluated": ()})
    monkeypatch.setattr(stage, "load_params", lambda model: unlabelled)
    manifest = pd.read_csv(project / FOLDERS.target / "manifest.csv", keep_default_na=False)
    manifest[manifest["split"] == "train"].to_csv(
        project / FOLDERS.target / "manifest.csv", index=False
    )
    run_stage()
    names = {path.name for path in (project / "data/report").iterdir()}
    assert names == {"index.html", "coverage.png", "curves.png"}
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    start = page.index("Measures without labels by model")
    table = page[start : page.index("</tbody>", start)]
    assert all(f'<th scope="col">{model}</th>' in table for model in SCORES)


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("data/evaluation/warmup/metrics.json", "evaluate@warmup"),
        ("data/watch/warmup.json", "watch_start@warmup"),
        ("data/watch/round1.json", "watch@round1"),
        ("data/rounds/round1/verdict.json", "adapt@round1"),
        ("data/rounds/round1/coverage.csv", "pseudo_label@round1"),
        ("data/rounds/round1/anchors.csv", "anchors@round1"),
    ],
)
def test_stage_names_a_missing_artifact_and_leaves_nothing(project, missing, command):
    (project / missing).unlink()
    with pytest.raises(UserError, match=f"{missing}.*dvc repro {command}"):
        run_stage()
    assert not (project / "data/report").exists()


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        ("data/evaluation/warmup/metrics.json", "{"),
        ("data/evaluation/warmup/metrics.json", '{"a": 1}'),
        ("data/evaluation/warmup/confusion.csv", ""),
        ("data/watch/warmup.json", "{"),
        ("data/watch/warmup.json", "3"),
        ("data/rounds/round1/verdict.json", "{}"),
        ("data/rounds/round1/coverage.csv", ""),
        ("data/rounds/round1/anchors.csv", "a,b\n1,2\n"),
        ("data/curves/warmup.csv", ""),
    ],
)
def test_stage_names_a_damaged_artifact_and_leaves_nothing(project, damaged, text):
    (project / damaged).write_text(text)
    with pytest.raises(UserError, match=f"{damaged}: not a .* delete it, then run"):
        run_stage()
    assert not (project / "data/report").exists()


def test_class_called_none_keeps_its_name(project):
    for name in ("coverage.csv", "anchors.csv", "threshold_curves.csv"):
        path = project / FOLDERS.rounds / "round1" / name
        path.write_text(path.read_text().replace("train", "None"))
    rounds = {"round1": Round(teacher="warmup", anchors="round1")}
    table = gather.read_round(FOLDERS.rounds, "round1", rounds).coverage
    assert table["class"].tolist() == ["road", "car", "None"]


def test_maps_of_training_images_are_those_of_their_features(project):
    store = read_target_store(FOLDERS.features / "round1/target.h5", len(NAMES))
    anchors = torch.from_numpy(features().anchors)
    found = gather.training_maps(store, anchors, ["b"])["b"]
    with open_store(FOLDERS.features / "round1/target/00001.h5", ["features"]) as file:
        expected = anchor_distances(read_array(file, "features"), anchors)
        assert np.array_equal(found.probability, read_array(file, "probability")[0])
    for part, other in zip(
        (found.nearest, found.nearest_distance, found.second_distance), expected, strict=True
    ):
        assert np.array_equal(part, other[0])


def test_target_sample_is_balanced_over_the_predicted_classes(project, monkeypatch):
    monkeypatch.setattr(gather, "FEATURES_PER_CLASS", 5)
    store = read_target_store(FOLDERS.features / "round1/target.h5", len(NAMES))
    assert torch.bincount(gather.target_sample(store, 7).labels).tolist() == [5, 5, 5]


def test_stage_shows_labelled_samples_with_their_errors(project):
    write_labelled(project, "c")
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert "With their truth" in page and "round1 · anchor label ·" in page


def test_labelled_samples_of_other_images_and_damaged_ones_are_refused(project):
    write_labelled(project, "elsewhere")
    with pytest.raises(UserError, match="'elsewhere', which is no validation image"):
        run_stage()
    with h5py.File(project / FOLDERS.labelled / "round1/samples.h5", "a") as file:
        del file["0/truth"]
    with pytest.raises(UserError, match="samples.h5: damaged"):
        run_stage()
    assert not (project / "data/report").exists()


def test_class_thresholds_are_read_by_quantile(project):
    path = project / FOLDERS.rounds / "round1/threshold_curves.csv"
    thresholds = gather.quantile_thresholds(path, NAMES)
    assert list(thresholds) == [0.5] and thresholds[0.5].tolist() == [0.25, 0.125, 0.0]


# ------------------------------------------------------------------------------------ arithmetic


def test_principal_axes_hold_all_of_a_plane_and_leave_out_what_is_missing():
    rng = np.random.default_rng(4)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0].T  # [2, 8], orthonormal
    anchors = np.vstack([rng.normal(size=(5, 2)) @ plane + 3, np.full((1, 8), np.nan)])
    centre, axes, share = feature_space.principal_axes(anchors)
    assert np.allclose(axes @ axes.T, np.eye(2)) and share.sum() == pytest.approx(1)
    assert share[0] >= share[1] and np.allclose(centre, anchors[:5].mean(axis=0))
    assert np.allclose((anchors[:5] - centre) @ axes.T @ axes, anchors[:5] - centre)


def test_drift_is_distance_and_cosine_to_the_round_before():
    before = np.array([[3.0, 4.0], [1.0, 0.0], [np.nan, np.nan]])
    after = np.array([[6.0, 8.0], [0.0, 1.0], [1.0, 1.0]])
    table = feature_space.drift_table({"one": before, "two": after}, NAMES)
    assert table["two", "distance"][:2].tolist() == pytest.approx([5, 2**0.5])
    assert table["two", "cosine"][:2].tolist() == pytest.approx([1, 0])
    assert table["two", "distance"].isna()[2] and table["two", "cosine"].isna()[2]


@pytest.mark.parametrize("largest", [0.0, 3e-4, 1.0, 7.7, 12345.6])
def test_margin_slider_reaches_the_largest_margin_in_few_round_steps(largest):
    values = explorer.margin_values(largest)
    assert values[0] == 0 and values[-1] >= largest and len(values) <= 202
    assert values == sorted(set(values)) and all(len(f"{value:.12g}") <= 8 for value in values)


def test_sliders_have_the_configured_value_and_fit_in_eight_bits():
    values = explorer.slider_values([*explorer.PERCENT, *explorer.NINES], 0.123456)
    assert 0.123456 in values and values == sorted(values) and len(values) <= 255
    thresholds = {i / 300: np.zeros(3, np.float32) for i in range(1, 301)}
    quantiles = explorer.quantile_values(thresholds, 0.51)
    assert len(quantiles) <= 255 and 0.51 in quantiles and quantiles[0] == 1
    assert quantiles == sorted(quantiles, reverse=True)


def test_large_maps_are_thinned():
    large = maps(truth=True, size=(300, 500))
    scales = {"relative_margin": [0.0, 0.5], "margin": [0.0], "probability": [0.5]}
    coded = explorer.codes(large, scales, np.empty((0, 3)))
    assert coded["nearest"].size <= explorer.MOST_PIXELS
    assert np.array_equal(coded["truth"], large.truth[::2, ::2])
