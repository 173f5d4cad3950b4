"""Reading and validating files: errors are one line that says what to do."""

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cag.runtime.errors import (
    CONTROL,
    UserError,
    absent,
    in_one_line,
    refusal,
    refuse_special,
    shortened,
)

# YAML's plain values as DVC reads and writes them: those of version 1.2, of which 2e-05 is a number
# and `no` a text. Kind, pattern, first characters.
_PLAIN = (
    ("null", "~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", "true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
    ("timestamp", "[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", tuple("0123456789")),
    ("merge", "<<", ("<",)),
)
_DEEPEST = 32  # levels of nesting
_LONGEST_INTEGER = 100  # characters
_MOST_VALUES = 100_000  # an alias counts as all that it stands for
_TAG = "layout"  # the key that says which of several forms a value has


class _PlainValues:
    yaml_implicit_resolvers: ClassVar[dict] = {}


class _Loader(_PlainValues, yaml.SafeLoader):
    """YAML with each key once, without tags, and no larger in memory than in the file."""

    _depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            self._refuse(event, f"the tag {event.tag!r}; give the value alone")
        self._depth += 1
        if self._depth > _DEEPEST:
            self._refuse(event, f"more than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            pairs = isinstance(node, yaml.MappingNode)
            node.size = 1 + sum(p.size for part in parts for p in (part if pairs else [part]))
        elif not hasattr(node, "size"):
            self._refuse(event, f"the alias {event.anchor!r} inside of what it stands for")
        if node.size > _MOST_VALUES:
            self._refuse(event, f"more than {_MOST_VALUES:,} values")
        return node

    def compose_mapping_node(self, anchor):
        node, lines = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                twice = f"the key {key.value!r} twice, in lines {lines[name]} and {line}"
                raise ValueError(f"{twice}; remove one")
            lines[name] = line
        return node

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if CONTROL.search(node.value.replace("\n", "").replace("\t", "")):
            self._refuse(node, f"a control character in {node.value!r}")
        return node

    def construct_integer(self, node) -> int:
        if len(node.value) > _LONGEST_INTEGER:
            self._refuse(node, f"an integer of {len(node.value)} characters; give a smaller one")
        prefixed = node.value.lstrip("+-")[1:2] in ("b", "o", "x")
        return int(node.value, 0 if prefixed else 10)

    def construct_date(self, node) -> None:
        self._refuse(node, f"the date {node.value}; put a text in quotes")

    def _refuse(self, place, problem: str) -> None:
        raise ValueError(f"line {place.start_mark.line + 1}: {problem}")


class YamlDumper(_PlainValues, yaml.SafeDumper):
    """Writes what `parse_yaml` reads."""


for _kind, _pattern, _first in _PLAIN:
    for _class in (_Loader, YamlDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), _first
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)


@contextmanager
def readable(path: str | Path, kind: str, missing: str, broken: str = "") -> Iterator[None]:
    """Turn an error of reading, decoding or parsing a file into a UserError.

    It says the `kind` of content, with its article, and the remedy for a missing or broken file.
    Warnings of libraries are left out: what is damaged is said once.
    """
    try:
        refuse_special(path)
        with warnings.catch_warnings(action="ignore"):
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise absent(path, "file", missing) from None
    except Exception as error:  # the content of a damaged file raises many kinds
        if (refused := refusal(error, path)) is not None:
            raise refused from None
        hint = f"; {broken}" if broken else ""
        raise UserError(f"{path}: not {kind} ({in_one_line(error)}){hint}") from error


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; a ValueError or a YAMLError if it is no plain YAML.

    Numbers are those of YAML 1.2, as DVC writes them: 2e-05 and 1e3 are numbers. Refused are keys
    given twice, dates, tags, control characters, aliases that stand for more than 100,000 values,
    and deep nesting.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        hint = "indent with spaces, like the lines beside it, and close brackets and quotes"
        raise ValueError(f"line {line}: {error.problem}; {hint}") from None


def read_yaml(path: str | Path, missing: str, broken: str) -> dict[Any, Any]:
    """The mapping in a YAML file; a UserError, with the remedy, if it is missing or has none."""
    with readable(path, "readable YAML", missing):
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping; {broken}")
    return content


def explain(
    model: type[BaseModel], error: ValidationError, example: str, tagged: Collection[str] = ()
) -> str:
    """The first of pydantic's complaints in one line: key, value, expected value.

    What a missing key is, or the list that is expected, is said by the field's description. If it
    has none, `example` says where a complete input is. The value of a `tagged` key has one of
    several forms, which locations name after the key.
    """
    # A misspelt key is an unknown and a missing one; the unknown says more.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    kind, value = first["type"], first["input"]
    section, *parts = first["loc"] or ("the whole",)
    models = _models(model.model_fields[section].annotation) if section in tagged else []
    about = _description(model, first["loc"])
    parts = parts[1:] if section in tagged else parts
    # The location of a mapping's bad key ends with "[key]".
    key = shortened(".".join(str(part) for part in (section, *parts) if part != "[key]"), 100)
    if kind == "union_tag_not_found":
        known = ", ".join(repr(tag) for form in models for tag in _tags(form))
        return f"'{key}.{_TAG}' is missing: expected one of {known}"
    if kind == "union_tag_invalid":
        tag, expected = first["ctx"]["tag"], first["ctx"]["expected_tags"]
        return f"{key}.{_TAG} is {tag!r}: expected one of {expected}"
    if kind == "extra_forbidden":
        known = "check its spelling" if parts else f"known are {', '.join(model.model_fields)}"
        return f"unknown key '{key}'; {known}"
    if kind == "missing":
        named = value.get("name") if isinstance(value, dict) else None
        place = f" in {shortened(repr(named), 100)}" if isinstance(named, str) else ""
        return f"'{key}' is missing{place}" + (f": {about}" if about and parts else f"; {example}")
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("valid tuple", "valid list").replace("dictionary", "mapping")
    message = f"{message[0].lower()}{message[1:]}" if kind != "model_type" else "expected a mapping"
    if isinstance(value, dict):
        return f"{key}: {message}" if first["loc"] else message
    hint = {"bool_type": ": true or false"}.get(kind, "")
    if kind in ("list_type", "tuple_type") and about:
        hint = f": {about}"
    elif kind == "string_type" and isinstance(value, int | float):
        hint = "; put it in quotes"
    shown = shortened(repr(list(value) if isinstance(value, tuple) else value), 100)
    return f"{key} is {shown}: {message}{hint}"


def _description(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """What the field at a location of pydantic's is; empty if nothing is said of it."""
    models, description = [model], ""
    for part in location:
        if forms := [form for form in models if part in _tags(form)]:
            models = forms
        elif fields := [form.model_fields[part] for form in models if part in form.model_fields]:
            description = fields[0].description or ""
            models = [form for field in fields for form in _models(field.annotation)]
    return shortened(description, 160)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type such as a union or a list of them."""
    if parts := get_args(annotation):
        return [form for part in parts for form in _models(part)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []


def _tags(form: type[BaseModel]) -> tuple[Any, ...]:
    """The tags that a form of a tagged value has; none for another model."""
    return get_args(form.model_fields[_TAG].annotation) if _TAG in form.model_fields else ()
