"""The report page: complete, self-contained, true to the numbers, and safe with any text."""

import dataclasses
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cag import plots, report
from cag.errors import UserError
from cag.images import write_image, write_label
from cag.labels import LabelSpace
from stages import report as stage

NAMES = ("road", "car", "train")
SPACE = LabelSpace(NAMES, ((128, 64, 128), (0, 0, 142), (0, 80, 100)))
SCORES = {"pretrain": 0.3126, "warmup": 0.3349, "round1": 0.4871}


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    """Draw figures small: most tests look at the rest of the page."""
    monkeypatch.setattr(plots, "DPI", 20)


@pytest.fixture(scope="module")
def whole_page():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 20)
        return report.page(make_run())


def metrics(miou, **iou):
    scores = {"miou": miou, "pixel_accuracy": 0.7531, "mean_accuracy": 0.5012, "images": 2}
    return {**scores, "iou": {"road": miou + 0.1, "car": miou - 0.1, "train": None, **iou}}


def evaluation(miou, **iou):
    return report.Evaluation(metrics(miou, **iou), np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]]))


def coverage(names=NAMES):
    counts = {"nearest": [100, 40, 0], "anchor": [61, 20, 0], "probability": [80, 10, 0]}
    return pd.DataFrame({"class": names, **counts, "agree": [50, 10, 0]})


def anchors(names=NAMES):
    values = {"images": [5, 4, 0], "pixels": [12345, 400, 0], "norm": [7.25, 9.5, np.nan]}
    nearest = [names[1], names[0], np.nan]
    return pd.DataFrame(
        {"class": names, **values, "nearest_anchor": nearest, "distance": [4.75, 4.75, np.nan]}
    )


def curve():
    return pd.DataFrame({"iteration": [10, 20, 30], "loss": [2.0, 1.5, 1.0]})


