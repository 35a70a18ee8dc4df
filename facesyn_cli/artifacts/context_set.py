"""ContextSet: one embedding per new identity, with its origin and, if there is one, its face image.

On disk: `contexts.npy` (N, 512) float32, one row per identity, readable by the published sampler; `contexts.jsonl`, one
line per identity with name, origin and face file; `faces/`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from facesyn_cli.artifacts.atomic_files import write_atomically, write_text
from facesyn_cli.artifacts.embedding_set import is_published
from facesyn_cli.artifacts.header import NameInside, Parent, require_header
from facesyn_cli.artifacts.names import nfc
from facesyn_cli.artifacts.npy_file import write_npy
from facesyn_cli.artifacts.origins import FACE_ORIGIN, GENERATED, PHOTO, UNKNOWN, Origin
from facesyn_cli.artifacts.vector_files import normalize, read_vector_file, read_vectors, unnamed_rows
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.parsing import read_json_lines, validated

VECTORS = "contexts.npy"
ROWS = "contexts.jsonl"
FACES = "faces"
_ROUNDED = 1e-5  # largest deviation from length 1 of a row stored in float32


class _Row(BaseModel):
    """A line of `contexts.jsonl`."""

    model_config = ConfigDict(extra="allow", strict=True)

    identity: str
    origin: dict[str, Any] = {}
    face: NameInside | None = None  # of a file in `faces/`


@dataclass(frozen=True)
class ContextSet:
    """Contexts of new identities.

    Args:
        identities: Name of each identity.
        vectors: (N, D) float32, each row of length 1.
        origins: Source of each context; informative.
        faces: Absolute path of the face image of each context, or None.
        embedder: Digest of the recognizer's weights; None when unknown.
        path: Where the set was read from.
        digest: Digest of the set.
        lineage: Digest that does not change when the set grows by a higher count of `gen-contexts`; the first rows
            stay the same.
        face_origin: Origin of the faces: photo, generated or unknown; see `artifacts/origins.py`.
    """

    identities: list[str]
    vectors: np.ndarray
    origins: list[dict[str, Any]]
    faces: list[Path | None]
    embedder: str | None
    path: Path
    digest: str
    lineage: str
    face_origin: Origin = UNKNOWN

    @staticmethod
    def open(path: Path) -> ContextSet:
        """Read a folder written by `facesyn gen-contexts`, or published embeddings (`vector_files`).

        Rows of a published array are named `0`, `1`, ... like in the published sampler, with or without a row-order
        list; entries of a dict and files of a folder keep their names.

        Raises:
            UserError: It is none of them, or unfinished.
        """
        path = Path(path)
        if is_published(path):
            return _open_published(path)
        header = require_header(path, "ContextSet")
        vectors = read_vectors(path / VECTORS)
        if np.abs(np.linalg.norm(vectors, axis=1) - 1).max(initial=0) > _ROUNDED:
            vectors = normalize(vectors)  # stored in half precision, like those of the starter
        rows = _read_rows(path / ROWS)
        if len(rows) != len(vectors):
            raise UserError(f"{path}: {len(rows)} lines in {ROWS} but {len(vectors)} rows in {VECTORS}")
        faces = [path / FACES / row["face"] if row.get("face") else None for row in rows]
        identities = _distinct([nfc(row["identity"]) for row in rows], path)
        origins = [row["origin"] for row in rows]
        embedder, face_origin = header.extra.get("embedder"), header.extra.get(FACE_ORIGIN, UNKNOWN)
        if face_origin not in (PHOTO, GENERATED, UNKNOWN):
            raise UserError(f"{path}: {FACE_ORIGIN} in its header is {face_origin!r}; photo, generated or unknown was "
                            "expected")
        return ContextSet(identities, vectors, origins, faces, embedder, path, header.digest, header.lineage,
                          face_origin)

    def parent(self) -> Parent:
        """Return this set as an input for a header; the input is the same after the set has grown."""
        return Parent(str(self.path), self.lineage)


def _open_published(path: Path) -> ContextSet:
    found = read_vector_file(path)
    numbers = [str(row) for row in range(len(found.vectors))]
    is_array = found.names is None or found.listed_in is not None
    if found.names is None:
        log.info(unnamed_rows(found.path, "row numbers are the identities, as published"))
    origins = [{"file": found.path.name, "row": row} for row in range(len(numbers))]
    if found.names is not None:
        for origin, name in zip(origins, found.names, strict=True):
            origin["name"] = name
    identities = numbers if is_array else _distinct([nfc(name) for name in found.names or []], path)
    faces: list[Path | None] = [None] * len(numbers)
    return ContextSet(identities, found.vectors, origins, faces, None, path, found.digest, found.digest)


def write_contexts(
    folder: Path, identities: list[str], vectors: np.ndarray, origins: list[dict], faces: list[str | None]
) -> None:
    """Write the vectors and the rows; the caller writes face files into `faces/`.

    Args:
        vectors: (N, D); normalized to length 1.
        origins: Source of each context.
        faces: File name inside `faces/`, or None.
    """
    with write_atomically(folder / VECTORS) as temporary, open(temporary, "wb") as file:
        write_npy(file, normalize(vectors))
    lines = [
        json.dumps({"identity": identity, "origin": origin, "face": face}, sort_keys=True)
        for identity, origin, face in zip(identities, origins, faces, strict=True)
    ]
    write_text(folder / ROWS, "".join(f"{line}\n" for line in lines))


def _distinct(identities: list[str], path: Path) -> list[str]:
    duplicate = next((name for name, count in Counter(identities).items() if count > 1), None)
    if duplicate is not None:
        raise UserError(f"{path} has two contexts of the identity {duplicate!r}; one context per identity was expected")
    return identities


def _read_rows(path: Path) -> list[dict[str, Any]]:
    expected = "a list of contexts"
    lines = enumerate(read_json_lines(path, expected), 1)
    return [validated(_Row, value, f"{path}, line {number}", expected).model_dump() for number, value in lines]
