"""The authors' files: the released network's outputs, every format, no code is run."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import GOLDEN, golden_arrays, golden_program

from benchmarks import ROOT
from cag import cli
from cag.datasets.labels import read_class_map
from cag.deploy.released import RELEASED_NETWORK, convert_released_weights, read_released
from cag.networks import load_model
from cag.runtime.errors import UserError


def call(*arguments):
    cli.cli.main([str(argument) for argument in arguments], standalone_mode=False)


# The network


@pytest.fixture(scope="module")
def golden_weights():
    """The golden file's input, and weights under the authors' keys."""
    program = golden_program("network_weights")
    state = {key: torch.from_numpy(value) for key, value in program["weights"]().items()}
    return torch.from_numpy(program["image"]()), state


def test_an_imported_checkpoint_answers_as_the_released_network(tmp_path, golden_weights):
    image, state = golden_weights
    checkpoint = {"DeepLab": {"model_state": state, "optimizer_state": {}, "scheduler_state": {}}}
    checkpoint |= {"iter": 62_412, "best_iou": np.float64(0.5)}
    torch.save(checkpoint, tmp_path / "a.pkl", _use_new_zipfile_serialization=False)
    call("weights", "import", tmp_path / "a.pkl", tmp_path / "weights/a.safetensors")

    classes = read_class_map(ROOT / "classes/cityscapes.yaml").label_space
    network, config, *_ = load_model(tmp_path / "weights/a.safetensors", classes)
    assert config == RELEASED_NETWORK
    with torch.no_grad():
        features, logits = network(image)
    assert features.shape == (1, 256, 32, 64)
    expected = golden_arrays("golden_network")
    np.testing.assert_allclose(features[:, ::8], expected["features"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-3, atol=1e-3)


def test_conversion_keeps_every_tensor(golden_weights):
    _, state = golden_weights
    converted = convert_released_weights(state)
    assert len(converted) == len(state) == 680
    assert {id(value) for value in converted.values()} == {id(value) for value in state.values()}


CONV, LAST = "aspp.aspp2.atrous_conv.weight", "decoder.last_conv.8.weight"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({CONV: None}, f"679 keys, expected the 680 of .*; '{CONV}' is missing"),
        ({"module.x": torch.zeros(1)}, "681 keys, expected the 680 of .*; 'module.x' is not one"),
        ({LAST: torch.zeros(16, 256, 1, 1)}, rf"'{LAST}' is \[16, 256, 1, 1\], expected \[19, "),
        ({CONV: [1.0]}, rf"'{CONV}' is list, expected \[256, 2048, 3, 3\]"),
    ],
)
def test_other_weights_are_refused(golden_weights, changes, expected):
    state = {k: v for k, v in (golden_weights[1] | changes).items() if v is not None}
    with pytest.raises(UserError, match=rf"^released weights: {expected}") as caught:
        convert_released_weights(state)
    assert "\n" not in str(caught.value)


# Formats


def zipped(content):
    """The content as torch.save writes it now."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy(content):
    """The content as torch.save wrote it until 2020."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def renamed(write):
    """A writer whose files name NumPy's modules like NumPy 1 (in protocol 2, plain text)."""

    def written(content):
        data = write(content)
        if data[:2] != b"PK":
            return data.replace(b"numpy._core", b"numpy.core")
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b"numpy._core", b"numpy.core"))
        return file.getvalue()

    return written


def plain(protocol):
    """A writer of plain pickles."""
    return lambda content: pickle.dumps(content, protocol)


FORMATS = {
    "zip": zipped,
    "zip, NumPy 1": renamed(zipped),
    "legacy": legacy,
    "legacy, NumPy 1": renamed(legacy),
    "pickle 2": plain(2),
    "pickle 2, NumPy 1": renamed(plain(2)),
    "pickle 5": plain(5),
}
STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3).T, count=torch.tensor(7))


