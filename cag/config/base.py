"""The parts of every section of `params.yaml`, and the one loader."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cag.runtime.errors import UserError
from cag.runtime.validation import explain, read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Pixels = tuple[Positive, Positive]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
BatchNorm = Literal["mixed", "target", "frozen"]
PAPER, RELEASED, ADAPTSEGNET, OURS = "paper", "released code", "AdaptSegNet", "ours"
BATCH_NORM = (
    "whose batch-norm statistics the network keeps: `mixed`: both domains' (the paper); `target`: "
    "the target's; `frozen`: those it starts with"
)
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
COMPLETE = "presets/ holds complete files"
DOMAINS = ("source", "target")  # the sections whose keys depend on their layout
RULES = ("anchor", "probability")  # of pseudo-labels, in the order of their maps
P = TypeVar("P", bound="Section")


class Section(BaseModel):
    """A section of `params.yaml`: no unknown key, no coerced type.

    A key has a default only if the default switches something off; every other key is required.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def about(meaning: str, unit: str | None = None, source: str = OURS, default: Any = ...) -> Any:
    """A parameter's documentation and default; its annotation gives the type and the range.

    Args:
        meaning: The end of "this parameter is ...".
        unit: Of its numbers, if they have one.
        source: Where the parameter comes from.
        default: The value that switches it off, for files without the key; ...: required.
    """
    extra = {"unit": unit, "source": source}
    return Field(default, description=meaning, json_schema_extra=extra)


def load_params(model: type[P], path: str | Path = "params.yaml") -> P:
    """Read and validate the top-level keys of a YAML file that `model` has, and no others.

    Raises:
        UserError: The file cannot be read, or as `validated`.
    """
    content = read_parameters(path)
    wanted = {name: content[name] for name in model.model_fields if name in content}
    return validated(model, wanted, path)


def validated(model: type[P], content: Mapping[str, Any], path: str | Path) -> P:
    """The content of a parameter file as sections.

    Raises:
        UserError: A key is missing, unknown, mistyped or impossible.
    """
    try:
        # Through JSON's rules a YAML list is a tuple; other types stay strict.
        return model.model_validate(_tuples(content))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(model, error, COMPLETE, DOMAINS)}") from None


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of each leaf of a mapping; an empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_yaml(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).splitlines()[0]


def read_parameters(path: str | Path) -> dict[str, Any]:
    """The content of a parameter file, not yet validated.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    return read_yaml(path, "`cag preset scenes` writes one", COMPLETE)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
