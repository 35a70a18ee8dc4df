"""Convert weights from one format to another.

The result is an atomic directory: the folder appears when everything in it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from facesyn_cli.artifacts.atomic_directory import atomic_directory, completed_directory, require_new
from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.header import Header, Parent, write_header
from facesyn_cli.artifacts.output import FixedConfig
from facesyn_cli.artifacts.packaged_networks import packaged_path
from facesyn_cli.artifacts.weights import (
    CONFIG,
    WeightsPrecision,
    os_errors,
    write_tensors,
    write_torch,
    write_weights,
)
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models import inspection
from facesyn_cli.models.convert import compvis, tface_head
from facesyn_cli.models.convert.guided_diffusion import published_tensors
from facesyn_cli.models.convert.tface_head import KERNEL, part_name, read_any_head, split_head
from facesyn_cli.models.loaded_network import LoadedNetwork, load_network
from facesyn_cli.models.loading import LATENTS_OF
from facesyn_cli.models.onnx_export import export_onnx
from facesyn_cli.models.recognizer import published_state
from facesyn_cli.models.weights_files import HALVES
from facesyn_cli.training.published_export import check_exportable, schedule_buffers

FORMATS = ("safetensors", "published", "onnx")
_FLAT = ("ir-", "iresnet", "mobilefacenet", "mbf")  # backbones with the published parameter names


def convert(
    path: Path, out: Path, to: str = "safetensors", parts: int | None = None, dataset: str | None = None,
    precision: str | None = None, channel_order: str | None = None,
) -> dict[str, Any]:
    """Write a network in another format into a new folder; the finished folder of an equal call is left unchanged.

    Args:
        path: File or Weights folder, or the name of a packaged network; one part of a classifier, or the HEAD_RESUME
            of TFace.
        out: New or empty folder.
        to: `safetensors` (with config.json, the own format), `published` (the files that the published code reads)
            or `onnx` (recognizers).
        parts: Number of files of a published classifier, one per process of TFace; None: 1.
        dataset: Data set of a classifier: the one of several to read, or the name of the published one.
        precision: Precision of `safetensors` of a network: fp32, or fp16 for half the size, which loads as float32
            again; None: fp32.
        channel_order: rgb or bgr, the input of a recognizer, where the file does not tell; None: as the file tells.

    Raises:
        UserError: The file is not recognized, cannot be written in this format, or the folder has other content.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if precision is not None and precision not in get_args(WeightsPrecision):
        raise UserError(f"--precision {precision}: expected one of {', '.join(get_args(WeightsPrecision))}")
    path = packaged_path(str(path)) or path
    is_network = not tface_head.is_head(path) and not (path / inspection.PIPELINE).is_file()
    if precision is not None and (to != "safetensors" or not is_network):
        raise UserError(f"--precision belongs to networks that are written as safetensors; {path} --to {to} is not")
    if (parts is not None or dataset is not None) and not tface_head.is_head(path):
        raise UserError(f"--parts and --dataset belong to classifiers (HEAD files, head.safetensors); {path} is none")
    require_new(out)
    settings = FixedConfig({
        "to": to, "parts": parts or 1, "dataset": dataset, "precision": precision or "fp32",
        "channel_order": channel_order,
    })
    begun = Header("Weights", "models convert", settings.to_json(), {"weights": Parent(str(path), _content(path))})
    if (made := completed_directory(out, begun)) is not None:
        return {"path": str(path), **made.extra}
    if to == "published" and (path / inspection.PIPELINE).is_file():
        write = partial(_write_published_generator, published_tensors(path))
    elif tface_head.is_head(path):
        write = _head_writer(path, to, parts, dataset)
    else:
        write = partial(_write_network, load_network(path, channel_order), to, precision or "fp32")
    with atomic_directory(out) as folder:
        report = write(folder)
        write_header(folder, begun, {"files": len(report["files"])}, report, json_digest(report["files"]))
    return {"path": str(path), **report}


def _content(path: Path) -> str:
    """Return the digest of the input: a file, all parts of a classifier, or the weights in a folder."""
    if tface_head.is_head(path) and path.suffix != ".safetensors":
        return json_digest([file_digest(file) for file in tface_head.find_files(path)])
    if not path.exists():
        raise UserError(f"{path} does not exist; a weights file was expected")
    if not (path / CONFIG).is_file():
        return path_digest(path)
    files = [path / CONFIG, *sorted(path.glob("*.safetensors"))]
    return json_digest([[file.name, file_digest(file)] for file in files])


