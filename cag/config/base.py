"""The parts of every section of `params.yaml`, and the one loader."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cag.runtime.errors import UserError
from cag.runtime.provenance import note_parameters
from cag.runtime.validation import YamlDumper, explain, read_yaml

# A bound keeps a slip of the pen from filling the memory: more than anybody trains with.
MOST_PIXELS = 2**26  # of an image: 8192 x 8192
MOST_SCALED_PIXELS, MOST_BATCH_PIXELS = 2**28, 2**32  # of a scaled image, of a whole batch
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]  # of a loss
Rate = Annotated[float, Field(gt=0, le=1000)]  # of learning
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Images = Annotated[int, Field(ge=1, le=1_000_000)]
LONGEST_SIDE = 16_384  # pixels
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


def _not_too_many(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"expected at most {MOST_PIXELS:,} pixels")
    return size


Pixels = Annotated[tuple[Side, Side], AfterValidator(_not_too_many)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=50)]
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

    `meaning` ends "this parameter is ...", `unit` is of its numbers, `source` its origin. `default`
    is the value that switches it off, for files without the key; ...: required.
    """
    extra = {"unit": unit, "source": source}
    return Field(default, description=meaning, json_schema_extra=extra)


def load_params(model: type[P], path: str | Path = "params.yaml") -> P:
    """Read the keys of a YAML file that `model` has; a UserError if one is bad or none readable."""

    def read() -> P:
        content = read_parameters(path)
        wanted = {name: content[name] for name in model.model_fields if name in content}
        return validated(model, wanted, path)

    params = read()
    note_parameters(dict(params), lambda: dict(read()))
    return params


def validated(model: type[P], content: Mapping[str, Any], path: str | Path) -> P:
    """A parameter file's sections; a UserError if a key is missing, unknown or has a bad value."""
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
    flow = {"default_flow_style": True, "width": math.inf}
    return yaml.dump(value, Dumper=YamlDumper, **flow).splitlines()[0]


def read_parameters(path: str | Path) -> dict[str, Any]:
    """The content of a parameter file, not yet validated; a UserError if it cannot be read."""
    return read_yaml(path, "`cag preset scenes` writes one", COMPLETE)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
