"""Read embeddings in published file formats.

    elastic_embed.npy             an (N, D) array (ADMIS, UIFace); `image_names.pkl` beside it, if present, names the
    rows
    elasticface_embeddings.npy    the same without names: contexts, in string-sorted order of their faces
    contexts.npy                  IDiff-Face: a dict of name -> vector saved by torch, with the same suffix
    embeddings_elasticface_*/     IDiff-Face: one torch-saved vector per image, `<image>.npy`

Formats are detected by content. No objects are unpickled: torch files may hold tensors and plain numpy arrays, arrays
no objects, lists of names only text.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import bytes_digest, file_digest, json_digest
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.name_lists import ORDER_FILES, order_file, read_name_list
from facesyn_cli.artifacts.torch_files import check_unpacked_size, forbidden_name, load_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.arrays import array_from_bytes, read_array
from facesyn_cli.untrusted.input_files import files_below, input_size, read_bytes, read_start

EMBEDDING_SIZE = 512  # of contexts
EXPECTED = "an (N, 512) .npy, IDiff-Face's torch-saved dict or its folder of one .npy per image"

_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # first bytes of torch files: a zip, and the legacy format
_MAX_VECTOR_BYTES = 2**20                      # of a file with one vector
_BLOCK = 65536                                 # rows normalized at once


@dataclass(frozen=True)
class VectorFile:
    """Embeddings in a published format.

    Args:
        path: The file, or the folder of one file per image.
        names: Name of each row; None if rows have no names.
        vectors: (N, D) float32, each row of length 1.
        digest: Digest of the content.
        listed_in: Row-order list that names the rows of an array, or None.
    """

    path: Path
    names: list[str] | None
    vectors: np.ndarray
    digest: str
    listed_in: Path | None = None


def holds_vectors(folder: Path) -> bool:
    """Return whether there are `.npy` files below a folder; stops at the first one."""
    return next(files_below(folder, ".npy"), None) is not None


def read_vector_file(path: Path, names: Path | None = None) -> VectorFile:
    """Read embeddings in any of the formats above.

    Args:
        path: The file, its folder, or a folder of one file per image.
        names: Row-order list of an array; None: the one beside it, if there is one.

    Raises:
        UserError: Missing, damaged, another format, rows that are zero or not finite, or a list of another length.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(files_below(path, ".npy"))
        if not files:
            raise UserError(f"{path} holds no .npy files; {EXPECTED} was expected")
        if all(map(_is_one_vector, files[:2])):
            if names is not None:
                raise UserError(f"{path} holds one file per image, which have names already; {names} does not apply")
            return _read_folder(path, files)
        if len(files) > 1:
            raise UserError(f"{path} holds several .npy files, {files[0].name} and others; name one of them")
        path = files[0]
    elif not path.exists():
        raise missing_input(path, EXPECTED)
    if read_start(path, 4, EXPECTED) in _TORCH:
        if names is not None:
            raise UserError(f"{path} is a dict of names already; the list {names} does not apply")
        found, vectors = _read_dict(path)
        return VectorFile(path, found, _unit(vectors, path), file_digest(path))
    vectors = _unit(read_vectors(path), path)
    names = names or order_file(path)
    if names is None:
        return VectorFile(path, None, vectors, file_digest(path))
    listed = read_name_list(names)
    if len(listed.names) != len(vectors):
        raise UserError(f"{names} names {len(listed.names)} images, but {path} has {len(vectors)} rows; one name per "
                        "row was expected")
    return VectorFile(path, listed.names, vectors, json_digest([file_digest(path), listed.names]), names)


