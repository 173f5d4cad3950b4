"""What a killed DVC leaves behind: named, and repaired on request."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
import yaml
from dvc.repo import Repo

from cag import cli
from cag.project.repository import DAMAGED, repair
from cag.project.status import pipeline_status
from cag.runtime.errors import UserError

STAGES = {
    "one": {"cmd": "echo 1 > a", "outs": ["a"]},
    "two": {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A finished project of two stages."""
    folder = tmp_path_factory.mktemp("two") / "project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder.with_name("site")))
        with Repo.init(no_scm=True) as repo:
            repo.reproduce()
    return folder


@pytest.fixture
def copy(project, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return shutil.copytree(project, tmp_path / "project")


@pytest.mark.parametrize("cut", [0, 5, 40, 250, -40])
def test_half_a_lock_file_is_named_and_repaired(copy, monkeypatch, capsys, cut):
    lock = copy / "dvc.lock"
    whole = lock.read_text(encoding="utf-8")
    lock.write_text(whole[:cut].rstrip("\n") + ("\n    outs:\n    - pa" if cut else ""))
    with pytest.raises(
        UserError, match=r"dvc\.lock: half-written.*; `cag status --repair` mends it"
    ):
        pipeline_status(copy)
    half = lock.read_bytes()
    monkeypatch.chdir(copy)
    cli.cli.main(["status", "--repair"], standalone_mode=False)
    assert "dvc.lock: kept" in capsys.readouterr().err
    assert (copy / DAMAGED).read_bytes() == half
    kept = lock.read_text(encoding="utf-8") if lock.exists() else ""
    assert whole.startswith(kept) and (cut >= 0 or kept.count("cmd:") == whole.count("cmd:") - 1)
    cli.cli.main(["status", "--repair"], standalone_mode=False)
    assert "nothing to repair" in capsys.readouterr().err


def test_conflicts_that_git_marks_are_not_cut_off(copy):
    lock = copy / "dvc.lock"
    lock.write_text(f"<<<<<<< HEAD\n{lock.read_text()}=======\n>>>>>>> other\n")
    with pytest.raises(UserError) as caught:
        pipeline_status(copy)
    assert "--repair" not in str(caught.value) and repair(copy) == []


@pytest.mark.parametrize("held", ['{"write": {"a', "[]", None])
def test_a_lock_that_nobody_holds_is_named_and_repaired(copy, held):
    rwlock = copy / ".dvc/tmp/rwlock"
    holder = {"pid": os.getppid(), "cmd": "dvc repro --no-such-option"}
    stale = json.dumps({"write": {str(copy / "b"): holder}})
    rwlock.write_text(stale if held is None else held)
    with pytest.raises(UserError, match="rwlock: half-written, or held by a process that"):
        pipeline_status(copy)
    assert repair(copy) == [".dvc/tmp/rwlock: deleted, as nobody holds it"]
    assert {one.state for one in pipeline_status(copy)} == {"fresh"}


def test_nothing_is_repaired_while_dvc_runs(copy):
    (copy / ".dvc/tmp/rwlock").write_text("{")
    program = [sys.executable, "-c", "print(flush=True); input()", "dvc"]
    with subprocess.Popen(program, cwd=copy, stdin=PIPE, stdout=PIPE) as dvc:
        dvc.stdout.readline()  # before, the system may not show its arguments yet
        with pytest.raises(UserError, match=rf"DVC is running in .* \(process {dvc.pid}\)"):
            repair(copy)
        dvc.communicate(b"\n")


def test_while_dvc_runs_one_line_says_so(copy):
    command = " ".join(psutil.Process(os.getppid()).cmdline())
    holder = {"pid": os.getppid(), "cmd": command}
    held = {"write": {str(copy / "b"): holder}}
    (copy / ".dvc/tmp/rwlock").write_text(json.dumps(held))
    with pytest.raises(UserError, match="DVC is running in this project"):
        pipeline_status(copy)
    assert repair(copy) == []


def test_a_project_without_its_files_is_one_line(copy):
    (copy / "dvc.lock").unlink()
    os.mkfifo(copy / "dvc.lock")
    for look in (pipeline_status, repair):
        with pytest.raises(UserError, match="dvc.lock: is no file and no folder, but a pipe"):
            look(copy)
    (copy / "dvc.lock").unlink()
    pipeline = {"stages": {"one": {"cmd": "echo ${seed}", "params": ["seed"]}}}
    (copy / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (copy / "params.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(
        UserError, match="params.yaml: no such file; .*a link that leads to nothing"
    ):
        pipeline_status(copy)
    (copy / "dvc.yaml").unlink()
    with pytest.raises(UserError, match=r"project: has no dvc\.yaml; restore it"):
        pipeline_status(copy)


def test_a_lock_file_nested_too_deep_to_read_is_repaired(copy):
    (copy / "dvc.lock").write_text("[" * 5000)
    assert repair(copy)[0].startswith("dvc.lock: kept 0 whole stages")
