"""Runs a loaded network once on fixed inputs: finite, not constant, independent of the batch, equal to a fixture.

A fixture is a `.npz` file with inputs and the outputs that another implementation gave for them, under the
names of the golden vectors: `embedding` (with `pixels`, or for the fixed input of `fixed_pixels`) for a
recognizer, `x`, `t`, `context` and `eps_cond` or `eps` for a denoiser, `image` and `latent` or `z` and
`decoded` for an autoencoder, `x`, `t` and `out` for an unconditional generator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.models.inspection import GENERATOR
from facesyn_cli.models.loaded_network import LoadedNetwork
from facesyn_cli.untrusted.arrays import read_archive

# Largest difference from a fixture, relative to the spread of its outputs: float32 rounding explains 2.2e-4 of IR-101,
# the deepest network with golden vectors, on any processor (8 u sqrt of the products added up on the way).
TOLERANCE = 3e-4
BATCH_TOLERANCE = 1e-3  # largest difference between one image alone and in a batch, likewise


def fixed_pixels(side: int, count: int = 2) -> Tensor:
    """Return the golden input of recognizers, (count, 3, side, side) uniform in [-1, 1]."""
    return torch.from_numpy(np.random.RandomState(7).uniform(-1, 1, (count, 3, side, side)).astype(np.float32))


class _Fixture:
    """The inputs and outputs of a fixture, by name; empty without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._arrays = {} if path is None else read_archive(path, "a .npz file of inputs and outputs")

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __bool__(self) -> bool:
        return bool(self._arrays)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._arrays:
            raise UserError(f"{self._path} has no {name}; it holds {', '.join(self._arrays)}")
        return torch.from_numpy(self._arrays[name])

    def compare(self, found: dict[str, Tensor], where: str) -> dict[str, dict[str, float]]:
        """Return the differences of the outputs that the fixture holds.

        Raises:
            UserError: One is too large, or the fixture holds none of the outputs.
        """
        if not self:
            return {}
        differences = {name: _distance(output, self[name]) for name, output in found.items() if name in self}
        if not differences:
            raise UserError(f"{self._path} does not fit: it holds {', '.join(self._arrays)}; one of "
                            f"{', '.join(found) or 'none'} was expected for {where}")
        for name, difference in differences.items():
            if not difference <= TOLERANCE:
                raise UserError(f"{where} does not give what {self._path} says: {name} is off by {difference:.2g} of "
                                f"its spread (at most {TOLERANCE} was expected)")
        return {"fixture_difference": differences}


def check_network(loaded: LoadedNetwork, where: str, fixture: Path | None) -> dict[str, Any]:
    """Return the sizes of a network and its differences from the fixture.

    Args:
        loaded: A recognizer, denoiser, autoencoder or unconditional generator.
        where: Name of the file, for messages.
        fixture: File to compare with; None: none.

    Raises:
        UserError: An output is not finite, the same for different faces, depends on the batch, or differs from the
            fixture.
    """
    check = {"backbone": _check_backbone, "denoiser": _check_denoiser, "autoencoder": _check_autoencoder,
             GENERATOR: _check_generator}[loaded.kind]
    given = _Fixture(fixture)
    with torch.inference_mode():
        seen, found = check(loaded, where, given)
        return {**seen, "finite": True, **given.compare(found, where)}


def _check_backbone(loaded: LoadedNetwork, where: str, given: _Fixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what was found, and the outputs for the inputs of the fixture; likewise the functions below."""
    pixels = fixed_pixels(loaded.input_size)
    rows = _finite(loaded.module(pixels), where)
    alone = _finite(loaded.module(pixels[:1]), where)
    if _distance(rows[0], rows[1]) == 0:
        raise UserError(f"{where}: gives the same embedding for different faces")
    batch = _distance(alone[0], rows[0])
    if batch > BATCH_TOLERANCE:
        raise UserError(f"{where}: an embedding depends on its batch (by {batch:.2g} of the spread)")
    found = loaded.module(given["pixels"]) if "pixels" in given else rows
    return {"embedding_size": rows.shape[1], "batch_difference": batch}, {"embedding": found}


def _check_denoiser(loaded: LoadedNetwork, where: str, given: _Fixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    latent = [loaded.ldm.latent_channels, loaded.ldm.latent_size, loaded.ldm.latent_size]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *latent, generator=generator)
    context = torch.nn.functional.normalize(torch.randn(1, loaded.ldm.embedding_size, generator=generator))
    _finite(loaded.module(x, torch.tensor([500]), context), where)
    found = {}
    if given:
        found["eps_cond"] = found["eps"] = loaded.module(given["x"], given["t"], given["context"])
        if "eps_uncond" in given or "eps_no_context" in given:
            found["eps_uncond"] = found["eps_no_context"] = loaded.module(given["x"], given["t"], None)
    return {"latent": latent}, found


def _check_generator(loaded: LoadedNetwork, where: str, given: _Fixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    channels = loaded.module.config["in_channels"]
    side = 2 * 2 ** (len(loaded.module.config["block_out_channels"]) - 1)  # of a small image
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    _finite(loaded.module(x, torch.tensor([500])).sample, where)
    return {}, {"out": loaded.module(given["x"], given["t"]).sample} if given else {}


def _check_autoencoder(loaded: LoadedNetwork, where: str, given: _Fixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    network, part = loaded.module, loaded.part
    latents = torch.randn(1, network.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    if part != "decoder":
        latents = _finite(network.encode(fixed_pixels(8 * network.downscale, 1)), where)
        if "latent" in given:
            found["latent"] = network.encode(given["image"])
    if part != "encoder":
        _finite(network.decode(latents), where)
        if "decoded" in given:
            found["decoded"] = network.decode(given["z"])
    return {"latent_channels": network.latent_channels, "downscale": network.downscale}, found


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference over the spread of what is expected; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.std(correction=0).clamp(min=1e-12))


def _finite(output: Tensor, where: str) -> Tensor:
    if not output.isfinite().all():
        raise UserError(f"{where}: its output is not finite")
    return output
