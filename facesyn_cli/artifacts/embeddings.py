"""EmbeddingSet: unit vectors by image key.

On disk: `embeddings.npy` (N, 512) float32 and `keys.txt`, one key a line, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.files import write_atomically, write_text
from facesyn_cli.artifacts.output import Parent, require_header
from facesyn_cli.errors import UserError

VECTORS = "embeddings.npy"
KEYS = "keys.txt"


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of images, joined by key.

    Args:
        keys: `identity/sample` of each row.
        vectors: (N, D) float32, each row of length 1.
        embedder: Digest of the recogniser's weights; None when unknown.
        path: Where it was read from.
        digest: Digest of the set.
    """

    keys: list[str]
    vectors: np.ndarray
    embedder: str | None
    path: Path
    digest: str

    @staticmethod
    def open(folder: Path) -> EmbeddingSet:
        """Read a folder written by `facesyn embed`.

        Raises:
            UserError: It is no finished EmbeddingSet or its files do not fit together.
        """
        header = require_header(Path(folder), "EmbeddingSet")
        vectors = read_vectors(Path(folder) / VECTORS)
        keys = read_keys(Path(folder) / KEYS)
        if len(keys) != len(vectors):
            raise UserError(f"{folder}: {len(keys)} keys but {len(vectors)} rows; run `facesyn embed` again")
        return EmbeddingSet(keys, vectors, header.extra.get("embedder"), Path(folder), header.digest)

    def join(self, keys: list[str]) -> np.ndarray:
        """Return the rows of the given keys, (len(keys), D).

        Raises:
            UserError: Some keys have no embedding; the count and the first of them are named.
        """
        row_of = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise UserError(
                f"{self.path} has no embedding for {len(missing)} of {len(keys)} images, first {missing[0]!r}"
            )
        return self.vectors[[row_of[key] for key in keys]]

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return Parent(str(self.path), self.digest)


def write_embeddings(folder: Path, keys: list[str], vectors: np.ndarray) -> None:
    """Write the two files; rows are normalised to length 1.

    Args:
        folder: Output folder.
        keys: Key of each row.
        vectors: (N, D), not zero.
    """
    with write_atomically(folder / VECTORS) as temporary, open(temporary, "wb") as file:
        np.save(file, normalise(vectors))
    write_text(folder / KEYS, "".join(f"{key}\n" for key in keys))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return the rows divided by their length, float32; computed in float64.

    Raises:
        UserError: A row is zero or not finite.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise UserError(f"{len(bad)} embeddings are zero or not finite, first row {bad[0]}")
    return (vectors / lengths).astype(np.float32)


def read_vectors(path: Path) -> np.ndarray:
    """Read a plain `.npy` of (N, D) numbers, never a pickle.

    Raises:
        UserError: Not such a file.
    """
    try:
        vectors = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; an array file (.npy) was expected") from error
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise UserError(f"{path} is not a plain array file (.npy): {' '.join(str(error).split())[:200]}") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = f"{getattr(vectors, 'dtype', type(vectors).__name__)} of shape {getattr(vectors, 'shape', '?')}"
        raise UserError(f"{path} holds {found}; floating-point (rows, values) was expected")
    return vectors.astype(np.float32, copy=False)


def read_keys(path: Path) -> list[str]:
    """Read one key a line."""
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
