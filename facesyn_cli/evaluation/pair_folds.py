"""Folds of a list of pairs, from the numbers on its first line and the pairs that follow.

With M pairs, the known forms of the first line are

    folds pairs       M = 2 folds pairs (LFW View 2: pairs of each class and fold), M = folds pairs (pairs of each
                      fold), or M = pairs (all of them)
    pairs             M = 2 pairs, all genuine ones first (LFW View 1: pairs of each class), or M = pairs
    folds             M is a multiple of it
    no such line      the list begins with its first pair

View 1 and lists without a number of folds are cut into 10. Where all genuine pairs come first, consecutive folds would
hold one class each, so genuine and impostor pairs are interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.console import log
from facesyn_cli.errors import UserError

DEFAULT_FOLDS = 10


def cut_into_folds(path: Path, header: Sequence[int], is_same: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64]]:
    """Return the number of folds of a list, and the order of its pairs in consecutive folds.

    Args:
        path: The list, for messages.
        header: The one or two numbers on its first line, or none.
        is_same: (M,) True for the genuine pairs, in the order of the list.

    Raises:
        UserError: The numbers do not fit the pairs, or fit them in two ways.
    """
    num_pairs = len(is_same)
    folds = _announced(path, header, is_same) if header else None
    if folds is not None:
        return folds, np.arange(num_pairs)
    if _is_genuine_first(is_same):
        folds = min(DEFAULT_FOLDS, num_pairs // 2)
        log.info(f"{path}: {num_pairs // 2} pairs of each class and no folds, as in LFW View 1; cut into {folds} folds "
                 "of both classes")
        return folds, np.arange(num_pairs).reshape(2, -1).T.ravel()
    folds = min(DEFAULT_FOLDS, num_pairs)
    log.info(f"{path}: its first line names no folds; cut into {folds} consecutive ones")
    return folds, np.arange(num_pairs)


def checked_folds(folds: int, is_same: NDArray[np.bool_], path: Path) -> int:
    """Return the number of folds; warn where folds hold one class only.

    Args:
        folds: Number of consecutive folds.
        is_same: (M,) True for the genuine pairs.
        path: Where they come from, for messages.

    Raises:
        UserError: There are fewer than 2 folds, or more folds than pairs.
    """
    num_pairs = len(is_same)
    if not 2 <= folds <= num_pairs:
        raise UserError(f"{path}: {folds} folds of {num_pairs} pairs; at least 2 folds and a pair in each are needed")
    one_class = sum(len(set(fold.tolist())) == 1 for fold in np.array_split(is_same, folds))
    if one_class:
        log.warning(f"{path}: {one_class} of {folds} folds hold genuine or impostor pairs only; accuracy and TAR of "
                    "such folds do not compare with published ones")
    return folds


def _announced(path: Path, header: Sequence[int], is_same: NDArray[np.bool_]) -> int | None:
    """Return the number of folds that the first line gives; None where it counts pairs only."""
    num_pairs, number = len(is_same), header[0]
    if len(header) == 2:
        counted = header[1]
        if num_pairs not in (2 * number * counted, number * counted, counted):
            raise UserError(
                f"{path} has {num_pairs} pairs; its first line announces {number} folds of {counted} pairs, "
                f"{number * counted} in all or {2 * number * counted} with as many of different persons"
            )
        return number
    if num_pairs == number or (num_pairs == 2 * number and _is_genuine_first(is_same)):
        return None
    if number < 1 or num_pairs % number:
        raise UserError(
            f"{path} has {num_pairs} pairs; its first line says {number}, which is neither the number of equal folds, "
            f"nor of all pairs, nor of the pairs of each class (for {number} unequal folds: '{number} {num_pairs}')"
        )
    if num_pairs == 2 * number > 2 and not (is_same[0::2] != is_same[1::2]).all():
        raise UserError(
            f"{path} has {num_pairs} pairs; its first line says {number}, which can be the pairs of each class or the "
            f"folds of 2 pairs; write folds and pairs there, such as '{DEFAULT_FOLDS} {num_pairs}'"
        )
    return number


def _is_genuine_first(is_same: NDArray[np.bool_]) -> bool:
    half = len(is_same) // 2
    return len(is_same) == 2 * half > 2 and bool(is_same[:half].all() and not is_same[half:].any())
