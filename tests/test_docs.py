"""The documentation builds, is complete, fetches nothing, and its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import click
import pytest
import yaml

from cag.cli import cli
from cag.config.parameters import Parameters, load_all

pytest.importorskip("mkdocs")  # the documentation's tools are development dependencies

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Attributes that make a browser fetch something, and not only when a reader follows a link.
LOADED = {"src", "srcset", "data", "poster", "background"}
# Of ${key} or ${item}; else <round>.
PLACEHOLDERS = {"prepare": "<domain>"}
PLACEHOLDERS |= dict.fromkeys(("evaluate", "watch", "watch_start"), "<model>")


def hook(name):
    specification = importlib.util.spec_from_file_location(name, DOCS / f"hooks/{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def formulas():
    return hook("formulas")


@pytest.fixture(scope="module")
def reference():
    return hook("reference")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Page(HTMLParser):
    """The files that a built page loads, its links, its anchors and its text."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.links, self.anchors, self.text = [], [], set(), []
        self.math = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Note an element's anchors, links and loaded files."""
        self.math += tag == "math"
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            if name in LOADED or (tag == "link" and name == "href"):
                self.loaded.append(value)
            if tag == "a" and name == "href":
                self.links.append(value)

    def handle_data(self, data):
        """Keep the text."""
        self.text.append(data)


@cache
def read(path):
    return Page(path)


def pages(site):
    return {path: read(path) for path in sorted(site.rglob("*.html"))}


def is_elsewhere(url):
    return bool(urlsplit(url).scheme or urlsplit(url).netloc)


def test_no_page_fetches_anything_from_elsewhere(site):
    built = pages(site)
    assert len(built) >= 10
    loaded = [(path.name, url) for path, page in built.items() for url in page.loaded]
    fetched = [one for one in loaded if is_elsewhere(one[1]) and not one[1].startswith("data:")]
    assert not fetched
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    imported = re.findall(r"@import[^;]+|url\(['\"]?(?!data:|#)[a-z]+:[^)]*\)", styles)
    assert not imported


def test_every_internal_link_and_file_exists(site):
    for path, page in pages(site).items():
        if path.name == "404.html":  # its links are those of a server's root
            continue
        for url in (*page.links, *page.loaded):
            if is_elsewhere(url):
                continue
            parts = urlsplit(url)
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert goal.exists(), f"{path.name}: {url}"
            if parts.fragment and goal.suffix == ".html":
                assert unquote(parts.fragment) in read(goal).anchors, f"{path.name}: {url}"


def test_every_formula_of_a_source_is_drawn(site, formulas):
    source = re.sub(r"`[^`]*`", "", (DOCS / "method.md").read_text(encoding="utf-8"))
    display = re.findall(formulas.DISPLAY, source, re.DOTALL)
    inline = re.findall(formulas.INLINE, re.sub(formulas.DISPLAY, "", source, flags=re.DOTALL))
    page = read(site / "method.html")
    assert page.math == len(display) + len(inline) > 50
    assert "$" not in "".join(page.text).replace("$CAG", "")


def test_search_works_from_disk_without_a_request(site):
    """In a browser, because scripts build the search only at run time."""
    browser = ("/usr/bin/chromium", "/usr/bin/chromedriver")
    if not all(Path(path).exists() for path in browser):
        pytest.skip("no Chromium with its driver at /usr/bin")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(browser[1]))
    try:
        driver.implicitly_wait(10)
        driver.get((site / "index.html").as_uri())
        field = driver.find_element("css selector", "input.md-search__input")
        field.click()
        field.send_keys("quantile")
        found = driver.find_element("css selector", ".md-search-result__item a")
        assert found.get_attribute("href").startswith(site.as_uri())
        assert driver.get_log("browser") == []
        requested = re.findall(r'"url":"([a-z]+):', str(driver.get_log("performance")))
        assert set(requested) <= {"file", "data", "about", "blob"}
        assert "file" in requested
    finally:
        driver.quit()


def test_readme_links_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", readme)
    missing = [link for link in links if not is_elsewhere(link) and not (ROOT / link).exists()]
    assert links and not missing