def make_run(space=SPACE, models=("pretrain", "warmup", "round1"), name="one", size=(16, 32)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.choice([0, 1, 2, 255], size).astype(np.uint8)
    return report.Run(
        label_space=space,
        summary={"seed": "7"},
        evaluations={model: evaluation(SCORES[model]) for model in models},
        rounds={"round1": report.Round("warmup", "warmup", coverage(space.names), anchors())},
        curves={model: curve() for model in models},
        training=[report.TrainingSample(name, image, {"round1": (labels, labels)})],
        validation=[report.ValidationSample(name, image, labels, labels, labels)],
        locations=[("models", "data/models/")],
    )


class Page(HTMLParser):
    """Collects a page's tables, ids, attributes and open tags."""

    VOID = frozenset({"meta", "img", "source", "br"})

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
        """Check that what closes is what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Add text to the current cell."""
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def test_page_makes_no_external_request(whole_page):
    page = whole_page
    assert "http://" not in page and "https://" not in page and "<script" not in page
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
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
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
    page = report.page(dataclasses.replace(run, evaluations=worse))
    assert Page(page).tables[1][1:] == [
        ["car", "20.0", "40.0", "+20.0"],
        ["road", "90.0", "80.0", "\u221210.0"],
        ["train", "\u2013", "\u2013", "\u2013"],
    ]
    assert '<td class="loss">\u221210.0</td>' in page and "mean over 2 of 3 classes" in page


def test_coverage_and_anchors_are_tabulated(whole_page):
    tables = Page(whole_page).tables
    assert tables[2][2] == ["road", "61.0", "80.0", "54.9"]  # 50 / (61 + 80 - 50)
    assert tables[2][-1] == ["all classes", "57.9", "64.3", "54.1"]
    assert tables[3][1] == ["road", "5", "12\u202f345", "7.25", "car", "4.75"]
    assert tables[3][3] == ["train", "0", "0", "\u2013", "\u2013", "\u2013"]


def test_texts_from_data_are_escaped():
    evil = '<script>alert("x")</script>'
    space = LabelSpace((evil, "car", "train"), SPACE.palette)
    run = make_run(space, name=evil)
    run = dataclasses.replace(
        run,
        summary={evil: evil},
        evaluations={"pretrain": evaluation(0.3), evil: evaluation(0.4)},
        rounds={evil: report.Round(evil, evil, coverage(space.names), anchors(space.names))},
        locations=[(evil, evil)],
    )
    page = report.page(run)
    assert "<script" not in page and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in page
    assert Page(page).open == []


def test_dollar_signs_in_texts_stay():
    run = dataclasses.replace(make_run(), summary={"note": "$body costs $5"})
    assert "$body costs $5" in report.page(run)


def test_page_repeats(whole_page):
    assert report.page(make_run()) == whole_page


def test_page_without_warmup():
    page = report.page(make_run(models=("pretrain", "round1")))
    assert [row[0] for row in Page(page).tables[0][1:]] == ["pretrain", "round1"]


def test_first_model_is_the_baseline_where_there_is_no_source_only_one():
    table = report.results_table({"warmup": metrics(0.4), "round1": metrics(0.5)})
    assert table["change"].isna().tolist() == [True, False]
    assert table["change"][1] == pytest.approx(0.1)


def test_page_of_a_target_without_labels():
    run = dataclasses.replace(make_run(), evaluations={}, validation=[])
    ids = {a["id"] for tag, a in Page(report.page(run)).tags if tag == "section"}
    assert ids == {"pseudo-labels", "coverage", "anchors", "curves", "files"}


def test_page_stays_below_five_megabytes(monkeypatch):
    monkeypatch.undo()  # figures at their real size
    run = make_run(size=(128, 256))  # noise: the worst picture to compress
    rounds = {f"round{number}": run.rounds["round1"] for number in (1, 2, 3)}
    maps = run.training[0].pseudo_labels["round1"]
    sample = dataclasses.replace(run.training[0], pseudo_labels=dict.fromkeys(rounds, maps))
    run = dataclasses.replace(
        run, rounds=rounds, training=[sample] * 8, validation=list(run.validation) * 8
    )
    assert len(report.page(run).encode()) < 5_000_000


def test_large_pictures_become_thumbnails():
    page = report.page(make_run(size=(500, 1000)))
    widths = [int(a["width"]) for tag, a in Page(page).tags if tag == "img" and "width" in a]
    assert len(widths) == 7 and set(widths) == {report.THUMBNAIL}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [0]), (3, [0, 4, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_evenly_spaced(count, expected):
    assert report.evenly_spaced(range(10), count) == expected


# ---------------------------------------------------------------------------------------- stage


def write_artifacts(root):
    """Write what the earlier stages would have: two training images, two labelled ones."""
    run, rows = make_run(), []
    image, labels = run.training[0].image, np.zeros((16, 32), np.uint8)
    palette = np.array(SPACE.palette, np.uint8)
    for split, names in (("train", ("city/a", "b")), ("val", ("c", "d"))):
        for name in names:
            label = f"labels/val/{name}.png" if split == "val" else ""
            path = f"images/{split}/{name}.png"
            rows.append((split, name, path, label, 16, 32, "0" * 64, "0" * 64 if label else ""))
            put(root / stage.TARGET / path, lambda file: write_image(file, image))
            folders = [root / stage.EVALUATION / model / "predictions" for model in SCORES]
            folders += [root / stage.TARGET / "labels/val"]
            if split == "train":
                pseudo = root / stage.ROUNDS / "round1/pseudo_labels"
                folders = [pseudo / "anchor", pseudo / "probability"]
            for folder in folders:
                put(folder / f"{name}.png", lambda file: write_label(file, labels, palette))
    columns = ["split", "name", "image", "label", "height", "width", "image_sha256", "label_sha256"]
    pd.DataFrame(rows, columns=columns).to_csv(root / stage.TARGET / "manifest.csv", index=False)
    (root / stage.TARGET / "classes.json").write_text(json.dumps(SPACE.to_dict()))
    for model, one in run.evaluations.items():
        folder = root / stage.EVALUATION / model
        (folder / "metrics.json").write_text(json.dumps(one.metrics))
        table = pd.DataFrame(one.confusion, columns=NAMES)
        table.insert(0, "truth", NAMES)
        table.to_csv(folder / "confusion.csv", index=False)
        put(root / stage.CURVES / f"{model}.csv", lambda file: curve().to_csv(file, index=False))
    coverage().to_csv(root / stage.ROUNDS / "round1/coverage.csv", index=False)
    anchors().to_csv(root / stage.ROUNDS / "round1/anchors.csv", index=False)


def put(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


@pytest.fixture
def params():
    rounds = {"round1": SimpleNamespace(teacher="warmup", anchors="round1")}
    shown = SimpleNamespace(images=2)
    return SimpleNamespace(seed=7, rounds=rounds, evaluated=tuple(SCORES), report=shown)


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


def test_stage_gives_the_same_bytes_twice(project):
    def written():
        run_stage()
        return {path.name: path.read_bytes() for path in (project / "data/report").iterdir()}

    assert written() == written()


def test_stage_opens_no_label_of_a_training_image(project, monkeypatch):
    opened = []
    read = stage.read_label
    monkeypatch.setattr(stage, "read_label", lambda path: opened.append(str(path)) or read(path))
    run_stage()
    truths = [path for path in opened if "pseudo_labels" not in path and "predictions" not in path]
    assert sorted(truths) == [f"{stage.TARGET}/labels/val/{name}.png" for name in ("c", "d")]


@pytest.mark.parametrize("there", [True, False])
def test_stage_does_without_a_warmup_curve(project, there):
    path = project / stage.CURVES / "warmup.csv"
    path.unlink()
    if there:
        curve().head(0).to_csv(path, index=False)
    run_stage()
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert "Learning curves of pretrain, round1." in page


def test_stage_reports_a_target_without_labels(project, params):
    params.evaluated = ()
    manifest = pd.read_csv(project / stage.TARGET / "manifest.csv", keep_default_na=False)
    manifest[manifest["split"] == "train"].to_csv(
        project / stage.TARGET / "manifest.csv", index=False
    )
    run_stage()
    names = {path.name for path in (project / "data/report").iterdir()}
    assert names == {"index.html", "coverage.png", "curves.png"}


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("data/evaluation/warmup/metrics.json", "evaluate@warmup"),
        ("data/rounds/round1/coverage.csv", "pseudo_label@round1"),
        ("data/rounds/round1/anchors.csv", "anchors@round1"),
    ],
)
def test_stage_names_a_missing_artifact_and_leaves_nothing(project, missing, command):
    (project / missing).unlink()
    with pytest.raises(UserError, match=f"{missing}.*dvc repro {command}"):
        run_stage()
    assert not (project / "data/report").exists()


def test_class_called_none_keeps_its_name(project):
    path = project / stage.ROUNDS / "round1/coverage.csv"
    path.write_text(path.read_text().replace("train", "None"))
    rounds = {"round1": SimpleNamespace(teacher="warmup", anchors="round1")}
    assert stage.read_round("round1", rounds).coverage["class"].tolist() == ["road", "car", "None"]
