"""Writes `docs/configuration.md` from the configuration models, so that the two cannot differ.

How it works. Every section is a class whose docstring says what it is for, and every key an attribute with its type,
default and docstring (`config/`). This file walks them in order and prints Markdown: a table for each section.

    python -m collector_processor.config_reference > docs/configuration.md
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo

from collector_processor.config import Config
from collector_processor.config_file import models_in

INTRODUCTION = """# Configuration

Written by `make docs` from the configuration models; the tests fail when it is stale.

spanchain runs without a file. `spanchain serve --config FILE` takes YAML with any of the keys below; a key that is not
here is refused, with its line and the nearest key that is. `spanchain validate FILE` checks a file without starting
anything. Units stand last in names: `_s` seconds, `_ms` milliseconds, `_bytes`, `_max` an upper bound.

Values may refer to the environment and to files, as in the Collector's configuration: `${env:NAME}`,
`${env:NAME:-default}`, `${file:PATH}` (relative to the configuration file); `$$` is a dollar sign. Keep secrets there.
"""

PLAIN_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    SecretStr: "text (secret)",
    IPvAnyNetwork: "network address",
}
LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least", "max_length": "at most"}
"""How pydantic's constraints are called, and how they read."""


def reference() -> str:
    """The whole page as Markdown, ending in one newline."""
    return "\n".join([INTRODUCTION, *_sections(Config, "")])


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """The section at the dotted `path` and, after it, the sections inside it."""
    if path:
        yield f"## `{path}`\n"
        yield f"{_one_line(model.__doc__ or '')}\n"
    keys = {name: field for name, field in model.model_fields.items() if not _is_section(field)}
    if keys:
        yield "| key | value | default | what it is |\n|---|---|---|---|"
        for name, field in keys.items():
            value = _cell(type_text(field.annotation, field.metadata))
            yield f"| `{name}` | {value} | {_default(field)} | {_cell(_one_line(field.description or ''))} |"
        yield ""
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from _sections(inner, f"{path}.{name}{_step(field.annotation)}".lstrip("."))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _step(annotation: Any) -> str:
    """How a section inside a key is reached: at once, as an item of a list, or by a name of one's own."""
    if get_origin(annotation) in {tuple, list}:
        return "[]"
    return ".NAME" if get_origin(annotation) is dict else ""


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """In words what values a type takes: `integer > 0`, `list of text`, `"a" or "b"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return type_text(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if origin in {Union, types.UnionType}:
        return " or ".join(type_text(argument) for argument in arguments)
    if origin in {tuple, list, set, frozenset}:
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return "list of " + " and ".join(dict.fromkeys(type_text(argument) for argument in inner)) + _limits(metadata)
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "the keys below"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    return PLAIN_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))) + _limits(metadata)


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    """The bounds in a field's metadata, as ` > 0, < 1`."""
    limits: list[str] = []
    for item in metadata:
        for constraint in getattr(item, "metadata", [item]):  # pydantic's Field() holds several
            for name, words in LIMITS.items():
                bound = getattr(constraint, name, None)
                if bound is not None:
                    limits.append(f"{words} {bound}")
    return f" {', '.join(limits)}" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{_cell(json.dumps(value, default=_plain, ensure_ascii=False))}`"


def _plain(value: Any) -> Any:
    """What JSON does not know, as what a person would write in the file."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
