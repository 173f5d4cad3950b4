"""The `cag` command: presets, new projects, scenes, summary, and one-line errors."""

import errno
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import cag.scenes
from cag import cli
from cag.commands import project
from cag.config.parameters import load_all
from cag.project import template
from cag.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    cli.cli.main(list(arguments), standalone_mode=False)


def test_preset_is_copied_over_params(folder):
    call("preset", "camvid_day_to_dusk")
    preset = folder / "presets/camvid_day_to_dusk.yaml"
    assert (folder / "params.yaml").read_bytes() == preset.read_bytes()
    call("preset", "scenes")  # an unchanged preset is overwritten without a question
    assert load_all("params.yaml").source.layout == "scenes"


def test_changed_params_are_kept_unless_confirmed(folder, monkeypatch):
    call("preset", "scenes")
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 7"))
    monkeypatch.setattr(
        project.click, "confirm", lambda *_, **__: (_ for _ in ()).throw(project.click.Abort)
    )
    with pytest.raises(UserError, match="--force overwrites it"):  # nobody there to ask
        call("preset", "camvid_day_to_dusk")
    monkeypatch.setattr(project.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(project.click.Abort):
        call("preset", "camvid_day_to_dusk")
    assert yaml.safe_load(params.read_text())["seed"] == 7
    call("preset", "camvid_day_to_dusk", "--force")
    assert yaml.safe_load(params.read_text())["seed"] == 0


def test_presets_are_listed_with_their_first_comment(folder, capsys):
    call("preset")
    shown = capsys.readouterr().out
    assert "camvid_day_to_dusk" in shown and "scenes" in shown and "dusk" in shown


@pytest.mark.parametrize("name", ["scenes", "gta5_to_cityscapes"])
def test_effective_values_are_all_shown_and_defaults_marked(folder, name, capsys):
    call("preset", "camvid_day_to_dusk")
    before = (folder / "params.yaml").read_bytes()
    capsys.readouterr()
    call("preset", name, "--effective")
    shown = capsys.readouterr().out
    assert (folder / "params.yaml").read_bytes() == before
    path = folder / "presets" / f"{name}.yaml"
    assert yaml.safe_load(shown) == load_all(path).model_dump(mode="json")
    # Without the marked lines, the preset's own values are left.
    lines = [line for line in shown.splitlines() if not line.endswith("  # default")]
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load(path.read_text())
    assert "  second_opinion: false  # default" in shown
    call("preset", "--effective")
    assert "  class_mix: 1.0\n" in capsys.readouterr().out


def test_a_preset_in_another_encoding_is_listed(folder, capsys):
    (folder / "presets/mine.yaml").write_bytes("# Größe\n\nseed: 1\n".encode("latin-1"))
    call("preset")
    assert "mine" in capsys.readouterr().out


def test_unknown_preset_names_those_there_are(folder):
    with pytest.raises(UserError, match="no preset 'gta'; there are camvid_day_to_dusk, .*scenes"):
        call("preset", "gta")


def test_init_makes_a_project_whose_pipeline_dvc_understands(tmp_path):
    goal = tmp_path / "mine"
    call("init", str(goal))
    assert load_all(goal / "params.yaml").rounds
    for line in yaml.safe_load((goal / "dvc.yaml").read_text())["stages"]["pretrain"]["deps"]:
        assert line.startswith("data/") or (goal / line).exists()
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=goal, capture_output=True, text=True, check=True
    )
    assert "dvc.yaml" in status.stdout
    with pytest.raises(UserError, match="dvc.yaml: is there already"):
        call("init", str(goal))


