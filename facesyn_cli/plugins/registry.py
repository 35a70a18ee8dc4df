"""The plugin registry: (kind, name) -> builder, typed config and card.

Names are addresses: the built-in table and entry points of group `facesyn.<kind>` say in which module
a plugin lives, and only that module is imported when the plugin is looked up. A plugin is a builder
(a function or a class) with the decorator `@register`; its only argument is its config, a pydantic model.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from pydantic import BaseModel

from facesyn_cli.console import log
from facesyn_cli.errors import UserError, did_you_mean
from facesyn_cli.plugins.builtin import BUILTIN, KINDS, REMOVED


class NamedConfig(Protocol):
    """Settings of a plugin, as `build` needs them: an instance of `plugins.settings.PluginConfig`."""

    name: str


@dataclass(frozen=True)
class Card:
    """Description of a plugin, as `facesyn plugins` shows it.

    Args:
        about: What the plugin does, in one sentence.
        paper: Authors, year and arXiv number.
        input: Input size and normalization of a network.
        license: License of known weights.
        licence: Former spelling of `license`; accepted with a warning for one release.
    """

    about: str
    paper: str = ""
    input: str = ""
    license: str = ""
    licence: InitVar[str | None] = None

    def __post_init__(self, licence: str | None) -> None:
        if licence is not None:
            log.warning(f"plugin card {self.about!r}: `licence` is now `license`; the old spelling will be refused in "
                        "the next release")
            object.__setattr__(self, "license", licence)


@dataclass(frozen=True)
class Plugin:
    """One registered builder.

    Args:
        kind: One of `KINDS`.
        name: Lower-kebab public name.
        build: Builder; its only argument is an instance of `config_class`.
        config_class: The pydantic model of the plugin's settings.
        card: Description for `facesyn plugins`.
    """

    kind: str
    name: str
    build: Callable
    config_class: type[BaseModel]
    card: Card = field(default_factory=lambda: Card(""))


_registered: dict[tuple[str, str], Plugin] = {}


def register(kind: str, name: str, card: Card) -> Callable[[Callable], Callable]:
    """Return a decorator that registers a builder under (kind, name).

    Raises:
        ValueError: The kind is unknown, the name is taken by another builder, or the builder does not
            take exactly one annotated argument.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown plugin kind {kind!r}; kinds are {', '.join(KINDS)}")

    def decorate(build: Callable) -> Callable:
        known = _registered.get((kind, name))
        owner = f"{build.__module__}.{build.__qualname__}"
        if known and f"{known.build.__module__}.{known.build.__qualname__}" != owner:
            raise ValueError(
                f"two plugins are called {kind} {name!r}: {known.build.__module__}.{known.build.__qualname__}"
                f" and {owner}"
            )
        _registered[kind, name] = Plugin(kind, name, build, _config_class(build), card)
        return build

    return decorate


def get(kind: str, name: str) -> Plugin:
    """Return the plugin called `name`, importing its module (and no other) when needed.

    Raises:
        UserError: There is no such plugin, or no longer; two packages register the name; or its module cannot be
            imported.
    """
    addresses = _addresses(kind)
    if name not in addresses:
        if (kind, name) in _registered:
            return _registered[kind, name]
        if (kind, name) in REMOVED:
            raise UserError(f"{kind} {name!r} was removed: {REMOVED[kind, name]}")
        hint = did_you_mean(name, available(kind))
        raise UserError(f"unknown {kind} {name!r}{hint} (facesyn plugins {kind} lists all)")
    owners = addresses[name]
    if len(owners) > 1:
        raise UserError(f"two plugins are called {kind} {name!r}: {' and '.join(owners)}")
    address = next(iter(owners))
    if (kind, name) not in _registered:
        try:
            importlib.import_module(address.partition(":")[0])
        except Exception as error:
            raise UserError(f"{kind} plugin {name!r} ({address}) cannot be imported: {error}") from error
    if (kind, name) not in _registered:
        raise UserError(f"module {address} does not register a {kind} called {name!r}")
    return _registered[kind, name]


def configure(kind: str, settings: dict) -> Any:
    """Validate the settings of one plugin.

    Args:
        settings: `name` and any of the plugin's own settings.

    Raises:
        UserError: The plugin is unknown, or none is named.
        pydantic.ValidationError: A setting is unknown or has a wrong value.
    """
    if not isinstance(settings.get("name"), str):
        raise UserError(f"a {kind} needs a name; known are {', '.join(available(kind))}")
    plugin = get(kind, settings["name"])
    return plugin.config_class.model_validate(settings)


def build(kind: str, cfg: NamedConfig) -> Any:
    """Build the plugin with the name and settings of `cfg`."""
    return get(kind, cfg.name).build(cfg)


def available(kind: str) -> list[str]:
    """Return the names of all plugins of a kind, sorted, without importing any."""
    if kind not in KINDS:
        raise UserError(f"unknown plugin kind {kind!r}{did_you_mean(kind, KINDS)}")
    return sorted(set(_addresses(kind)) | {name for k, name in _registered if k == kind})


def _addresses(kind: str) -> dict[str, dict[str, None]]:
    """Map each name to the distinct addresses that it is registered at."""
    if kind not in KINDS:
        available(kind)
    found: dict[str, dict[str, None]] = {name: {module: None} for name, module in BUILTIN[kind].items()}
    for point in _entry_points(f"facesyn.{kind}"):
        found.setdefault(point.name, {})[point.value] = None
    return found


@functools.cache
def _entry_points(group: str) -> list[EntryPoint]:
    return list(entry_points(group=group))


def _config_class(build: Callable) -> type[BaseModel]:
    parameters = list(inspect.signature(build).parameters.values())
    if len(parameters) != 1 or parameters[0].annotation is inspect.Parameter.empty:
        raise ValueError(f"{build.__qualname__} must take exactly one argument, its config, with a type annotation")
    annotation = parameters[0].annotation
    if isinstance(annotation, str):  # the return annotation may name something that is defined further down
        names = vars(sys.modules[build.__module__]) if isinstance(build, type) else build.__globals__
        annotation = names.get(annotation)
    if "name" not in getattr(annotation, "model_fields", {}):
        raise ValueError(f"the argument of {build.__qualname__} must be annotated with a PluginConfig class")
    return annotation
