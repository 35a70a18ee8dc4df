"""Describes a file or folder of weights from names, shapes and configs; no network is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.weights import CONFIG, is_safetensors, read_config, read_tensor_dicts, read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import guided_diffusion, tface_head
from facesyn_cli.models.convert.detect_architecture import detect_in_dicts
from facesyn_cli.models.meta_networks import build_on_meta
from facesyn_cli.models.onnx_files import (
    OnnxFile,
    find_recognizer,
    inputs_and_outputs,
    is_pack,
    quantizes_dynamically,
    read_graph,
)
from facesyn_cli.models.weights_files import HALVES, TENSORS, is_onnx
from facesyn_cli.plugins import registry
from facesyn_cli.untrusted.input_files import check_input

PIPELINE = "model_index.json"
# Kinds that no plugin of a single network has:
GENERATOR, PIPELINE_KIND, ONNX_KIND, HEAD = "generator", "pipeline", "onnx network", "head"


def inspect(path: Path) -> dict[str, Any]:
    """Describe a file or folder.

    Returns:
        `kind` and, as far as they are known, `architecture`, `settings`, `parameters` (of the network),
        `values` (numbers held, buffers and other tensors included), `tensors`, `place` (of the nested dict, where it
        is not the outermost), `prefix` (in front of every name), `left_out` (what lies beside the network),
        `undecided` (a setting that the file leaves open), `precision` (type -> numbers held) and `digest`. Of a file of
        tensors that are no known network `kind` is "unknown" and `nearest` names the nearest network and the
        differences.

    Raises:
        UserError: It does not exist, is damaged or holds no weights.
    """
    path = Path(path)
    check_input(path, "a file or folder of weights")
    if path.is_dir():
        found = _inspect_folder(path)
    elif tface_head.is_head(path):
        found = _inspect_head(path)
    elif is_onnx(path) or is_pack(path):
        found = _inspect_onnx(path)
    else:
        dicts = read_tensor_dicts(path)
        found = {"format": "safetensors" if is_safetensors(path) else "torch", **_inspect_tensors(dicts, path),
                 "digest": file_digest(path)}
    return {"path": str(path), **found}


def _inspect_tensors(dicts: Mapping[str, Mapping[str, Tensor]], path: Path) -> dict[str, Any]:
    largest = max(dicts.values(), key=len)
    if guided_diffusion.is_guided_unet(largest):
        return _inspect_guided(largest)
    try:
        network = detect_in_dicts(dicts, path)
    except UserError as error:
        return {"kind": "unknown", "nearest": str(error).removeprefix(f"{path} "), **_sizes(largest)}
    cfg = registry.configure(network.kind, {"name": network.name, **network.settings})
    parameters = sum(parameter.numel() for parameter in build_on_meta(network.kind, cfg).parameters())
    notes = {"place": network.place, "left_out": list(network.left_out), "undecided": network.undecided,
             "noise_schedule": network.schedule}
    return {
        "kind": network.kind, "architecture": network.name, "settings": network.settings,
        **{name: value for name, value in notes.items() if value},
        "prefix": network.prefix, "parameters": parameters, **_sizes(dicts[network.place]),
    }


def _inspect_guided(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        settings = guided_diffusion.read_settings(tensors)
        guided_diffusion.to_diffusers(tensors, settings)
    except UserError as error:
        return {"kind": "unknown", "nearest": str(error), **_sizes(tensors)}
    sizes = _sizes(tensors)
    return {"kind": GENERATOR, "architecture": "guided-diffusion UNet", "settings": asdict(settings), "prefix": "",
            "parameters": sizes["values"], **sizes}


def _inspect_head(path: Path) -> dict[str, Any]:
    tensors, num_files = tface_head.read_any_head(path)
    size, num_classes = tensors[tface_head.KERNEL].shape
    return {"format": "safetensors" if path.suffix == ".safetensors" else "torch, TFace", "kind": HEAD,
            "architecture": f"classifier of {num_classes} classes", "embedding_size": size, "classes": num_classes,
            "files": num_files, **_sizes(tensors)}


def _inspect_folder(folder: Path) -> dict[str, Any]:
    if (folder / PIPELINE).is_file():
        index = read_json(folder / PIPELINE)
        parts = {key: value[1] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
        return {"format": "diffusers pipeline", "kind": PIPELINE_KIND, "architecture": index.get("_class_name"),
                "parts": parts}
    halves = [folder / name for name in HALVES]
    if all(half.is_file() for half in halves):
        tensors = {key: value for half in halves for key, value in read_tensors(half).items()}
        return {"format": "torch, in two files", **_inspect_tensors({"": tensors}, folder)}
    config = read_config(folder) if (folder / CONFIG).is_file() else {}
    kind = next((kind for kind in ("denoiser", "backbone", "autoencoder")
                 if isinstance(config.get(kind), dict) and (folder / TENSORS).is_file()), None)
    if kind is not None:
        settings = {key: value for key, value in config[kind].items() if key != "name"}
        prediction = {"prediction": config["prediction"]} if kind == "denoiser" and "prediction" in config else {}
        return {
            "format": "facesyn weights", "kind": kind, "architecture": config[kind].get("name"), "settings": settings,
            **prediction, **_sizes(read_tensors(folder / TENSORS)), "digest": file_digest(folder / TENSORS),
        }
    name = config.get("_class_name")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if name and files:
        tensors = {key: value for file in files for key, value in read_tensors(file).items()}
        kind = "autoencoder" if name.startswith(("Autoencoder", "VQ")) else "diffusers model"
        return {"format": "diffusers model", "kind": kind, "architecture": name, **_sizes(tensors)}
    if is_pack(folder):
        return _inspect_onnx(folder)
    raise UserError(f"{folder}: no weights are known in this folder; expected {CONFIG} with {TENSORS}, or a folder in "
                    "diffusers format")


def _inspect_onnx(path: Path) -> dict[str, Any]:
    """Inputs, outputs and sizes of an ONNX graph; the numbers themselves are not read."""
    is_single = path.is_file() and is_onnx(path)
    file = OnnxFile(str(path), path) if is_single else find_recognizer(path)
    model = read_graph(file)
    precision: Counter[str] = Counter()
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        precision[TensorProto.DataType.Name(tensor.data_type).lower()] += math.prod(tensor.dims)
    inputs, outputs = inputs_and_outputs(model)
    return {
        "format": "onnx" if is_single else "pack of ONNX networks", "kind": ONNX_KIND,
        **({} if is_single else {"recognizer": file.name}),
        "inputs": inputs, "outputs": outputs,
        "values": sum(precision.values()), "tensors": len({tensor.name for tensor in model.graph.initializer}),
        "precision": dict(precision), "quantizes_dynamically": quantizes_dynamically(model),
        "opset": max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        "digest": file.digest(),
    }


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    precision: Counter[str] = Counter()
    for value in tensors.values():
        precision[str(value.dtype).removeprefix("torch.")] += value.numel()
    return {"values": sum(precision.values()), "tensors": len(tensors), "precision": dict(precision)}
