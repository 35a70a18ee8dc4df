"""Labels of packed sets: `labels.txt`, and integers or names of other people's sets turned into labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_text
from facesyn_cli.artifacts.names import escape_name, unescape_name
from facesyn_cli.artifacts.record_set import LABELS, natural_labels
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_lines

MAX_LABEL = 2**31 - 1


def write_labels(path: Path, identities: list[str], counts: np.ndarray) -> None:
    """Write `label, identity, number of images`, one line per identity, separated by tabs."""
    rows = enumerate(zip(identities, counts, strict=True))
    write_text(path, "".join(f"{label}\t{escape_name(name, keep='/')}\t{count}\n" for label, (name, count) in rows))


def read_labels(path: Path) -> list[str]:
    """Return the identities of a `labels.txt` in order of their labels.

    Raises:
        UserError: Missing, or labels that are not 0, 1, 2, ...
    """
    names = []
    try:
        for number, line in enumerate(read_lines(path, "a list of labels")):
            label, name, _ = line.split("\t")
            if int(label) != number:
                raise ValueError(f"label {label} in line {number + 1}")
            names.append(unescape_name(name))
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return names


def our_labels(values: np.ndarray, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return labels and identities of a set that `facesyn pack` wrote into `folder`.

    Raises:
        UserError: The labels are not those of its labels.txt.
    """
    identities = read_labels(folder / LABELS)
    if len(values) == 0 or values.min() < 0 or values.max() >= len(identities):
        raise UserError(f"{folder} holds labels that are not among the {len(identities)} of its {LABELS}")
    return values.astype(np.int32), identities


def dense_labels(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Turn integers into labels 0, 1, ... without gaps; the integers become the names of the identities.

    Args:
        values: (N,) integers.

    Returns:
        (N,) int32 labels, and the names in order of the labels.
    """
    known, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int32), [str(value) for value in known]


def named_labels(numbers: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Turn indices of names into labels in natural order of the names.

    Args:
        numbers: (N,) index of the name of each record.
        names: Names; those of no record get no label, and those that are equal in Unicode NFC get one.
    """
    used, places = np.unique(numbers, return_inverse=True)
    identities, label_of = natural_labels([names[i] for i in used])
    return label_of[places], identities
