"""Settings with nested plugins: a plugin field accepts a name, a mapping, or validated settings.

`Settings` is the base class of the settings of stages and plugins, so `SampleConfig(scheduler={"name": "ddim", "steps":
4})` works in Python, in recipes and in headers.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import KINDS


def PluginSection(kind: str, default: str | dict | None = None, doc: str = "", **extra: Any) -> Any:  # noqa: N802
    """A field that holds one plugin of a kind and its settings.

    Args:
        kind: Kind of plugin.
        default: Name or settings where none are given; None makes the field optional.
        doc: Description of the field.
        extra: Further entries of the field's `json_schema_extra`.
    """
    return _plugin_field(kind, _named(default), False, doc or KINDS[kind], extra)


def PluginList(kind: str, default: list[str | dict], doc: str = "", **extra: Any) -> Any:  # noqa: N802
    """A field that holds a list of plugins of one kind, in the order of their application; see `PluginSection`."""
    return _plugin_field(
        kind, [_named(item) for item in default], True, doc or f"{KINDS[kind]}; any number", extra
    )


def plugin_of(info: FieldInfo) -> tuple[str, bool] | None:
    """Return (kind, is a list) of a field that holds plugins, or None."""
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "plugin" in extra:
        return str(extra["plugin"]), bool(extra["plugin_many"])
    return None


class Settings(BaseModel):
    """Frozen settings without unknown keys; a partial section is completed from the default of its field."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _complete(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        plugin = plugin_of(field)
        if plugin is None:
            if isinstance(field.default, BaseModel) and isinstance(value, dict):
                return {**field.default.model_dump(), **value}
            return value
        kind, is_list = plugin
        if is_list:
            return [configured(kind, item) for item in value] if isinstance(value, list | tuple) else value
        config = configured(kind, _with_default(value, field.default))
        if isinstance(config, PluginConfig) and isinstance(value, dict) and "name" not in value:
            config.model_fields_set.discard("name")  # the name is the default's, it was not stated
        return config


class PluginConfig(Settings):
    """Settings of one plugin, validated and frozen; `name` is the plugin."""

    model_config = ConfigDict(validate_default=True)

    name: str = ""  # public name of the plugin, set when the settings are resolved


def _plugin_field(kind: str, default: Any, is_list: bool, doc: str, extra: dict[str, Any]) -> Any:
    extra = {"plugin": kind, "plugin_many": is_list, **extra}
    return Field(default, description=doc, json_schema_extra=extra, validate_default=True)


def _named(value: str | dict | None) -> dict | None:
    return {"name": value} if isinstance(value, str) else value


def _with_default(value: Any, default: dict | None) -> Any:
    """Complete a section from the default, unless it names another plugin."""
    value = _named(value)
    if not isinstance(value, dict) or not default:
        return value
    return {**default, **value} if value.get("name", default["name"]) == default["name"] else value


def configured(kind: str, value: Any) -> Any:
    """Return the settings of a plugin from its name or its settings, for a validator of pydantic's."""
    if value is None or isinstance(value, BaseModel):
        return value
    value = _named(value)
    if not isinstance(value, dict):
        value = {}  # and so without a name
    try:
        return registry.configure(kind, value)
    except ValidationError:
        raise  # pydantic puts the field's name before each of its problems
    except UserError as error:
        raise PydanticCustomError("plugin", "{problem}", {"problem": str(error)}) from error
