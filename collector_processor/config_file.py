"""Reads a configuration file: YAML in, a validated `Config` out, or one error that says what to change and where.

How it works. PyYAML only composes the tree of nodes, each with its line; this file builds plain values from it: YAML
1.2's core scalars (so `10:30` and `2026-01-01` stay text), no tags, no duplicate keys, a bounded size. Text may hold
references as the Collector writes them: `${env:NAME}`, `${env:NAME:-default}`, `${file:PATH}` (relative to the config
file; one trailing newline dropped), `$$` for a dollar. Then pydantic validates, and each of its errors is given its key
path, its line, and for an unknown key the nearest valid one. No message ever shows what replaced a reference.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import yaml
from pydantic import BaseModel, ValidationError

from collector_processor.config import Config

NODES_MAX = 100_000
DEPTH_MAX = 32
FILE_BYTES_MAX = 1 << 20

KeyPath: TypeAlias = tuple[str | int, ...]

REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<scheme>env|file):(?P<rest>[^}]*)\}|\{(?P<unknown>[^}]*)\})")
INTEGER = re.compile(r"[-+]?[0-9]{1,32}|0o[0-7]{1,32}|0x[0-9a-fA-F]{1,32}")
NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ["map", "seq", "str", "int", "float", "bool", "null", "timestamp", "value", "merge"]
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to change: dotted key path (empty for the file as a whole), line counted from 1, what is wrong."""

    key: str
    line: int
    message: str


