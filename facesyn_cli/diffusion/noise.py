"""Noise that belongs to an image, not to a run.

Every draw is keyed by what it is for, so it does not depend on batch size, number of processes, order or
on what was drawn before. The key is the first 128 bits of SHA-256 over a JSON list, in which no two
different lists look alike; it seeds the counter-based Philox generator (Salmon et al. 2011), read through
numpy's frozen legacy stream, whose numbers are promised not to change between versions.

A torch generator would not do: on CPU it keeps 32 bits of its seed, so among the 500,000 images of an
ordinary set about thirty pairs would share their noise.
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
        attempt: How often the image was refused and drawn again.
    """
    return _normal(keyed_random("image", seed, identity, sample, *_again(attempt)), shape)


def step_noise(
    seed: int, identity: str, sample: int, step: int, shape: tuple[int, ...], attempt: int = 0
) -> Tensor:
    """Return what a stochastic scheduler adds to one image after its step number `step`, from 0."""
    return _normal(keyed_random("step", seed, identity, sample, step, *_again(attempt)), shape)


def style_noise(seed: int, style: int, shape: tuple[int, ...]) -> Tensor:
    """Return starting noise that belongs to no identity but to a style, which all of them share."""
    return _normal(keyed_random("style", seed, style), shape)


def keyed_random(purpose: str, *key: int | str) -> np.random.RandomState:
    """Return a generator for one purpose and key, independent of every other one.

    Args:
        purpose: What is drawn, so that the same key may serve two purposes.
        key: Integers and strings, for example seed, identity and sample; 1 and "1" differ.
    """
    text = json.dumps([purpose, *key], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.random.RandomState(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)))


def open_noise_file(
    path: Path | None, num_ids: int, per_id: int, latent_shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Map a given array of starting noise into memory; None without a file.

    Args:
        path: `.npy` file, (ids, per_id, C, H, W) of any float type; it may hold more ids and samples.
        num_ids: Identities needed.
        per_id: Samples of each needed.
        latent_shape: (C, H, W).

    Raises:
        UserError: It is no such array.
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


def _again(attempt: int) -> tuple[int, ...]:
    """The first attempt has the key it has without attempts."""
    return (attempt,) if attempt else ()


def _normal(random: np.random.RandomState, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))