def unnamed_rows(path: Path, consequence: str) -> str:
    """Return the message for an array without names of its rows."""
    return f"{path} has no row-order list (no {' or '.join(ORDER_FILES)} beside it); {consequence}"


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Return the rows divided by their length, float32; computed in float64.

    Raises:
        UserError: A row is zero or not finite.
    """
    vectors = np.asarray(vectors)
    result = np.empty(vectors.shape, dtype=np.float32)
    num_bad, first = 0, None
    for start in range(0, len(vectors), _BLOCK):
        with np.errstate(all="ignore"):  # rows that are not finite are counted below
            block = np.asarray(vectors[start : start + _BLOCK], dtype=np.float64)
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
        if len(bad):
            num_bad, first = num_bad + len(bad), start + bad[0] if first is None else first
        else:
            result[start : start + _BLOCK] = block / lengths
    if num_bad:
        raise UserError(f"{num_bad} embeddings are zero or not finite, first row {first}")
    return result


def read_vectors(path: Path) -> np.ndarray:
    """Read a plain `.npy` file as (N, D) float32.

    Raises:
        UserError: No such file, or it holds anything else.
    """
    vectors = read_array(path, "a plain array file (.npy)")
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(f"{path} holds {vectors.dtype} of shape {vectors.shape}; floating-point (rows, values) was "
                        "expected")
    return _as_float32(vectors)


def _read_dict(path: Path) -> tuple[list[str], np.ndarray]:
    content = _load_torch(path, path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; a dict of name -> vector was expected")
    rows = [_row(value, f"{path}: entry {name!r}") for name, value in content.items()]
    for name, row in zip(content, rows, strict=True):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: entry {name!r} has {len(row)} numbers, the first entry {len(rows[0])}")
    return [str(name) for name in content], np.stack(rows) if rows else np.empty((0, 512), dtype=np.float32)


def _read_folder(folder: Path, files: list[Path]) -> VectorFile:
    """Read one vector per file, in string order of their paths."""
    rows, digests = [], []
    names = [os.path.splitext(file.relative_to(folder).as_posix())[0] for file in files]
    with progress(f"read {folder.name}", len(files), unit="files") as bar:
        for file in files:
            data = read_bytes(file, _MAX_VECTOR_BYTES, "a single vector, as each file of its folder should be,")
            digests.append(bytes_digest(data))
            rows.append(_row(_parse(data, file), str(file)))
            if len(rows[-1]) != len(rows[0]):
                raise UserError(f"{file} holds {len(rows[-1])} numbers, {files[0]} {len(rows[0])}")
            bar.advance()
            signals.check()
    return VectorFile(folder, names, _unit(np.stack(rows), folder), json_digest([names, digests]))


def _is_one_vector(path: Path) -> bool:
    """Return whether a `.npy` file, saved by torch or numpy, holds a single vector."""
    if input_size(path) > _MAX_VECTOR_BYTES:
        return False
    try:
        content = _parse(read_bytes(path, _MAX_VECTOR_BYTES), path)
    except UserError:
        return False  # reported when the file is read
    return not isinstance(content, Mapping) and getattr(content, "ndim", 0) == 1


def _parse(data: bytes, path: Path) -> Any:
    return _load_torch(io.BytesIO(data), path) if data.startswith(_TORCH) else array_from_bytes(data, path)


def _row(value: Any, where: str) -> np.ndarray:
    """Return one vector as (D,) float32; axes of size 1 are dropped."""
    value = value.numpy() if isinstance(value, torch.Tensor) and not value.is_sparse else value
    is_vector = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size == max(value.shape, default=0)
    if not is_vector or not 0 < value.size <= _MAX_VECTOR_BYTES // 8:
        found = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{where} is {found}; 512 floating-point numbers were expected")
    return _as_float32(value).reshape(-1)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # overflow becomes infinity, which is refused later
        return values.astype(np.float32, copy=False)


def _load_torch(source: Path | BinaryIO, path: Path) -> Any:
    """Read a torch file of tensors and plain numpy arrays.

    The numpy functions that rebuild arrays are allowed, under their names in NumPy 1 and 2; arrays of objects can hold
    only what this unpickler allows.
    """
    rebuild = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    allowed = [
        (rebuild, "numpy.core.multiarray._reconstruct"), (rebuild, "numpy._core.multiarray._reconstruct"),
        np.ndarray, np.dtype, *(type(np.dtype(t)) for t in (np.float16, np.float32, np.float64)),
    ]
    check_unpacked_size(source, path)
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with torch.serialization.safe_globals(allowed):
            return load_tensors(source)
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(source, Path) and source.suffix.lower() == ".npz":
            raise UserError(f"{path} is a NumPy archive of arrays (.npz); {EXPECTED} was expected") from error
        name = forbidden_name(error)
        reason = f"it refers to {name}" if name else f"it is damaged ({type(error).__name__})"
        raise UserError(f"{path} is not {EXPECTED}; as a torch file it is not read: {reason}") from error


def _unit(vectors: np.ndarray, path: Path) -> np.ndarray:
    try:
        return normalize(vectors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
