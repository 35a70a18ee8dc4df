"""Fixed weights and inputs of the golden vectors: every value follows from a name and a shape.

Also holds the full-size published UNet with those weights, built once per test session.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def golden_normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers, float32, from numpy's legacy generator."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def golden_uniform(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return numbers uniform in [-1, 1], float32, from numpy's legacy generator."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32))


def golden_tensor(key: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the golden value of the state-dict entry `key`."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) >= 2:
        z /= np.sqrt(np.prod(shape[1:]))
    elif key.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif key.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(np.asarray(z, dtype=np.float32)).to(dtype)


def fill_state(module: nn.Module, known: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Give every entry of the module's state dict its golden value and switch it to eval mode.

    Args:
        known: State dict already filled, of another module; entries of the same name, shape and dtype are
            taken from it, memory included, instead of being drawn again.
    """
    state = {}
    for key, value in module.state_dict().items():
        have = (known or {}).get(key)
        if have is not None and have.shape == value.shape and have.dtype == value.dtype:
            state[key] = have
        else:
            state[key] = golden_tensor(key, tuple(value.shape), value.dtype)
    module.load_state_dict(state, assign=True)
    return module.eval()


def load_golden(name: str) -> dict[str, np.ndarray]:
    """Read `tests/golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored}


def load_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Read a list of published state-dict entries: name -> shape."""
    rows = (GOLDEN / f"keys_{name}.txt").read_text().splitlines()
    fields = (row.split("\t") for row in rows if row and not row.startswith("#"))
    return {key: tuple(int(n) for n in shape.strip("[]").split(",") if n.strip()) for key, shape, _ in fields}


@functools.cache
def golden_unet() -> nn.Module:
    """Return the full-size published UNet (cross-attention) with golden weights. Do not change it."""
    return fill_state(skeleton("denoiser", name="idiff-unet"))


def skeleton(kind: str, **settings) -> nn.Module:
    """Build a plugin's network without numbers, to be filled."""
    from facesyn_cli.models.meta_networks import build_on_meta
    from facesyn_cli.plugins import registry

    return build_on_meta(kind, registry.configure(kind, settings))
