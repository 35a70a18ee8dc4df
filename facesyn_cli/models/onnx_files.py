"""ONNX files as graphs, read without running anything, and the recognizer in an InsightFace model pack.

A pack is a folder or zip with a detector, landmark and attribute networks beside the recognizer (`buffalo_l`,
`antelopev2`, ...). The recognizer is the network with input 112 x 112 and 512 outputs.
"""

from __future__ import annotations

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.console import log
from facesyn_cli.errors import UserError, first_line
from facesyn_cli.untrusted.input_files import check_input, input_size

_DYNAMIC_OPERATORS = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_SIDE, _EMBEDDING_SIZE = 112, 512
_SUFFIX = ".onnx"
_MAX_BYTES = 2**30       # of a network in a zip
_MAX_RATIO, _SMALL = 100, 2**24  # weights hardly compress: larger ratios above this size are refused
_MAX_NETWORKS = 64
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX network on disk, or its bytes out of an archive.

    Args:
        name: Name for messages.
        path: The file, or None with `content`.
        content: The bytes of a member of an archive.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None

    @property
    def source(self) -> str | bytes:
        """The argument for onnxruntime: path or bytes."""
        return str(self.path) if self.content is None else self.content

    def digest(self) -> str:
        """Return the digest of the content, which is equal for a file and its copy in an archive."""
        if self.content is None:
            return file_digest(self.path)
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


def read_graph(file: OnnxFile) -> Any:
    """Read a model without its external tensors, which must be in its folder.

    Raises:
        UserError: onnx is not installed, it is not an ONNX file, or it refers to data outside of its folder.
    """
    if file.content is None:
        input_size(file.path, expected="a .onnx file")
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UserError(missing_packages(error)) from error
    try:
        if file.content is None:
            model = onnx.load(str(file.path), load_external_data=False)
        else:
            model = onnx.load_model_from_string(file.content)
    except (DecodeError, ValueError, OSError) as error:
        raise UserError(f"{file.name} is not an ONNX file (or is damaged)") from error
    if not model.graph.input or not model.graph.output:
        raise UserError(f"{file.name} is not an ONNX network: it has no inputs or no outputs")
    folder = file.path.resolve().parent if file.content is None else None
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                if folder is None:
                    raise UserError(f"{file.name}: refers to data in a file beside it ({entry.value}); unpack the "
                                    "archive and give the .onnx file")
                if not (folder / entry.value).resolve().is_relative_to(folder):
                    raise UserError(f"{file.name}: refers to data outside its folder ({entry.value}); refused")
    return model


def missing_packages(error: ImportError) -> str:
    """Return the error message for a missing package."""
    return f"ONNX networks need packages that are not installed ({error.name}): pip install \"facesyn[onnx]\""


