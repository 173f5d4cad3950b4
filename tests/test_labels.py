"""Class maps: every raw value goes to the class that the YAML says, or an error names it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cag.datasets.labels import IGNORE, ClassMap, LabelSpace, read_class_map
from cag.runtime.errors import UserError

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


# Three tiny label maps of each data set with raw values of every kind, and the train ids that the
# data sets' definitions give, 255 = ignored.
X = IGNORE
WORKED = {
    "gta5": [
        ([[7, 8, 11, 12], [13, 17, 19, 20]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[21, 22, 23, 24, 25], [26, 27, 28, 31, 32]], [[8, 9, 10, 11, 12], [13, 14, 15, 16, 17]]),
        ([[33, 0, 1, 4, 34], [9, 16, 29, 30, 7]], [[18, *[X] * 4], [*[X] * 4, 0]]),
    ],
    "cityscapes": [
        ([[7, 8, 11, 12], [13, 17, 19, 20]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[21, 22, 23, 24, 25], [26, 27, 28, 31, 32]], [[8, 9, 10, 11, 12], [13, 14, 15, 16, 17]]),
        ([[33, 0, 3, 6, -1], [10, 14, 15, 18, 7]], [[18, *[X] * 4], [*[X] * 4, 0]]),
    ],
    "cityscapes_train_ids": [
        ([[0, 1, 2], [16, 17, 18]], [[0, 1, 2], [16, 17, 18]]),
        ([[7, 11, 13]], [[7, 11, 13]]),
        ([[255, 255, 9]], [[X, X, 9]]),
    ],
    "cityscapes_16": [  # no terrain 22, truck 27, train 31: what follows them moves up
        ([[7, 8, 11, 12], [13, 17, 19, 20]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (
            [[21, 22, 23, 24, 25], [26, 27, 28, 31, 32]],
            [[8, X, 9, 10, 11], [12, X, 13, X, 14]],
        ),
        ([[33, 0, 2, 5]], [[15, X, X, X]]),
    ],
    "cityscapes_13": [  # nor wall 12, fence 13, pole 17
        ([[7, 8, 11, 12], [13, 17, 19, 20]], [[0, 1, 2, X], [X, X, 3, 4]]),
        (
            [[21, 22, 23, 24, 25], [26, 27, 28, 31, 32]],
            [[5, X, 6, 7, 8], [9, X, 10, X, 11]],
        ),
        ([[33, 0, 2, 5]], [[12, X, X, X]]),
    ],
    "synthia_16": [
        ([[3, 4, 2, 21], [5, 7, 15, 9]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[6, 1, 10, 17], [8, 19, 12, 11]], [[8, 9, 10, 11], [12, 13, 14, 15]]),
        ([[0, 13, 14, 16], [18, 20, 22, 3]], [[X] * 4, [X, X, X, 0]]),
    ],
    "synthia_13": [
        ([[3, 4, 2, 21], [5, 7, 15, 9]], [[0, 1, 2, X], [X, X, 3, 4]]),
        ([[6, 1, 10, 17], [8, 19, 12, 11]], [[5, 6, 7, 8], [9, 10, 11, 12]]),
        ([[0, 13, 14, 16], [18, 20, 22, 3]], [[X] * 4, [X, X, X, 0]]),
    ],
}


@pytest.mark.parametrize("name", WORKED)
def test_shipped_maps_give_the_train_ids_worked_out_by_hand(name):
    class_map = read_class_map(CLASSES / f"{name}.yaml")
    for raw, expected in WORKED[name]:
        raw = np.array(raw)
        if class_map.channel is not None:  # instance and an unused channel beside the class
            raw = np.stack([raw, raw[::-1] + 1, raw * 0], axis=2).astype(np.uint16)
        assert class_map.encode(raw).tolist() == expected


def test_synthias_and_cityscapes_classes_are_the_same_in_the_same_order():
    def space(name):
        return read_class_map(CLASSES / f"{name}.yaml").label_space

    for count in (16, 13):
        source, target = space(f"synthia_{count}"), space(f"cityscapes_{count}")
        assert (source.names, source.palette) == (target.names, target.palette)
        assert source.num_classes == count
    assert space("gta5").names == space("cityscapes").names
    assert set(space("cityscapes").names) - set(space("cityscapes_16").names) == {
        *("terrain", "truck", "train"),
    }
    # 13 of 16 are the 13.
    ((name, ids),) = space("cityscapes_16").subsets
    assert name == "13_of_16"
    names = tuple(space("cityscapes_16").names[i] for i in ids)
    assert names == space("cityscapes_13").names


def test_a_channel_of_several_holds_the_class(tmp_path):
    path = write(tmp_path, ROAD, SKY)
    path.write_text(path.read_text() + "\nchannel: 1\n")
    class_map = read_class_map(path)
    raw = np.array([[[99, 7, 0], [98, 23, 0], [97, 0, 0]]], np.uint16)
    assert class_map.encode(raw).tolist() == [[0, 1, IGNORE]]
    assert class_map.count(raw) == {7: 1, 23: 1, 0: 1}
    with pytest.raises(UserError, match="the label has one channel, .* reads channel 1"):
        class_map.encode(raw[..., 1])
    with pytest.raises(UserError, match="label values 97, 98, 99 not"):
        class_map.encode(raw[..., ::-1][..., [0, 2, 1]])


def test_values_are_counted_whether_they_are_in_the_map_or_not(tmp_path):
    class_map = read_class_map(write(tmp_path, ROAD, SKY))
    for dtype in (np.uint8, np.uint16, np.int64):
        raw = np.array([[7, 7, 23], [0, 99, 7]], dtype)
        assert class_map.count(raw) == {0: 1, 7: 3, 23: 1, 99: 1}
    assert [class_map.train_id(value) for value in (7, 23, 24, 0, 99)] == [0, 1, 1, IGNORE, None]
    assert class_map.mapped == {0, 1}
    colours = ClassMap(SPACE, {(128, 64, 128): 0, (300, 0, 65535): 1})
    raw = np.array([[[128, 64, 128], [300, 0, 65535], [1, 2, 3]]], np.uint16)
    assert colours.count(raw) == {(128, 64, 128): 1, (300, 0, 65535): 1, (1, 2, 3): 1}
    assert colours.train_id((300, 0, 65535)) == 1 and colours.train_id((1, 2, 3)) is None


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


def test_names_of_classes_have_one_form_of_accents(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    entry = "{{name: {}, color: [1, 2, 3], values: [1]}}"
    label_space = read_class_map(write(tmp_path, ROAD, entry.format(apart))).label_space
    assert label_space.names[1] == composed
    entries = entry.format(apart), entry.format(composed).replace("[1]", "[2]")
    with pytest.raises(UserError, match=f"class name '{composed}' is given twice"):
        read_class_map(write(tmp_path, ROAD, *entries))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, color: [1, 2, 3]}", r"'classes\.1\.values' is missing in 'a': a list, \[\]"),
        ("{color: [1, 2, 3], values: [1]}", r"'classes\.1\.name' is missing"),
        ("{name: '', color: [1, 2, 3], values: [1]}", r"1\.name is '': .* at least 1 character"),
        ("{name: ' ', color: [1, 2, 3], values: [1]}", r"1\.name is ' ': .* at least 1 character"),
        ("{name: true, color: [1, 2, 3], values: [1]}", r"1\.name is True: .* a valid string"),
        ("{name: 2020-13-45, color: [1, 2, 3], values: [1]}", "the date 2020-13-45; put a text in"),
        (f"{{name: a, color: [1, 2, 3], values: [{10**30}]}}", "values.0 is 10+: expected an int"),
        (
            f"{{name: a, color: [1, 2, 3], values: [{2**32}]}}",
            "values.0 is 4294967296: expected an",
        ),
        (f"{{name: {'a' * 101}, color: [1, 2, 3], values: [1]}}", "name .* at most 100 characters"),
        (r'{name: "a\x1b[31m", color: [1, 2, 3], values: [1]}', "a control character in"),
        ('{name: "a\tb", color: [1, 2, 3], values: [1]}', "a name has no control characters"),
        ("{name: a, name: b, color: [1, 2, 3], values: [1]}", "key 'name' twice, in lines 3 and 3"),
        ("{name: a, colour: [1, 2, 3], values: [1]}", r"unknown key 'classes\.1\.colour'"),
        ("{name: a, color: [1, 2, 256], values: [1]}", r"1\.color\.2 is 256: .* equal to 255"),
        ("{name: a, color: [1, 2, -1], values: [1]}", r"1\.color\.2 is -1: .* equal to 0"),
        ("{name: a, color: [1, 2, 3.0], values: [1]}", r"1\.color\.2 is 3\.0: .* a valid integer"),
        ("{name: a, color: [1, 2], values: [1]}", r"1\.color is \[1, 2\]: .* at least 3 items"),
        ("{name: a, color: red, values: [1]}", r"1\.color is 'red': .* list: \[red, green, blue\]"),
        ("{name: a, color: [1, 2, 3], values: 1}", r"1\.values is 1: .* a valid list"),
        (
            "{name: a, color: [1, 2, 3], values: [x]}",
            r"1\.values\.0 is 'x': expected an integer",
        ),
        (
            "{name: a, color: [1, 2, 3], values: [true]}",
            r"values\.0 is True: expected an integer",
        ),
        ("{name: a, color: [1, 2, 3], values: [[1, 2]]}", r"1\.values\.0 is \[1, 2\]: expected an"),
        ("{name: a, color: [1, 2, 3], values: [7]}", r"value 7 is already in classes\.0\.values"),
        ("{name: a, color: [1, 2, 3], values: [5, 5]}", r"value 5 is already in classes\.1"),
        ("{name: a, color: [1, 2, 3], values: [[1, 2, 3]]}", "mixed"),
        ("{name: road, color: [1, 2, 3], values: [1]}", "class name 'road' is given twice"),
        ("road", r"classes\.1 is 'road': expected a mapping"),
    ],
)
def test_a_wrong_class_is_named_with_file_and_key(tmp_path, entry, message):
    with pytest.raises(UserError, match=rf"classes\.yaml: .*{message}"):
        read_class_map(write(tmp_path, ROAD, entry))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping; classes/ holds complete class maps"),
        ("ignore: [1]", "'classes' is missing; classes/ holds complete class maps"),
        ("classes: 3", "classes is 3: input should be a valid list"),
        ("classes: []", r"classes is \[\]: .* at least 1 item"),
        (f"classes: [{ROAD}]\nignored: [1]", "unknown key 'ignored'; known are classes, .*ignore"),
        (
            f"classes: [{ROAD}]\nignore: [7]",
            r"ignore: the value 7 is already in classes\.0",
        ),
        (f"classes: [{ROAD}]\nignore: others", "ignore is 'others': .*'rest'"),
        (f"classes: [{ROAD}]\nchannel: 3", "channel is 3: .* equal to 2"),
        (f"classes: [{ROAD}]\nchannel: true", "channel is True: .* a valid integer"),
        (
            "classes: [{name: a, color: [1, 2, 3], values: [[1, 2, 3]]}]\nchannel: 0",
            "channel: one channel holds integers",
        ),
        (f"classes: [{ROAD}]\nsubsets: [road]", r"subsets is \['road'\]: .* a valid mapping"),
        (f"classes: [{ROAD}]\nsubsets: {{a b: [road]}}", "subsets.a b is 'a b': .* match pattern"),
        (f"classes: [{ROAD}]\nsubsets: {{a: []}}", r"subsets\.a is \[\]: .* at least 1 item"),
        (f"classes: [{ROAD}]\nsubsets: {{a: [sky]}}", r"subsets\.a: 'sky' is no class of this"),
        (
            f"classes: [{ROAD}]\nsubsets: {{a: [road, road]}}",
            r"a: the .* 'road' is given twice",
        ),
        ("classes: [{name: a, color: [1, 2, 3], values: []}]", "no class has a value"),
        ("classes: [", "not readable YAML"),
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
    with pytest.raises(UserError, match=r"classes\.yaml: classes is .* at most 254 items"):
        read_class_map(write(tmp_path, *entries, ignore="[]"))
    with pytest.raises(UserError, match=r"none\.yaml: no such file; classes/ holds"):
        read_class_map(tmp_path / "none.yaml")


def test_label_space_survives_json():
    for space in (SPACE, replace(SPACE, subsets=(("1_of_2", (1,)),))):
        assert LabelSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert SPACE.palette_array.dtype == np.uint8
    assert SPACE.palette_array.tolist() == [[128, 64, 128], [70, 130, 180]]


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        ((), (), "expected 1 to 254 names"),
        (tuple(map(str, range(255))), ((0, 0, 0),) * 255, "expected 1 to 254 names"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "none twice"),
        (("a", "b"), ((0, 0, 0),), "each class needs a colour"),
        (("a",), ((0, 0, 256),), "each class needs a colour"),
        (("a",), ((0, 0, 0.5),), "each class needs a colour"),
    ],
)
def test_label_space_refuses_what_no_file_may_hold(names, palette, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(names, palette)


@pytest.mark.parametrize("content", [{}, [], {"classes": [{"name": "a"}]}, {"classes": 3}])
def test_label_space_refuses_another_form(content):
    with pytest.raises(ValueError, match="classes|the whole is"):
        LabelSpace.from_dict(content)
