"""Random numbers keyed by purpose and image, independent of batch size, number of processes and order.

The key is the first 128 bits of SHA-256 over a JSON list; it seeds the counter-based Philox generator (Salmon et al.
2011), read through numpy's legacy stream, which is stable across versions. A torch generator is not suitable: on CPU it
uses 32 bits of its seed, so among 500,000 images about thirty pairs would share their noise.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import map_array


def image_noise(seed: int, identity: str, sample: int, shape: tuple[int, ...], attempt: int = 0) -> Tensor:
    """Return the starting noise x_T of one image: float32 N(0, 1) of the given shape, on the CPU.

    Args:
        seed: Seed of the run.
        identity: Name of the identity.
        sample: Number of the image.
        shape: (C, H, W).
        attempt: Number of earlier attempts, by rejection sampling.
    """
    return _normal(keyed_random("image", seed, identity, sample, *_attempt_key(attempt)), shape)


def step_noise(seed: int, identity: str, sample: int, step: int, shape: tuple[int, ...], attempt: int = 0) -> Tensor:
    """Return the noise that a stochastic scheduler adds to one image after step `step`, from 0; see `image_noise`."""
    return _normal(keyed_random("step", seed, identity, sample, step, *_attempt_key(attempt)), shape)


def style_noise(seed: int, style: int, shape: tuple[int, ...]) -> Tensor:
    """Return the starting noise of a style, which all identities share."""
    return _normal(keyed_random("style", seed, style), shape)


def keyed_random(purpose: str, *key: int | str) -> np.random.RandomState:
    """Return a generator for one purpose and key, independent of all others.

    Args:
        purpose: Name of the purpose, so that the same key can serve two purposes.
        key: Integers and strings, for example seed, identity and sample; 1 and "1" differ.
    """
    text = json.dumps([purpose, *key], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.random.RandomState(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)))


def open_noise_file(
    path: Path | None, num_ids: int, per_id: int, latent_shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Map a `.npy` file of starting noise into memory; None without a file.

    Args:
        path: `.npy` file, (ids, per_id, C, H, W) of any float type; it may hold more ids and samples.
        num_ids: Number of identities.
        per_id: Samples per identity.
        latent_shape: (C, H, W).

    Raises:
        UserError: It has another shape or type.
    """
    if path is None:
        return None
    shape = f"a float .npy of shape {num_ids} x {per_id} x {' x '.join(map(str, latent_shape))}"
    expected = f"noise.file {path}: {shape}"
    noise = map_array(path, shape)
    if noise.dtype.kind != "f":
        raise UserError(f"{expected} was expected, found {noise.dtype}")
    if noise.ndim != 5 or noise.shape[2:] != latent_shape or noise.shape[0] < num_ids or noise.shape[1] < per_id:
        raise UserError(f"{expected} was expected, found {' x '.join(map(str, noise.shape))}")
    return noise


def _attempt_key(attempt: int) -> tuple[int, ...]:
    """Return the part of the key for an attempt; empty for the first."""
    return (attempt,) if attempt else ()


def _normal(random: np.random.RandomState, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))
