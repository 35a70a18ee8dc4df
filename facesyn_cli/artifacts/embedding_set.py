"""EmbeddingSet: unit vectors by image key.

On disk: `embeddings.npy` (N, 512) float32 and `keys.txt`, one key per row; where a detector measured it, `yaw.npy` (N,)
float32. Published formats can be read as well, see `vector_files`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_atomically, write_text
from facesyn_cli.artifacts.header import Parent, is_ours, require_header
from facesyn_cli.artifacts.name_lists import keys_of
from facesyn_cli.artifacts.names import nfc
from facesyn_cli.artifacts.npy_file import write_npy_blocks
from facesyn_cli.artifacts.vector_files import holds_vectors, normalize, read_vector_file, read_vectors, unnamed_rows
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import read_array
from facesyn_cli.untrusted.input_files import read_lines

VECTORS = "embeddings.npy"
KEYS = "keys.txt"
YAW = "yaw.npy"


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of images, joined by key.

    Args:
        keys: `identity/sample` of each row.
        vectors: (N, D) float32, each row of length 1.
        embedder: Digest of the recognizer's weights; None when unknown.
        path: Where it was read from.
        digest: Digest of the set.
        yaw: (N,) float32, how far each face is turned, in degrees (`data/pose.py`), NaN where none was found; None: not
            measured.
    """

    keys: list[str]
    vectors: np.ndarray
    embedder: str | None
    path: Path
    digest: str
    yaw: np.ndarray | None = None

    @staticmethod
    def open(path: Path, names: Path | None = None) -> EmbeddingSet:
        """Read a folder written by `facesyn embed`, or published embeddings whose rows have names.

        Args:
            path: The folder, or a file or folder in a format of `vector_files`.
            names: Row-order list of an array; None: the one beside it.

        Raises:
            UserError: It is none of them or unfinished, its files do not match, or the rows have no names.
        """
        path = Path(path)
        if is_published(path):
            return _open_published(path, names)
        header = require_header(path, "EmbeddingSet")
        if names is not None:
            raise UserError(f"{path} has its own keys; the row-order list {names} does not apply")
        vectors = read_vectors(path / VECTORS)
        keys = read_keys(path / KEYS)
        if len(keys) != len(vectors):
            raise UserError(f"{path}: {len(keys)} keys but {len(vectors)} rows; run `facesyn embed` again")
        yaw = read_array(path / YAW, "the yaw of faces") if (path / YAW).exists() else None
        if yaw is not None and (yaw.shape != (len(keys),) or yaw.dtype != np.float32):
            raise UserError(f"{path / YAW} has {yaw.shape} {yaw.dtype} numbers, one of float32 was expected for each "
                            f"of {len(keys)} keys; run `facesyn embed` again")
        return EmbeddingSet(keys, vectors, header.extra.get("embedder"), path, header.digest, yaw)

    def join(self, keys: list[str]) -> np.ndarray:
        """Return the rows of the given keys, (len(keys), D); no copy if they are the keys of the set.

        Raises:
            UserError: Some keys have no embedding.
        """
        return self.vectors if keys == self.keys else self.vectors[self._rows(keys)]

    def join_yaw(self, keys: list[str]) -> np.ndarray:
        """Return the yaw of the given keys, (len(keys),) float32.

        Raises:
            UserError: It was not measured, or some keys have no embedding.
        """
        if self.yaw is None:
            raise UserError(f"{self.path} does not say how far faces are turned; make it again with facesyn embed "
                            "pose_detector=YUNET, a detector in .onnx format")
        return self.yaw[self._rows(keys)]

    def _rows(self, keys: list[str]) -> list[int]:
        row_of = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise UserError(
                f"{self.path} has no embedding for {len(missing)} of {len(keys)} images, first {missing[0]!r}"
            )
        return [row_of[key] for key in keys]

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return Parent(str(self.path), self.digest)


def write_embeddings(folder: Path, keys: list[str], vectors: np.ndarray) -> None:
    """Write the two files; (N, D) vectors, not zero, are normalized to length 1."""
    write_embedding_blocks(folder, keys, vectors.shape[1], [vectors])


def write_embedding_blocks(folder: Path, keys: list[str], width: int, blocks: Iterable[np.ndarray]) -> None:
    """Write the two files like `write_embeddings`, with one block of rows in memory at a time.

    Args:
        width: D, length of a row.
        blocks: Arrays (n, D), not zero, with one row per key in all.
    """
    with write_atomically(folder / VECTORS) as temporary, open(temporary, "wb") as file:
        write_npy_blocks(file, (len(keys), width), np.float32, map(normalize, blocks))
    write_text(folder / KEYS, "".join(f"{key}\n" for key in keys))


def read_keys(path: Path) -> list[str]:
    """Read one key per line, in Unicode NFC.

    Raises:
        UserError: The file cannot be read, or two of its keys are equal in NFC.
    """
    lines = list(read_lines(path, "a list of keys"))
    keys = [nfc(line) for line in lines]
    if keys != lines and len(set(keys)) < len(set(lines)):
        raise UserError(f"{path} has one key in two Unicode forms; run `facesyn embed` again with another --out")
    return keys


def is_published(path: Path) -> bool:
    """Return whether a path is a file, or a folder of `.npy` files that facesyn did not write."""
    return not is_ours(path) and (holds_vectors(path) if path.is_dir() else path.exists())


def _open_published(path: Path, names: Path | None) -> EmbeddingSet:
    found = read_vector_file(path, names)
    if found.names is None:
        raise UserError(unnamed_rows(found.path, "embeddings join images by name, so a row-order list is needed"))
    log.warning(f"{found.path} does not say which recognizer made it; all embeddings of a run must come from one")
    return EmbeddingSet(keys_of(found.names, found.listed_in or found.path), found.vectors, None, path, found.digest)
