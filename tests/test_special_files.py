"""Pipes, sockets, devices and circles of links in place of files: one line, and no waiting."""

import os
import signal
import socket
from pathlib import Path

import pytest

from cag.anchors import read_anchors
from cag.config.parameters import load_all
from cag.datasets.images import image_size, read_image, read_label
from cag.datasets.labels import read_class_map
from cag.datasets.prepared import fingerprint, read_label_space, read_manifest
from cag.deploy.image_files import list_images
from cag.deploy.released import read_released
from cag.features import open_store
from cag.networks import load_model
from cag.project import template
from cag.project.experiments import read_grid
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file, sha256

READERS = (read_image, read_label, image_size, read_class_map, load_all, read_grid, sha256)
READERS += (read_released, load_model, lambda path: list_images([str(path)]))
READERS += (lambda path: read_anchors(path, 2, 3), lambda path: template._extend(path, path))
READERS += (lambda path: open_store(path, ("names",)).__enter__(),)


@pytest.fixture(autouse=True)
def no_waiting():
    """A test that waits for a pipe's other end fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def special(tmp_path, monkeypatch):
    """Paths of a pipe, a socket and devices."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        yield [*map(Path, ("pipe", "socket", "/dev/null", "/dev/zero"))]


@pytest.mark.parametrize("read", READERS)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(special, read):
    for path in special:
        with pytest.raises(UserError, match=f"{path}: (is no file and no folder|no such feature)"):
            read(path)


@pytest.mark.parametrize("read", [read_manifest, read_label_space, fingerprint])
def test_no_reader_of_a_folder_waits_for_a_pipe(special, tmp_path, read):
    for name in ("manifest.csv", "classes.json"):
        os.mkfifo(name)
    with pytest.raises(UserError, match="is no file and no folder"):
        read(tmp_path)


def test_a_pipe_is_no_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template.PRESETS.mkdir()
    os.mkfifo(template.PRESETS / "pipe.yaml")
    (template.PRESETS / "lost.yaml").symlink_to("nowhere")
    assert not template.presets()


def test_a_file_does_not_take_the_place_of_a_device(special):
    """As root may: `cag results --out /dev/stdout` would delete that."""
    for path in special:
        refused = pytest.raises(UserError, match=f"{path}: is no file and no folder")
        with refused, atomic_file(path):
            pytest.fail("it is written")
    assert Path("pipe").is_fifo()


def test_links_in_a_circle_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    Path("image.png").touch()
    assert list_images(["image.png"], [Path("circle")]) == [("image", Path("image.png"))]
    for read in (read_image, read_class_map, load_model):
        with pytest.raises(UserError, match="circle: Too many levels .* leads back to itself"):
            read(Path("circle"))
