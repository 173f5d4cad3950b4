"""Reference pages made from the code: parameters from `cag.config`, commands from `cag.cli`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cag.cli import cli
from cag.config.base import as_yaml
from cag.config.datasets import Source, Target
from cag.config.parameters import Parameters, load_all

ROOT = Path(__file__).resolve().parents[2]
PRESETS = {  # columns of values, and what a reader calls them
    "scenes": "scenes",
    "camvid_day_to_dusk": "CamVid",
    "gta5_to_cityscapes": "GTA5",
}
DOMAINS = {name: get_args(domain)[0] for name, domain in (("source", Source), ("target", Target))}
GENERAL = "general"
HELP_WIDTH = 80
NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}


def type_text(annotation: Any, constraints: tuple = ()) -> str:
    """A parameter's type and range in words.

    Args:
        annotation: Of a pydantic field.
        constraints: The field's metadata, such as `annotated_types.Ge(0)`.
    """
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return type_text(base, (*more, *constraints))
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_text(a) for a in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {type_text(arguments[0])}, at least one"
    if origin is tuple:
        return f"list of {len(arguments)}: {type_text(arguments[0])}"
    if origin is list:
        return "list of names"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES[annotation] + _range(constraints)


def _range(constraints: tuple) -> str:
    flat = [c for one in constraints for c in (getattr(one, "metadata", None) or [one])]
    words = {
        annotated_types.Ge: ("ge", "at least {}"),
        annotated_types.Gt: ("gt", "above {}"),
        annotated_types.Le: ("le", "at most {}"),
        annotated_types.Lt: ("lt", "below {}"),
    }
    parts = [
        text.format(getattr(constraint, name))
        for kind, (name, text) in words.items()
        for constraint in flat
        if isinstance(constraint, kind)
    ]
    return f", {', '.join(parts)}" if parts else ""


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or null beside it, or by name; None for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = model_of(argument)
        if found is not None:
            return found
    return None


def fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every value of a section with its dotted key, those of sections in it too."""
    for name, field in model.model_fields.items():
        key, below = f"{prefix}.{name}", model_of(field.annotation)
        if below is None or type(None) in get_args(field.annotation):
            yield key, field
        if below is not None:
            yield from fields(below, key)


def sections() -> Iterator[tuple[str, str, str, list[tuple[str, FieldInfo]]]]:
    """The parts of `params.yaml`: title, prefix, what it is, and its values by dotted key."""
    own = Parameters.model_fields
    general = {name: own[name] for name in own if model_of(own[name].annotation) is None}
    yield GENERAL, "", "What every stage shares.", list(general.items())
    for name, field in own.items():
        if name in DOMAINS:
            for model in get_args(DOMAINS[name]):
                layouts = " or ".join(get_args(model.model_fields["layout"].annotation))
                title = f"{name}, layout {layouts}"
                yield title, name, _first_line(model), list(fields(model, name))
        elif name not in general:
            model = model_of(field.annotation)
            prefix = f"{name}.<round>" if name == "rounds" else name
            yield name, prefix, _first_line(model), list(fields(model, prefix))


def _first_line(model: type[BaseModel]) -> str:
    return " ".join(model.__doc__.split("\n\n")[0].split())


def value_text(presets: dict[str, dict], key: str, layouts: str = "") -> str:
    """What presets set a key to: one value where all agree, else each with its name.

    Args:
        presets: Name -> content.
        key: Dotted; `<round>` stands for every round.
        layouts: Of a domain's key, the layouts that have it, with spaces.
    """
    found = {}
    for name, content in presets.items():
        domain = key.split(".")[0]
        if domain in DOMAINS and content[domain]["layout"] not in layouts.split():
            continue
        values = _look_up(content, key.split("."))
        if values:
            found[PRESETS[name]] = ", ".join(as_yaml(value) for value in values)
    if len(set(found.values())) == 1 and len(found) == len(presets):
        return f"`{next(iter(found.values()))}`"
    return "<br>".join(f"{name}: `{value}`" for name, value in found.items())


def _look_up(content: Any, parts: list[str]) -> list[Any]:
    """The values under a dotted key, one for each round; none where a section is null."""
    if not parts:
        return [content]
    if parts[0] == "<round>":
        return [value for below in content.values() for value in _look_up(below, parts[1:])]
    if not isinstance(content, dict) or parts[0] not in content:
        return []
    return _look_up(content[parts[0]], parts[1:])


def default_text(field: FieldInfo) -> str:
    """What a file without the key means, or nothing where the key is required."""
    default = field.default
    if field.is_required() or isinstance(default, BaseModel):  # its own rows say what is in it
        return ""
    return f"<br>default: `{as_yaml(list(default) if isinstance(default, tuple) else default)}`"


def parameters() -> str:
    """The tables of every parameter, in Markdown."""
    presets = {
        name: load_all(ROOT / f"presets/{name}.yaml").model_dump(mode="json") for name in PRESETS
    }
    lines = []
    for title, _, meaning, entries in sections():
        layouts = title.partition("layout ")[2].replace(" or ", " ")
        lines += [f"## {title}", "", meaning, "", '<div class="parameters" markdown>', ""]
        lines += [
            "| parameter | type, unit | value | meaning, source |",
            "| --- | --- | --- | --- |",
        ]
        for key, field in entries:
            extra = field.json_schema_extra
            kind = type_text(field.annotation, tuple(field.metadata))
            unit = f"<br>*{extra['unit']}*" if extra["unit"] else ""
            value = value_text(presets, key, layouts)
            if kind.startswith("section"):  # its own rows say what is in it
                value = ""
            value += default_text(field)
            meaning = field.description[0].upper() + field.description[1:]
            lines.append(f"| `{key}` | {kind}{unit} | {value} | {meaning}. *{extra['source']}* |")
        lines += ["", "</div>", ""]
    return "\n".join(lines)


def commands(
    command: click.Command = cli, name: str = "cag", parent: click.Context | None = None
) -> str:
    """Help texts of a command and of all below it, in Markdown."""
    context = click.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        **command.context_settings,
    )
    text = command.get_help(context)
    lines = [f"## {context.command_path}", "", "```text", text, "```", ""]
    for below, one in getattr(command, "commands", {}).items():
        lines.append(commands(one, below, context))
    return "\n".join(lines)


GENERATED = {
    "<!-- generated: parameters -->": parameters,
    "<!-- generated: commands -->": commands,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated texts where a page asks for them."""
    for mark, generate in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown
