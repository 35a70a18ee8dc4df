"""Loads a network from a file or folder of weights, ours or published, recognized by content.

A Weights folder holds `model.safetensors` and `config.json`; the config names the plugin and its settings. Published
files hold tensors only; names and shapes tell what they are (`models/convert`). Every file is loaded strictly. Modules
come in eval mode, on the CPU, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.packaged_networks import (
    AUTOENCODERS,
    autoencoder_folder,
    check_autoencoder,
    packaged_name,
    packaged_path,
)
from facesyn_cli.artifacts.weights import CONFIG, read_config
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError
from facesyn_cli.models.assembly import agreed_settings, assemble, configure
from facesyn_cli.models.convert import compvis
from facesyn_cli.models.convert.detected import DetectedNetwork
from facesyn_cli.models.diffusers_autoencoder import resolve_path
from facesyn_cli.models.face_check import warn_if_unusable
from facesyn_cli.models.interfaces import Reads, what_it_reads
from facesyn_cli.models.onnx_files import is_pack
from facesyn_cli.models.weights_files import is_onnx, is_our_autoencoder, open_autoencoder_file, open_weights
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig

LATENTS_OF = "latents_of"  # in config.json of an autoencoder: digests of others whose latents it decodes too
_FROM_TENSORS = ("vq-f4", "kl-f4", "kl-f8", "face-kl", "face-vq")  # their weights lie in a file


@dataclass(frozen=True)
class LoadedBackbone:
    """A face recognizer: pixels (B, 3, input_size, input_size) in [-1, 1] -> embeddings (B, D), not normalized.

    Of latents: (B, in_channels, input_size, input_size) as the autoencoder gives them.
    """

    module: nn.Module
    name: str        # plugin name
    digest: str      # of the weights file's content
    input_size: int  # side of the images or latents it takes


@dataclass(frozen=True)
class LoadedLdm:
    """A denoiser and the settings a sampler needs."""

    module: nn.Module
    config: LdmSettings
    digest: str  # of the weights file's content


def load_backbone(
    path: Path | str | None, cfg: PluginConfig | None = None, reads: Reads | None = "photos"
) -> LoadedBackbone:
    """Load a face recognizer from a Weights folder, a published file, an ONNX file or a pack of those.

    Networks from elsewhere are tried on the packaged faces, with a warning if they do not tell people apart.

    Args:
        path: Where it lies; None only for a `cfg` that names its file itself (`onnx`).
        cfg: Expected plugin and settings; None takes what the file holds. Settings given explicitly must
            agree with the file. A file of a `timm` network is read only where `cfg` names it, except EdgeFace's.
        reads: What it must take; None: either.

    Raises:
        UserError: Not there, damaged, something else, not what `cfg` names, or it reads something else.
    """
    if path is None:
        if cfg is None or getattr(cfg, "weights", None) is None:
            asked = f"backbone {cfg.name}" if cfg is not None else "a face recognizer"
            raise UserError(f"{asked} needs a weights file; none was given")
        path = cfg.weights
    path = Path(path)
    if not path.exists():
        raise missing_input(path, "a file or folder with the weights of a face recognizer")
    is_onnx_pack = not (path / CONFIG).is_file() and is_pack(path)
    if is_onnx(path) or is_onnx_pack or (cfg is not None and cfg.name == "onnx"):
        if cfg is not None and cfg.name != "onnx":
            raise UserError(f"{path} is an ONNX network; backbone {cfg.name} was asked for (use backbone onnx)")
        cfg = configure("backbone", {"name": "onnx"}, str(path)) if cfg is None else cfg
        module = registry.build("backbone", cfg.model_copy(update={"weights": path})).eval()
        loaded = LoadedBackbone(module, "onnx", module.file.digest(), module.input_size)
        return _tried(loaded, module.file.name)
    found, file = open_weights(path, "backbone", cfg)
    cfg = agreed_settings(found, cfg, path)
    if path.is_file() and getattr(cfg, "channel_order", "") == found.settings.get("channel_order") == "bgr":
        log.info(f"{path} is {found.title}: its channels are taken as BGR (backbone.channel_order=rgb if they are not)")
    module = assemble("backbone", cfg, found.tensors, path)
    if reads not in (None, what_it_reads(module)):
        raise UserError(f"{path} is a recognizer that reads {what_it_reads(module)} (backbone {cfg.name}); one that "
                        f"reads {reads} was expected")
    loaded = LoadedBackbone(module, cfg.name, file_digest(file), getattr(module, "input_size", 112))
    return _tried(loaded, str(path)) if path.is_file() else loaded


def _tried(loaded: LoadedBackbone, where: str) -> LoadedBackbone:
    """Warn, in the first process, when a network from elsewhere does not tell the packaged faces apart."""
    if is_first_process():
        warn_if_unusable(loaded.module, loaded.input_size, where)
    return loaded


def load_denoiser(path: Path | str, cfg: PluginConfig | None = None) -> LoadedLdm:
    """Load a denoiser from a `2-ldm` folder or a published checkpoint.

    A published checkpoint has no settings: those of the published system are taken, with the number of
    latent channels, the size of the embedding and the noise schedule as the file shows them.

    Args:
        path: Where it lies.
        cfg: Expected plugin and settings; None takes what the file holds. Settings given explicitly must
            agree with the file.

    Raises:
        UserError: Not there, damaged, something else, or not what `cfg` names.
    """
    path = Path(path)
    found, file = open_weights(path, "denoiser")
    cfg = agreed_settings(found, cfg, path)
    module = assemble("denoiser", cfg, found.tensors, path)
    section = cfg.model_dump(mode="json")
    if (path / CONFIG).is_file():
        config = LdmSettings.from_json({**read_config(path), "denoiser": section}, str(path / CONFIG))
        config = config.model_copy(update={"autoencoder": _seen_from(path, config.autoencoder)})
    else:
        shown = {"latent_channels": getattr(cfg, "in_channels", 3), "embedding_size": getattr(cfg, "context_size", 512)}
        if not found.schedule:
            log.info(f"{path} has no noise schedule beside its network; the published one is taken: linear, 1000 steps")
        config = LdmSettings.published(section).model_copy(update={**shown, **found.schedule})
    return LoadedLdm(module, config, file_digest(file))


def _seen_from(folder: Path, section: dict[str, Any] | None) -> dict[str, Any] | None:
    """Resolve `../autoencoder`, as the starter has it, from the LDM's folder; other sections hold absolute paths."""
    if section is None or not str(section.get("path") or "").startswith("../"):
        return section
    return {**section, "path": str((folder / section["path"]).resolve())}


