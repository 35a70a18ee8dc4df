"""Load the network that a file or folder contains, whatever its kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import CONFIG, read_config
from facesyn_cli.errors import UserError
from facesyn_cli.models import inspection
from facesyn_cli.models.convert.guided_diffusion import load_guided_pipeline
from facesyn_cli.models.loading import load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.plugins import registry


@dataclass(frozen=True)
class LoadedNetwork:
    """A strictly loaded network, with the config and settings to write or run it."""

    kind: str
    name: str
    module: nn.Module
    config: dict[str, Any]           # config.json of the own format
    input_size: int = 0              # of a backbone
    ldm: LdmSettings | None = None   # of a denoiser
    part: str = "both"               # of an autoencoder
    pipeline: Any = None             # of a generator

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def load_network(path: Path, channel_order: str | None = None) -> LoadedNetwork:
    """Load the network of a file or folder, strictly.

    Args:
        path: File or Weights folder.
        channel_order: rgb or bgr, the input of a recognizer, where the file does not tell; None: as the file tells.

    Raises:
        UserError: There is no single network of a known kind in it.
    """
    description = inspection.inspect(path)
    kind = description["kind"]
    if channel_order is not None:
        _check_channel_order(channel_order, description)
    elif description.get("undecided"):
        raise UserError(f"{path} is a backbone {description['architecture']}, and nothing in the file tells its "
                        f"{description['undecided']}: give --channel-order rgb, or bgr for weights of AdaFace")
    if kind == inspection.GENERATOR:
        pipeline = load_guided_pipeline(path)
        return LoadedNetwork(kind, description["architecture"], pipeline.unet, {}, pipeline=pipeline)
    if kind == inspection.ONNX_KIND:
        loaded = load_backbone(path)
        return LoadedNetwork("backbone", "onnx", loaded.module, {}, loaded.input_size)
    if kind == "unknown":
        raise UserError(f"{path} {description['nearest']}")
    own_config = read_config(path) if (path / CONFIG).is_file() else {}  # of a Weights folder; true of a copy too
    if kind == "backbone":
        section = own_config["backbone"] if path.is_dir() else {
            "name": description["architecture"], **description["settings"]}
        cfg = None
        if channel_order is not None:
            section = {**section, "channel_order": channel_order}
            cfg = registry.configure("backbone", section)
        loaded = load_backbone(path, cfg, reads=None)
        config = {**own_config, "kind": kind, "backbone": section, "input_size": loaded.input_size}
        return LoadedNetwork(kind, loaded.name, loaded.module, config, loaded.input_size)
    if kind == "denoiser":
        loaded = load_denoiser(path)
        config = loaded.config.model_dump(mode="json")
        return LoadedNetwork(kind, description["architecture"], loaded.module, config, ldm=loaded.config)
    if kind == "autoencoder":
        part = description.get("settings", {}).get("part", "both")
        module = load_autoencoder(path, part=part)
        section = {"name": module.section["name"], **module.section["settings"], "part": part}
        config = {**own_config, "kind": kind, "autoencoder": section}
        return LoadedNetwork(kind, module.section["name"], module, config, part=part)
    held = f"{description['format']} ({description['architecture']})"
    raise UserError(f"{path} is a {held}; a single network was expected")


def _check_channel_order(channel_order: str, description: dict[str, Any]) -> None:
    if channel_order not in ("rgb", "bgr"):
        raise UserError(f"--channel-order {channel_order}: rgb or bgr was expected")
    kind, name = description["kind"], description.get("architecture")
    if kind != "backbone" or "channel_order" not in registry.get(kind, name).config_class.model_fields:
        raise UserError(f"--channel-order belongs to IR and IResNet recognizers; {description['path']} is none")
