"""ONNX files as graphs: read without running anything, their tensors kept inside their folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import input_size


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX network on disk, or its bytes out of an archive.

    Args:
        name: What to call it in messages.
        path: The file; None where `content` holds it.
        content: Its bytes.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None

    @property
    def source(self) -> str | bytes:
        """What onnxruntime opens."""
        return str(self.path) if self.content is None else self.content

    def digest(self) -> str:
        """Return the digest of the content: the same for a file and for its copy in an archive."""
        if self.content is None:
            return file_digest(self.path)
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


def read_graph(file: OnnxFile) -> Any:
    """Read a model without its external tensors, after making sure that those lie beside it.

    Raises:
        UserError: onnx is not installed, or it is no ONNX file or one that wants data from elsewhere.
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
                    raise UserError(f"{file.name}: wants data from a file beside it ({entry.value}); unpack the "
                                    "archive and give the .onnx file")
                if not (folder / entry.value).resolve().is_relative_to(folder):
                    raise UserError(f"{file.name}: wants data from outside its folder ({entry.value}); refused")
    return model


def missing_packages(error: ImportError) -> str:
    """Say which package is needed and how to get it."""
    return f"ONNX networks need packages that are not installed ({error.name}): pip install \"facesyn[onnx]\""


def first_line(error: Exception) -> str:
    """Return the first line of what another library says, for a message of ours."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


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


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every stored tensor: initializers, sparse ones, and those in attributes."""
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
