"""Given embeddings in every form they come in: ours, the published context array, IDiff-Face's dict.

The published `elasticface_embeddings.npy` is a plain array whose rows follow the string-sorted names of
the face files beside it. IDiff-Face saves a dict of name -> vector with `torch.save`, under the same
ending `.npy`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from facesyn_cli.artifacts.contexts import ContextSet
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.embeddings import EmbeddingSet, normalise, read_vectors
from facesyn_cli.artifacts.output import Parent, read_header
from facesyn_cli.contexts.source import EMBEDDING_SIZE
from facesyn_cli.errors import UserError

EXPECTED = "an EmbeddingSet or ContextSet folder, an (N, 512) .npy or IDiff-Face's torch-saved dict"

_ZIP, _LEGACY_TORCH = b"PK\x03\x04", b"\x80\x02\x8a\x0a"


@dataclass(frozen=True)
class GivenVectors:
    """Embeddings that were made elsewhere.

    Args:
        form: `embeddings`, `contexts`, `array` or `dict`: which of the forms it is.
        names: Key, identity, row number or name of each row.
        vectors: (N, 512) float32 unit rows.
        embedder: Digest of the recogniser, None unknown.
        parent: For the header.
        faces: Path of each row's face, or None; only a ContextSet brings its own.
    """

    form: str
    names: list[str]
    vectors: np.ndarray
    embedder: str | None
    parent: Parent
    faces: list[Path | None]


def read_given_vectors(path: Path) -> GivenVectors:
    """Read embeddings of any form.

    Raises:
        UserError: Missing, none of the forms, wrong width, or a row that is zero or not finite.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; {EXPECTED} was expected")
    if path.is_dir():
        given = _read_folder(path)
    else:
        form, names, vectors = _read_file(path)
        parent = Parent(str(path), file_digest(path))
        given = GivenVectors(form, names, vectors, None, parent, [None] * len(names))
    if not len(given.vectors):
        raise UserError(f"{path} holds no embeddings")
    if given.vectors.shape[1] != EMBEDDING_SIZE:
        raise UserError(f"{path} holds vectors of {given.vectors.shape[1]} numbers; {EMBEDDING_SIZE} were expected")
    return given


def _read_folder(path: Path) -> GivenVectors:
    header = read_header(path)
    if header is not None and header.kind == "ContextSet":
        contexts = ContextSet.open(path)
        return GivenVectors("contexts", contexts.identities, contexts.vectors, contexts.embedder,
                            contexts.parent(), contexts.faces)
    found = EmbeddingSet.open(path)
    return GivenVectors("embeddings", found.keys, found.vectors, found.embedder, found.parent(),
                        [None] * len(found.keys))


def _read_file(path: Path) -> tuple[str, list[str], np.ndarray]:
    with open(path, "rb") as file:
        head = file.read(4)
    if head != _ZIP and head != _LEGACY_TORCH:
        vectors = _unit(read_vectors(path), path)
        return "array", [str(row) for row in range(len(vectors))], vectors
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; a dict of name -> vector was expected")
    rows = []
    for name, value in content.items():
        value = value.numpy() if isinstance(value, torch.Tensor) else value
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size != EMBEDDING_SIZE:
            found = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise UserError(f"{path}: entry {name!r} is {found}; {EMBEDDING_SIZE} floating-point numbers were expected")
        rows.append(value.astype(np.float32).reshape(-1))
    vectors = np.stack(rows) if rows else np.empty((0, EMBEDDING_SIZE), dtype=np.float32)
    return "dict", [str(name) for name in content], _unit(vectors, path)


def _read_torch(path: Path) -> object:
    """Read a torch file that may hold plain numpy arrays besides tensors, and nothing else.

    What makes an array anew is allowed by name, under both names numpy has had for its core; dtypes with
    objects inside could hold nothing but what this unpickler lets through.
    """
    rebuild = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    allowed = [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(t)) for t in (np.float16, np.float32, np.float64)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, IndexError, TypeError,
            AttributeError, AssertionError) as error:
        reason = next((line for line in str(error).split("\n") if "WeightsUnpickler" in line), str(error))
        reason = " ".join(reason.split())[:160]
        raise UserError(f"{path} is not {EXPECTED}; as a torch file it is not read: {reason}") from error


def _unit(vectors: np.ndarray, path: Path) -> np.ndarray:
    try:
        return normalise(vectors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
