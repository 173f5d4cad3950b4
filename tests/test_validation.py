"""Errors in files are one line: the key, the value and the expected form."""

from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cag.runtime.errors import UserError, in_one_line
from cag.runtime.validation import YamlDumper, explain, parse_yaml, read_yaml, readable


class Tyre(BaseModel):
    """A part of the wheel."""

    kind: str = Field(description="summer or winter")


class Wheel(BaseModel):
    """A part of the car."""

    model_config = ConfigDict(extra="forbid", strict=True)

    radius: float
    spokes: list[int] = Field([], description="the lengths")
    name: str = ""
    tyre: Tyre | None = None


class Electric(BaseModel):
    """A form of the motor."""

    layout: Literal["electric"]
    power: int = Field(description="in kW, of the battery")


class Burning(BaseModel):
    """Another form of the motor."""

    layout: Literal["diesel", "petrol"]
    power: int = Field(description="in kW, of the tank")


class Car(BaseModel):
    """Something to describe wrongly."""

    model_config = ConfigDict(extra="forbid", strict=True)

    wheels: list[Wheel] = Field(description="the four wheels")
    motor: Electric | Burning = Field(
        Electric(layout="electric", power=1), discriminator="layout", description="what drives it"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "'wheels' is missing; see cars.yaml"),
        ({"wheels": [], "doors": 2}, "unknown key 'doors'; known are wheels, motor"),
        ({"wheels": [{}]}, "'wheels.0.radius' is missing; see cars.yaml"),
        ({"wheels": [{"name": "left"}]}, "'wheels.0.radius' is missing in 'left'; see cars.yaml"),
        (
            {"wheels": [{"radius": 1.0, "name": 2}]},
            "wheels.0.name is 2: input should be a valid string; put it in quotes",
        ),
        (
            {"wheels": [{"radius": 1.0, "spokes": "2, 3"}]},
            "wheels.0.spokes is '2, 3': input should be a valid list: the lengths",
        ),
        (
            {"wheels": [{"radius": 1.0, "tyre": {}}]},
            "'wheels.0.tyre.kind' is missing: summer or winter",
        ),
        ({"motor": {"layout": "electric"}}, "'motor.power' is missing: in kW, of the battery"),
        ({"motor": {"layout": "diesel"}}, "'motor.power' is missing: in kW, of the tank"),
        (
            {"motor": {}},
            "'motor.layout' is missing: expected one of 'electric', 'diesel', 'petrol'",
        ),
        (
            {"motor": {"layout": "steam"}},
            "motor.layout is 'steam': expected one of 'electric', 'diesel', 'petrol'",
        ),
        # One mistake, two complaints: the misspelt key is named, not the missing one.
        ({"wheels": [{"radios": 1.0}]}, "unknown key 'wheels.0.radios'; check its spelling"),
        ({"wheels": ["round"]}, "wheels.0 is 'round': expected a mapping"),
        (
            {"wheels": [{"radius": "1e-4"}]},
            "wheels.0.radius is '1e-4': input should be a valid number",
        ),
        ("car", "the whole is 'car': expected a mapping"),
    ],
)
def test_the_first_complaint_is_one_line(content, expected):
    with pytest.raises(ValidationError) as caught:
        Car.model_validate(content | {"wheels": []} if "motor" in content else content)
    assert explain(Car, caught.value, "see cars.yaml", ["motor"]) == expected


def test_a_long_value_is_cut():
    with pytest.raises(ValidationError) as caught:
        Car.model_validate({"wheels": "x" * 1000})
    message = explain(Car, caught.value, "")
    assert message == f"wheels is '{'x' * 99}...: input should be a valid list: the four wheels"


