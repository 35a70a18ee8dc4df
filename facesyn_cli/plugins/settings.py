"""The base of every plugin's settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class PluginConfig(BaseModel):
    """Settings of one plugin, validated and frozen; `name` says which plugin they belong to."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    name: str = ""  # public name of the plugin, filled in when the settings are resolved
