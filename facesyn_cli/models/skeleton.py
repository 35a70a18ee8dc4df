"""Networks without numbers: parameter names and shapes only, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig


def build_skeleton(kind: str, cfg: PluginConfig) -> nn.Module:
    """Build a plugin's network on the meta device; no memory, no random numbers, in a fraction of a second.

    Raises:
        NotImplementedError, RuntimeError: The plugin's builder looks at the numbers it makes.
    """
    with torch.device("meta"), _SkipDraws():
        return registry.build(kind, cfg)


class _SkipDraws(TorchFunctionMode):
    """Leave out random initialisation: on the meta device it does nothing, after seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_") and args:
            if isinstance(args[0], torch.Tensor) and args[0].is_meta:
                return args[0]
        return func(*args, **(kwargs or {}))
