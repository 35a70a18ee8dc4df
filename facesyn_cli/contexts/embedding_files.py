"""Given embeddings in every supported form: our folders, and the published forms of `artifacts/vector_files.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedding_set import EmbeddingSet, is_published
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.origins import UNKNOWN, Origin
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE, EXPECTED, read_vector_file, unnamed_rows
from facesyn_cli.console import log
from facesyn_cli.errors import UserError


@dataclass(frozen=True)
class GivenVectors:
    """Embeddings that were made elsewhere.

    Args:
        form: `embeddings` and `contexts` are ours; rows of published files are `named` or `numbered`.
        names: Key, identity, row number or name of each row.
        vectors: (N, 512) float32 unit rows.
        embedder: Digest of the recognizer, None unknown.
        parent: For the header.
        faces: Path of each row's face, or None; only a ContextSet brings its own.
        face_origin: Of those faces, as `ContextSet` has it.
    """

    form: str
    names: list[str]
    vectors: np.ndarray
    embedder: str | None
    parent: Parent
    faces: list[Path | None]
    face_origin: Origin = UNKNOWN

    def people(self) -> list[str] | None:
        """Return the identity of each row: its folder, or the whole name without one; None: rows have numbers only."""
        if self.form == "numbered":
            return None
        return [name.rpartition("/")[0] or name for name in self.names]


def read_given_vectors(path: Path, names: Path | None = None) -> GivenVectors:
    """Read embeddings of any form.

    Args:
        path: The file or folder.
        names: Row-order list of an array; None: the one beside it, if there is one.

    Raises:
        UserError: Missing, none of the forms, wrong width, or a row that is zero or not finite.
    """
    path = Path(path)
    if not path.exists():
        raise missing_input(path, f"an EmbeddingSet or ContextSet folder, {EXPECTED}")
    given = _published(path, names) if is_published(path) else _ours(path, names)
    if not len(given.vectors):
        raise UserError(f"{path} holds no embeddings")
    if given.vectors.shape[1] != EMBEDDING_SIZE:
        raise UserError(f"{path} holds vectors of {given.vectors.shape[1]} numbers; {EMBEDDING_SIZE} were expected")
    return given


def _ours(path: Path, names: Path | None) -> GivenVectors:
    if names is not None:
        raise UserError(f"{path} has its own names; the row-order list {names} does not apply")
    header = read_header(path)
    if header is not None and header.kind == "ContextSet":
        contexts = ContextSet.open(path)
        return GivenVectors("contexts", contexts.identities, contexts.vectors, contexts.embedder,
                            contexts.parent(), contexts.faces, contexts.face_origin)
    found = EmbeddingSet.open(path)
    return GivenVectors("embeddings", found.keys, found.vectors, found.embedder, found.parent(),
                        [None] * len(found.keys))


def _published(path: Path, names: Path | None) -> GivenVectors:
    found = read_vector_file(path, names)
    form, rows = ("named", found.names) if found.names is not None else ("numbered", None)
    if rows is None:
        log.info(unnamed_rows(found.path, "they are taken by their numbers"))
        rows = [str(row) for row in range(len(found.vectors))]
    return GivenVectors(form, rows, found.vectors, None, Parent(str(path), found.digest), [None] * len(rows))