def load_autoencoder(path: Path | str | None, cfg: PluginConfig | None = None, part: str = "both") -> nn.Module:
    """Load an autoencoder: a VQ or KL file (whole or a half), a diffusers folder or hub id, or one without weights.

    The files of a packaged one are compared with their digests.

    The module has `encode`, `decode`, `latent_channels`, `downscale`, and `section`: the dict
    {name, settings, path, digest} from which `open_autoencoder` loads it again.

    Args:
        path: Where it lies, or the name of a packaged one; a folder may also hold the two halves under their
            published names. None only for a `cfg` that names its file itself (`diffusers`) or has none (`pixels`).
        cfg: Expected plugin and settings; None takes what is there.
        part: What is needed: encoder, decoder or both.

    Raises:
        UserError: Not there, damaged, something else, not what `cfg` names, or the wrong half.
    """
    if path is None:
        if cfg is None:
            raise UserError("an autoencoder is needed; none was given")
        if cfg.name in _FROM_TENSORS:
            raise UserError(f"autoencoder {cfg.name} needs a weights file; none was given")
        path = getattr(cfg, "path", None)
    path = path and (packaged_path(str(path)) or path)
    is_ours = path is not None and is_our_autoencoder(Path(path))
    if path is not None and not is_ours and (
        cfg.name == "diffusers" if cfg is not None else _is_diffusers(str(path))
    ):
        cfg = cfg if cfg is not None else configure("autoencoder", {"name": "diffusers"}, str(path))
        name = packaged_name(Path(path))
        if name is not None:
            check_autoencoder(name)
        module = registry.build("autoencoder", cfg.model_copy(update={"path": str(path)}))
        if name is not None:  # others keep the layout, and the rounding, that they had
            module = module.to(memory_format=torch.channels_last)  # encodes and decodes faster, on a CPU too
        return _with_section(module, cfg, name or str(path), module.digest())
    if cfg is not None and cfg.name not in _FROM_TENSORS:
        if path is not None:
            raise UserError(f"autoencoder {cfg.name} takes no weights file; got {path}")
        return _with_section(registry.build("autoencoder", cfg), cfg, None, None)
    file = Path(path)
    found, digest = open_autoencoder_file(file)
    if found.name not in _FROM_TENSORS:
        configure("autoencoder", {"name": found.name, **found.settings}, str(file))
        raise UserError(f"{file} names autoencoder {found.name!r}; one of {', '.join(_FROM_TENSORS)} was expected")
    have = found.settings.get("part", "both")
    if have not in ("both", "encoder", "decoder"):
        raise UserError(f"{file}: part is {str(have)[:80]!r}; both, encoder or decoder was expected")
    if have not in ("both", part):
        missing = {"encoder": "decoder", "decoder": "encoder"}[have]
        raise UserError(f"{file} is {found.title}; its {missing} was expected too" if part == "both" else
                        f"{file} is {found.title}; its {part} was expected")
    found = DetectedNetwork(found.kind, found.name, {**found.settings, "part": part}, compvis.half(found.tensors, part),
                       found.title)
    explicit = cfg.model_copy(update={"part": part}) if cfg is not None else None
    agreed = agreed_settings(found, explicit, file)
    return _with_section(assemble("autoencoder", agreed, found.tensors, file), agreed, str(file), digest)


