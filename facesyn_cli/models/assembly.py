"""Builds a network from settings and fills it with the tensors of a file, strictly.

Settings come from the file; what the user gives explicitly must agree with them. Modules come in eval mode, on the CPU,
in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from facesyn_cli.errors import UserError, first_line
from facesyn_cli.models.convert.detect_architecture import check_finite, differences, shapes_of
from facesyn_cli.models.convert.detected import DetectedNetwork
from facesyn_cli.models.meta_networks import build_on_meta, limited_parameters
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig

_UNDECIDED = {"channel_order": "rgb, or bgr for weights of AdaFace"}
_FREE = {  # settings that change how a network runs or trains, not which tensors it has
    "dropout", "component_dropout", "drop_path", "checkpoint_activations", "quantize", "head_channels", "channel_order",
    "token_drop",
}


def agreed_settings(found: DetectedNetwork, cfg: PluginConfig | None, path: Path) -> PluginConfig:
    """Return the settings of the file, with those of `cfg` where the file leaves a choice.

    Args:
        found: The network in the file.
        cfg: Plugin and settings that the user gives explicitly; None: none.
        path: The file, for messages.

    Raises:
        UserError: The file is of another network, or leaves a setting open that is not given.
    """
    if found.undecided and (cfg is None or found.undecided not in cfg.model_fields_set):
        raise UserError(
            f"{path} is {found.title}, and nothing in the file tells its {found.undecided}: give {found.kind}.name="
            f"{found.name} and {found.kind}.{found.undecided}=... ({_UNDECIDED[found.undecided]})"
        )
    if cfg is None:
        return configure(found.kind, {"name": found.name, **found.settings}, str(path))
    if cfg.name != found.name:
        raise UserError(f"{path} is {found.title}; {found.kind} {cfg.name} was asked for")
    asked = {key: getattr(cfg, key) for key in cfg.model_fields_set if key != "name"}
    agreed = configure(found.kind, {"name": found.name, **found.settings, **asked}, str(path))
    plain = configure(found.kind, {"name": found.name, **found.settings}, str(path))
    for key in found.settings:
        if key in asked and getattr(agreed, key) != getattr(plain, key) and key not in _FREE:
            raise UserError(f"{path} has {key} {getattr(plain, key)}; {getattr(agreed, key)} was asked for")
    return agreed


def configure(kind: str, settings: dict[str, Any], where: str) -> PluginConfig:
    """Validate the settings of a network, with one line for the first that is wrong."""
    try:
        return registry.configure(kind, settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "settings"
        raise UserError(f"{where}: {kind} {settings['name']}: {place}: {first['msg']}") from error


def assemble(kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a network and load the tensors into it, strictly; torch's random generator is left as it was.

    Raises:
        UserError: The tensors do not fit, are no floating-point numbers or not finite.
    """
    module = _build_without_numbers(kind, cfg, tensors, path)
    state = _fitting_state(module, kind, cfg, tensors, path)
    odd = [key for key, value in state.items() if value.is_floating_point() and not tensors[key].is_floating_point()]
    if odd:
        found = str(tensors[odd[0]].dtype).removeprefix("torch.")
        raise UserError(f"{path} holds {found} in {len(odd)} tensors such as {odd[0]}; floating point was expected")
    check_finite(tensors, path)
    module.load_state_dict(tensors, strict=True)
    return module.eval()


def _build_without_numbers(kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a network whose state dict will be overwritten; shapes are compared before memory is allocated."""
    try:
        module = build_on_meta(kind, cfg, len(tensors))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (NotImplementedError, RuntimeError):
        module = None  # its builder depends on the values of its parameters
    if module is not None:
        state = _fitting_state(module, kind, cfg, tensors, path)
        # timm's networks may keep numbers outside their state dict
        if cfg.name != "timm" and {name for name, _ in module.named_buffers()} <= set(state):
            return module.to_empty(device="cpu")
    try:
        with torch.random.fork_rng(devices=[]), limited_parameters(len(tensors)):
            return registry.build(kind, cfg)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(f"{path}: {kind} {cfg.name} cannot be built with its settings: {first_line(error)}") from error


def _fitting_state(
    module: nn.Module, kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    state = module.state_dict()
    if wrong := differences(shapes_of(state), tensors):
        raise UserError(f"{path} does not fit {kind} {cfg.name} with its settings: {wrong}")
    return state