def test_every_image_is_shown_and_small():
    shown = {
        (page.parent / link).resolve()
        for page in (*DOCS.glob("*.md"), ROOT / "README.md")
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    images = {path.resolve() for path in DOCS.rglob("*.png")}
    assert images == shown
    assert sum(path.stat().st_size for path in images) < 3e6


def test_every_parameter_says_what_it_is(reference):
    described = [field for *_, entries in reference.sections() for _, field in entries]
    described += Parameters.model_fields.values()
    for field in described:
        assert field.description and not field.description.endswith(".")
        assert set(field.json_schema_extra) == {"unit", "source"}
        assert field.json_schema_extra["source"]


def leaves(content, prefix=""):
    """Dotted keys of a parameter file."""
    for key, value in content.items():
        name = "<round>" if prefix == "rounds." else key
        if isinstance(value, dict) and value and f"{prefix}{name}" != "network.options":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_key_of_a_preset_is_on_the_page(site, preset):
    text = "".join(read(site / "parameters.html").text)
    keys = set(leaves(load_all(preset).model_dump(mode="json")))
    assert len(keys) > 80
    assert [key for key in sorted(keys) if not re.search(rf"(?<![\w.]){key}(?![\w.])", text)] == []


def test_values_on_the_page_are_those_of_the_presets(reference, monkeypatch):
    content = {"one": {"adapt": {"power": 0.9}, "rounds": {"a": {"x": 1}, "b": {"x": 2}}}}
    content["two"] = {"adapt": {"power": 0.5}, "rounds": {}}
    monkeypatch.setattr(reference, "PRESETS", {"one": "first", "two": "second"})
    assert reference.value_text(content, "adapt.power") == "first: `0.9`<br>second: `0.5`"
    assert reference.value_text(content, "rounds.<round>.x") == "first: `1, 2`"
    content["two"]["adapt"]["power"] = 0.9
    assert reference.value_text(content, "adapt.power") == "`0.9`"


def test_defaults_are_on_the_page_and_only_where_a_key_may_lack(reference):
    rows = [line.split(" | ") for line in reference.parameters().splitlines()]
    values = {row[0].strip("|` "): row[2] for row in rows if len(row) > 3}
    assert values["adapt.class_mix"].endswith("<br>default: `0.0`")
    assert values["extract.target_views.scales"].endswith("<br>default: `[1.0]`")
    assert values["pseudo_label.margin"].endswith("<br>default: `null`")
    assert "default" not in values["adapt.distance_weight"]


@pytest.mark.parametrize(
    ("section", "name", "expected"),
    [
        ("pseudo_label", "probability", "number, at least 0, at most 1"),
        ("pseudo_label", "margin", "number, at least 0, at most 1000000 or null"),
        ("pseudo_label", "quantile", "number, at least 1e-06, at most 1 or null"),
        ("adapt", "target_labels", "`both`, `anchor`, `probability`"),
        ("adapt", "batch_size", "integer, at least 1, at most 4096"),
        ("adapt", "momentum", "number, at least 0, below 1"),
    ],
)
def test_types_and_ranges_are_told_in_words(reference, section, name, expected):
    field = Parameters.model_fields[section].annotation.model_fields[name]
    assert reference.type_text(field.annotation, tuple(field.metadata)) == expected


def outputs():
    """Paths that dvc.yaml's stages write, with placeholders as on the page."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        stage = stage.get("do", stage)
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path = next(iter(entry)) if isinstance(entry, dict) else entry
                yield re.sub(r"\$\{\w+\}", PLACEHOLDERS.get(name, "<round>"), path)


def test_every_output_of_the_pipeline_is_on_the_page(site):
    text = "".join(read(site / "artifacts.html").text)
    found = sorted(outputs())
    assert len(found) > 15
    assert [path for path in found if path not in text] == []


def commands(command=cli, path=("cag",)):
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def test_every_command_and_option_is_on_the_page(site):
    page = read(site / "cli.html")
    text = " ".join("".join(page.text).split())
    found = dict(commands())
    assert len(found) > len(cli.commands) > 5
    for path, command in found.items():
        assert "-".join(path) in page.anchors
        assert f"Usage: {' '.join(path)} " in text
        options = [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
        assert all(option in text for option in options)


def test_every_command_that_a_page_names_exists():
    known = dict(commands())
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        code = "\n".join(
            (*re.findall(r"```sh\n(.*?)```", text, re.S), *re.findall(r"`(cag .*?)`", text))
        )
        for words in re.findall(r"(?<![\w./])cag((?: [a-z]+)+)", code):
            path = ("cag",)
            for word in words.split():
                if not isinstance(known[path], click.Group):
                    break
                assert (*path, word) in known, f"{page.name}: cag{words}"
                path = (*path, word)


def test_every_parameter_that_a_page_sets_exists():
    keys = {key for *_, entries in hook("reference").sections() for key, _ in entries}
    for page in sorted(DOCS.glob("*.md")):
        named = re.findall(r"-S '?([a-z_.]+)=", page.read_text(encoding="utf-8"))
        assert set(named) <= keys, page.name


# Formulas


def converted(formulas, text):
    import markdown

    return markdown.markdown(text, extensions=[formulas.Formulas(), "tables", "fenced_code"])


def test_a_formula_in_a_line(formulas):
    html = converted(formulas, r"The anchor $a_c \in \mathbb{R}^{D}$ of a class.")
    assert html.startswith("<p>The anchor <math ") and html.endswith("</math> of a class.</p>")
    names = [part.text for part in ElementTree.fromstring(html[14:-16]).iter() if part.text]
    assert names == ["a", "c", "∈", "ℝ", "D"]


def test_a_formula_on_its_own_may_span_lines(formulas):
    html = converted(formulas, "before\n\n$$ a_1 * b_1\n+ c * d $$\n\nafter")
    assert '<div class="formula"><math ' in html and 'display="block"' in html
    assert "<em>" not in html and "$" not in html
    assert html.count("<p>") == 2


@pytest.mark.parametrize(
    "text",
    [
        "from 5 $ to 10 $ each",
        "`$CAG_DATA` and `$HOME`",
        r"\$a\$",
        "$CAG_DATA holds it, $HOME does not",
        "```\n$$ x $$\n```",
    ],
)
def test_other_dollars_are_left_alone(formulas, text):
    assert "<math" not in converted(formulas, text)


def test_formulas_in_a_table(formulas):
    html = converted(formulas, "| a | b |\n| --- | --- |\n| $x_1$ | $\\lvert y \\rvert$ |")
    assert html.count("<math") == 2 and html.count("<td>") == 2


@pytest.mark.parametrize("formula", [r"\nosuchcommand x", r"\frac{1}", r"\left( x"])
def test_a_formula_that_cannot_be_read_stops_the_build(formulas, formula):
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match="formula"):
        formulas.mathml(formula, display=False)


def test_the_hook_adds_the_extension(formulas):
    config = SimpleNamespace(markdown_extensions=["toc"])
    assert formulas.on_config(config) is config
    assert isinstance(config.markdown_extensions[1], formulas.Formulas)


def test_links_to_code_lead_to_the_line_of_the_name():
    """`python docs/hooks/sources.py` corrects the lines."""
    sources = hook("sources")
    pages = [path for pattern in sources.PAGES for path in sorted(ROOT.glob(pattern))]
    links = [link for page in pages for link in sources.LINK.findall(page.read_text("utf-8"))]
    assert len(links) > 30
    for page in pages:
        assert sources.corrected(page) == page.read_text(encoding="utf-8"), page.name
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {match["name"] for match in sources.LINK.finditer(readme)}
    assert {"distance_loss", "AdaptationLoss.__call__"} <= linked


def test_files_named_in_the_sources_exist():
    """On a code host, the relative links of README.md and docs/ lead to files."""
    for page in (ROOT / "README.md", *DOCS.glob("*.md"), ROOT / "benchmarks/RESULTS.md"):
        for url in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            parts = urlsplit(url)
            generated = page.name == "index.md" and parts.path.endswith(".html")
            if not is_elsewhere(url) and parts.path and not generated:
                assert (page.parent / unquote(parts.path)).exists(), f"{page.name}: {url}"
