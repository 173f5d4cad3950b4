"""Reading and validating files: errors are one line that says what to do."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cag.runtime.errors import UserError, in_one_line, shortened


@contextmanager
def readable(path: str | Path, kind: str, missing: str, broken: str = "") -> Iterator[None]:
    """Turn an error of reading, decoding or parsing a file into a UserError.

    It says the `kind` of content, with its article, and the remedy for a missing or broken file.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {missing}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # pandas' and json's are ValueErrors
        hint = f"; {broken}" if broken else ""
        raise UserError(f"{path}: not {kind} ({in_one_line(error)}){hint}") from error


def read_yaml(path: str | Path, missing: str, broken: str) -> dict[Any, Any]:
    """The mapping in a YAML file; a UserError, with the remedy, if it is missing or has none."""
    with readable(path, "readable YAML", missing):
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping; {broken}")
    return content


def explain(
    model: type[BaseModel], error: ValidationError, example: str, tagged: Collection[str] = ()
) -> str:
    """The first of pydantic's complaints in one line: key, value, expected value.

    `example` says where a complete input is, for a missing key. The value of a `tagged` key has one
    of several forms, which locations name after the key.
    """
    # A misspelt key is an unknown and a missing one; the unknown says more.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    kind, value = first["type"], first["input"]
    section, *parts = first["loc"] or ("the whole",)
    parts = parts[1:] if section in tagged else parts
    # The location of a mapping's bad key ends with "[key]".
    key = ".".join(str(part) for part in (section, *parts) if part != "[key]")
    if kind == "union_tag_not_found":
        return f"'{key}.layout' is missing"
    if kind == "union_tag_invalid":
        tag, expected = first["ctx"]["tag"], first["ctx"]["expected_tags"]
        return f"{key}.layout is {tag!r}: expected one of {expected}"
    if kind == "extra_forbidden":
        known = "check its spelling" if parts else f"known are {', '.join(model.model_fields)}"
        return f"unknown key '{key}'; {known}"
    if kind == "missing":
        return f"'{key}' is missing" + ("" if parts else f"; {example}")
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}" if kind != "model_type" else "expected a mapping"
    if isinstance(value, dict):
        return f"{key}: {message}" if first["loc"] else message
    text_for_number = kind == "float_type" and isinstance(value, str)
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if text_for_number else ""
    shown = shortened(repr(list(value) if isinstance(value, tuple) else value), 100)
    return f"{key} is {shown}: {message}{hint}"
