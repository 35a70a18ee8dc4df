"""Names and labels of records: many short names in little memory, and integers or names turned into labels."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.record_set import LABELS, natural_labels
from facesyn_cli.data.record_index import escape_name, read_labels
from facesyn_cli.errors import UserError

_ESCAPED = re.compile(r"%([0-9a-f]{4})")
MAX_LABEL = 2**31 - 1


class NameList:
    """A growing list of names, one byte a character and eight bytes a name instead of a Python object each."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q")

    def append(self, name: str) -> None:
        """Add a name; characters that are no text become question marks."""
        self._text += name.encode("utf-8", "replace")
        self._ends.append(len(self._text))

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def escape_stem(name: str) -> str:
    """Return a sample name that is one part of a path without a dot; undone by `unescape_name`."""
    return escape_name(name).replace(".", "%002e")


@lru_cache(maxsize=256)  # the images of an identity follow each other
def escape_folder(identity: str) -> str:
    """Return an identity as a relative path that stays below the folder it is unpacked into."""
    return "/".join(
        f"%002e{part[1:]}" if part.startswith(".") else part or "%002f"
        for part in escape_name(identity, keep="/").split("/")
    )


def unescape_name(name: str) -> str:
    """Undo `escape_name` and `escape_stem`."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), name)


def dense_labels(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Turn any integers into labels 0, 1, ... without gaps; the integers become the names of the identities.

    Args:
        values: (N,) integers.

    Returns:
        (N,) int32 and the names in order of the labels.
    """
    known, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int32), [str(value) for value in known]


def named_labels(numbers: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Turn numbers of names into labels in natural order of the names.

    Args:
        numbers: (N,) which of the names each record has.
        names: Names; those that no record has get no label, and names that are equal in Unicode NFC get one.
    """
    used, places = np.unique(numbers, return_inverse=True)
    identities, label_of = natural_labels([names[i] for i in used])
    return label_of[places], identities


def our_labels(values: np.ndarray, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return labels and identities of a set that `facesyn pack` wrote into `folder`.

    Raises:
        UserError: The labels are not those of its labels.txt.
    """
    identities = read_labels(folder / LABELS)
    if len(values) == 0 or values.min() < 0 or values.max() >= len(identities):
        raise UserError(f"{folder} holds labels that are not among the {len(identities)} of its {LABELS}")
    return values.astype(np.int32), identities
