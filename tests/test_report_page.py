"""The report page in a real browser shows the numbers that the library computes."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from test_report import coverage

from cag.analysis import plots
from cag.anchors import resize_labels
from cag.config.pseudo_labels import PseudoLabel
from cag.datasets.labels import IGNORE, LabelSpace
from cag.pseudo_labels import MarginHistogram, active, agreeing, confident, relative_margins
from cag.report import contents
from cag.report.page import report_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver")

NAMES = ("road", "none", "<script>throw 1</script>")
SPACE = LabelSpace(NAMES, ((128, 64, 128), (0, 0, 142), (70, 130, 180)))
RULES = PseudoLabel(
    margin=None, relative_margin=0.2, quantile=0.37, agreement=True, probability=0.9
)
ROUNDS, QUANTILES = ("round1", "round2"), (0.1, 0.37, 0.5, 0.8, 1.0)
SIZE, SHOWN = (9, 14), (40, 64)
KINDS = ("relative_margin", "margin", "quantile")


def make_maps(seed: int, truth: bool = False) -> contents.Maps:
    """Random maps in which each configured threshold is met exactly by some pixels."""
    rng = np.random.default_rng(seed)
    first, second = np.sort(rng.gamma(2.0, 2.0, (2, *SIZE)).astype(np.float32), axis=0)
    first[:2], second[:2] = 1.0, 1.5  # a relative margin of 0.2, a margin of 0.5
    probability = rng.random(SIZE, np.float32) ** np.float32(0.2)
    probability[:, :3] = 0.9
    nearest = rng.integers(0, 3, SIZE, np.uint8)
    prediction = np.where(rng.random(SIZE) < 0.7, nearest, rng.integers(0, 3, SIZE, np.uint8))
    labels = np.where(rng.random(SIZE) < 0.6, nearest, rng.choice([0, 1, 2, IGNORE], SIZE))
    return contents.Maps(
        nearest,
        first,
        second,
        prediction.astype(np.uint8),
        probability,
        labels.astype(np.uint8) if truth else None,
    )


def make_run() -> contents.Run:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SHOWN, 3), np.uint8)
    labels = rng.choice([0, 1, 2, IGNORE], SHOWN).astype(np.uint8)
    maps = {
        (name, kind): make_maps(10 * i + j, truth=kind == "labelled")
        for i, name in enumerate(ROUNDS)
        for j, kind in enumerate(("first", "second", "labelled"))
    }
    rounds = {}
    for name in ROUNDS:
        histogram = MarginHistogram(len(NAMES))
        for kind in ("first", "second"):
            one = maps[name, kind]
            nearest, first, second = (
                torch.from_numpy(part)
                for part in (one.nearest, one.nearest_distance, one.second_distance)
            )
            histogram.update(nearest, relative_margins(first, second))
        anchors = rng.normal(size=(3, 5)).astype(np.float32)
        points = rng.normal(size=(30, 5)), np.arange(30, dtype=np.uint8) % 3
        rounds[name] = contents.Round(
            "warmup",
            "warmup",
            coverage(NAMES),
            pd.DataFrame({"class": NAMES}).assign(
                images=1, pixels=2, recall=0.5, norm=1.0, nearest_anchor="road", distance=2.0
            ),
            {quantile: histogram.thresholds(quantile).numpy() for quantile in QUANTILES},
            contents.Features(anchors, *points, *points),
        )
    scores = {"miou": 0.3, "pixel_accuracy": 0.5, "mean_accuracy": 0.4, "images": 1}
    iou = {"iou": dict.fromkeys(NAMES, 0.3)}
    evaluation = contents.Evaluation({**scores, **iou}, np.eye(3, dtype=int))
    return contents.Run(
        SPACE,
        {"seed": "0"},
        {"pretrain": evaluation, "round2": evaluation},
        rounds,
        training=[
            contents.TrainingSample(
                kind, image, dict.fromkeys(ROUNDS, (labels, labels)),
                {name: maps[name, kind] for name in ROUNDS},
            )
            for kind in ("first", "second")
        ],
        labelled=[
            contents.LabelledSample(
                "labelled", image, {name: maps[name, "labelled"] for name in ROUNDS}
            )
        ],
        validation=[contents.ValidationSample("labelled", image, labels, labels, labels)],
        rules=RULES,
        parameters={"seed": 0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 20)
        text = report_page(run)
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def started():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(started, address):
    """A browser of a desktop's size that has just opened the page."""
    resize(started, 1200)
    scheme(started, "light")
    started.get(address)
    wait(started, "return !document.getElementById('explorer').hidden")
    return started