class ConfigError(ValueError):
    """The configuration cannot be used. `problems` lists everything that is wrong; the text has one line for each."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(f"{source}:{p.line}: {p.key + ': ' if p.key else ''}{p.message}" for p in self.problems)
        )


def load(path: Path | str, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration in the YAML file `path`. Raises `ConfigError`, also when the file cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(str(path), [Problem("", 1, f"larger than {FILE_BYTES_MAX} bytes")])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [Problem("", 1, f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", 1, f"not UTF-8: byte {error.start}")]) from None
    return loads(text, str(path), path.parent, environment)


def loads(
    text: str, source: str = "config", folder: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Config:
    """The configuration in the YAML text `text`; `${file:PATH}` is relative to `folder`. Raises `ConfigError`."""
    reader = _Reader(source, folder or Path(), environment)
    values = reader.read(text)
    if reader.problems:
        raise ConfigError(source, reader.problems)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = sorted((_explain(item, reader.lines) for item in error.errors()), key=lambda p: (p.line, p.key))
        raise ConfigError(source, problems) from None


class _Reader:
    """One file being read: gathers `problems` and the line of every key path in `lines`."""

    def __init__(self, source: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.source = source
        self.folder = folder
        self.environment = environment
        self.problems: list[Problem] = []
        self.lines: dict[KeyPath, int] = {}
        self.nodes = 0

    def read(self, text: str) -> Any:
        """The root mapping of `text` as plain values. Raises `ConfigError` when it is not YAML, or not a mapping."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            what = getattr(error, "problem", None) or "unreadable character"
            raise ConfigError(self.source, [Problem("", line, f"not valid YAML: {what}")]) from None
        except RecursionError:
            raise ConfigError(self.source, [Problem("", 1, f"nested deeper than {DEPTH_MAX} levels")]) from None
        if root is None or (isinstance(root, yaml.ScalarNode) and root.value in WORDS and WORDS[root.value] is None):
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(self.source, [Problem("", 1, "must be a mapping of sections")])
        return self._value(root, ())

    def _value(self, node: yaml.Node, at: KeyPath) -> Any:
        self.nodes += 1
        self.lines.setdefault(at, node.start_mark.line + 1)
        if len(at) > DEPTH_MAX or self.nodes > NODES_MAX:
            # An alias that holds itself, or one that multiplies, ends here.
            limit = f"nested deeper than {DEPTH_MAX} levels" if len(at) > DEPTH_MAX else f"more than {NODES_MAX} values"
            raise ConfigError(self.source, [Problem(_dotted(at), node.start_mark.line + 1, limit)])
        if node.tag not in TAGS:
            self._problem(at, node.start_mark.line + 1, f"the tag {node.tag} is not supported")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*at, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, at)

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(at, line, "a key must be plain text")
                continue
            key: str = key_node.value
            if key in out:
                first = self.lines[*at, key]
                self._problem((*at, key), line, f"given twice; first on line {first}")
                continue
            self.lines[*at, key] = line
            out[key] = self._value(value_node, (*at, key))
        return out

    def _scalar(self, node: yaml.ScalarNode, at: KeyPath) -> Any:
        text: str = node.value
        if "$" in text:
            return self._resolve(text, node.start_mark.line + 1, at)
        if node.style is not None:  # quoted or block: text as it stands
            return text
        if text in WORDS:
            return WORDS[text]
        if INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
        return float(text) if NUMBER.fullmatch(text) else text

    def _resolve(self, text: str, line: int, at: KeyPath) -> str:
        """`text` with its references replaced; what cannot be replaced becomes a problem."""

        def replacement(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            try:
                return self._reference(match)
            except ValueError as error:
                self._problem(at, line, str(error))
                return ""

        return REFERENCE.sub(replacement, text)

    def _reference(self, match: re.Match[str]) -> str:
        if match["scheme"] is None:
            inside = match["unknown"]
            raise ValueError(f"${{{inside}}} is no reference: write ${{env:NAME}}, ${{file:PATH}}, or $$ for a dollar")
        if match["scheme"] == "env":
            name, has_default, default = match["rest"].partition(":-")
            if name in self.environment:
                return self.environment[name]
            if has_default:
                return default
            raise ValueError(f"the environment variable {name} is not set (a default: ${{env:{name}:-VALUE}})")
        path = self.folder / match["rest"]
        try:
            with path.open(encoding="utf-8") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ValueError(f"the file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"the file {path} is not UTF-8 text") from None
        if len(content) > FILE_BYTES_MAX:
            raise ValueError(f"the file {path} is larger than {FILE_BYTES_MAX} bytes")
        return content.removesuffix("\n")

    def _problem(self, at: KeyPath, line: int, message: str) -> None:
        self.problems.append(Problem(_dotted(at), line, message))


def _dotted(at: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")


def _explain(item: Any, lines: Mapping[KeyPath, int]) -> Problem:
    """One of pydantic's errors as a `Problem`: where it is in the file, and what to write instead."""
    at: KeyPath = tuple(item["loc"])
    known = at
    while known not in lines:  # a missing key, or a label that pydantic adds for a branch of a union
        known = known[:-1]
    if item["type"] == "extra_forbidden":
        return Problem(_dotted(at), lines[known], f"unknown key{_suggestion(at)}")
    if item["type"] == "missing":
        return Problem(_dotted(at), lines[known], "this key is required")
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Problem(_dotted(known or at), lines[known], message)


def _suggestion(at: KeyPath) -> str:
    """The nearest valid key: one of the same section, else the same or a like name in another section."""
    wrong = str(at[-1])
    here = [name for model in _models_at(at[:-1]) for name in model.model_fields]
    near = difflib.get_close_matches(wrong, here, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    paths = {path: path.rpartition(".")[2] for path in key_paths(Config)}
    near = difflib.get_close_matches(wrong, sorted(set(paths.values())), n=1, cutoff=0.75)
    if near:
        return f"; did you mean {next(path for path, name in paths.items() if name == near[0])}?"
    return f"; valid here: {', '.join(here)}" if here else ""


def _models_at(at: KeyPath) -> list[type[BaseModel]]:
    """The models that may stand at the key path `at`: one, or several where a value is a union."""
    models: list[type[BaseModel]] = [Config]
    for part in at:
        if isinstance(part, str) and any(part in model.model_fields for model in models):
            annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
            models = [found for annotation in annotations for found in models_in(annotation)]
    return models


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model class inside a type annotation, however deep in lists, mappings and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of `model` and of the sections in it, as dotted paths, in the order in which they are declared."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for inner in models_in(field.annotation):
            yield from key_paths(inner, f"{path}.")
