"""Embeddings in other people's files.

    elastic_embed.npy             a plain (N, D) array (ADMIS, UIFace); which row is which image stands in
                                  `image_names.pkl` beside it, or nowhere
    elasticface_embeddings.npy    the same without a list: contexts, rows in string-sorted order of their faces
    contexts.npy                  IDiff-Face: a dict of name -> vector saved by torch, under the same ending
    embeddings_elasticface_*/     IDiff-Face: one torch-saved vector per image, `<image>.npy`

Told apart by content. Nothing is unpickled freely: torch files may hold tensors and plain numpy arrays, arrays
no objects, lists of names only text.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import bytes_digest, file_digest, json_digest
from facesyn_cli.artifacts.name_lists import ORDER_FILES, order_file, read_name_list
from facesyn_cli.artifacts.torch_files import check_unpacked_size, forbidden_name
from facesyn_cli.console import progress
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import array_from_bytes, read_array
from facesyn_cli.untrusted.input_files import files_below, input_size, read_bytes, read_start

EXPECTED = "an (N, 512) .npy, IDiff-Face's torch-saved dict or its folder of one .npy per image"

_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # how torch files start: a zip, and the format before it
_MAX_VECTOR_BYTES = 2**20                      # of a file that holds one vector
_BLOCK = 65536                                 # rows normalized at once


@dataclass(frozen=True)
class VectorFile:
    """Embeddings that facesyn did not write.

    Args:
        path: The file, or the folder of one file per image.
        names: Name of each row; None: the rows have numbers only.
        vectors: (N, D) float32, each row of length 1.
        digest: Digest of the content.
        listed_in: The row-order list that gave the names of an array, or None.
    """

    path: Path
    names: list[str] | None
    vectors: np.ndarray
    digest: str
    listed_in: Path | None = None


def holds_vectors(folder: Path) -> bool:
    """True when a folder has `.npy` files in it or in its folders, down to the first one found."""
    return next(files_below(folder, ".npy"), None) is not None


def read_vector_file(path: Path, names: Path | None = None) -> VectorFile:
    """Read embeddings of any of the forms above.

    Args:
        path: The file, its folder, or a folder of one file per image.
        names: Row-order list of an array; None: the one beside it, if there is one.

    Raises:
        UserError: Missing, damaged, none of the forms, rows that are zero or not finite, or a list that does not fit.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(files_below(path, ".npy"))
        if not files:
            raise UserError(f"{path} holds no .npy files; {EXPECTED} was expected")
        wide = [file for file in files[:2] if not _is_one_vector(file)]
        if not wide:
            if names is not None:
                raise UserError(f"{path} holds one file per image, which have names already; {names} does not apply")
            return _read_folder(path, files)
        if len(files) > 1:
            raise UserError(f"{path} holds several .npy files, {files[0].name} and others; name one of them")
        path = files[0]
    elif not path.exists():
        raise UserError(f"{path} does not exist; {EXPECTED} was expected")
    if _is_torch(path):
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
        raise UserError(f"{names} names {len(listed.names)} images, but {path} has {len(vectors)} rows; "
                        "one name a row was expected")
    return VectorFile(path, listed.names, vectors, json_digest([file_digest(path), listed.names]), names)


def unnamed_rows(path: Path, needs: str) -> str:
    """Return what to say of an array whose rows nobody names.

    Args:
        path: The array.
        needs: What follows from it.
    """
    return f"{path} does not say which row is which image (no {' or '.join(ORDER_FILES)} beside it); {needs}"


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Return the rows divided by their length, float32; computed in float64.

    Raises:
        UserError: A row is zero or not finite.
    """
    vectors = np.asarray(vectors)
    result = np.empty(vectors.shape, dtype=np.float32)
    bad, first = 0, None
    for start in range(0, len(vectors), _BLOCK):
        with np.errstate(all="ignore"):  # rows that are not numbers are counted below
            block = np.asarray(vectors[start : start + _BLOCK], dtype=np.float64)
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
        if len(wrong):
            bad, first = bad + len(wrong), start + wrong[0] if first is None else first
        else:
            result[start : start + _BLOCK] = block / lengths
    if bad:
        raise UserError(f"{bad} embeddings are zero or not finite, first row {first}")
    return result


def read_vectors(path: Path) -> np.ndarray:
    """Read a plain `.npy` of (N, D) numbers, never a pickle.

    Raises:
        UserError: Not such a file.
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
            content = _load_torch(io.BytesIO(data), file) if data.startswith(_TORCH) else array_from_bytes(data, file)
            rows.append(_row(content, str(file)))
            if len(rows[-1]) != len(rows[0]):
                raise UserError(f"{file} holds {len(rows[-1])} numbers, {files[0]} {len(rows[0])}")
            bar.advance()
            signals.check()
    return VectorFile(folder, names, _unit(np.stack(rows), folder), json_digest([names, digests]))


def _is_one_vector(path: Path) -> bool:
    """True when a `.npy` file, saved by torch or numpy, holds a single vector."""
    if input_size(path) > _MAX_VECTOR_BYTES:
        return False
    data = read_bytes(path, _MAX_VECTOR_BYTES)
    try:
        if data.startswith(_TORCH):
            content = _load_torch(io.BytesIO(data), path)
        else:
            content = array_from_bytes(data, path)
    except UserError:
        return False  # whoever reads it says what is wrong
    return not isinstance(content, Mapping) and getattr(content, "ndim", 0) == 1


def _row(value: Any, where: str) -> np.ndarray:
    """Return one vector as (D,) float32; a leading axis of 1 is no harm."""
    value = value.numpy() if isinstance(value, torch.Tensor) and not value.is_sparse else value
    is_vector = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size == max(value.shape, default=0)
    if not is_vector or not 0 < value.size <= _MAX_VECTOR_BYTES // 8:
        found = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{where} is {found}; 512 floating-point numbers were expected")
    return _as_float32(value).reshape(-1)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused later
        return values.astype(np.float32, copy=False)


def _is_torch(path: Path) -> bool:
    return read_start(path, 4, EXPECTED) in _TORCH


def _load_torch(source: Path | BinaryIO, path: Path) -> Any:
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
    check_unpacked_size(source, path)
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not write itself
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(source, Path) and source.suffix.lower() == ".npz":
            raise UserError(f"{path} is a NumPy archive of arrays (.npz); {EXPECTED} was expected") from error
        asked = forbidden_name(error)
        reason = f"it asks for {asked}" if asked else f"it is damaged ({type(error).__name__})"
        raise UserError(f"{path} is not {EXPECTED}; as a torch file it is not read: {reason}") from error


def _unit(vectors: np.ndarray, path: Path) -> np.ndarray:
    try:
        return normalize(vectors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