def resize(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(browser, name):
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10, poll_frequency=0.02).until(lambda one: one.execute_script(condition))


def set_control(browser, key, value):
    """Set a slider, a choice or a checkbox as a user would."""
    browser.execute_script(
        "const control = document.getElementById(arguments[0]);"
        "if (control.type === 'checkbox') control.checked = arguments[1];"
        "else control.value = arguments[1];"
        "for (const kind of ['input', 'change'])"
        "  control.dispatchEvent(new Event(kind, {bubbles: true}));",
        key,
        value,
    )


def shown_values(browser):
    """The thresholds in use according to the page; None if a slider is off."""
    texts = browser.execute_script(
        "return Object.fromEntries(arguments[0].map((key) => [key,"
        "  document.getElementById(key).closest('label').querySelector('output').textContent]))",
        [*KINDS, "probability"],
    )
    return {key: None if text == "off" else float(text) for key, text in texts.items()}


def shown_counts(browser):
    """For each rule the pixels of each class, then of all; with a truth also the right %."""
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#counts [data-rule]')].map((cell) =>"
        "  [cell.dataset.rule, Number(cell.dataset.pixels), cell.nextSibling.nextSibling"
        "   ? cell.nextSibling.nextSibling.textContent : ''])"
    )
    return {
        rule: ([n for r, n, _ in cells if r == rule], [t for r, _, t in cells if r == rule])
        for rule in ("anchor", "probability")
    }


def expected_labels(run, name, maps, values, agreement):
    """The library's labels with these thresholds."""
    nearest, first, second, prediction, probability = (
        torch.from_numpy(getattr(maps, key))
        for key in ("nearest", "nearest_distance", "second_distance", "prediction", "probability")
    )
    thresholds = values["quantile"] and run.rounds[name].class_thresholds[values["quantile"]]
    if thresholds is not None:
        thresholds = torch.from_numpy(thresholds)
    anchor = {key: values[key] for key in ("margin", "relative_margin")}
    labels = active(nearest, first, second, **anchor, quantile=thresholds)
    if agreement:
        labels = agreeing(labels, prediction)
    return {
        "anchor": labels,
        "probability": confident(prediction, probability, values["probability"]),
    }


def classes_of(labels):
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: len(NAMES)].tolist()
    return [*counts, sum(counts)]


def picture(browser, rule):
    """The drawn labels, uint8 [H, W, 4] RGBA."""
    found = browser.execute_script(
        "const canvas = document.getElementById('canvas-' + arguments[0]);"
        "const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        "return [canvas.height, canvas.width, Array.from(data)]",
        rule,
    )
    return np.array(found[2], np.uint8).reshape(*found[:2], 4)


def expected_picture(labels):
    full = resize_labels(labels[None], SHOWN, align_corners=True)[0].numpy()
    colors = np.zeros((256, 4), np.uint8)
    colors[: len(NAMES)] = [(*color, 255) for color in SPACE.palette]
    return colors[full]


SETTINGS = [  # index of each slider, as a share of its length; None: off
    {"relative_margin": None, "margin": 0.0, "quantile": None, "probability": 0.0},
    {"relative_margin": 0.1, "margin": None, "quantile": None, "probability": 0.5},
    {"relative_margin": 0.45, "margin": None, "quantile": None, "probability": 0.97},
    {"relative_margin": None, "margin": 0.07, "quantile": None, "probability": 1.0},
    {"relative_margin": None, "margin": 0.4, "quantile": None, "probability": 0.8},
    {"relative_margin": None, "margin": None, "quantile": 0.0, "probability": 0.8},
    {"relative_margin": None, "margin": None, "quantile": 0.75, "probability": 0.8},
    {"relative_margin": 0.15, "margin": 0.05, "quantile": 0.5, "probability": 0.9},
]


def set_sliders(browser, setting):
    for key, share in setting.items():
        last = int(browser.execute_script(f"return document.getElementById('{key}').max"))
        set_control(browser, key, -1 if share is None else round(share * last))


def compare(browser, run, name, maps, agreement):
    values, counts = shown_values(browser), shown_counts(browser)
    labels = expected_labels(run, name, maps, values, agreement)
    for rule, expected in labels.items():
        assert counts[rule][0] == classes_of(expected), (rule, values)
        assert np.array_equal(picture(browser, rule), expected_picture(expected)), (rule, values)
    return labels, counts


