"""From defaults, a recipe section, `key=value` overrides and flags to one validated config.

All problems are reported together, each with the key, the value and the nearest right name.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from facesyn_cli.config.fields import StageConfig, plugin_of, role_of
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.untrusted.files import check_input
from facesyn_cli.untrusted.text import parse_yaml

C = TypeVar("C", bound=StageConfig)


def resolve(
    config_class: type[C], command: str, section: dict[str, Any], overrides: list[str], flags: dict[str, Any]
) -> C:
    """Return the validated config of one stage; later arguments win over earlier ones.

    Args:
        config_class: The stage's config class.
        command: Name of the command, for messages.
        section: The recipe's section.
        overrides: `key=value` words; values are YAML, keys may be dotted.
        flags: Dotted key -> value; None means the flag was not given.

    Raises:
        UserError: Naming every problem.
    """
    settings = _copy(section)
    problems: list[str] = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"{word!r} is not key=value")
            continue
        try:
            _set(settings, key, parse_yaml(text) if text else None, config_class)
        except UserError as error:
            problems.append(f"{word!r}: {' '.join(str(error).split())}")
    for key, value in flags.items():
        if value is not None:
            _set(settings, key, value, config_class)
    problems += [f"{key}: {text!r} holds a NUL character" for key, text in _texts(settings) if "\0" in text]
    problems += _special_files(settings, config_class)
    refused: set[str] = set()
    for name, info in config_class.model_fields.items():
        plugin = plugin_of(info)
        if plugin is None:
            if isinstance(info.default, BaseModel) and isinstance(settings.get(name), dict):
                settings[name] = {**info.default.model_dump(), **settings[name]}  # the stage's, not the class's
            continue
        before = len(problems)
        kind, is_list = plugin
        if is_list:
            value = settings.get(name, info.default)
            if isinstance(value, list):
                settings[name] = [_configure(kind, item, f"{name}.{i}", problems) for i, item in enumerate(value)]
        else:
            value = _with_default(settings.get(name), info.default, name in settings)
            settings[name] = _configure(kind, value, name, problems)
        if len(problems) > before:
            refused.add(name)
    try:
        cfg = config_class.model_validate(settings)
    except ValidationError as error:
        problems += _explain(error, config_class, skip=refused)
        cfg = None
    if problems or cfg is None:
        raise UserError(f"{command}: " + "; ".join(problems))
    return cfg


def _configure(kind: str, value: Any, where: str, problems: list[str]) -> Any:
    """Turn a raw plugin section into its validated settings; note problems and return the raw value then."""
    if value is None or isinstance(value, PluginConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        problems.append(f"{where}: a {kind} needs a name; known are {', '.join(registry.available(kind))}")
        return None
    try:
        return registry.configure(kind, value)
    except UserError as error:
        problems.append(f"{where}: {error}")
    except ValidationError as error:
        problems.extend(_explain(error, registry.get(kind, value["name"]).config_class, f"{where}."))
    return None


def _with_default(value: Any, default: dict | None, is_set: bool) -> Any:
    """A section that names no plugin keeps the default's name; one that names another starts from scratch."""
    if not is_set:
        return default
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or default is None:
        return value
    if value.get("name", default["name"]) == default["name"]:
        return {**default, **value}
    return value


def _set(settings: dict[str, Any], dotted: str, value: Any, config_class: type[BaseModel]) -> None:
    """Set `settings[a][b]` for the key `a.b`; a plugin given by its bare name becomes a section first."""
    *path, last = dotted.split(".")
    at = settings
    for depth, part in enumerate(path):
        inner = at.get(part)
        if inner is None:
            inner = {}
        elif depth == 0 and isinstance(inner, str) and part in config_class.model_fields:
            inner = {"name": inner}
        elif isinstance(inner, list):
            raise UserError("lists are replaced as a whole, for example transforms=[{name: flip}]")
        elif not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} is {inner!r}, it has no settings inside")
        at[part] = inner
        at = inner
    if path and last == "name" and at.get("name") not in (None, value):
        at.clear()  # another plugin: settings of the old one do not apply
    at[last] = value


def _explain(
    error: ValidationError, config_class: type[BaseModel], prefix: str = "", skip: set[str] | None = None
) -> list[str]:
    problems = []
    for item in error.errors():
        if item["loc"] and item["loc"][0] in (skip or ()):
            continue  # the plugin has already said what is wrong
        where = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(config_class, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f", known are {', '.join(known)}"
            problems.append(f"unknown setting {where!r}{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}, got {item['input']!r}" if where else message)
    return problems


def _known_keys(config_class: type[BaseModel], path: tuple) -> list[str]:
    for part in path:
        info = config_class.model_fields.get(str(part))
        inner = [info.annotation, *typing.get_args(info.annotation)] if info else []  # a section may be optional
        models = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        config_class = models[0]
    return sorted(config_class.model_fields)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts and paths in nested settings, each with its dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{key}.{number}")
    elif isinstance(value, str | PurePath):
        yield key, str(value)


def _special_files(settings: dict[str, Any], config_class: type[BaseModel]) -> Iterator[str]:
    """Yield a problem for every input that is a FIFO, a socket or a device: whoever opens one may wait for good."""
    names = [name for name, info in config_class.model_fields.items() if role_of(info) == "source"]
    for key, text in _texts({name: settings[name] for name in names if name in settings}):
        try:
            check_input(text)
        except UserError as error:
            yield f"{key}: {error}"


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
