"""Which schedulers fit an LDM, and which one is used where none is stated.

The class of a scheduler's settings names the predictions that it works with in `predictions`; without it these are the
predictions of a noise schedule.
"""

from __future__ import annotations

from typing import TypeVar

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


def with_default_scheduler(cfg: S, prediction: str) -> S:
    """Return settings whose scheduler is `flow-euler` where the LDM predicts flow and no scheduler is stated.

    Stated steps are kept. The choice is logged.

    Args:
        cfg: Settings that may have a section `scheduler`.
        prediction: What the LDM predicts.
    """
    scheduler = getattr(cfg, "scheduler", None)
    if prediction != "flow" or not isinstance(scheduler, PluginConfig):
        return cfg
    stated = scheduler.model_fields_set if "scheduler" in cfg.model_fields_set else set()
    if not stated <= {"steps"}:
        return cfg
    steps = {"steps": scheduler.steps} if stated else {}
    chosen = default_scheduler(prediction, scheduler.name, **steps)
    log.info(f"the LDM predicts flow and no scheduler is stated: {chosen.name} with {chosen.steps} steps is used in "
             f"place of {scheduler.name}")
    return cfg.model_copy(update={"scheduler": chosen})


def _predictions(config_class: type) -> tuple[str, ...]:
    return getattr(config_class, "predictions", PREDICTIONS)
