"""From a file or folder of weights to a network ready to use: ours or published, recognized by content.

A Weights folder of ours holds `model.safetensors` and `config.json`; the config says which plugin with which
settings. Published files hold tensors only; names and shapes tell what they are (`models/convert`). Every file
is loaded strictly. Modules come in eval mode, on the CPU, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import CONFIG, read_config, read_tensor_dicts, read_tensors, section_of
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import compvis, edgeface
from facesyn_cli.models.convert.detect_architecture import detect, detect_architecture, differences, expected_shapes
from facesyn_cli.models.convert.detected import DetectedNetwork
from facesyn_cli.models.diffusers_autoencoder import resolve_path
from facesyn_cli.models.face_check import warn_if_unusable
from facesyn_cli.models.meta_networks import build_on_meta, limited_parameters
from facesyn_cli.models.onnx_files import is_pack
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.untrusted.input_files import check_input, read_start

TENSORS = "model.safetensors"
LATENTS_OF = "latents_of"  # in config.json of an autoencoder: digests of others whose latents it decodes too
_FLOOR = 2**16  # settings up to here are never absurd
_UNDECIDED = {"channel_order": "rgb, or bgr for weights of AdaFace"}
HALVES = ("first_stage_encoder_state_dict.pt", "first_stage_decoder_state_dict.pt")
_FROM_TENSORS = ("vq-f4", "kl-f4", "kl-f8", "face-kl", "face-vq", "face-pca")  # their weights lie in a file
_KIND_NAMES = {"backbone": "a face recognizer", "denoiser": "a denoiser", "autoencoder": "an autoencoder"}


@dataclass(frozen=True)
class LoadedBackbone:
    """A face recognizer: pixels (B, 3, input_size, input_size) in [-1, 1] -> embeddings (B, D), not normalized."""

    module: nn.Module
    name: str        # plugin name
    digest: str      # of the weights file's content
    input_size: int  # side of the images it takes, in pixels


@dataclass(frozen=True)
class LoadedLdm:
    """A denoiser and what a sampler must know about it."""

    module: nn.Module
    config: LdmSettings
    digest: str  # of the weights file's content


def load_backbone(path: Path | str | None, cfg: PluginConfig | None = None) -> LoadedBackbone:
    """Load a face recognizer from a Weights folder, a published file, an ONNX file or a pack of those.

    Files made elsewhere are tried on the packaged faces; a warning says where they do not tell people apart.

    Args:
        path: Where it lies; None only for a `cfg` that names its file itself (`onnx`).
        cfg: Plugin and settings asked for; None takes what the file holds. Settings given explicitly must
            agree with the file. A file of a `timm` network is read only where `cfg` names it, except EdgeFace's.

    Raises:
        UserError: Not there, damaged, something else, or not what `cfg` asks for.
    """
    if path is None:
        if cfg is None or getattr(cfg, "weights", None) is None:
            asked = f"backbone {cfg.name}" if cfg is not None else "a face recognizer"
            raise UserError(f"{asked} needs a weights file; none was given")
        path = cfg.weights
    path = Path(path)
    if is_onnx(path) or _is_onnx_pack(path) or (cfg is not None and cfg.name == "onnx"):
        if cfg is not None and cfg.name != "onnx":
            raise UserError(f"{path} is an ONNX network; backbone {cfg.name} was asked for (use backbone onnx)")
        cfg = _configure("backbone", {"name": "onnx"}, str(path)) if cfg is None else cfg
        module = registry.build("backbone", cfg.model_copy(update={"weights": path})).eval()
        loaded = LoadedBackbone(module, "onnx", module.file.digest(), module.input_size)
        return _tried(loaded, module.file.name)
    found, file = _open(path, "backbone", cfg)
    cfg = _agreed(found, cfg, path)
    if path.is_file() and getattr(cfg, "channel_order", "") == found.settings.get("channel_order") == "bgr":
        log.info(f"{path} is {found.title}: its channels are taken as BGR (backbone.channel_order=rgb if they are not)")
    module = _assemble("backbone", cfg, found.tensors, path)
    loaded = LoadedBackbone(module, cfg.name, file_digest(file), getattr(module, "input_size", 112))
    return _tried(loaded, str(path)) if path.is_file() else loaded


def _tried(loaded: LoadedBackbone, where: str) -> LoadedBackbone:
    """Try a network that was made elsewhere on faces; the first process does."""
    if is_first_process():
        warn_if_unusable(loaded.module, loaded.input_size, where)
    return loaded


def load_denoiser(path: Path | str, cfg: PluginConfig | None = None) -> LoadedLdm:
    """Load a denoiser from a `2-ldm` folder or a published checkpoint.

    A published checkpoint has no settings: those of the published system are taken, with the number of
    latent channels, the size of the embedding and the noise schedule as the file shows them.

    Args:
        path: Where it lies.
        cfg: Plugin and settings asked for; None takes what the file holds. Settings given explicitly must
            agree with the file.

    Raises:
        UserError: Not there, damaged, something else, or not what `cfg` asks for.
    """
    path = Path(path)
    found, file = _open(path, "denoiser")
    cfg = _agreed(found, cfg, path)
    module = _assemble("denoiser", cfg, found.tensors, path)
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
    """Resolve `../autoencoder` from the LDM's folder, as the starter's has it; training notes whole paths."""
    if section is None or not str(section.get("path") or "").startswith("../"):
        return section
    return {**section, "path": str((folder / section["path"]).resolve())}


def load_autoencoder(path: Path | str | None, cfg: PluginConfig | None = None, part: str = "both") -> nn.Module:
    """Load an autoencoder: a VQ or KL file (whole or a half), a diffusers folder or hub id, or one without weights.

    The module has `encode`, `decode`, `latent_channels`, `downscale`, and `section`: the dict
    {name, settings, path, digest} from which `open_autoencoder` loads it again.

    Args:
        path: Where it lies; a folder may also hold the two halves under their published names. None only for
            a `cfg` that names its file itself (`diffusers`) or has none (`pixels`).
        cfg: Plugin and settings asked for; None takes what is there.
        part: What is needed: encoder, decoder or both.

    Raises:
        UserError: Not there, damaged, something else, not what `cfg` asks for, or the wrong half.
    """
    if path is None:
        if cfg is None:
            raise UserError("an autoencoder is needed; none was given")
        if cfg.name in _FROM_TENSORS:
            raise UserError(f"autoencoder {cfg.name} needs a weights file; none was given")
        path = getattr(cfg, "path", None)
    is_ours = path is not None and _is_converted(Path(path))
    if path is not None and not is_ours and (
        cfg.name == "diffusers" if cfg is not None else _is_diffusers(str(path))
    ):
        cfg = cfg if cfg is not None else _configure("autoencoder", {"name": "diffusers"}, str(path))
        module = registry.build("autoencoder", cfg.model_copy(update={"path": str(path)}))
        return _with_section(module, cfg, str(path), module.digest())
    if cfg is not None and cfg.name not in _FROM_TENSORS:
        if path is not None:
            raise UserError(f"autoencoder {cfg.name} takes no weights file; got {path}")
        return _with_section(registry.build("autoencoder", cfg), cfg, None, None)
    file = Path(path)
    found, digest = _open_compvis(file)
    if found.name not in _FROM_TENSORS:
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
    agreed = _agreed(found, explicit, file)
    return _with_section(_assemble("autoencoder", agreed, found.tensors, file), agreed, str(file), digest)


def open_autoencoder(section: dict[str, Any], part: str = "both") -> nn.Module:
    """Load the autoencoder that an LDM's settings name, and make sure that it is the same one.

    Args:
        section: {name, settings, path, digest} as `load_autoencoder` left it.
        part: What is needed: encoder, decoder or both.

    Raises:
        UserError: It cannot be loaded, or its content has changed.
    """
    cfg = _configure("autoencoder", {**section.get("settings", {}), "name": section["name"]}, "the LDM's settings")
    module = load_autoencoder(section.get("path"), cfg, part)
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
    found = read_config(Path(path)).get(LATENTS_OF, []) if _is_converted(Path(path)) else []
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise UserError(f"{Path(path) / CONFIG}: {LATENTS_OF}: a list of digests was expected")
    return found


def is_onnx(path: Path) -> bool:
    """True for a file that begins as ONNX files do (field 1, the IR version) or is called .onnx."""
    check_input(path, "a weights file or folder")
    if not path.is_file():
        return False
    head = read_start(path, 9)
    is_safetensors = head[4:] == b"\0\0\0\0{"
    return path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and not is_safetensors)


def _open(path: Path, kind: str, cfg: PluginConfig | None = None) -> tuple[DetectedNetwork, Path]:
    """Read a file or Weights folder that should hold a plugin of `kind`; return it and its weights file.

    Networks of timm are too many to be told by their names and shapes: there `cfg` says what the file holds.
    """
    wanted = _KIND_NAMES[kind]
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is a folder without {CONFIG}; expected a weights file or a folder with {CONFIG} "
                            f"and {TENSORS} of {wanted}")
        return _open_folder(path, kind), path / TENSORS
    if is_onnx(path):
        raise UserError(f"{path} is an ONNX network; {wanted} was expected")
    if cfg is not None and cfg.name == "timm":
        settings = cfg.model_dump(exclude={"name"})
        return DetectedNetwork(kind, "timm", settings, _timm_tensors(path, cfg), f"a timm {cfg.model}"), path
    found = detect_architecture(path)
    if found.kind != kind:
        raise UserError(f"{path} is {found.title}; {wanted} was expected")
    _tell_origin(found, path)
    return found, path


def _timm_tensors(path: Path, cfg: PluginConfig) -> dict[str, Tensor]:
    """Return the tensors of the network that `cfg` names, out of whichever dict of the file holds it.

    Raises:
        UserError: Several dicts do.
    """
    dicts = {place: edgeface.own_names(tensors) for place, tensors in read_tensor_dicts(path).items()}
    if len(dicts) > 1:
        expected = expected_shapes("backbone", cfg.model_dump()).keys()
        fitting = [place for place, tensors in dicts.items() if tensors.keys() == expected]
        if len(fitting) > 1:
            raise UserError(f"{path} holds several networks of that kind, under {' and '.join(map(repr, fitting))}; a "
                            "file with the one that is meant was expected")
        if fitting:
            return dicts[fitting[0]]
    return max(dicts.values(), key=len)


def _tell_origin(found: DetectedNetwork, path: Path) -> None:
    if origin := found.origin():
        log.info(f"{path}: {found.title}; {origin}")


def _is_onnx_pack(path: Path) -> bool:
    return not (path / CONFIG).is_file() and is_pack(path)


def _open_folder(folder: Path, kind: str) -> DetectedNetwork:
    config = read_config(folder)
    section = section_of(config, kind, folder / CONFIG)
    if section is None:
        held = next((name for name in _KIND_NAMES if isinstance(config.get(name), dict)), None)
        held = _KIND_NAMES[held] if held else f"kind {config.get('kind') or config.get('_class_name') or 'unknown'}"
        raise UserError(f"{folder} holds {held}; {_KIND_NAMES[kind]} was expected")
    settings = {key: value for key, value in section.items() if key != "name"}
    tensors = read_tensors(folder / TENSORS)
    _refuse_absurd(settings, sum(value.numel() for value in tensors.values()), folder / CONFIG)
    return DetectedNetwork(kind, section["name"], settings, tensors, f"{kind} {section['name']}")


def _refuse_absurd(settings: dict[str, Any], num_values: int, where: Path) -> None:
    """Refuse counts and widths of a network that no file of so many values can have."""
    waiting = list(settings.items())
    for key, value in waiting:
        if isinstance(value, list | tuple):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int | float) and not -_FLOOR <= value <= max(num_values, _FLOOR):
            raise UserError(f"{where}: {key} is {value:.6g}, but the network's file holds {num_values} numbers in all")


def _open_compvis(path: Path) -> tuple[DetectedNetwork, str]:
    """Read a VQ or KL file, a folder of ours or one with its two halves; return it and the digest of the content."""
    if _is_converted(path):
        return _open_folder(path, "autoencoder"), file_digest(path / TENSORS)
    files = [path / half for half in HALVES] if path.is_dir() else [path]
    if path.is_dir() and not all(file.is_file() for file in files):
        raise UserError(f"{path}: expected a weights file, a folder in diffusers format, or one with "
                        f"{' and '.join(HALVES)}")
    found = [detect_architecture(file) for file in files]
    for part, file in zip(found, files, strict=True):
        if part.kind != "autoencoder":
            raise UserError(f"{file} is {part.title}; an autoencoder was expected")
        _tell_origin(part, file)
    if len(files) == 1:
        return found[0], file_digest(path)
    return detect(found[0].tensors | found[1].tensors, str(path)), json_digest([file_digest(f) for f in files])


def _is_converted(path: Path) -> bool:
    """True for a folder in which `facesyn models convert` wrote an autoencoder."""
    return (path / CONFIG).is_file() and read_config(path).get("kind") == "autoencoder"


def _is_diffusers(path: str) -> bool:
    return resolve_path(path) is not None or (not Path(path).exists() and path.count("/") == 1 and "." not in path)


def _agreed(found: DetectedNetwork, cfg: PluginConfig | None, path: Path) -> PluginConfig:
    """Return the settings of the file, with those asked for where the file leaves a choice.

    Raises:
        UserError: The file is of another network, or leaves a setting open that was not asked for.
    """
    if found.undecided and (cfg is None or found.undecided not in cfg.model_fields_set):
        raise UserError(
            f"{path} is {found.title}, and nothing in the file tells its {found.undecided}: give {found.kind}.name="
            f"{found.name} and {found.kind}.{found.undecided}=... ({_UNDECIDED[found.undecided]})"
        )
    if cfg is None:
        return _configure(found.kind, {"name": found.name, **found.settings}, str(path))
    if cfg.name != found.name:
        raise UserError(f"{path} is {found.title}; {found.kind} {cfg.name} was asked for")
    asked = {key: getattr(cfg, key) for key in cfg.model_fields_set if key != "name"}
    agreed = _configure(found.kind, {"name": found.name, **found.settings, **asked}, str(path))
    plain = _configure(found.kind, {"name": found.name, **found.settings}, str(path))
    for key in found.settings:
        if key in asked and getattr(agreed, key) != getattr(plain, key) and not _is_free(found.kind, key):
            raise UserError(f"{path} has {key} {getattr(plain, key)}; {getattr(agreed, key)} was asked for")
    return agreed


def _is_free(kind: str, key: str) -> bool:
    """True for settings that change how a network runs or trains, not which tensors it has."""
    return key in {"dropout", "component_dropout", "drop_path", "checkpoint_activations", "quantize", "head_channels",
                   "channel_order", "latent_noise"}


def _configure(kind: str, settings: dict[str, Any], where: str) -> PluginConfig:
    try:
        return registry.configure(kind, settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "settings"
        raise UserError(f"{where}: {kind} {settings['name']}: {place}: {first['msg']}") from error


def _assemble(kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the network and give it the tensors, strictly, without spending random numbers on it."""
    module = _build_without_numbers(kind, cfg, tensors, path)
    state = _fitting_state(module, kind, cfg, tensors, path)
    odd = [key for key, value in state.items() if value.is_floating_point() and not tensors[key].is_floating_point()]
    if odd:
        found = str(tensors[odd[0]].dtype).removeprefix("torch.")
        raise UserError(f"{path} holds {found} in {len(odd)} tensors such as {odd[0]}; floating point was expected")
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{path} holds numbers that are not finite, in {len(bad)} tensors such as {bad[0]}")
    module.load_state_dict(tensors, strict=True)
    return module.eval()


