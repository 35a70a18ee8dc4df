"""Which schedulers fit an LDM, and which one is used where none is stated.

The class of a scheduler's settings names the predictions that it works with in `predictions`; without it these are the
predictions of a noise schedule.
"""

from __future__ import annotations

from typing import Any, TypeVar

from facesyn_cli.console import log
from facesyn_cli.diffusion.schedule import PREDICTIONS
from facesyn_cli.diffusion.schedulers import MakeScheduler
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig, Settings

FLOW_DEFAULT = "flow-euler"

S = TypeVar("S", bound=Settings)


def build_scheduler(cfg: PluginConfig, prediction: str) -> MakeScheduler:
    """Build a scheduler for LDMs that predict `prediction`.

    Raises:
        UserError: It does not work with this prediction.
    """
    if prediction not in _predictions(type(cfg)):
        raise UserError(f"scheduler {cfg.name} does not work with this LDM, which predicts {prediction}; "
                        f"{', '.join(fitting_schedulers(prediction))} do")
    return registry.build("scheduler", cfg)


def fitting_schedulers(prediction: str) -> list[str]:
    """Return the names of the schedulers that work with a prediction; plugins that cannot be imported are left out."""
    names = []
    for name in registry.available("scheduler"):
        try:
            if prediction in _predictions(registry.get("scheduler", name).config_class):
                names.append(name)
        except UserError:
            continue
    return names


def default_scheduler(prediction: str, otherwise: str, **settings: int) -> PluginConfig:
    """Return the settings of `flow-euler` for LDMs that predict flow, and of the scheduler `otherwise` for others."""
    name = FLOW_DEFAULT if prediction == "flow" else otherwise
    return registry.configure("scheduler", {"name": name, **settings})


def with_default_scheduler(cfg: S, prediction: str, is_silent: bool = False) -> S:
    """Return settings that have `flow-euler` where the LDM predicts flow and no scheduler is stated; stated steps stay.

    Args:
        cfg: Settings of a stage or plugin; sections `scheduler` of itself and of its plugins are looked at.
        prediction: What the LDM predicts.
        is_silent: Do not log the choice.
    """
    if prediction != "flow":
        return cfg
    changed: dict[str, Any] = {}
    for name in type(cfg).model_fields:
        value = getattr(cfg, name)
        if name == "scheduler" and isinstance(value, PluginConfig):
            found: Any = _chosen(value, name in cfg.model_fields_set, is_silent)
        elif isinstance(value, list):
            found = [_inside(item, prediction, is_silent) for item in value]
        else:
            found = _inside(value, prediction, is_silent)
        if found != value:
            changed[name] = found
    return cfg.model_copy(update=changed) if changed else cfg


def _inside(value: Any, prediction: str, is_silent: bool) -> Any:
    return with_default_scheduler(value, prediction, is_silent) if isinstance(value, PluginConfig) else value


def _chosen(scheduler: PluginConfig, is_stated: bool, is_silent: bool) -> PluginConfig:
    """Return the scheduler itself where it is stated by name or with settings that `flow-euler` may not have."""
    stated = scheduler.model_fields_set if is_stated else set()
    if not stated <= {"steps"}:
        return scheduler
    steps = {"steps": scheduler.steps} if stated else {}
    chosen = default_scheduler("flow", scheduler.name, **steps)
    if not is_silent:
        log.info(f"the LDM predicts flow and no scheduler is stated: {chosen.name} with {chosen.steps} steps is used "
                 f"in place of {scheduler.name}")
    return chosen


def _predictions(config_class: type) -> tuple[str, ...]:
    return getattr(config_class, "predictions", PREDICTIONS)
