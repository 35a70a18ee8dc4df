"""List known weights, inspect and verify files, download weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.download import fetch, fetch_from_hub, file_name, is_hub_name
from facesyn_cli.artifacts.starter_files import CARD, PACKAGED, find_starter, is_packaged
from facesyn_cli.artifacts.weights import read_config
from facesyn_cli.console import log
from facesyn_cli.diffusion.schedule import describe_betas
from facesyn_cli.errors import UserError
from facesyn_cli.models import inspection
from facesyn_cli.models.catalog import CATALOG
from facesyn_cli.models.loaded_network import load_network
from facesyn_cli.models.self_check import check_network

PULLED = Path("weights")  # default folder of downloads
_KINDS = {"autoencoder": "autoencoder", "ldm": "denoiser", "embedder": "backbone"}  # of the starter's parts
_USE = {
    "autoencoder": "default autoencoder of train-ldm", "ldm": "default LDM of sample and gen-contexts",
    "embedder": "default recognizer of embed and gen-contexts",
}


def list_weights() -> dict[str, dict[str, Any]]:
    """Return the parts of the packaged starter, if any, and the catalog of published weights."""
    found = {}
    for part, kind in _KINDS.items() if is_packaged() else ():
        folder = find_starter(PACKAGED).part(part)
        found[f"starter-{part}"] = {
            "kind": kind, "architecture": read_config(folder)[kind]["name"], "source": "facesyn, in the package",
            "license": f"research use; see {folder / CARD}", "where": str(folder), "use": _USE[part],
        }
    for name, entry in CATALOG.items():
        found[name] = {key: value for key, value in asdict(entry).items() if value is not None}
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Describe a file or folder of weights; see `models.inspection.inspect`."""
    found = inspection.inspect(path)
    schedule = found.get("noise_schedule", {})
    if isinstance(schedule.get("beta_schedule"), list):
        found["noise_schedule"] = {**schedule, "beta_schedule": describe_betas(schedule["beta_schedule"])}
    return found


def verify(path: Path, fixture: Path | None = None, channel_order: str | None = None) -> dict[str, Any]:
    """Load strictly, run once, and compare with a fixture if one is given.

    Args:
        path: File or Weights folder.
        fixture: As of `models/self_check.py`.
        channel_order: As of `load_network`.

    Raises:
        UserError: It does not load, or its output is not the expected one.
    """
    loaded = load_network(path, channel_order)
    seen = check_network(loaded, str(path), fixture)
    return {"path": str(path), "kind": loaded.kind, "architecture": loaded.name, "loads": "strictly", **seen}


def pull(name: str, out: Path | None = None, sha256: str | None = None) -> dict[str, Any]:
    """Download weights by a name of the list, a hub id or an address.

    Args:
        name: For example `sd-vae-ft-mse`, `owner/name`, `owner/name/file.safetensors` or `https://...`.
        out: Folder to write; None: `weights`, and for a whole repository a folder in it.
        sha256: Expected checksum of a single file.

    Raises:
        UserError: The name is unknown or has no address, the server cannot be reached, or the checksum differs.
    """
    target = out or PULLED
    if "://" in name:
        file = target / file_name(name)
        digest = fetch(name, file, sha256)
        if sha256 is None:
            log.warning(f"{file}: no checksum was given; compare {digest} with the one that its author publishes")
        return {"file": str(file), "digest": digest}
    entry = CATALOG.get(name)
    if entry is None and not is_hub_name(name):
        raise UserError(f"{name} is not in the list (facesyn models list), no hub id owner/name and no address")
    if entry is not None and entry.hub is None:
        raise UserError(f"{name} has no address to download it from; get it by hand: {entry.where}")
    hub_name = entry.hub if entry is not None else name
    folder = target if out is not None else target / hub_name.split("/")[1].partition("@")[0]
    return fetch_from_hub(hub_name, folder, sha256)
