"""What the JSON of a header (`facesyn.json`) may hold: the type of every field that a reader uses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ParentContent(BaseModel):
    """One input of a stage."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    digest: str


class Extra(BaseModel):
    """What readers of a folder take from `extra`; everything else in it is for people."""

    model_config = ConfigDict(extra="allow", strict=True)

    embedder: str | None = None
    format: str | None = None
    name: str | None = Field(None, pattern=r"^[^/\\\x00]+$")  # of a folder inside the folder of the header

    @field_validator("name")
    @classmethod
    def _is_inside(cls, name: str | None) -> str | None:
        if name in (".", ".."):
            raise ValueError("the name of a folder inside was expected")
        return name


class HeaderContent(BaseModel):
    """The JSON form of `output.Header`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    command: str
    config: dict[str, dict[str, Any]]  # role -> settings
    parents: dict[str, ParentContent]
    counts: dict[str, int] = {}
    extra: Extra = Extra()
    digest: str = ""
    lineage: str = ""
    format_version: int = 1
    package_version: str = ""

    @field_validator("config")
    @classmethod
    def _counts_are_numbers(cls, config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        waiting = list(config.get("growing", {}).items())
        for key, value in waiting:
            if isinstance(value, dict) and value:
                waiting += value.items()
            elif not isinstance(value, int | float | None):
                raise ValueError(f"growing.{key}: a number was expected")
        return config