def _write_published_generator(tensors: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    _save(tensors, folder / "guided_diffusion.pt")
    return _report(folder, inspection.GENERATOR, "guided-diffusion UNet", "published")


def _write_network(loaded: LoadedNetwork, to: str, precision: WeightsPrecision, folder: Path) -> dict[str, Any]:
    ours = partial(_write_ours, precision=precision)
    write_as = {"safetensors": ours, "published": _write_published, "onnx": _write_onnx}[to]
    return _report(folder, loaded.kind, loaded.name, to, **write_as(loaded, folder))


def _head_writer(path: Path, to: str, parts: int | None, dataset: str | None) -> Callable[[Path], dict[str, Any]]:
    """Join the parts of a TFace classifier into head.safetensors, or split head.safetensors as TFace does."""
    is_ours = path.suffix == ".safetensors"
    if to == "onnx" or is_ours == (to == "safetensors"):
        way = "published" if is_ours else "safetensors"
        raise UserError(f"{path} is a classifier; it can be converted --to {way}")
    if not is_ours and parts is not None:
        raise UserError("--parts is the number of files to split a head.safetensors into; parts of TFace are counted")
    tensors, num_files = read_any_head(path, None if is_ours else dataset)

    def write(folder: Path) -> dict[str, Any]:
        if is_ours:
            for rank, content in enumerate(split_head(tensors, parts or 1, dataset or "facesyn")):
                _save(content, folder / part_name("HEAD", rank))
        else:
            write_tensors(folder / "head.safetensors", tensors)
        name = f"classifier of {tensors[KERNEL].shape[1]} classes"
        return _report(folder, inspection.HEAD, name, to, files_read=num_files)

    return write


def _report(folder: Path, kind: str, architecture: str, to: str, **notes: Any) -> dict[str, Any]:
    """Return the description of a written folder; call it after everything is written."""
    written = sorted(file for file in folder.rglob("*") if file.is_file())
    files = {file.relative_to(folder).as_posix(): file_digest(file) for file in written}
    return {"kind": kind, "architecture": architecture, "format": to, **notes, "files": files}


def _write_ours(loaded: LoadedNetwork, folder: Path, precision: WeightsPrecision) -> dict[str, Any]:
    if loaded.pipeline is not None:  # generators are stored as diffusers pipelines
        with os_errors():
            loaded.pipeline.save_pretrained(folder)
        return {"parameters": sum(value.numel() for value in loaded.module.parameters())}
    if not loaded.config or loaded.name == "diffusers":
        raise UserError(f"{loaded} cannot be written as safetensors with a config.json")
    config = dict(loaded.config)
    if loaded.kind == "autoencoder":  # the copy decodes latents of the original
        config[LATENTS_OF] = sorted({*config.get(LATENTS_OF, []), loaded.module.section["digest"]})
    write_weights(folder, loaded.module.state_dict(), config, precision=precision)
    return {"precision": precision, "parameters": sum(value.numel() for value in loaded.module.parameters())}


def _write_published(loaded: LoadedNetwork, folder: Path) -> dict[str, Any]:
    if loaded.kind == "denoiser":
        _write_published_ldm(loaded, folder)
    elif loaded.kind == "autoencoder":
        _write_published_autoencoder(loaded, folder)
    elif loaded.kind != "backbone":
        raise UserError(f"{loaded} is already in its published layout")
    elif not loaded.name.startswith(_FLAT) or loaded.name in ("ir-tiny", "ir-lite"):
        raise UserError(f"{loaded} has no published layout")
    else:  # a flat state dict as TFace, ElasticFace, arcface_torch or MagFace write it
        _save(published_state(loaded.module), folder / "backbone.pth")
    return {}


def _write_published_ldm(loaded: LoadedNetwork, folder: Path) -> None:
    """`eps_model.*` and the eight buffers of the noise schedule, as IDiff-Face and ADMIS write it."""
    settings = loaded.ldm
    if settings.latent_mean is not None and (any(settings.latent_mean) or any(s != 1 for s in settings.latent_std)):
        raise UserError("this LDM uses normalized latents (latent_mean, latent_std), which the published layout cannot "
                        "store; the published code would generate noise with it")
    # "linear": the buffers store any schedule
    check_exportable(loaded.module.cfg, "linear", settings.prediction, is_normalized=False)
    tensors = {f"eps_model.{key}": value for key, value in loaded.module.state_dict().items()}
    _save({**tensors, **schedule_buffers(ldm_schedule(settings))}, folder / "ema_averaged_model.ckpt")


def _write_published_autoencoder(loaded: LoadedNetwork, folder: Path) -> None:
    """VQ: the two halves as ADMIS and IDiff-Face keep them. KL: one Lightning file, as CompVis writes it."""
    if loaded.name in ("kl-f4", "kl-f8") and loaded.part == "both":
        _save({"state_dict": loaded.module.state_dict()}, folder / "model.ckpt")
        return
    if loaded.name != "vq-f4":
        raise UserError(f"{loaded} ({loaded.part}) has no published layout")
    for part, file in zip(("encoder", "decoder"), HALVES, strict=True):
        if loaded.part in ("both", part):
            _save(compvis.half(loaded.module.state_dict(), part), folder / file)


def _write_onnx(loaded: LoadedNetwork, folder: Path) -> dict[str, Any]:
    if loaded.kind != "backbone" or loaded.name == "onnx":
        raise UserError(f"{loaded} cannot be written as ONNX; a recognizer from a tensor file was expected")
    difference = export_onnx(loaded.module, loaded.input_size, folder / "model.onnx")
    return {"largest_difference": difference, "input": f"RGB in [-1, 1], {loaded.input_size} x {loaded.input_size}"}


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Write a (nested) dict of tensors with `torch.save`, each copied so that no shared storage is written."""

    def own(value: Tensor | dict[str, Any]) -> Tensor | dict[str, Any]:
        if isinstance(value, dict):
            return {key: own(inner) for key, inner in value.items()}
        return value.detach().to("cpu").contiguous().clone()

    write_torch(path, own(tensors))