def checkpoint(**changes):
    """A checkpoint in the authors' form, with an optimizer's and a scheduler's state."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    network = {
        "model_state": STATE,
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": torch.optim.lr_scheduler.PolynomialLR(optimizer).state_dict(),
    }
    return {"DeepLab": network, "iter": 1000, "best_iou": np.float64(0.43)} | changes


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("score", [np.float64(0.43), np.float32(0.43), 0.43])
def test_a_checkpoint_of_any_format_gives_its_weights(tmp_path, write, score):
    data = write(checkpoint(best_iou=score))
    assert b"numpy.core" not in data or b"numpy._core" not in data
    (tmp_path / "a.pkl").write_bytes(data)
    state = read_released(tmp_path / "a.pkl")
    assert list(state) == list(STATE)
    assert all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_anchors_of_any_format_are_read(tmp_path, write):
    vectors = np.random.default_rng(0).random((5, 4))
    vectors[3] = 0  # how the released code leaves a class that it never saw
    path, expected = tmp_path / "category_anchors", vectors.astype(np.float32)
    expected[3] = np.nan
    for content in ({"objective_vectors": vectors, "objective_num": np.arange(5.0)}, vectors):
        path.write_bytes(write(content))
        found = read_released(path)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_imported_anchors_are_a_plain_array(tmp_path):
    path = tmp_path / "category_anchors"
    vectors = np.load(GOLDEN / "anchors.npy").astype(np.float64)
    path.write_bytes(legacy({"objective_vectors": vectors, "objective_num": np.ones(19)}))
    call("weights", "import", path, tmp_path / "anchors.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "anchors.npy"), vectors.astype(np.float32))


# What is refused


class Hostile:
    """An object that makes a file when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


HOSTILE = {
    "system": lambda marker: Hostile(os.system, f"touch {marker}"),
    "exec": lambda marker: Hostile(exec, f"open({str(marker)!r}, 'w').close()"),
    "method": lambda marker: Hostile(Path.touch, marker),
    "nested": lambda marker: Hostile(
        torch.storage._load_from_bytes, legacy(Hostile(os.system, f"touch {marker}"))
    ),
    "object array": lambda marker: np.array([Hostile(os.system, f"touch {marker}")]),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, write, hostile):
    marker, path, out = (tmp_path / name for name in ("marker", "a.pkl", "a.safetensors"))
    pickle.loads(plain(5)(hostile(marker)))
    assert marker.exists()  # it would
    marker.unlink()
    for content in (hostile(marker), checkpoint(best_iou=hostile(marker))):
        path.write_bytes(write(content))
        with pytest.raises(UserError) as caught:
            call("weights", "import", path, out)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 300
        assert "weights_only" not in message and "allowlist" not in message
        assert sorted(tmp_path.iterdir()) == [path]


def test_what_a_hostile_file_asks_for_is_named(tmp_path):
    path = tmp_path / "a.pkl"
    for write in (zipped, legacy, plain(2), plain(5)):
        path.write_bytes(write(Hostile(os.system, "true")))
        with pytest.raises(
            UserError, match=r"a\.pkl: asks to run (posix|nt)\.system, which weights"
        ):
            read_released(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"weight": torch.ones(1)}, "holds a dict of 'weight'; expected one of the authors'"),
        ({}, "holds a dict of nothing"),
        ([1], "holds a list"),
        (np.ones(3), r"holds an array \[3\] of float64"),
        (np.ones((2, 2), np.int64), r"holds an array \[2, 2\] of int64"),
        ({"objective_vectors": [1.0]}, "holds a dict of 'objective_vectors'"),
        ({"DeepLab": {}}, "a checkpoint without DeepLab.model_state"),
        ({"DeepLab": torch.ones(1)}, "a checkpoint without DeepLab.model_state"),
    ],
)
def test_another_content_is_named(tmp_path, content, expected):
    torch.save(content, tmp_path / "a.pkl")
    with pytest.raises(UserError, match=rf"a\.pkl: {expected}"):
        read_released(tmp_path / "a.pkl")


@pytest.mark.parametrize("write", [zipped, legacy, plain(5)])
def test_a_truncated_file_is_named(tmp_path, write):
    data = write(checkpoint())
    for kept in (0, 3, 20, 100, len(data) // 2, len(data) - 20):
        (tmp_path / "a.pkl").write_bytes(data[:kept])
        with pytest.raises(UserError, match=r"a\.pkl: not a file that .* wrote, or damaged"):
            read_released(tmp_path / "a.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.pkl: cannot be read \(No such file"):
        read_released(tmp_path / "a.pkl")


def test_the_name_of_the_output_says_what_it_is(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(zipped(np.ones((2, 2))))
    with pytest.raises(UserError, match=r"a: holds anchors, so OUT must end in \.npy, not"):
        call("weights", "import", path, tmp_path / "out.safetensors")
    path.write_bytes(zipped(checkpoint()))
    with pytest.raises(UserError, match=r"a: holds weights, so OUT must end in \.safetensors"):
        call("weights", "import", path, tmp_path / "out.npy")
    with pytest.raises(UserError, match=r"a: released weights: 2 keys, expected the 680"):
        call("weights", "import", path, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [path]
