"""The rows of a study: a grid of schedulers and steps, and identity methods."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import SerializeAsAny, ValidationError

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig, PluginSection, Settings

METHOD_KINDS = {"guidance": "guidance", "variation": "context_variation", "filter": "sample_filter"}


class Method(Settings):
    """One row of identity methods: any of guidance, variation and filter together."""

    name: str  # in the table
    guidance: SerializeAsAny[PluginConfig] | None = PluginSection("guidance")
    variation: SerializeAsAny[PluginConfig] | None = PluginSection("context_variation")
    filter: SerializeAsAny[PluginConfig] | None = PluginSection("sample_filter")


@dataclass(frozen=True)
class RowSettings:
    """Settings of one row of a study.

    Args:
        scheduler: With its number of steps.
        method: Guidance, variation and filter; None: plain sampling.
    """

    scheduler: PluginConfig
    method: Method | None = None

    @property
    def name(self) -> str:
        """Name of the row's files."""
        words = [self.scheduler.name, str(self.scheduler.steps), self.method.name if self.method else "plain"]
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in words)

    @property
    def guidance(self) -> PluginConfig:
        """Guidance of the row."""
        return (self.method.guidance if self.method else None) or registry.configure("guidance", {"name": "none"})


def study_rows(
    schedulers: list[str], steps: list[int], methods: list[Method], method_scheduler: tuple[str, int],
    reference: tuple[str, int],
) -> list[RowSettings]:
    """Return each row once: the reference, the grid of schedulers and steps, the methods beside none.

    Raises:
        UserError: A scheduler or its steps are wrong, or two methods have one name.
    """
    rows = [RowSettings(_scheduler(*reference))]
    rows += [RowSettings(_scheduler(name, count)) for name in schedulers for count in steps]
    if methods:
        scheduler = _scheduler(*method_scheduler)
        with_methods = [RowSettings(scheduler), *(RowSettings(scheduler, method) for method in methods)]
        if len({row.name for row in with_methods}) < len(with_methods):
            raise UserError("two methods have the same name, or one is called plain; give them different names")
        rows += with_methods
    unique: dict[str, RowSettings] = {}
    for row in rows:
        unique.setdefault(row.name, row)
    return list(unique.values())


def _scheduler(name: str, steps: int) -> PluginConfig:
    try:
        return registry.configure("scheduler", {"name": name, "steps": steps})
    except ValidationError as error:
        raise UserError(f"scheduler {name} with {steps} steps: {error.errors()[0]['msg']}") from error


def named_method(value: Any) -> Any:
    """Turn the bare name of a plugin into a method with its default settings."""
    if not isinstance(value, str):
        return value
    for section, kind in METHOD_KINDS.items():
        if value in registry.available(kind):
            return {"name": value, section: {"name": value}}
    known = [name for kind in METHOD_KINDS.values() for name in registry.available(kind)]
    raise ValueError(f"unknown method {value!r}; known are {', '.join(known)}")
