"""models: published weights, what a file holds, and its way from one format to another.

`convert` writes into a folder that appears under its name only when everything in it is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from facesyn_cli.artifacts.atomic_directory import atomic_directory, completed_directory, require_new
from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.download import fetch, file_name
from facesyn_cli.artifacts.header import Header, Parent, write_header
from facesyn_cli.artifacts.hub import fetch_from_hub, is_hub_name
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.output import FixedConfig
from facesyn_cli.artifacts.starter_files import CARD, PACKAGED, find_starter, is_packaged
from facesyn_cli.artifacts.weights import (
    CONFIG,
    WeightsPrecision,
    os_errors,
    read_config,
    write_tensors,
    write_torch,
    write_weights,
)
from facesyn_cli.console import log
from facesyn_cli.diffusion.schedule import describe_betas, ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models import inspection
from facesyn_cli.models.catalog import CATALOG
from facesyn_cli.models.convert import compvis, tface_head
from facesyn_cli.models.convert.tface_head import KERNEL, part_name, read_any_head, split_head
from facesyn_cli.models.guided_diffusion_unet import load_guided_pipeline, published_tensors
from facesyn_cli.models.loading import HALVES, LATENTS_OF, load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.models.onnx_export import export_onnx
from facesyn_cli.models.published_state import published_state
from facesyn_cli.models.self_check import check_autoencoder, check_backbone, check_denoiser, check_generator
from facesyn_cli.plugins import registry
from facesyn_cli.training.ldm_export import check_exportable, schedule_buffers

FORMATS = ("safetensors", "published", "onnx")
PULLED = Path("weights")  # where pulled files go unless told otherwise
_USE = {
    "autoencoder": "train-ldm, where no autoencoder is given", "ldm": "sample and gen-contexts, where no LDM is given",
    "embedder": "embed and gen-contexts, where no weights are given",
}
_FLAT = ("ir-", "iresnet", "mobilefacenet", "mbf")  # backbones whose own names are the published ones


@dataclass(frozen=True)
class _Loaded:
    """A network, loaded strictly, with what is needed to write or run it."""

    kind: str
    name: str
    module: nn.Module
    config: dict[str, Any]           # config.json of our own format
    input_size: int = 0              # of a backbone
    ldm: LdmSettings | None = None   # of a denoiser
    part: str = "both"               # of an autoencoder
    pipeline: Any = None             # of a generator


def list_weights() -> dict[str, dict[str, Any]]:
    """Return the parts of the packaged starter, where there is one, and what is known about published weights."""
    known = {name: {key: value for key, value in asdict(entry).items() if value is not None}
             for name, entry in CATALOG.items()}
    return _starter_parts() | known


def _starter_parts() -> dict[str, dict[str, Any]]:
    if not is_packaged():
        return {}
    starter, found = find_starter(PACKAGED), {}
    for part, kind in (("autoencoder", "autoencoder"), ("ldm", "denoiser"), ("embedder", "backbone")):
        folder = starter.part(part)
        found[f"starter-{part}"] = {
            "kind": kind, "architecture": read_config(folder)[kind]["name"], "source": "facesyn's own, in the package",
            "license": f"research use; see {folder / CARD}", "where": str(folder), "use": _USE[part],
        }
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Describe a file or folder of weights; see `models.inspection.inspect`."""
    found = inspection.inspect(path)
    schedule = found.get("noise_schedule", {})
    if isinstance(schedule.get("beta_schedule"), list):
        found["noise_schedule"] = {**schedule, "beta_schedule": describe_betas(schedule["beta_schedule"])}
    return found


def verify(path: Path, fixture: Path | None = None, channel_order: str | None = None) -> dict[str, Any]:
    """Load strictly, run once, compare with a fixture where there is one.

    Args:
        path: File or Weights folder.
        fixture: As of `models/self_check.py`.
        channel_order: As of `convert`.

    Raises:
        UserError: It does not load, or what it gives is not what was expected.
    """
    loaded = _load(path, channel_order)
    if loaded.kind == inspection.GENERATOR:
        unet = loaded.module
        sizes = (unet.config["in_channels"], 2 * 2 ** (len(unet.config["block_out_channels"]) - 1))
        seen = check_generator(lambda x, t: unet(x, t).sample, sizes, str(path), fixture)
    elif loaded.kind == "backbone":
        seen = check_backbone(loaded.module, loaded.input_size, str(path), fixture)
    elif loaded.kind == "denoiser":
        settings = loaded.ldm
        sizes = (settings.latent_channels, settings.latent_size, settings.embedding_size)
        seen = check_denoiser(loaded.module, sizes, str(path), fixture)
    else:
        seen = check_autoencoder(loaded.module, loaded.part, str(path), fixture)
    return {"path": str(path), "kind": loaded.kind, "architecture": loaded.name, "loads": "strictly", **seen}