def _build_without_numbers(kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a network whose state dict is to be overwritten; torch's generator is left as it was.

    Names and shapes are compared before any memory is taken for it.
    """
    module = _skeleton(kind, cfg, tensors, path)
    if module is not None:
        state = _fitting_state(module, kind, cfg, tensors, path)
        # timm's networks may keep numbers outside their state dict
        if cfg.name != "timm" and {name for name, _ in module.named_buffers()} <= set(state):
            return module.to_empty(device="cpu")
    try:
        with torch.random.fork_rng(devices=[]), limited_parameters(len(tensors)):
            return registry.build(kind, cfg)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(f"{path}: {kind} {cfg.name} cannot be built with its settings: "
                        f"{str(error).split(chr(10))[0][:200]}") from error


def _skeleton(kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path) -> nn.Module | None:
    """Return the network without numbers; None where its builder looks at the numbers it draws."""
    try:
        return build_on_meta(kind, cfg, len(tensors))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (NotImplementedError, RuntimeError):
        return None


def _fitting_state(
    module: nn.Module, kind: str, cfg: PluginConfig, tensors: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    state = module.state_dict()
    if wrong := differences({key: (value.shape, value.dtype) for key, value in state.items()}, tensors):
        raise UserError(f"{path} does not fit {kind} {cfg.name} with its settings: {wrong}")
    return state


def _with_section(module: nn.Module, cfg: PluginConfig, path: str | None, digest: str | None) -> nn.Module:
    settings = cfg.model_dump(mode="json", exclude={"name", "path", "part"})
    module.section = {"name": cfg.name, "settings": settings, "path": path, "digest": digest}
    return module.eval()
