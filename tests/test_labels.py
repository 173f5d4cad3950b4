"""Label spaces and class maps: every raw value goes where the YAML says, or is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from cag.errors import UserError
from cag.labels import IGNORE, ClassMap, LabelSpace, read_class_map

CLASSES = Path(__file__).parent.parent / "classes"
SPACE = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))

ROAD = "{name: road, color: [128, 64, 128], values: [7]}"
SKY = "{name: sky, color: [70, 130, 180], values: [23, 24]}"


def write(tmp_path, *classes, ignore="[0]"):
    path = tmp_path / "classes.yaml"
    lines = ["classes:", *(f"  - {entry}" for entry in classes), f"ignore: {ignore}"]
    path.write_text("\n".join(lines))
    return path


def test_cityscapes_map_is_the_official_one():
    class_map = read_class_map(CLASSES / "cityscapes.yaml")
    train_ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    encoded = class_map.encode(np.arange(-1, 34)[None])[0]
    expected = np.full(35, IGNORE)
    expected[np.array(train_ids) + 1] = np.arange(19)
    assert np.array_equal(encoded, expected)
    assert class_map.label_space.num_classes == 19
    assert class_map.label_space.names[16] == "train"
    assert class_map.label_space.palette[13] == (0, 0, 142)
    with pytest.raises(UserError, match="34"):
        class_map.encode(np.array([[7, 34]], np.uint8))


def test_camvid_map_keeps_values_and_ignores_the_last():
    class_map = read_class_map(CLASSES / "camvid.yaml")
    raw = np.arange(12, dtype=np.uint8)[None]
    assert class_map.encode(raw)[0].tolist() == [*range(11), IGNORE]
    assert len(set(class_map.label_space.palette)) == 11


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_encode_agrees_with_a_dictionary_for_every_dtype(tmp_path, dtype):
    class_map = read_class_map(write(tmp_path, ROAD, SKY, ignore="[0, 255, 1]"))
    expected = {7: 0, 23: 1, 24: 1, 0: IGNORE, 255: IGNORE, 1: IGNORE}
    raw = np.random.default_rng(0).choice(list(expected), (9, 11)).astype(dtype)
    labels = class_map.encode(raw)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[expected[value] for value in row] for row in raw.tolist()]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_are_mapped(tmp_path, dtype):
    road = "{name: road, color: [1, 2, 3], values: [[128, 64, 128], [0, 0, 255]]}"
    class_map = read_class_map(write(tmp_path, road, ignore="[[0, 0, 0]]"))
    raw = np.array([[[128, 64, 128], [0, 0, 0], [0, 0, 255]]], dtype)
    assert class_map.encode(raw).tolist() == [[0, IGNORE, 0]]
    with pytest.raises(UserError, match=r"label value \[128, 64, 129\] not in the class map"):
        class_map.encode(np.array([[[128, 64, 129]]], dtype))


def test_16_bit_colours_are_never_taken_for_8_bit_ones():
    class_map = ClassMap(SPACE, {(1, 0, 0): 0, (0, 1, 0): 1})
    for color in ([0, 256, 0], [0, 0, 256], [0, 0, 65535]):
        with pytest.raises(UserError, match="not in the class map"):
            class_map.encode(np.array([[color]], np.uint16))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_unknown_values_are_named(tmp_path, dtype):
    class_map = read_class_map(write(tmp_path, ROAD))
    with pytest.raises(UserError, match=r"label value 9 not in the class map.*'ignore'"):
        class_map.encode(np.array([[7, 9], [0, 9]], dtype))
    with pytest.raises(UserError, match=r"label values 1, 2, 3, 4, 5, \.\.\. not in"):
        class_map.encode(np.arange(9).astype(dtype)[None])


def test_ignore_rest_takes_every_other_value(tmp_path):
    class_map = read_class_map(write(tmp_path, ROAD, ignore="rest"))
    assert class_map.encode(np.array([[7, 9, 255]], np.uint8)).tolist() == [[0, IGNORE, IGNORE]]


def test_254_is_not_a_hidden_ignore_value(tmp_path):
    class_map = read_class_map(write(tmp_path, ROAD))
    with pytest.raises(UserError, match="254"):
        class_map.encode(np.array([[254]], np.uint8))


def test_a_map_of_integers_refuses_colours_and_the_reverse():
    by_value = ClassMap(SPACE, {7: 0, 23: 1})
    by_color = ClassMap(SPACE, {(128, 64, 128): 0})
    with pytest.raises(UserError, match="holds colours, the class map lists integers"):
        by_value.encode(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="holds integers, the class map lists colours"):
        by_color.encode(np.zeros((2, 2), np.uint8))


def test_a_class_may_lack_values(tmp_path):
    empty = "{name: train, color: [0, 80, 100], values: []}"
    class_map = read_class_map(write(tmp_path, ROAD, empty, SKY))
    assert class_map.label_space.names == ("road", "train", "sky")
    assert class_map.encode(np.array([[7, 24]], np.uint8)).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, color: [1, 2, 3]}", r"classes\[1\]: the key 'values' is missing"),
        ("{color: [1, 2, 3], values: [1]}", r"classes\[1\]: the key 'name' is missing"),
        ("{name: '', color: [1, 2, 3], values: [1]}", r"classes\[1\]\.name: expected a text"),
        ("{name: no, color: [1, 2, 3], values: [1]}", r"classes\[1\]\.name: .* found False"),
        ("{name: a, colour: [1, 2, 3], values: [1]}", r"classes\[1\]: unknown key 'colour'"),
        ("{name: a, color: [1, 2, 256], values: [1]}", r"classes\[1\]\.color: .*0\.\.255"),
        ("{name: a, color: red, values: [1]}", r"classes\[1\]\.color: .* found 'red'"),
        ("{name: a, color: [1, 2, 3], values: 1}", r"classes\[1\]\.values: expected a list"),
        ("{name: a, color: [1, 2, 3], values: [x]}", r"classes\[1\]\.values: .* found 'x'"),
        ("{name: a, color: [1, 2, 3], values: [true]}", r"classes\[1\]\.values: .* found True"),
        ("{name: a, color: [1, 2, 3], values: [7]}", r"value 7 is already in classes\[0\]\.values"),
        ("{name: a, color: [1, 2, 3], values: [5, 5]}", r"value 5 is already in classes\[1\]"),
        ("{name: a, color: [1, 2, 3], values: [[1, 2, 3]]}", "mixed"),
        ("{name: road, color: [1, 2, 3], values: [1]}", "class name 'road' is given twice"),
        ("road", r"classes\[1\]: expected keys"),
    ],
)
def test_a_wrong_class_is_named_with_file_and_key(tmp_path, entry, message):
    with pytest.raises(UserError, match=rf"classes\.yaml: .*{message}"):
        read_class_map(write(tmp_path, ROAD, entry))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: expected keys"),
        ("ignore: [1]", "the key 'classes' is missing"),
        ("classes: 3", "classes: expected a list"),
        ("classes: []", "classes: 0 classes found"),
        (f"classes: [{ROAD}]\nignored: [1]", "unknown key 'ignored'"),
        (f"classes: [{ROAD}]\nignore: [7]", r"ignore: the value 7 is already in classes\[0\]"),
        (f"classes: [{ROAD}]\nignore: others", "ignore: expected a list of values"),
        ("classes: [{name: a, color: [1, 2, 3], values: []}]", "no class has a value"),
        ("classes: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"wrong\.yaml: .*{message}") as caught:
        read_class_map(path)
    assert "\n" not in str(caught.value)


def test_too_many_classes_and_a_missing_file(tmp_path):
    entries = [f"{{name: c{i}, color: [1, 2, 3], values: [{i}]}}" for i in range(255)]
    read_class_map(write(tmp_path, *entries[:254], ignore="[]"))
    with pytest.raises(UserError, match=r"classes\.yaml: classes: 255 classes found"):
        read_class_map(write(tmp_path, *entries, ignore="[]"))
    with pytest.raises(UserError, match=r"none\.yaml: the class map cannot be read"):
        read_class_map(tmp_path / "none.yaml")


def test_label_space_survives_json():
    assert LabelSpace.from_dict(json.loads(json.dumps(SPACE.to_dict()))) == SPACE
    assert SPACE.palette_array.dtype == np.uint8
    assert SPACE.palette_array.tolist() == [[128, 64, 128], [70, 130, 180]]


@pytest.mark.parametrize("content", [{}, [], {"classes": [{"name": "a"}]}, {"classes": 3}])
def test_label_space_refuses_another_form(content):
    with pytest.raises(ValueError, match="classes"):
        LabelSpace.from_dict(content)