def convert(
    path: Path,
    out: Path,
    to: str = "safetensors",
    parts: int | None = None,
    dataset: str | None = None,
    precision: str | None = None,
    channel_order: str | None = None,
) -> dict[str, Any]:
    """Write a network in another format into a new folder; one that the same call has made is left alone.

    Args:
        path: File or Weights folder; of a classifier in parts one of them, or TFace's HEAD_RESUME.
        out: Folder to make; an empty one may be there.
        to: `safetensors` (with config.json, what facesyn itself writes), `published` (the files that the
            published code reads) or `onnx` (recognizers).
        parts: Files of a classifier that is to be published, one for each process of TFace; None: 1.
        dataset: Data set of a classifier: which one of several to read, or what to call the published one.
        precision: Of the numbers in `safetensors` of a network: fp32, or fp16 for files of half the size, which load
            as float32 networks again; None: fp32.
        channel_order: rgb or bgr, what a recognizer's weights expect, where the file does not tell; None: as it tells.

    Raises:
        UserError: The file holds nothing known, there is no such format for it, or the folder is taken.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if precision is not None and precision not in get_args(WeightsPrecision):
        raise UserError(f"--precision {precision}: expected one of {', '.join(get_args(WeightsPrecision))}")
    if precision is not None and (to != "safetensors" or not _is_plain(path)):
        raise UserError(f"--precision belongs to networks that are written as safetensors; {path} --to {to} is not")
    if (parts is not None or dataset is not None) and not tface_head.is_head(path):
        raise UserError(f"--parts and --dataset belong to classifiers (HEAD files, head.safetensors); {path} is none")
    require_new(out)
    settings = FixedConfig({
        "to": to, "parts": parts or 1, "dataset": dataset, "precision": precision or "fp32",
        "channel_order": channel_order,
    })
    begun = Header("Weights", "models convert", settings.to_json(), {"weights": Parent(str(path), _content(path))})
    made = completed_directory(out, begun)
    if made is not None:
        return {"path": str(path), **made.extra}
    write = _writer(path, to, parts, dataset, precision or "fp32", channel_order)
    with atomic_directory(out) as folder:
        report = write(folder)
        write_header(folder, begun, {"files": len(report["files"])}, report, json_digest(report["files"]))
    return {"path": str(path), **report}


def _content(path: Path) -> str:
    """Return the digest of what is converted: a file, all parts of a classifier, or the weights in a folder."""
    if tface_head.is_head(path) and path.suffix != ".safetensors":
        return json_digest([file_digest(file) for file in tface_head.find_files(path)])
    if not path.exists():
        raise UserError(f"{path} does not exist; a weights file was expected")
    if not (path / CONFIG).is_file():
        return path_digest(path)
    files = [path / CONFIG, *sorted(path.glob("*.safetensors"))]
    return json_digest([[file.name, file_digest(file)] for file in files])


def _writer(
    path: Path, to: str, parts: int | None, dataset: str | None, precision: WeightsPrecision,
    channel_order: str | None,
) -> Callable[[Path], dict[str, Any]]:
    """Load what is to be converted; return a function that writes it into a folder and says what it wrote."""
    if to == "published" and (path / inspection.PIPELINE).is_file():
        loaded = _Loaded(inspection.GENERATOR, "guided-diffusion UNet", nn.Module(), {})
        tensors = published_tensors(path)

        def write(folder: Path) -> dict[str, Any]:
            _save(tensors, folder / "guided_diffusion.pt")
            return _report(loaded, to, {}, folder)

        return write
    if tface_head.is_head(path):
        return _head_writer(path, to, parts, dataset)
    loaded = _load(path, channel_order)
    ours = partial(_write_ours, precision=precision)
    write_as = {"safetensors": ours, "published": _write_published, "onnx": _write_onnx}[to]
    return lambda folder: _report(loaded, to, write_as(loaded, folder), folder)


def pull(name: str, out: Path | None = None, sha256: str | None = None) -> dict[str, Any]:
    """Fetch weights by a name of the list, a hub id or an address.

    Args:
        name: For example `sd-vae-ft-mse`, `owner/name`, `owner/name/file.safetensors` or `https://...`.
        out: Folder to put them in; None: `weights`, in a folder of the name for whole repositories.
        sha256: Expected checksum of a single file.

    Raises:
        UserError: Unknown, given out by hand only, not reachable, or not what was expected.
    """
    target = out or PULLED
    if "://" in name:
        file = target / file_name(name)
        fetched = fetch(name, file, sha256)
        if sha256 is None:
            log.warning(f"{file}: no checksum was given; compare {fetched.digest} with what its author says")
        return {"file": str(fetched.path), "digest": fetched.digest, "bytes_reused": fetched.reused}
    entry = CATALOG.get(name)
    if entry is None and not is_hub_name(name):
        raise UserError(f"{name} is neither in the list (facesyn models list) nor a hub id owner/name nor an address")
    if entry is not None and entry.hub is None:
        raise UserError(f"{name} has no address to fetch it from; get it by hand: {entry.where}")
    hub_name = entry.hub if entry is not None else name
    folder = target if out is not None else target / hub_name.split("/")[1].partition("@")[0]
    return fetch_from_hub(hub_name, folder, sha256)


def _load(path: Path, channel_order: str | None = None) -> _Loaded:
    """Load whatever the file or folder holds."""
    description = inspection.inspect(path)
    kind = description["kind"]
    if channel_order is not None:
        _check_channel_order(channel_order, description)
    elif description.get("undecided"):
        raise UserError(f"{path} is a backbone {description['architecture']}, and nothing in the file tells its "
                        f"{description['undecided']}: give --channel-order rgb, or bgr for weights of AdaFace")
    if kind == inspection.GENERATOR:
        pipeline = load_guided_pipeline(path)
        return _Loaded(kind, description["architecture"], pipeline.unet, {}, pipeline=pipeline)
    if kind == inspection.ONNX_KIND:
        loaded = load_backbone(path)
        return _Loaded("backbone", "onnx", loaded.module, {}, loaded.input_size)
    if kind == "unknown":
        raise UserError(f"{path} {description['nearest']}")
    if kind == "backbone":
        section = _section(path, description)
        if channel_order is not None:
            section = {**section, "channel_order": channel_order}
        loaded = load_backbone(path, registry.configure("backbone", section) if channel_order is not None else None)
        config = {**_config_of(path), "kind": kind, "backbone": section, "input_size": loaded.input_size}
        return _Loaded(kind, loaded.name, loaded.module, config, loaded.input_size)
    if kind == "denoiser":
        loaded = load_denoiser(path)
        config = loaded.config.model_dump(mode="json")
        return _Loaded(kind, description["architecture"], loaded.module, config, ldm=loaded.config)
    if kind == "autoencoder":
        part = description.get("settings", {}).get("part", "both")
        module = load_autoencoder(path, part=part)
        section = {"name": module.section["name"], **module.section["settings"], "part": part}
        config = {**_config_of(path), "kind": kind, "autoencoder": section}
        return _Loaded(kind, module.section["name"], module, config, part=part)
    held = f"{description['format']} ({description['architecture']})"
    raise UserError(f"{path} is a {held}; a single network was expected")


def _check_channel_order(channel_order: str, description: dict[str, Any]) -> None:
    if channel_order not in ("rgb", "bgr"):
        raise UserError(f"--channel-order {channel_order}: rgb or bgr was expected")
    kind, name = description["kind"], description.get("architecture")
    if kind != "backbone" or "channel_order" not in registry.get(kind, name).config_class.model_fields:
        raise UserError(f"--channel-order belongs to IR and IResNet recognizers; {description['path']} is none")


def _head_writer(
    path: Path, to: str, parts: int | None, dataset: str | None
) -> Callable[[Path], dict[str, Any]]:
    """Join a classifier of TFace to the head.safetensors that training starts from, or split ours as TFace does."""
    is_ours = path.suffix == ".safetensors"
    if to == "onnx" or is_ours == (to == "safetensors"):
        way = "published" if is_ours else "safetensors"
        raise UserError(f"{path} is a classifier; it goes --to {way}")
    if not is_ours and parts is not None:
        raise UserError("--parts says into how many files a head.safetensors is split; TFace's own parts are counted")
    tensors, num_files = read_any_head(path, None if is_ours else dataset)

    def write(folder: Path) -> dict[str, Any]:
        if is_ours:
            contents = split_head(tensors, parts or 1, dataset or "facesyn")
            for rank, content in enumerate(contents):
                _save(content, folder / part_name("HEAD", rank))
        else:
            write_tensors(folder / "head.safetensors", tensors)
        loaded = _Loaded(inspection.HEAD, f"classifier of {tensors[KERNEL].shape[1]} classes", nn.Module(), {})
        return _report(loaded, to, {"files_read": num_files}, folder)

    return write


def _section(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    if path.is_dir():
        return read_config(path)["backbone"]
    return {"name": description["architecture"], **description["settings"]}


def _config_of(path: Path) -> dict[str, Any]:
    """Return what a Weights folder of ours says, all of which stays true of a copy; nothing of any other file."""
    return read_config(path) if (path / CONFIG).is_file() else {}


def _is_plain(path: Path) -> bool:
    """True unless the path holds a classifier or a pipeline, which are not written by `_write_ours` as one network."""
    return not tface_head.is_head(path) and not (path / inspection.PIPELINE).is_file()


def _report(loaded: _Loaded, to: str, notes: dict[str, Any], folder: Path) -> dict[str, Any]:
    written = sorted(file for file in folder.rglob("*") if file.is_file())
    files = {file.relative_to(folder).as_posix(): file_digest(file) for file in written}
    return {"kind": loaded.kind, "architecture": loaded.name, "format": to, **notes, "files": files}


def _write_ours(loaded: _Loaded, folder: Path, precision: WeightsPrecision) -> dict[str, Any]:
    if loaded.pipeline is not None:  # what generators are read as anyway: a diffusers pipeline
        with os_errors():
            loaded.pipeline.save_pretrained(folder)
        return {"parameters": sum(value.numel() for value in loaded.module.parameters())}
    if not loaded.config or loaded.name == "diffusers":
        raise UserError(f"{_what(loaded)} cannot be written as safetensors with a config of ours")
    config = dict(loaded.config)
    if loaded.kind == "autoencoder":  # the copy decodes what an LDM of the original draws
        config[LATENTS_OF] = sorted({*config.get(LATENTS_OF, []), loaded.module.section["digest"]})
    write_weights(folder, loaded.module.state_dict(), config, precision=precision)
    return {"precision": precision, "parameters": sum(value.numel() for value in loaded.module.parameters())}


def _write_published(loaded: _Loaded, folder: Path) -> dict[str, Any]:
    writers: dict[str, Callable[[_Loaded, Path], None]] = {
        "denoiser": _write_published_ldm, "autoencoder": _write_published_autoencoder,
        "backbone": _write_published_backbone,
    }
    if loaded.kind not in writers:
        raise UserError(f"{_what(loaded)} is in its published layout already")
    writers[loaded.kind](loaded, folder)
    return {}


def _write_published_backbone(loaded: _Loaded, folder: Path) -> None:
    """A flat state dict of RGB weights, as TFace, ElasticFace and arcface_torch write it; MagFace's as MagFace does."""
    if not loaded.name.startswith(_FLAT) or loaded.name in ("ir-tiny", "ir-lite"):
        raise UserError(f"{_what(loaded)} has no published layout")
    _save(published_state(loaded.module), folder / "backbone.pth")