def _graphs(model: Any) -> Iterator[Any]:
    """Yield the main graph, the model's functions and every graph nested in a node (If, Loop, ...)."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend(g for g in (attribute.g, *attribute.graphs) if g.node or g.initializer)


def nodes(model: Any) -> Iterator[Any]:
    """Yield all nodes, nested ones included."""
    for graph in _graphs(model):
        yield from graph.node


def quantizes_dynamically(model: Any) -> bool:
    """Return whether results depend on the batch, because scales are derived from it."""
    return any(node.op_type in _DYNAMIC_OPERATORS for node in nodes(model))


def open_session(file: OnnxFile, **options: Any) -> Any:
    """Open a network with onnxruntime, on the CPU.

    Args:
        file: The network.
        options: Attributes of onnxruntime's `SessionOptions`.

    Raises:
        UserError: onnxruntime is not installed, or cannot run the network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(missing_packages(error)) from error
    settings = onnxruntime.SessionOptions()
    for name, value in {"log_severity_level": 4, **options}.items():  # errors are reported below
        setattr(settings, name, value)
    try:
        return onnxruntime.InferenceSession(file.source, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise UserError(f"{file.name}: onnxruntime cannot run it: {first_line(error)}") from error


def _tensors(model: Any) -> Iterator[Any]:
    """Yield all stored tensors: initializers, sparse ones, and attributes."""
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def is_pack(path: Path) -> bool:
    """Return whether a folder or zip contains ONNX networks, at the top or one level below."""
    if path.is_dir():
        return bool(_in_folder(path))
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        return bool(_in_zip(path))
    except UserError:
        return False


def find_recognizer(path: Path) -> OnnxFile:
    """Return the recognizer at a path: the file itself, or the one in a pack.

    Raises:
        UserError: The pack is damaged, or holds no recognizer or several.
    """
    check_input(path, "a .onnx file, or a folder or zip of several")
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return OnnxFile(str(path), path)
    files = _in_folder(path) if path.is_dir() else _in_zip(path)
    if not files:
        raise UserError(f"{path} contains no {_SUFFIX} file")
    if len(files) > _MAX_NETWORKS:
        raise UserError(f"{path}: holds {len(files)} {_SUFFIX} files; a pack of at most {_MAX_NETWORKS} was expected")
    found, seen = [], []
    for file in files:
        opened = _read_member(path, file) if isinstance(file, zipfile.ZipInfo) else OnnxFile(str(file), file)
        inputs, outputs = inputs_and_outputs(read_graph(opened))
        taken, given = next(iter(inputs.values())), next(iter(outputs.values()))
        if _is_recognizer(taken, given):
            found.append(opened)
        seen.append(f"{Path(opened.name).name} ({_text(taken)} -> {_text(given)})")
    if len(found) != 1:
        which = "none" if not found else "several"
        names = ", ".join(seen if not found else (Path(file.name).name for file in found))
        raise UserError(f"{path}: {which} of its networks has input {_SIDE} x {_SIDE} and {_EMBEDDING_SIZE} outputs: "
                        f"{names}" + ("; give one of them" if found else ""))
    if len(files) > 1:
        log.info(f"{path}: {len(files)} networks; {Path(found[0].name).name} is the recognizer "
                 f"({_SIDE} x {_SIDE} -> {_EMBEDDING_SIZE})")
    return found[0]


def _in_folder(folder: Path) -> list[Path]:
    return sorted(p for p in (*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*/*{_SUFFIX}")) if p.is_file())


def _in_zip(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(_SUFFIX) and not m.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged zip file: {error}") from error
    return sorted(members, key=lambda member: member.filename)


def _read_member(path: Path, member: zipfile.ZipInfo) -> OnnxFile:
    """Read one network of a zip file into memory; nothing is unpacked to disk."""
    where = f"{path}/{member.filename}"
    is_suspicious = member.file_size > max(_SMALL, _MAX_RATIO * member.compress_size)
    if member.file_size > _MAX_BYTES or is_suspicious:
        raise UserError(f"{where}: unpacks from {member.compress_size} to {member.file_size} bytes; refused (give the "
                        f"{_SUFFIX} file itself)")
    try:
        with zipfile.ZipFile(path) as archive:
            return OnnxFile(where, content=archive.read(member))
    except _BROKEN as error:
        raise UserError(f"{where}: cannot be read from the archive: {error}") from error


def inputs_and_outputs(model: Any) -> tuple[dict[str, list[int | str]], dict[str, list[int | str]]]:
    """Return the shapes of the inputs that are no initializers, and of the outputs, by name; "?" for a free side."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored] or list(model.graph.input)
    return {value.name: _shape(value) for value in inputs}, {value.name: _shape(value) for value in model.graph.output}


def _shape(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _is_recognizer(taken: list[int | str], given: list[int | str]) -> bool:
    is_face = len(taken) == 4 and list(taken).count(_SIDE) == 2 and 3 in (taken[1], taken[3])
    return is_face and len(given) >= 2 and given[1] == _EMBEDDING_SIZE and all(side == 1 for side in given[2:])


def _text(shape: list[int | str]) -> str:
    return "x".join(map(str, shape)) or "no shape"
