"""Runs a loaded network once on fixed inputs: finite, not constant, independent of the batch, equal to a fixture.

A fixture is a `.npz` file with inputs and the outputs that another implementation gave for them, under the
names of the golden vectors: `embedding` (with `pixels`, or for the fixed input of `fixed_pixels`) for a
recognizer, `x`, `t`, `context` and `eps_cond` or `eps` for a denoiser, `image` and `latent` or `z` and
`decoded` for an autoencoder, `x`, `t` and `out` for an unconditional generator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import read_archive

# Largest difference from a fixture, relative to the spread of its outputs: float32 rounding explains 2.2e-4 of IR-101,
# the deepest network with golden vectors, on any processor (8 u sqrt of the products added up on the way).
TOLERANCE = 3e-4
BATCH_TOLERANCE = 1e-3  # largest difference between one image alone and in a batch, likewise


def fixed_pixels(side: int, count: int = 2) -> Tensor:
    """Return the golden input of recognizers, (count, 3, side, side) uniform in [-1, 1]."""
    return torch.from_numpy(np.random.RandomState(7).uniform(-1, 1, (count, 3, side, side)).astype(np.float32))


def check_backbone(network: nn.Module, side: int, where: str, fixture: Path | None) -> dict[str, Any]:
    """Return the results of the check.

    Args:
        network: pixels (B, 3, side, side) -> (B, D).
        side: In pixels.
        where: Name of the file, for messages.
        fixture: File to compare with; None: none.

    Raises:
        UserError: The output is not finite, the same for different faces, depends on the batch, or is not
            what the fixture holds.
    """
    given = _read(fixture)
    pixels = fixed_pixels(side)
    with torch.inference_mode():
        rows = _finite(network(pixels), where)
        alone = _finite(network(pixels[:1]), where)
        if _distance(rows[0], rows[1]) == 0:
            raise UserError(f"{where}: gives the same embedding for different faces")
        batch = _distance(alone[0], rows[0])
        if batch > BATCH_TOLERANCE:
            raise UserError(f"{where}: an embedding depends on its batch (by {batch:.2g} of the spread)")
        seen = {"embedding_size": rows.shape[1], "finite": True, "batch_difference": batch}
        if not given:
            return seen
        if "pixels" in given:
            rows = network(_tensor(given, "pixels", fixture))
        return {**seen, **_compare({"embedding": rows}, given, where, fixture)}


def check_denoiser(network: nn.Module, sizes: tuple[int, int, int], where: str, fixture: Path | None) -> dict[str, Any]:
    """Return the results of the check.

    Args:
        network: (x, t, context) -> predicted noise of the shape of x.
        sizes: Channels and side of the latents, and length of a context.
        where: Name of the file, for messages.
        fixture: File to compare with; None: none.

    Raises:
        UserError: The output is not finite, or differs from the fixture.
    """
    channels, side, length = sizes
    given = _read(fixture)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(1, channels, side, side, generator=generator), torch.tensor([500])
    context = torch.nn.functional.normalize(torch.randn(1, length, generator=generator))
    with torch.inference_mode():
        _finite(network(x, t, context), where)
        seen = {"latent": [channels, side, side], "finite": True}
        if not given:
            return seen
        x, t = _tensor(given, "x", fixture), _tensor(given, "t", fixture)
        context = _tensor(given, "context", fixture)
        found = network(x, t, context)
        found = {"eps_cond": found, "eps": found}
        if "eps_uncond" in given or "eps_no_context" in given:
            empty = network(x, t, None)
            found |= {"eps_uncond": empty, "eps_no_context": empty}
        return {**seen, **_compare(found, given, where, fixture)}


def check_generator(
    network: Callable[[Tensor, Tensor], Tensor], sizes: tuple[int, int], where: str, fixture: Path | None
) -> dict[str, Any]:
    """Return the results of the check.

    Args:
        network: (x, t) -> predicted noise and, in as many channels again, where the variance lies.
        sizes: Channels and side of a small image.
        where: Name of the file, for messages.
        fixture: File to compare with; None: none.

    Raises:
        UserError: The output is not finite, or differs from the fixture.
    """
    channels, side = sizes
    given = _read(fixture)
    with torch.inference_mode():
        x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
        _finite(network(x, torch.tensor([500])), where)
        if not given:
            return {"finite": True}
        out = network(_tensor(given, "x", fixture), _tensor(given, "t", fixture))
        return {"finite": True, **_compare({"out": out}, given, where, fixture)}


def check_autoencoder(network: nn.Module, part: str, where: str, fixture: Path | None) -> dict[str, Any]:
    """Return the results of the check.

    Args:
        network: With `encode`, `decode`, `latent_channels` and `downscale`.
        part: What of it there is: encoder, decoder or both.
        where: Name of the file, for messages.
        fixture: File to compare with; None: none.

    Raises:
        UserError: An output is not finite, or differs from the fixture.
    """
    given = _read(fixture)
    side = 8 * network.downscale
    latents = torch.randn(1, network.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if part != "decoder":
            latents = _finite(network.encode(fixed_pixels(side, 1)), where)
        if part != "encoder":
            _finite(network.decode(latents), where)
        seen = {"latent_channels": network.latent_channels, "downscale": network.downscale, "finite": True}
        if not given:
            return seen
        found = {}
        if part != "decoder" and "latent" in given:
            found["latent"] = network.encode(_tensor(given, "image", fixture))
        if part != "encoder" and "decoded" in given:
            found["decoded"] = network.decode(_tensor(given, "z", fixture))
        return {**seen, **_compare(found, given, where, fixture)}


def _compare(
    found: dict[str, Tensor], given: dict[str, np.ndarray], where: str, fixture: Path
) -> dict[str, dict[str, float]]:
    common = [name for name in found if name in given]
    if not common:
        raise UserError(f"{fixture} does not fit: it holds {', '.join(given)}; one of {', '.join(found) or 'none'} was "
                        f"expected for {where}")
    differences = {name: _distance(found[name], _tensor(given, name, fixture)) for name in common}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(f"{where} does not give what {fixture} says: {name} is off by {difference:.2g} of its "
                            f"spread (at most {TOLERANCE} was expected)")
    return {"fixture_difference": differences}


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference over the spread of what is expected; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.std(correction=0).clamp(min=1e-12))


def _finite(output: Tensor, where: str) -> Tensor:
    if not output.isfinite().all():
        raise UserError(f"{where}: its output is not finite")
    return output


def _read(fixture: Path | None) -> dict[str, np.ndarray]:
    if fixture is None:
        return {}
    return read_archive(fixture, "a .npz file of inputs and outputs")


def _tensor(given: dict[str, np.ndarray], name: str, fixture: Path) -> Tensor:
    if name not in given:
        raise UserError(f"{fixture} has no {name}; it holds {', '.join(given)}")
    return torch.from_numpy(given[name])