def _write_published_ldm(loaded: _Loaded, folder: Path) -> None:
    """`eps_model.*` and the eight buffers of the noise schedule, as IDiff-Face and ADMIS write it."""
    settings = loaded.ldm
    if settings.latent_mean is not None and (any(settings.latent_mean) or any(s != 1 for s in settings.latent_std)):
        raise UserError("this LDM works on normalized latents (latent_mean, latent_std), for which the published "
                        "layout has no place; the published code would draw noise with it")
    cfg = loaded.module.cfg
    # whatever the schedule is, the buffers that are written hold it
    check_exportable(cfg, "linear", settings.prediction, is_normalized=False)
    schedule = ldm_schedule(settings)
    tensors = {f"eps_model.{key}": value for key, value in loaded.module.state_dict().items()}
    _save({**tensors, **schedule_buffers(schedule)}, folder / "ema_averaged_model.ckpt")


def _write_published_autoencoder(loaded: _Loaded, folder: Path) -> None:
    """VQ: the two halves as ADMIS and IDiff-Face keep them. KL: one Lightning file, as CompVis writes it."""
    if loaded.name in ("kl-f4", "kl-f8") and loaded.part == "both":
        _save({"state_dict": loaded.module.state_dict()}, folder / "model.ckpt")
        return
    if loaded.name != "vq-f4":
        raise UserError(f"{_what(loaded)} ({loaded.part}) has no published layout of its own")
    for part, file in zip(("encoder", "decoder"), HALVES, strict=True):
        if loaded.part in ("both", part):
            _save(compvis.half(loaded.module.state_dict(), part), folder / file)


def _write_onnx(loaded: _Loaded, folder: Path) -> dict[str, Any]:
    if loaded.kind != "backbone" or loaded.name == "onnx":
        raise UserError(f"{_what(loaded)} cannot be written as ONNX; a recognizer from a tensor file was expected")
    difference = export_onnx(loaded.module, loaded.input_size, folder / "model.onnx")
    return {"largest_difference": difference, "input": f"RGB in [-1, 1], {loaded.input_size} x {loaded.input_size}"}


def _what(loaded: _Loaded) -> str:
    return f"{loaded.kind} {loaded.name}"


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Write with `torch.save`; tensors may be nested in a dict, and are copied out of shared memory."""

    def own(value: Tensor | dict[str, Any]) -> Tensor | dict[str, Any]:
        if isinstance(value, dict):
            return {key: own(inner) for key, inner in value.items()}
        return value.detach().to("cpu").contiguous().clone()

    write_torch(path, own(tensors))
