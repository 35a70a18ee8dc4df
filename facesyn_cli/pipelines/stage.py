"""Find a stage by its name, resolve its settings, and plan or run it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facesyn_cli.console import log
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.outcome import Outcome
    from facesyn_cli.artifacts.plan import Plan
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.fields import StageConfig


def stage_module(name: str) -> Any:
    """Import and return the module of a stage."""
    return importlib.import_module(f"facesyn_cli.stages.{name.replace('-', '_')}")


def config_class_of(name: str) -> type[StageConfig]:
    """Return the config class on top of a stage's module: `train-ldm` -> `TrainLdmConfig`."""
    return getattr(stage_module(name), "".join(part.title() for part in name.split("-")) + "Config")


def resolve_stage(name: str, section: dict[str, Any], overrides: list[str], flags: dict[str, Any]) -> StageConfig:
    """Return the validated config of a stage, with paths in place of names such as `starter-embedder` and `taesd3`.

    See `config.resolve.resolve` and `artifacts.packaged_networks.packaged_path`.
    """
    from facesyn_cli.config.resolve import resolve

    return _with_packaged_paths(resolve(config_class_of(name), name, section, overrides, flags))


def _with_packaged_paths(cfg: StageConfig) -> StageConfig:
    from facesyn_cli.artifacts.packaged_networks import packaged_path
    from facesyn_cli.config.fields import role_of

    found: dict[str, Any] = {}
    for name, info in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        if role_of(info) != "input" or not value:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        paths = [packaged_path(str(one)) for one in values]
        if any(paths):
            new = [type(one)(path) if path else one for path, one in zip(paths, values, strict=True)]
            found[name] = type(value)(new) if isinstance(value, list | tuple) else new[0]
    return cfg.model_copy(update=found)


@dataclass(frozen=True)
class Request:
    """What the user states about one stage.

    Args:
        name: The stage.
        section: Its section of the recipe.
        overrides: `key=value` words.
        flags: Dotted key -> value; None means the flag was not given.
    """

    name: str
    section: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def on_command_line(self) -> set[str]:
        """Top-level settings in `key=value` words and flags."""
        given = [key for key, value in self.flags.items() if value is not None]
        return {word.partition("=")[0].partition(".")[0] for word in [*self.overrides, *given]}

    @property
    def stated(self) -> set[str]:
        """Settings in the recipe, `key=value` words or flags; none of these is taken from a tree or a starter."""
        return {*self.section, *self.on_command_line}

    def resolve(self, below: Mapping[str, Any] | None = None, over: Mapping[str, Any] | None = None) -> StageConfig:
        """Return the validated config.

        Args:
            below: Settings that the recipe's section wins over.
            over: Settings that win over the recipe's section, not over `key=value` words and flags.
        """
        return resolve_stage(self.name, {**(below or {}), **self.section, **(over or {})}, self.overrides, self.flags)


def run_stage(name: str, cfg: StageConfig, work: Work) -> Outcome:
    """Run one stage.

    Raises:
        UserError: An input is missing or wrong, or there is not enough memory.
    """
    log.debug(f"{name}: work folder {work.path.absolute()}, settings {json.dumps(cfg.to_json(), default=str)}")
    with _memory_errors(name):
        return stage_module(name).run(cfg, work)


def plan_stage(name: str, cfg: StageConfig, work: Work) -> Plan:
    """Return what `run_stage` would do; raises as `run_stage` does."""
    with _memory_errors(name):
        return stage_module(name).plan(cfg, work)


_OUT_OF_MEMORY = (  # messages of torch: too much for the CPU's memory, for 64 bits, for a 64-bit integer
    "can't allocate memory", "Storage size calculation overflowed", "Overflow when unpacking",
)


@contextmanager
def _memory_errors(name: str) -> Iterator[None]:
    """Turn memory errors into `UserError`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{name}: not enough memory on the device; use a smaller --batch-size") from error
    except (MemoryError, RuntimeError, TypeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise UserError(f"{name}: not enough memory; use a smaller --batch-size, network or image size") from error
