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
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # Tensor.normal_(self), torch.nn.init.normal_(tensor=...)
        if getattr(func, "__name__", "") in ("normal_", "uniform_") and getattr(target, "is_meta", False):
            return target
        return func(*args, **kwargs)
