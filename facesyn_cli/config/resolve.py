"""Resolve defaults, a recipe section, `key=value` overrides and flags to one validated config.

All problems are reported together, each with the key, the value and the closest valid name.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from facesyn_cli.config.fields import StageConfig, plugin_of, role_of
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.errors import UserError, did_you_mean
from facesyn_cli.plugins import registry
from facesyn_cli.untrusted.input_files import check_input
from facesyn_cli.untrusted.parsing import parse_yaml

C = TypeVar("C", bound=StageConfig)


def resolve(
    config_class: type[C], command: str, section: dict[str, Any], overrides: list[str], flags: dict[str, Any]
) -> C:
    """Return the validated config of one stage; later arguments take precedence over earlier ones.

    Args:
        config_class: The stage's config class.
        command: Name of the command, for messages.
        section: The recipe's section.
        overrides: `key=value` words; values are YAML, keys may be dotted.
        flags: Dotted key -> value; None means the flag was not given.

    Raises:
        UserError: Some settings are invalid; the message lists all problems.
    """
    settings = config_class.with_new_names(section)
    problems: list[str] = []
    warned: set[str] = set()
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"{word!r} is not key=value, for example seed=1")
            continue
        try:
            _set(settings, _new_name(config_class, key, warned), parse_yaml(text) if text else None, config_class)
        except UserError as error:
            problems.append(f"{word!r}: {' '.join(str(error).split())}")
    for key, value in flags.items():
        if value is not None:
            _set(settings, key, value, config_class)
    problems += [f"{key}: {text!r} holds a NUL character" for key, text in _texts(settings) if "\0" in text]
    problems += _special_files(settings, config_class)
    try:
        cfg = config_class.model_validate(settings)
    except ValidationError as error:
        problems += describe_problems(error, config_class, settings)
        cfg = None
    if problems or cfg is None:
        has_unknown = any(problem.startswith("unknown setting") for problem in problems)
        where = f" (facesyn config --stage {command} lists all)" if has_unknown and command in STAGES else ""
        raise UserError(f"{command}: {'; '.join(problems)}{where}")
    return cfg


def describe_problems(error: ValidationError, config_class: type[BaseModel], settings: dict[str, Any]) -> list[str]:
    """Return the problems of invalid settings as phrases, each with its key and the closest valid name.

    Args:
        error: The validation error.
        config_class: The validated class.
        settings: The invalid settings.
    """
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(config_class, settings, item["loc"][:-1])
            hint = did_you_mean(item["loc"][-1], known)
            problems.append(f"unknown setting {where!r}{hint}")
        elif item["type"] == "plugin":
            problems.append(f"{where}: {item['msg']}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}, got {item['input']!r}" if where else message)
    return problems


def _new_name(config_class: type[StageConfig], key: str, warned: set[str]) -> str:
    """Return the present name of a dotted key, which may be renamed or inside a renamed section.

    Args:
        config_class: The stage's config class.
        key: Dotted key.
        warned: Old names of which a warning was logged; gets those of this key.
    """
    for old, new in config_class.renamed.items():
        if key == old or key.startswith(f"{old}."):
            if old not in warned:
                warned.add(old)
                config_class.with_new_names({old.split(".")[0]: _nested(old.split(".")[1:])})  # logs the warning
            return new + key[len(old):]
    return key


def _nested(path: list[str]) -> Any:
    value: Any = None
    for key in reversed(path):
        value = {key: value}
    return value


def _set(settings: dict[str, Any], dotted: str, value: Any, config_class: type[BaseModel]) -> None:
    """Set `settings[a][b]` for the key `a.b`; a plugin given by its name is first converted to a section."""
    *path, last = dotted.split(".")
    section = settings
    for depth, part in enumerate(path):
        inner = section.get(part)
        if inner is None:
            inner = {}
        elif depth == 0 and isinstance(inner, str) and part in config_class.model_fields:
            inner = {"name": inner}
        elif isinstance(inner, list):
            raise UserError("lists are replaced as a whole, for example transforms=[{name: flip}]")
        elif not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} is {inner!r}, it has no settings inside")
        section[part] = inner
        section = inner
    if path and last == "name" and section.get("name") not in (None, value):
        section.clear()  # another plugin: the settings of the former one do not apply
    section[last] = value


def _known_keys(config_class: type[BaseModel], settings: Any, path: tuple) -> list[str]:
    """Return the valid keys at a path, which can lead into sections, plugins and lists of plugins."""
    kind = ""
    for part in path:
        settings = settings.get(part) if isinstance(settings, dict) else settings[part] if isinstance(part, int) else {}
        if isinstance(part, int):
            config_class = _plugin_class(kind, settings) or config_class
            continue
        info = config_class.model_fields.get(str(part))
        if info is None:
            return []
        kind, is_list = plugin_of(info) or ("", False)
        if kind and not is_list:
            named = {**(info.default or {}), **settings} if isinstance(settings, dict) else settings
            config_class = _plugin_class(kind, named) or config_class
        elif not kind:
            inner = [info.annotation, *typing.get_args(info.annotation)]  # a section may be optional
            models = [found for found in inner if isinstance(found, type) and issubclass(found, BaseModel)]
            if not models:
                return []
            config_class = models[0]
    return sorted(config_class.model_fields)


def _plugin_class(kind: str, section: Any) -> type[BaseModel] | None:
    name = section.get("name") if isinstance(section, dict) else section
    return registry.get(kind, name).config_class if isinstance(name, str) else None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all strings and paths in nested settings, each with its dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{key}.{number}")
    elif isinstance(value, str | PurePath):
        yield key, str(value)


def _special_files(settings: dict[str, Any], config_class: type[BaseModel]) -> Iterator[str]:
    """Yield a problem for every input that is a FIFO, a socket or a device, which could block when opened."""
    names = [name for name, info in config_class.model_fields.items() if role_of(info) == "input"]
    for key, text in _texts({name: settings[name] for name in names if name in settings}):
        try:
            check_input(text)
        except UserError as error:
            yield f"{key}: {error}"