def test_errors_of_reading_name_the_file_and_the_way_out(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(UserError, match=r"a\.yaml: no such file; write one"):
        read_yaml(path, "write one", "mend it")
    for text, message in (("a: [", r"readable YAML \(line 1: "), ("- a", "no mapping; mend it")):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"a\.yaml: .*{message}") as caught:
            read_yaml(path, "write one", "mend it")
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(UserError, match=r"a\.yaml: not a number \(invalid literal.*\); mend it"),
        readable(path, "a number", "write one", "mend it"),
    ):
        int(path.read_text())


def test_an_error_in_one_line_has_a_text_and_an_end():
    assert in_one_line(ValueError("a\n  b")) == "a b"
    assert in_one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert in_one_line(ValueError("x" * 301)) == "x" * 300 + "..."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("2e-05", 2e-5), ("1e3", 1000.0), ("-.5", -0.5), ("5.", 5.0), ("1_000", 1000)],
        *[("010", 10), ("0x1F", 31), ("-7", -7), (".inf", float("inf")), ("~", None), ("", None)],
        *[
            ("true", True),
            ("no", "no"),
            ("on", "on"),
            ("1:30", "1:30"),
            ("'2020-01-01'", "2020-01-01"),
        ],
        *[("'1e5'", "1e5"), ("=", "="), ("+", "+")],
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    read = parse_yaml(f"a: {text}")["a"]
    assert read == value and type(read) is type(value)
    assert parse_yaml(yaml.dump(value, Dumper=YamlDumper)) == value


LAUGHS = "{x0: &a [1,1,1,1,1,1,1,1,1]" + "".join(
    f", x{i}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: {c: 1,\n  c: 2}\n", "the key 'c' twice, in lines 2 and 3"),
        ("a: 1\n\n'a': 1\n", "the key 'a' twice, in lines 1 and 3"),
        ("a: &x [*x]", "line 1: the alias 'x' inside of what it stands for"),
        ("a: &x {b: *x}", "the alias 'x' inside of what it stands for"),
        (LAUGHS + "}", "more than 100,000 values"),
        ("[" * 10000 + "]" * 10000, "more than 32 levels"),
        ("a:\n" + "".join("  " * i + "- \n" for i in range(5000)), "more than 32 levels"),
        ("a: " + "1" * 5000, "an integer of 5000 characters"),
        ('a: "\\ud800"', "a control character"),
        ('a: "\\x1b[31m"', "a control character"),
        ("a: 2020-13-45", "the date 2020-13-45; put a text in quotes"),
        ("a: 2020-01-01 12:00:00", "the date 2020-01-01 12:00:00"),
        ("a: !!python/name:os.system", "the tag"),
        ("a: !!int ''", "the tag"),
        ("? {b: 1}\n: 2", "unhashable key"),
        ("a: 1\n\tb: 2", "(line 2: found character '\\t' that cannot start any token; indent with"),
        ("a:\n  b: 1\n c: 2", "(line 3: expected <block end>, but found"),
        ("a: 1\n  b: 2", "(line 2: mapping values are not allowed here; indent with spaces"),
    ],
)
def test_what_no_plain_file_holds_is_refused_in_one_line(tmp_path, text, expected):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "a.yaml", "", "")
    message = str(caught.value)
    assert expected in message and message.isprintable() and len(message) < 500


def test_aliases_and_merged_keys_are_read():
    assert parse_yaml("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}
    assert parse_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}")["d"] == {"b": 3, "c": 2}


def test_an_error_cannot_steer_a_terminal():
    text = str(UserError("a\x1b[31m\r\nb\u202ec \ud800 \u00e9\u5b57"))
    assert text.isprintable() and text.endswith("\u00e9\u5b57") and r"a\x1b[31m b" in text


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "-0b" + "1" * 5000, "9" * 5000])
def test_an_integer_of_absurd_length_is_refused_with_its_line(number):
    with pytest.raises(ValueError, match="line 2: an integer of 500[0-9] characters"):
        parse_yaml(f"a: 1\nseed: {number}\n")
    assert parse_yaml("a: 0xff\n") == {"a": 255}
