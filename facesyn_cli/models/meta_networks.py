"""Builds networks on torch's meta device: parameter names and shapes, without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from facesyn_cli.errors import UserError, first_line
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig

_MARGIN, _SPARE = 2, 256


def build_on_meta(kind: str, cfg: PluginConfig, num_tensors: int | None = None) -> nn.Module:
    """Build a plugin's network on the meta device; no memory, no random numbers, in a fraction of a second.

    Args:
        kind: Kind of plugin.
        cfg: Plugin and settings.
        num_tensors: Of the file that the network is for; None: there is none. A file whose settings ask for a network
            of many more parameters does not fit, and building that network could take hours.

    Raises:
        NotImplementedError, RuntimeError: The plugin's builder depends on the values of its parameters.
        UserError: The network has far more parameters than the file has tensors, or a setting is absurd.
    """
    try:
        with torch.device("meta"), _SkipDraws(), limited_parameters(num_tensors):
            return registry.build(kind, cfg)
    except (TypeError, OverflowError, MemoryError) as error:  # sides beyond 64 bits
        raise UserError(f"{kind} {cfg.name} cannot be built with its settings: {first_line(error)}") from error


@contextmanager
def limited_parameters(num_tensors: int | None) -> Iterator[None]:
    """Stop the building of networks in the block where they get far more parameters than a file has tensors.

    Args:
        num_tensors: Of the file; None: no limit.
    """
    if num_tensors is None:
        yield
        return
    left = _SPARE + _MARGIN * num_tensors  # builders may replace layers they have built

    def count(module: nn.Module, name: str, value: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(f"its settings ask for a network of more parameters than its {num_tensors} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class _SkipDraws(TorchFunctionMode):
    """Leave out random initialization: on the meta device it does nothing, after seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # Tensor.normal_(self), torch.nn.init.normal_(tensor=...)
        if getattr(func, "__name__", "") in ("normal_", "uniform_") and getattr(target, "is_meta", False):
            return target
        return func(*args, **kwargs)