def test_a_new_project_begins_with_a_preset_whatever_this_one_has_edited(tmp_path, monkeypatch):
    here = tmp_path / "here"
    for name in template.TEMPLATE:
        template._copy(template.PACKAGES / name, here / name)
    (here / "params.yaml").write_text("seed: 7\n")
    monkeypatch.setattr(template, "template", lambda: here)
    call("init", str(tmp_path / "mine"))
    begun = (tmp_path / "mine/params.yaml").read_bytes()
    assert begun == (here / "presets/scenes.yaml").read_bytes()


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_init_fills_a_fresh_clone_and_keeps_what_is_there(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".gitignore").write_text("*.log\n/data/*\n")
    call("init", str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"
    ignored = (tmp_path / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["*.log", "/data/*"] and ignored.count("/data/*") == 1
    assert set((ROOT / ".gitignore").read_text().splitlines()) <= set(ignored)
    assert load_all(tmp_path / "params.yaml").rounds
    with pytest.raises(UserError, match=r"dvc.yaml: is there already; a project brings its own"):
        call("init", str(tmp_path))


def test_init_keeps_the_bytes_of_a_gitignore(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_bytes(b"caf\xe9/\n")
    call("init", str(tmp_path))
    assert (tmp_path / ".gitignore").read_bytes().startswith(b"caf\xe9/\n")


def test_init_changes_nothing_where_it_cannot_work(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "classes").mkdir()  # the last but one that is copied
    with pytest.raises(UserError, match="classes: is there already"):
        call("init", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {".git", "classes"}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git: not found"):
        call("init", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_init_says_why_git_makes_no_repository(tmp_path, monkeypatch):
    (tmp_path / "gitconfig").write_text("[damaged\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    with pytest.raises(UserError, match="`git init` failed: .*gitconfig"):
        call("init", str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["gitconfig"]


def test_init_makes_its_repository_whatever_git_works_on(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))  # as in a hook of git
    call("init", str(tmp_path / "-new"))
    assert (tmp_path / "-new/.git/HEAD").exists() and not (tmp_path / "other").exists()


def test_below_a_repository_init_makes_a_part_of_it(tmp_path, capsys):
    git(tmp_path, "init", "--quiet")
    call("init", str(tmp_path / "team/uda"))
    assert not (tmp_path / "team/uda/.git").exists()
    assert f"a part of the repository {tmp_path}" in capsys.readouterr().out
    assert "team/uda/dvc.yaml" in git(tmp_path, "ls-files", "--others", "--exclude-standard")


def test_git_ignores_raw_data_but_not_what_dvc_writes_for_them(tmp_path):
    git(tmp_path, "init", "--quiet")
    shutil.copyfile(ROOT / ".gitignore", tmp_path / ".gitignore")
    kept = ("data/raw.dvc", "data/raw/a.dvc", "data/raw/.gitignore", "data/raw/a/b.dvc")
    kept += ("data/weights/w.dvc", "data/README.md")
    hidden = ("data/raw/a/0.png", "data/weights/w.safetensors", "data/prepared/source/.gitignore")
    for path in (*kept, *hidden, "data/models/pretrain.safetensors", "data/rounds/x.dvc"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    shown = git(tmp_path, "ls-files", "--others", "--exclude-standard")
    assert sorted(shown) == sorted([".gitignore", *kept])


def test_scenes_are_written_in_the_folder_layout(tmp_path):
    call("scenes", str(tmp_path / "s"), "--images", "1", "--height", "32", "--width", "64")
    for look in ("source", "target"):
        for kind in ("images", "labels"):
            assert len(list((tmp_path / "s" / look / kind).glob("*.png"))) == 1


def test_scenes_that_fail_leave_nothing(tmp_path, monkeypatch):
    write, written = cag.scenes.write_dataset, []

    def fail_at_last(folder, *arguments, **options):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(folder, *arguments, **options))

    monkeypatch.setattr("cag.scenes.write_dataset", fail_at_last)
    with pytest.raises(OSError, match="No space"):
        call("scenes", str(tmp_path), "--images", "2", "--height", "32", "--width", "64")
    assert not list(tmp_path.iterdir())


def test_summary_without_a_run_says_what_to_do(folder):
    with pytest.raises(UserError, match="dvc repro"):
        call("summary")


def test_errors_are_one_line_and_status_1(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cag", "preset", "gta"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no preset 'gta'; there are camvid_day_to_dusk, ")