def test_page_opens_from_disk_without_errors_or_requests(browser, address):
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = {request["request"]["url"].split("#")[0] for request in requests}
    assert address in urls
    assert all(url == address or url.startswith("data:") for url in urls)


def test_explorer_starts_with_the_configured_thresholds(browser, run):
    values = shown_values(browser)
    configured = {key: getattr(RULES, key) for key in values}
    assert values == configured
    compare(browser, run, "round2", run.training[0].maps["round2"], agreement=True)
    command = "return document.getElementById('command').dataset.command"
    assert browser.execute_script(command) == "dvc exp run"


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("name", ROUNDS)
def test_sliders_label_as_the_library_does(browser, run, name, agreement):
    set_control(browser, "explorer-round", str(ROUNDS.index(name)))
    set_control(browser, "explorer-image", "1")
    set_control(browser, "agreement", agreement)
    for setting in SETTINGS:
        set_sliders(browser, setting)
        compare(browser, run, name, run.training[1].maps[name], agreement)


def test_labels_of_known_pixels_are_judged(browser, run):
    set_control(browser, "explorer-image", "2")
    maps = run.labelled[0].maps["round2"]
    truth = torch.from_numpy(maps.truth)
    for setting in SETTINGS:
        set_sliders(browser, setting)
        labels, counts = compare(browser, run, "round2", maps, agreement=True)
        for rule, found in labels.items():
            judged = found.masked_fill(truth == IGNORE, IGNORE)
            right = classes_of(judged.masked_fill(judged != truth, IGNORE))
            for text, good, known in zip(counts[rule][1], right, classes_of(judged), strict=True):
                if known == 0:
                    assert text == "\u2013"
                else:
                    assert float(text) == pytest.approx(100 * good / known, abs=0.0501)


def test_right_and_wrong_are_drawn(browser, run):
    set_control(browser, "explorer-image", "2")
    set_control(browser, "explorer-colors", "errors")
    set_control(browser, "agreement", False)
    set_sliders(browser, {"relative_margin": 0.05, "quantile": None})
    maps = run.labelled[0].maps["round2"]
    labels = expected_labels(run, "round2", maps, shown_values(browser), agreement=False)
    truth = torch.from_numpy(maps.truth)
    judged = torch.where(truth == IGNORE, 2, (labels["anchor"] != truth).long())
    judged = judged.masked_fill(labels["anchor"] == IGNORE, 3).byte()
    colors = [(0, 114, 178, 255), (213, 94, 0, 255), (150, 150, 150, 255), (0, 0, 0, 0)]
    full = resize_labels(judged[None], SHOWN, align_corners=True)[0].numpy()
    assert {0, 1, 2, 3} == set(judged.unique().tolist())
    assert np.array_equal(picture(browser, "anchor"), np.array(colors, np.uint8)[full])


def test_all_images_of_a_kind_are_counted_together(browser, run):
    set_control(browser, "explorer-scope", "all")
    values, total = shown_values(browser), {}
    for sample in run.training:
        labels = expected_labels(run, "round2", sample.maps["round2"], values, agreement=True)
        total = {
            rule: np.add(total.get(rule, 0), classes_of(found)) for rule, found in labels.items()
        }
    counts = shown_counts(browser)
    assert all(counts[rule][0] == list(total[rule]) for rule in counts)


def test_command_names_what_differs(browser):
    set_sliders(browser, {"relative_margin": None, "quantile": 1.0, "margin": None})
    set_control(browser, "agreement", False)
    command = "return document.getElementById('command').dataset.command"
    assert browser.execute_script(command) == (
        "dvc exp run -S ++pseudo_label.relative_margin=null -S ++pseudo_label.quantile=0.1"
        " -S ++pseudo_label.agreement=false"
    )
    set_sliders(browser, dict.fromkeys(KINDS))
    assert browser.execute_script(command) == ""
    assert shown_counts(browser)["anchor"][0] == [0, 0, 0, 0]


def test_pixels_are_read_by_the_keyboard(browser, run):
    from selenium.webdriver.common.keys import Keys

    view = browser.find_element("id", "view-anchor")
    view.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    text = browser.find_element("id", "readout").text
    maps = run.training[0].maps["round2"]
    assert "row 1, column 1;" in text and f"nearest anchor: {NAMES[maps.nearest[1, 1]]};" in text
    assert "relative margin: 0.2 to 0.205;" in text and "margin: 0.5 to" in text
    assert (
        "probability: 0.895 to 0.9;" in text
        and f"predicted: {NAMES[maps.prediction[1, 1]]};" in text
    )


