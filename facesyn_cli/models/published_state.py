"""A recognizer's state dict as its published code writes it: RGB and flat; MagFace's under its wrapper, BGR."""

from __future__ import annotations

from torch import Tensor, nn

from facesyn_cli.models.convert.wrappers import MAGFACE

_PREFIX = f"{MAGFACE}.module."  # as MagFace's own trainer saves it


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors by published name; read back by `models/convert`, they make the same network.

    Args:
        network: A recognizer whose own parameter names are the published ones.
    """
    if getattr(network, "is_magface", False):  # names and shapes are those of other IResNets, pixels and eps are not
        return {_PREFIX + key: value for key, value in network.state_in("bgr").items()}
    return network.state_in("rgb") if hasattr(network, "state_in") else network.state_dict()
