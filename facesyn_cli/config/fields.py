"""Stage configs: validated, frozen, and every field with a role.

The role says what a change means when a stage is run again on the same folder: see
`artifacts/compare.py`. Fields that name an input (`source`) are not compared as text at all; what they
point to is compared by digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from facesyn_cli.plugins.settings import PluginConfig


def identity(default: Any, doc: str, **limits: Any) -> Any:
    """A setting that changes the result. `limits` are pydantic's (`ge`, `gt`, `le`, ...)."""
    return _field("identity", default, doc, **limits)


def runtime(default: Any, doc: str, **limits: Any) -> Any:
    """A setting that never changes the result: workers, device, logging, shard."""
    return _field("runtime", default, doc, **limits)


def recorded(default: Any, doc: str, **limits: Any) -> Any:
    """A batch size: recorded, and a change on resume earns a warning."""
    return _field("recorded", default, doc, **limits)


def growing(default: Any, doc: str, **limits: Any) -> Any:
    """A count that may be raised on a finished folder, never lowered; None is without limit."""
    return _field("growing", default, doc, **limits)


def source(default: Any, doc: str, **limits: Any) -> Any:
    """Where an input lies; its content is compared by digest, the path itself is not."""
    return _field("source", default, doc, **limits)


def PluginSection(kind: str, default: str | dict | None) -> Any:  # noqa: N802 (reads like a type)
    """A section of the recipe that names a plugin and its settings.

    Args:
        kind: Kind of plugin.
        default: Name or whole section used when the recipe has none; None makes the section optional.
    """
    return _field("identity", _named(default), f"a {kind} plugin and its settings", plugin=kind, plugin_many=False)


def PluginList(kind: str, default: list[str | dict]) -> Any:  # noqa: N802
    """A list of plugins of one kind, in the order in which they act."""
    return _field(
        "identity", [_named(d) for d in default], f"{kind} plugins and their settings", plugin=kind, plugin_many=True
    )


def _field(role: str, default: Any, doc: str, plugin: str | None = None, plugin_many: bool = False, **limits: Any):
    extra: dict[str, Any] = {"role": role}
    if plugin is not None:
        extra.update(plugin=plugin, plugin_many=plugin_many)
    return Field(default, description=doc, json_schema_extra=extra, **limits)


def _named(default: str | dict | None) -> dict | None:
    return {"name": default} if isinstance(default, str) else default


class StageConfig(BaseModel):
    """Settings every stage has. Subclasses live on top of their stage's file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=False, allow_inf_nan=False
    )

    seed: int = identity(0, "seed of everything random", ge=0)
    out: Path | None = source(None, "folder to write; None: the stage's folder in --work")
    device: str = runtime("auto", "auto, cpu, cuda, cuda:N or mps")

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values, grouped by role; `source` fields under `runtime`."""
        groups: dict[str, Any] = {"identity": {}, "growing": {}, "recorded": {}, "runtime": {}}
        for name, info in type(self).model_fields.items():
            _place(groups, role_of(info), name, getattr(self, name))
        return groups


def role_of(info: FieldInfo) -> str:
    """Return the role a field was declared with (`identity` when it was declared plainly)."""
    extra = info.json_schema_extra
    return str(extra.get("role", "identity")) if isinstance(extra, dict) else "identity"


def plugin_of(info: FieldInfo) -> tuple[str, bool] | None:
    """Return (kind, is a list) of a plugin field, or None."""
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "plugin" in extra:
        return str(extra["plugin"]), bool(extra["plugin_many"])
    return None


def _place(groups: dict[str, Any], role: str, name: str, value: Any) -> None:
    """Put one field into its group; settings of nested models and plugins may have roles of their own."""
    if isinstance(value, BaseModel):
        parts: dict[str, Any] = {group: {} for group in groups}
        for inner, info in type(value).model_fields.items():
            _place(parts, role_of(info) if role == "identity" else role, inner, getattr(value, inner))
        for group, content in parts.items():
            if content:
                groups[group][name] = content
        return
    group = "runtime" if role == "source" else role
    groups[group][name] = _plain(value)


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


__all__ = [
    "PluginConfig", "PluginList", "PluginSection", "StageConfig", "growing", "identity", "plugin_of", "recorded",
    "role_of", "runtime", "source",
]
