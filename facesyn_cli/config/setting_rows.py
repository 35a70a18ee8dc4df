"""Settings of a stage or plugin as rows for people: key, type, default, role and meaning; and as commented YAML."""

from __future__ import annotations

import re
import textwrap
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from facesyn_cli.config.fields import plugin_of, role_of
from facesyn_cli.plugins.registry import Plugin

ROLES = {"result": "affects the result", "runtime": "runtime-only", "growable": "growable", "batch size": "batch size",
         "input": "input"}
SECTION = "section"  # type of a row that only has settings inside
_YAML_WIDTH = 100


@dataclass(frozen=True)
class SettingRow:
    """One setting.

    Args:
        key: Dotted key, for example `scheduler.steps`.
        type: Its type in words, for example `int` or `fp32 | bf16`.
        value: Its value as a JSON value; None for a section.
        role: A key of `ROLES`.
        doc: Its meaning.
        choices: The values that it can have, where there are few.
        plugin: Kind of plugin, for the name of one.
        is_given: False where the section around it is None; `value` is its default in such a section.
    """

    key: str
    type: str
    value: Any
    role: str
    doc: str
    choices: tuple[str, ...] = ()
    plugin: str = ""
    is_given: bool = True

    @property
    def value_text(self) -> str:
        """The value as YAML on one line, in brackets if it is not given; empty for a section."""
        if self.type == SECTION:
            return ""
        return _yaml(self.value) if self.is_given else f"({_yaml(self.value)})"

    @property
    def doc_text(self) -> str:
        """The meaning, with the word for None of YAML."""
        return re.sub(r"\bNone\b", "null", self.doc)


def setting_rows(cfg: BaseModel, prefix: str = "", outer_role: str = "result") -> list[SettingRow]:
    """Return the settings of a validated config in the order of its fields; nested sections follow their name.

    Those of a section that is None are not `is_given`.
    """
    rows = []
    for name, info in type(cfg).model_fields.items():
        key, value = f"{prefix}{name}", getattr(cfg, name, None)
        role = role_of(info) if outer_role == "result" else outer_role
        kind, is_list = plugin_of(info) or ("", False)
        if isinstance(value, BaseModel):
            if kind:
                about = f"{info.description}; `facesyn plugins {kind}` lists all"
                head = SettingRow(f"{key}.name", f"{kind} plugin", getattr(value, "name", ""), role, about, (), kind)
            else:
                head = SettingRow(key, SECTION, None, role, info.description or "")
            rows += [head, *(row for row in setting_rows(value, f"{key}.", role) if row.key != head.key)]
        elif value is None and not kind and (section := _optional_section(info.annotation)):
            rows.append(SettingRow(key, SECTION, None, role, info.description or ""))
            rows += [replace(row, is_given=False) for row in setting_rows(section.model_construct(), f"{key}.", role)]
        else:
            shown = f"list of {kind} plugins" if is_list else f"{kind} plugin" if kind else type_text(info.annotation)
            rows.append(
                SettingRow(key, shown, _plain(value), role, info.description or "", choices_of(info.annotation), kind)
            )
    return rows


def _optional_section(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a section that may be None; None for all other types."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def plugin_rows(plugin: Plugin) -> list[SettingRow]:
    """Return the settings of a plugin without its name, with their defaults."""
    try:
        cfg = plugin.config_class.model_validate({"name": plugin.name})
    except ValidationError:  # some settings have no default
        cfg = plugin.config_class.model_construct(name=plugin.name)
    return [row for row in setting_rows(cfg) if row.key != "name"]


def type_text(annotation: Any) -> str:
    """Return a type in words: `int`, `fp32 | bf16`, `list of paths`; that a setting may be None is left out."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " | ".join(choices_of(annotation))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in arguments if part is not type(None))
    if origin is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} x {type_text(arguments[0])}"
    if origin in (list, tuple):
        inner = type_text(arguments[0])
        return f"list of {inner}s" if inner.isalpha() else f"list of {inner}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return SECTION
    words = {bool: "true | false", str: "text", Path: "path", dict: "mapping", Any: "any"}
    return str(words.get(origin or annotation) or getattr(annotation, "__name__", annotation))


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal or bool, also of an optional one; empty for other types."""
    if annotation is bool:
        return ("true", "false")
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(str(value).lower() if isinstance(value, bool) else str(value)
                     for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return tuple(choice for part in typing.get_args(annotation) for choice in choices_of(part))
    return ()


def yaml_section(stage: str, rows: list[SettingRow]) -> str:
    """Return a section of a recipe with every setting and its meaning; settings that are null are commented out."""
    lines = [f"{stage}:"]
    for row in rows:
        *outer, name = row.key.split(".")
        indent = "  " * (len(outer) + 1)
        inside = [other for other in rows if other.key.startswith(f"{row.key}.") and other.type != SECTION]
        about = f"  # {row.type}, {ROLES[row.role]}"
        if row.plugin and name == "name":
            lines += [*_comment(row.doc_text, indent[2:]), f"{indent[2:]}{outer[-1]}:"]
            lines.append(f"{indent}name: {row.value}{about}")
        elif row.type == SECTION:
            mark = "" if any(other.value is not None and other.is_given for other in inside) else "# "
            lines += [*_comment(row.doc_text, indent), f"{indent}{mark}{name}:{'' if inside else ' null'}"]
        else:
            mark = "# " if row.value is None or not row.is_given else ""
            lines += [*_comment(row.doc_text, indent), f"{indent}{mark}{name}: {_yaml(row.value)}{about}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, _YAML_WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    """Return a value as JSON; plugins in a list show the settings that are not their defaults."""
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return changed["name"] if set(changed) == {"name"} else changed
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
