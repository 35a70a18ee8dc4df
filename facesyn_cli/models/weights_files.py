"""Opens files and folders of weights and detects the network they hold, for `loading`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import read_started
from facesyn_cli.artifacts.missing_input import missing_input, unfinished_input
from facesyn_cli.artifacts.weights import CONFIG, read_config, read_tensor_dicts, read_tensors, section_of
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import edgeface
from facesyn_cli.models.convert.detect_architecture import detect, detect_architecture, expected_shapes
from facesyn_cli.models.convert.detected import DetectedNetwork
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.untrusted.input_files import check_input, read_start

TENSORS = "model.safetensors"
HALVES = ("first_stage_encoder_state_dict.pt", "first_stage_decoder_state_dict.pt")
_FLOOR = 2**16  # settings up to here are never absurd
_KIND_NAMES = {"backbone": "a face recognizer", "denoiser": "a denoiser", "autoencoder": "an autoencoder"}


def is_onnx(path: Path) -> bool:
    """True for a file that begins as ONNX files do (field 1, the IR version) or is called .onnx."""
    check_input(path, "a weights file or folder")
    if not path.is_file():
        return False
    head = read_start(path, 9)
    is_safetensors = head[4:] == b"\0\0\0\0{"
    return path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and not is_safetensors)


def open_weights(path: Path, kind: str, cfg: PluginConfig | None = None) -> tuple[DetectedNetwork, Path]:
    """Return the network in a file or Weights folder, and its weights file.

    Args:
        path: The file or folder.
        kind: Kind of plugin that is expected.
        cfg: Plugin and settings, where the user gives them; networks of timm are recognized by them alone.

    Raises:
        UserError: It does not exist, is unfinished or damaged, or holds something else.
    """
    wanted = _KIND_NAMES[kind]
    if not path.exists():
        raise missing_input(path, f"a weights file or folder of {wanted}")
    if path.is_dir():
        if not (path / CONFIG).is_file():
            if started := read_started(path):
                raise unfinished_input(path, started.command)
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


def open_autoencoder_file(path: Path) -> tuple[DetectedNetwork, str]:
    """Read a VQ or KL file, a folder of ours or one with its two halves; return it and the digest of the content."""
    if is_our_autoencoder(path):
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


def is_our_autoencoder(path: Path) -> bool:
    """True for a Weights folder that holds an autoencoder."""
    return (path / CONFIG).is_file() and read_config(path).get("kind") == "autoencoder"


def _refuse_absurd(settings: dict[str, Any], num_values: int, where: Path) -> None:
    """Refuse counts and widths of a network that no file of so many values can have."""
    waiting = list(settings.items())
    for key, value in waiting:
        if isinstance(value, list | tuple):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int | float) and not -_FLOOR <= value <= max(num_values, _FLOOR):
            raise UserError(f"{where}: {key} is {value:.6g}, but the network's file holds {num_values} numbers in all")