def test_pictures_enlarge_by_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    active_element = "return document.activeElement.alt"
    dialog = "return document.getElementById('viewer').open"
    caption = "return document.getElementById('viewer-caption').textContent"
    pictures = browser.find_elements("css selector", "#pseudo-labels .pictures img")
    shown = [one for one in pictures if one.is_displayed()]
    assert len(shown) < len(pictures)  # those of the other round wait
    names = [one.get_attribute("alt") for one in shown]
    for key in (Keys.ENTER, Keys.SPACE):
        shown[0].send_keys(key)
        assert browser.execute_script(dialog)
        assert browser.execute_script(caption) == f"{names[0]} (1 of {len(names)})"
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        assert browser.execute_script(caption).startswith(names[1])
        browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert browser.execute_script(caption).startswith(names[-1])
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert not browser.execute_script(dialog)
        # The dialog says that it has closed in a task of its own, later than the key.
        wait = WebDriverWait(browser, 10)
        wait.until(lambda _: browser.execute_script(active_element) == names[-1])


def test_rounds_switch_by_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    browser.find_element("id", "gallery-1").send_keys(Keys.ARROW_LEFT)
    captions = browser.find_elements("css selector", "#pseudo-labels .of figcaption")
    assert {one.text.split(" ")[0] for one in captions if one.is_displayed()} == {"round1"}


def test_one_class_of_the_feature_space_stands_out(browser):
    marks = (
        "return [...document.querySelectorAll('#features .of-class')].map((mark) =>"
        "  [mark.dataset.class, mark.classList.contains('faded')])"
    )
    for chosen in ("1", ""):
        set_control(browser, "feature-class", chosen)
        faded = browser.execute_script(marks)
        assert {own for own, _ in faded} == {"0", "1", "2"}
        assert all(pale == (chosen not in ("", own)) for own, pale in faded)


def test_sliders_keep_their_values_in_another_round(browser):
    set_sliders(browser, {"relative_margin": 0.1, "margin": 0.05, "quantile": 0.5})
    values = shown_values(browser)
    set_control(browser, "explorer-round", "0")
    assert shown_values(browser) == values and None not in values.values()


@pytest.mark.parametrize("shade", ["light", "dark"])
def test_phone_has_no_sideways_scrolling(browser, shade):
    scheme(browser, shade)
    resize(browser, 375)
    width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width == [375, 375]


def test_dark_screens_get_a_dark_page(browser):
    def lightness():
        color = "return getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).map(Number)"
        parts = ("backgroundColor", "color")
        return [sum(browser.execute_script(color.format(part))) for part in parts]

    background, ink = lightness()
    assert background > 600 > 200 > ink
    scheme(browser, "dark")
    background, ink = lightness()
    assert background < 200 < 600 < ink


def test_page_without_scripts_shows_what_does_not_need_them(browser, address):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        shown = browser.find_element("id", "pseudo-labels").text
        assert "round2 · anchor label" in shown and "round1 · anchor label" not in shown
        assert not browser.find_element("id", "explorer").is_displayed()
        assert "This part needs scripts." in browser.find_element("id", "thresholds").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_explorer_without_quantiles_or_truth(started, run, tmp_path):
    bare = {name: dataclasses.replace(one, class_thresholds={}) for name, one in run.rounds.items()}
    rules = RULES.model_copy(update={"quantile": None, "margin": 0.5})
    plain = dataclasses.replace(
        run, rounds=bare, rules=rules, labelled=(), validation=(), evaluations={}
    )
    (tmp_path / "index.html").write_text(report_page(plain), encoding="utf-8")
    started.get((tmp_path / "index.html").as_uri())
    wait(started, "return !document.getElementById('explorer').hidden")
    assert not started.find_element("id", "quantile").is_displayed()
    for setting in ({}, {"relative_margin": None, "margin": 0.2, "probability": 0.3}):
        set_sliders(started, setting)
        compare(started, plain, "round2", run.training[0].maps["round2"], agreement=True)
    # A warning, that reading canvases is slow, is about this test.
    assert not [one for one in started.get_log("browser") if one["level"] == "SEVERE"]
