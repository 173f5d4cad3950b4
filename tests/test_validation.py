"""Errors in files are one line: the key, the value and the expected form."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from cag.runtime.errors import UserError, in_one_line
from cag.runtime.validation import explain, read_yaml, readable


class Wheel(BaseModel):
    """A part of the car."""

    model_config = ConfigDict(extra="forbid", strict=True)

    radius: float
    spokes: list[int] = []


class Car(BaseModel):
    """Something to describe wrongly."""

    model_config = ConfigDict(extra="forbid", strict=True)

    wheels: list[Wheel]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "'wheels' is missing; see cars.yaml"),
        ({"wheels": [], "doors": 2}, "unknown key 'doors'; known are wheels"),
        ({"wheels": [{}]}, "'wheels.0.radius' is missing"),
        # One mistake, two complaints: the misspelt key is named, not the missing one.
        ({"wheels": [{"radios": 1.0}]}, "unknown key 'wheels.0.radios'; check its spelling"),
        ({"wheels": ["round"]}, "wheels.0 is 'round': expected a mapping"),
        (
            {"wheels": [{"radius": "1e-4"}]},
            "wheels.0.radius is '1e-4': input should be a valid number "
            "(YAML reads 1e-4 as text: write 1.0e-4)",
        ),
        ("car", "the whole is 'car': expected a mapping"),
    ],
)
def test_the_first_complaint_is_one_line(content, expected):
    with pytest.raises(ValidationError) as caught:
        Car.model_validate(content)
    assert explain(Car, caught.value, "see cars.yaml") == expected


def test_a_long_value_is_cut():
    with pytest.raises(ValidationError) as caught:
        Car.model_validate({"wheels": "x" * 1000})
    message = explain(Car, caught.value, "")
    assert message == f"wheels is '{'x' * 99}...: input should be a valid list"


def test_errors_of_reading_name_the_file_and_the_way_out(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(UserError, match=r"a\.yaml: no such file; write one"):
        read_yaml(path, "write one", "mend it")
    for text, message in (("a: [", r"not readable YAML \(while"), ("- a", "no mapping; mend it")):
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
