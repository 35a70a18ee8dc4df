"""Parse and validate YAML and JSON from untrusted files, with limits; every failure is a one-line `UserError`.

YAML is restricted to mappings with string keys, lists, strings, numbers, true / false, null, and aliases of limited
size. Dates are strings; other tags (`!!binary`, `!!timestamp`, `!!python/...`) are refused. JSON may contain NaN and
Infinity, like the output of Python's `json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import KIB, MIB, read_lines, read_text

MAX_YAML = 256 * KIB            # bytes of a recipe
MAX_JSON = 64 * MIB             # bytes of a header, a config.json, an index
MAX_DEPTH = 64                  # nesting of mappings and lists
MAX_NODES = 100_000             # values of a YAML document, with expanded aliases
MAX_INTEGER = 2**64             # in magnitude
_SHOWN = 3                      # problems that a message names

T = TypeVar("T", bound=BaseModel)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML document; None of an empty one.

    Raises:
        UserError: It is not valid YAML, has an unsupported type, or exceeds a limit. The message names the line; the
            caller adds the file.
    """
    if len(text) > MAX_YAML:
        raise UserError(f"{len(text)} characters of YAML; at most {MAX_YAML} were expected")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a loader of fewer types than the safe one)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"invalid YAML{place}: {_one_line(error.problem or error.context or error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"invalid YAML: {_one_line(error)}") from error


def read_yaml(path: Path, expected: str = "a YAML file") -> Any:
    """Read a YAML file; see `parse_yaml`.

    Raises:
        UserError: The file cannot be read or parsed.
    """
    return _parsed(parse_yaml, read_text(path, MAX_YAML, expected), path)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON document.

    Raises:
        UserError: It is not valid JSON, or nested too deeply. The caller adds the file to the message.
    """
    try:
        value = json.loads(text, parse_int=_integer)
        opening = text.count("{") + text.count("[") if isinstance(text, str) else MAX_DEPTH + 1
        if opening > MAX_DEPTH and _is_deep(value):
            raise ValueError(f"more than {MAX_DEPTH} levels of nesting")
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(f"invalid JSON: {_one_line(error)}") from error


def read_json(path: Path, limit: int = MAX_JSON, expected: str = "a JSON file") -> Any:
    """Read a JSON file; see `parse_json`.

    Raises:
        UserError: The file cannot be read or parsed.
    """
    return _parsed(parse_json, read_text(path, limit, expected), path)


def read_json_lines(path: Path, expected: str = "a file of JSON lines") -> Iterator[Any]:
    """Yield the value of every line of a file; see `parse_json` and `input_files.read_lines`.

    Raises:
        UserError: The file cannot be read, or a line cannot be parsed.
    """
    for number, line in enumerate(read_lines(path, expected), 1):
        try:
            value = parse_json(line)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}; {expected} was expected") from error
        yield value


def validated(model: type[T] | TypeAdapter, value: Any, where: Path | str, expected: str) -> T:
    """Return a parsed value as an instance of a pydantic model, or as validated by a type adapter.

    Raises:
        UserError: The value does not fit; the message names the file and line (`where`), the first problems with their
            fields, and what the file should hold (`expected`).
    """
    try:
        return model.validate_python(value) if isinstance(model, TypeAdapter) else model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {describe_errors(error)}; {expected} was expected") from error


def describe_errors(error: ValidationError | RecursionError) -> str:
    """Return the first problems of a failed validation in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problems = error.errors(include_url=False, include_context=False)
    lines = []
    for problem in problems[:_SHOWN]:
        place = ".".join(str(part)[:80] for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {text}" if place else text)
    more = [f"{len(problems) - _SHOWN} more problems"] if len(problems) > _SHOWN else []
    return " ".join("; ".join([*lines, *more]).split())


def _parsed(parse: Callable[[str], Any], text: str, path: Path) -> Any:
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader with fewer types, unique string keys, and limits on depth and size."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a complete node -> values in it, itself included

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels of nesting", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in _children(node))
        elif id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias that contains itself", mark)
        if self._sizes[id(node)] > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES} values, aliases included", mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # `!!int x`, `!!bool x`, `!!float ""`: nearly anything
            found = node.value if isinstance(node, yaml.ScalarNode) else node.id
            wanted = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(found)[:80]!r} is not a valid {wanted}", node.start_mark
            ) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key for key, _ in getattr(node, "value", ()) if isinstance(key, yaml.Node)]
        self.flatten_mapping(node)
        seen = set()
        for key in keys:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                found = key.value if isinstance(key, yaml.ScalarNode) else key.id
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(found)[:80]!r} is not a string; put it in quotes", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value[:80]!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) <= 80:  # 64 binary digits, signs and underscores
            value = super().construct_yaml_int(node)
            if abs(value) <= MAX_INTEGER:
                return value
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is too large a number", node.start_mark)


_Loader.yaml_implicit_resolvers = {  # dates are strings
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {None: yaml.SafeLoader.construct_undefined} | {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag and tag.rpartition(":")[2] in ("null", "bool", "float", "str", "seq", "map")
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _integer(text: str) -> int:
    if len(text) <= 21 and abs(value := int(text)) <= MAX_INTEGER:
        return value
    raise ValueError(f"{text[:24]}... is too large a number")


def _is_deep(value: Any) -> bool:
    """Return whether lists and mappings are nested more than `MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
