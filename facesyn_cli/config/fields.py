"""Stage configs: validated and frozen; every setting has a role.

The role decides whether a setting may change when a stage resumes a folder: see `artifacts/config_changes.py`. Inputs
are compared by the digest of their content, not by path.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.settings import PluginConfig, PluginList, PluginSection, Settings, plugin_of

# Role -> group of settings in a header. Headers of all releases use these names.
GROUPS = {"result": "identity", "growable": "growing", "batch size": "recorded", "runtime": "runtime",
          "input": "runtime"}


def affects_result(default: Any, doc: str, **limits: Any) -> Any:
    """A setting that affects the result. `limits` are pydantic's (`ge`, `gt`, `le`, ...)."""
    return _field("result", default, doc, **limits)


def runtime_only(default: Any, doc: str, **limits: Any) -> Any:
    """A setting that does not affect the result: workers, device, logging, shard."""
    return _field("runtime", default, doc, **limits)


def batch_setting(default: Any, doc: str, **limits: Any) -> Any:
    """A batch size, or another setting that affects only rounding: a change on resume is a warning."""
    return _field("batch size", default, doc, **limits)


def growable(default: Any, doc: str, **limits: Any) -> Any:
    """A count that can be raised on a finished folder, not lowered; None means without limit."""
    return _field("growable", default, doc, **limits)


def input_path(default: Any, doc: str, **limits: Any) -> Any:
    """The path of an input; compared by the digest of its content."""
    return _field("input", default, doc, **limits)


def _field(role: str, default: Any, doc: str, **limits: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"role": role}, **limits)


class StageConfig(Settings):
    """Settings that all stages have; each stage defines a subclass in its file.

    Attributes:
        renamed: Dotted key of an earlier release -> present key. The old key works with a warning.
        removed: Dotted key of an earlier release -> its value in headers of folders that it did not affect.
        changeable: Settings that affect the result and may change while there is work to do, with a warning; the stage
            records the change.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, Any]] = {}
    changeable: ClassVar[Collection[str]] = ()

    seed: int = affects_result(0, "seed of everything random", ge=0)
    out: Path | None = input_path(None, "folder to write; None: the stage's folder in --work")
    device: str = runtime_only("auto", "auto, cpu, cuda, cuda:N or mps")

    @model_validator(mode="before")
    @classmethod
    def _take_renamed(cls, settings: Any) -> Any:
        return cls.with_new_names(settings) if isinstance(settings, dict) else settings

    @classmethod
    def with_new_names(cls, settings: dict[str, Any], is_silent: bool = False) -> dict[str, Any]:
        """Return settings with renamed keys under their present names; a present name takes precedence.

        Args:
            settings: Nested settings; not modified.
            is_silent: Do not warn of renamed keys.
        """
        found = _copied(settings)
        for old, new in cls.renamed.items():
            value = _take(found, old.split("."))
            if value is _ABSENT:
                continue
            _merge(found, new.split("."), value)
            if not is_silent:
                log.warning(f"setting {old} is now {new}; the old name will be refused in the next release")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values, in the groups of `GROUPS`."""
        groups: dict[str, Any] = {group: {} for group in GROUPS.values()}
        for name, info in type(self).model_fields.items():
            _place(groups, role_of(info), name, getattr(self, name))
        return groups

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings from a header of any release in the form that this release writes.

        A setting that the release did not have gets its default, which therefore must be what was done before there was
        the setting.

        Args:
            config: Settings of this class in groups, as returned by `to_json` of some release.
        """
        flat: dict[str, Any] = {}
        for group in config.values():
            _merge_into(flat, group)
        present = self.with_new_names(flat, is_silent=True)
        for key, without_effect in self.removed.items():
            value = _take(present, key.split("."))
            if value not in (_ABSENT, without_effect):
                return config
        try:
            return type(self).model_validate(present).to_json()
        except (ValidationError, UserError):
            return config  # the comparison then lists every difference


def role_of(info: FieldInfo) -> str:
    """Return the role of a field; `result` if it was declared without one."""
    extra = info.json_schema_extra
    return str(extra.get("role", "result")) if isinstance(extra, dict) else "result"


def _place(groups: dict[str, Any], role: str, name: str, value: Any) -> None:
    """Put one field into its group; settings of nested models and plugins can have their own roles."""
    if isinstance(value, BaseModel):
        parts: dict[str, Any] = {group: {} for group in groups}
        for inner, info in type(value).model_fields.items():
            _place(parts, role_of(info) if role == "result" else role, inner, getattr(value, inner))
        for group, content in parts.items():
            if content:
                groups[group][name] = content
        return
    groups[GROUPS[role]][name] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


_ABSENT: Any = object()


def _take(settings: dict[str, Any], path: list[str]) -> Any:
    """Remove and return the value at a path of keys, and sections left empty; `_ABSENT` if there is none."""
    key, *inner = path
    if not inner:
        return settings.pop(key, _ABSENT)
    section = settings.get(key)
    if not isinstance(section, dict):
        return _ABSENT
    value = _take(section, inner)
    if value is not _ABSENT and not section:
        del settings[key]
    return value


def _merge(settings: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value at a path of keys; an existing value takes precedence."""
    *outer, last = path
    for key in outer:
        inner = settings.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = settings[key] = {"name": inner}  # a plugin given by its bare name
        settings = inner
    if isinstance(value, dict) and isinstance(settings.get(last), dict):
        settings[last] = {**value, **settings[last]}
    else:
        settings.setdefault(last, value)


def _merge_into(settings: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _merge_into(settings[key], value)
        else:
            settings[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


__all__ = [
    "GROUPS", "PluginConfig", "PluginList", "PluginSection", "Settings", "StageConfig", "affects_result",
    "batch_setting", "growable", "input_path", "plugin_of", "role_of", "runtime_only",
]