def open_autoencoder(section: dict[str, Any], part: str = "both") -> nn.Module:
    """Load the autoencoder that an LDM's settings name, and make sure that it is the same one.

    Args:
        section: {name, settings, path, digest} as `load_autoencoder` left it; the path is the name of a packaged
            autoencoder, else absolute or a hub id.
        part: What is needed: encoder, decoder or both.

    Raises:
        UserError: It cannot be loaded, or its content has changed.
    """
    cfg = configure("autoencoder", {**section.get("settings", {}), "name": section["name"]}, "the LDM's settings")
    path = section.get("path")
    module = load_autoencoder(autoencoder_folder(path) if path in AUTOENCODERS else path, cfg, part)
    if section.get("digest") not in (None, module.section["digest"]):
        raise UserError(f"autoencoder {section.get('path')} has changed since the LDM was trained on its latents")
    return module


def open_decoder(section: dict[str, Any], given: Path | str | None) -> nn.Module:
    """Load what decodes an LDM's latents: the autoencoder that its settings name, or the one given instead.

    Args:
        section: As of `open_autoencoder`.
        given: Another file of the same network, or another network trained to decode the same latents; or None.

    Raises:
        UserError: It cannot be loaded, or is for other latents.
    """
    if given is None:
        return open_autoencoder(section, part="decoder")
    if section.get("digest") is not None and section["digest"] in latents_of(given):
        return load_autoencoder(given, part="decoder")
    return open_autoencoder({**section, "path": str(given), "digest": None}, part="decoder")


def latents_of(path: Path | str) -> list[str]:
    """Return the digests of the other autoencoders whose latents one of ours decodes, as its training has noted."""
    found = read_config(Path(path)).get(LATENTS_OF, []) if is_our_autoencoder(Path(path)) else []
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise UserError(f"{Path(path) / CONFIG}: {LATENTS_OF}: a list of digests was expected")
    return found


def _is_diffusers(path: str) -> bool:
    return resolve_path(path) is not None or (not Path(path).exists() and path.count("/") == 1 and "." not in path)


def _with_section(module: nn.Module, cfg: PluginConfig, path: str | None, digest: str | None) -> nn.Module:
    settings = cfg.model_dump(mode="json", exclude={"name", "path", "part"})
    module.section = {"name": cfg.name, "settings": settings, "path": path, "digest": digest}
    return module.eval()
