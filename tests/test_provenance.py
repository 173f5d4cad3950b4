"""A stage whose code or parameters are changed while it runs fails: DVC would record the others."""

import importlib
import shutil
import sys

import click
import pytest
from project import ROOT

from cag.config.base import load_params
from cag.config.training import Run
from cag.runtime import provenance
from cag.runtime.program import RECORDS, run_stage


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory: with parameters, and with a package of three modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages/work.py"])
    monkeypatch.setattr(provenance, "PACKAGES", ("house",))
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copyfile(ROOT / "presets/scenes.yaml", "params.yaml")
    (tmp_path / "house").mkdir()
    (tmp_path / "house/attic").mkdir()
    for name in ("__init__", "early", "late", "never", "attic/__init__", "attic/box"):
        (tmp_path / f"house/{name}.py").write_text("value = 1\n")
    importlib.import_module("house.early")
    importlib.import_module("house.attic.box")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


def replace(path, old, new):
    """Change a file's text."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def outcome(work, capsys):
    """The exit status of a stage that does this work, and its text."""
    status = 0
    try:
        run_stage(click.Command("work", callback=work))
    except SystemExit as end:
        status = end.code
    assert (RECORDS / "work.json").exists() == (status == 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 0", "seed: 1", "seed of params.yaml"),
        ("precision: auto", "precision: 32-true", "precision of params.yaml"),
        ("precision: auto", "precision: [", "params.yaml"),
        ("relative_margin: 0.2", "relative_margin: 0.3", None),  # the stage does not read it
        ("seed: 0", "seed: 0  # still", None),
    ],
)
def test_parameters_that_change_meanwhile(folder, capsys, old, new, said):
    def work():
        load_params(Run)
        replace(folder / "params.yaml", old, new)

    status, text = outcome(work, capsys)
    assert status == (said is not None)
    if said:
        assert len(text.splitlines()) == 1
        assert text.startswith(f"error: {said}: changed while this stage ran")


def test_parameters_that_are_changed_back(folder, capsys):
    def work():
        load_params(Run)
        replace(folder / "params.yaml", "seed: 0", "seed: 1")
        replace(folder / "params.yaml", "seed: 1", "seed: 0")

    assert outcome(work, capsys) == (0, "")


@pytest.mark.parametrize(
    "name", ["__init__", "early", "late", "never", "attic/__init__", "attic/box"]
)
def test_code_that_changes_meanwhile(folder, capsys, name):
    def work():
        replace(folder / f"house/{name}.py", "1", "2")
        importlib.import_module("house.late")

    status, text = outcome(work, capsys)
    assert status == (name != "never")  # no program has loaded it
    assert text.startswith(f"error: house/{name}.py: changed") == (name != "never")


def test_a_deleted_module_has_changed(folder, capsys):
    status, text = outcome(lambda: (folder / "house/early.py").unlink(), capsys)
    assert status == 1 and "house/early.py: changed" in text


def test_the_digest_of_code_is_that_of_the_start(folder):
    before = provenance.code_digest()
    with provenance.noted():
        replace(folder / "house/never.py", "1", "2")
        importlib.import_module("house.late")
        assert provenance.code_digest() == before
        replace(folder / "house/early.py", "1", "2")
        assert provenance.code_digest() == before
    assert provenance.code_digest() != before


def test_the_digest_holds_the_version_of_pytorch(monkeypatch):
    before = provenance.code_digest()
    monkeypatch.setattr(provenance.metadata, "version", lambda name: "0.0")
    assert provenance.code_digest() != before
