"""List known weights, inspect and verify files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.packaged_networks import AUTOENCODERS, autoencoder_folder, packaged_path
from facesyn_cli.artifacts.starter_files import CARD, PACKAGED, find_starter, is_packaged
from facesyn_cli.artifacts.weights import read_config
from facesyn_cli.diffusion.schedule import describe_betas
from facesyn_cli.models import inspection
from facesyn_cli.models.catalog import CATALOG
from facesyn_cli.models.loaded_network import load_network
from facesyn_cli.models.self_check import check_network

_KINDS = {"ldm": "denoiser", "embedder": "backbone", "identity": "backbone"}  # of the starter's networks
_USE = {
    "ldm": "default LDM of sample and gen-contexts", "embedder": "default recognizer of embed and gen-contexts",
    "identity": "identity_recognizer of train-ldm",
}


def list_weights() -> dict[str, dict[str, Any]]:
    """Return the parts of the packaged starter, if any, the packaged autoencoders and published weights."""
    found = {}
    starter = find_starter(PACKAGED) if is_packaged() else None
    for part in starter.digests if starter else ():
        if part not in _KINDS:
            continue
        kind, folder = _KINDS[part], starter.part(part)
        found[f"starter-{part}"] = {
            "kind": kind, "architecture": read_config(folder)[kind]["name"], "source": "facesyn, in the package",
            "license": f"research use; see {folder / CARD}", "where": str(folder), "use": _USE[part],
        }
    for name, network in AUTOENCODERS.items():
        facts = {key: value for key, value in asdict(network).items() if key != "files"}
        found[name] = {**facts, "where": str(autoencoder_folder(name))}
    for name, entry in CATALOG.items():
        found[name] = {key: value for key, value in asdict(entry).items() if value is not None}
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Describe a file or folder of weights, or a packaged network by its name; see `models.inspection.inspect`."""
    found = inspection.inspect(packaged_path(str(path)) or path)
    schedule = found.get("noise_schedule", {})
    if isinstance(schedule.get("beta_schedule"), list):
        found["noise_schedule"] = {**schedule, "beta_schedule": describe_betas(schedule["beta_schedule"])}
    return found


def verify(path: Path, fixture: Path | None = None, channel_order: str | None = None) -> dict[str, Any]:
    """Load strictly, run once, and compare with a fixture if one is given.

    Args:
        path: File or Weights folder, or the name of a packaged network.
        fixture: As of `models/self_check.py`.
        channel_order: As of `load_network`.

    Raises:
        UserError: It does not load, or its output is not the expected one.
    """
    path = packaged_path(str(path)) or path
    loaded = load_network(path, channel_order)
    seen = check_network(loaded, str(path), fixture)
    return {"path": str(path), "kind": loaded.kind, "architecture": loaded.name, "loads": "strictly", **seen}
