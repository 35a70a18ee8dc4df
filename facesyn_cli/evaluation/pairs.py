"""Verification pairs from the file formats in use.

    .bin        InsightFace: a pickle of (2N encoded images, N answers); pair k is images 2k and 2k + 1
    pairs.txt   LFW: a first line of counts (`pair_folds.py`) or none; then lines `name i j` (the same
                person) and `name1 i name2 j` (different persons)
    any list    first line as above; then lines `path path 1` (same) or `path path 0` (different), or all lines
                `1 path path` and `0 path path`
    CPLFW       a header; then two lines a pair, `path 1` (same) or `path 0` (different)
    CALFW       the same, with the number of the fold instead of 1

Fields are separated by tabs where a line has any, otherwise by white space. Images are looked up by name
whatever their extension: `Ann_Lee 3` is `Ann_Lee/Ann_Lee_0003`, `Ann_Lee/3`, `Ann_Lee/0003` or
`Ann_Lee_0003`, the first of these that exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.artifacts.image_set import ImageEntry, ImageFinder, ImageSet
from facesyn_cli.artifacts.plain_pickle import load_plain
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pair_folds import DEFAULT_FOLDS, checked_folds, cut_into_folds
from facesyn_cli.evaluation.verification import benchmark_row, squared_distances, unit_rows
from facesyn_cli.untrusted.input_files import GIB, read_bytes, read_lines, read_start

_MAX_BIN = 32 * GIB  # bytes


@dataclass(frozen=True)
class PairSet:
    """Pairs of images with the right answers. An image that occurs in several pairs is held once."""

    unit: ClassVar[str] = "pairs"

    name: str                     # name in the table
    first: NDArray[np.int64]      # (N,) index of each pair's first image
    second: NDArray[np.int64]     # (N,) index of its second image
    is_same: NDArray[np.bool_]    # (N,) True where both show the same person
    folds: int                    # number of folds of the protocol; they are consecutive
    images: list[str]             # name of each image, for messages
    read: Callable[[int], bytes]  # from an index to the encoded bytes; safe to call from several threads
    flip: bool | None = None      # use the flip test; None: the setting of the command

    def __len__(self) -> int:
        return len(self.is_same)

    def evaluate(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the squared distances and answers of all pairs; see `EvaluationSet.evaluate`."""
        unit = unit_rows(vectors)
        distance = squared_distances(unit[self.first], unit[self.second])
        try:
            row = benchmark_row(self.name, distance, self.is_same, self.folds)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        return row, {"distance": distance, "is_same": self.is_same}


def is_count(text: str) -> bool:
    """True for a whole number of at most nine digits, as lists number folds, images and flags."""
    return text.isdecimal() and text.isascii() and len(text) <= 9


def is_bin(path: Path) -> bool:
    """True when a file looks like a pickled `.bin` and not like a list of pairs."""
    start = read_start(path, 1, "a list of pairs or a verification .bin")
    return start == b"\x80" or path.suffix == ".bin"


def read_bin(path: Path, name: str, folds: int = 10) -> PairSet:
    """Read an InsightFace verification `.bin`.

    Raises:
        UserError: The file is missing, or its pickle is of another form or unsafe.
    """
    data = read_bytes(path, _MAX_BIN, "a verification .bin")
    try:
        content = load_plain(data)
    except ValueError as error:
        raise UserError(f"{path} is no verification .bin that is safe to read: {error}") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise UserError(f"{path}: a pickle of (images, answers) was expected, found {_describe(content)}")
    encoded, answers = (_listed(part) for part in content)
    if encoded is None or answers is None:
        raise UserError(f"{path}: two lists were expected, found {' and '.join(_describe(p) for p in content)}")
    if len(encoded) != 2 * len(answers) or not answers:
        raise UserError(f"{path}: holds {len(encoded)} images for {len(answers)} pairs; two a pair were expected")
    index: dict[bytes, int] = {}
    places = [index.setdefault(_image_bytes(item, path, i), len(index)) for i, item in enumerate(encoded)]
    bad = next((a for a in answers if not isinstance(a, (bool, int, np.bool_, np.integer)) or a not in (0, 1)), None)
    if bad is not None:
        raise UserError(f"{path}: answers must be true or false, found {bad!r}")
    images = list(index)
    is_same = np.array([bool(a) for a in answers])
    first_use = {place: i for i, place in reversed(list(enumerate(places)))}
    return PairSet(
        name=name,
        first=np.array(places[0::2]),
        second=np.array(places[1::2]),
        is_same=is_same,
        folds=checked_folds(folds, is_same, path),
        images=[f"image {first_use[place]} of {path.name}" for place in range(len(images))],
        read=images.__getitem__,
    )


def read_pairs(path: Path, images: ImageSet, name: str) -> PairSet:
    """Read a list of pairs of images of a set.

    Raises:
        UserError: The file is missing or malformed (with the line), or names images the set lacks.
    """
    lines = _read_lines(path)
    if _is_two_line(lines):
        folds, rows = DEFAULT_FOLDS, _parse_two_line(path, lines)
    else:
        header = _header(path, lines)
        rows = _parse(path, lines[1:] if header else lines)
        folds, order = cut_into_folds(path, header, np.array([same for _, _, same in rows], dtype=bool))
        rows = [rows[place] for place in order]
    return pairs_of_names(rows, folds, images, name, path)


Row = tuple[list[str], list[str], bool]  # candidate names of the first and second image, and the answer


def pairs_of_names(rows: list[Row], folds: int, images: ImageSet, name: str, path: Path) -> PairSet:
    """Find the images of a list of pairs in a set.

    Args:
        rows: The pairs.
        folds: Number of folds.
        images: The set.
        name: Name in the table.
        path: Where the pairs come from, for messages.

    Raises:
        UserError: The set lacks some of them, or there are fewer pairs than folds.
    """
    finder = ImageFinder(images)
    used: dict[ImageEntry, int] = {}
    missing: dict[str, None] = {}
    places: list[int] = []
    for first, second, _ in rows:
        for names in (first, second):
            entry = finder.find(*names, named_in=path)
            if entry is None:
                missing[names[0]] = None
            else:
                places.append(used.setdefault(entry, len(used)))
    if missing:
        shown = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"{len(missing)} images of {path} are not in {images.path}: {shown}")
    entries = list(used)
    is_same = np.array([same for _, _, same in rows])
    return PairSet(
        name=name,
        first=np.array(places[0::2]),
        second=np.array(places[1::2]),
        is_same=is_same,
        folds=checked_folds(folds, is_same, path),
        images=[entry.location for entry in entries],
        read=lambda index: images.read(entries[index]),
    )


Lines = list[tuple[int, list[str]]]


def _read_lines(path: Path) -> Lines:
    """Return the (line number, fields) of every line that is not empty."""
    numbered = enumerate(read_lines(path, "a list of pairs"), 1)
    lines = [(number, _fields(line)) for number, line in numbered if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; a list of pairs was expected")
    return lines


def _header(path: Path, lines: Lines) -> list[int]:
    """Return the one or two counts of the first line; none where it is a pair."""
    number, fields = lines[0]
    if len(fields) in (3, 4):
        return []
    if not 1 <= len(fields) <= 2 or not all(is_count(field) for field in fields):
        raise UserError(
            f"{path} line {number}: the number of folds (and the pairs per fold) was expected, "
            f"found {' '.join(fields)[:80]!r}"
        )
    if len(lines) == 1:
        raise UserError(f"{path} has no pairs after its first line")
    return [int(field) for field in fields]


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip().split("\t")] if "\t" in line.strip() else line.split()


def _is_two_line(lines: Lines) -> bool:
    """True when every line but the first is `path number` and the first announces no folds of pairs."""
    header_is_folds = len(lines[0][1]) <= 2 and all(is_count(field) for field in lines[0][1])
    return len(lines) > 2 and not header_is_folds and all(_is_flagged(fields) for _, fields in lines[1:])


def _is_flagged(fields: list[str]) -> bool:
    return len(fields) == 2 and is_count(fields[1])


def _parse_two_line(path: Path, lines: Lines) -> list[Row]:
    lines = lines if _is_flagged(lines[0][1]) else lines[1:]
    if len(lines) % 2:
        raise UserError(f"{path} has {len(lines)} images; two lines a pair were expected")
    rows, flags = [], []
    for (number, first), (_, second) in zip(lines[0::2], lines[1::2], strict=True):
        if first[1] != second[1]:
            raise UserError(f"{path} line {number}: the two images of a pair have the flags {first[1]} and {second[1]}")
        rows.append(([first[0]], [second[0]], first[1] != "0"))
        flags.append(int(first[1]))
    if max(flags) > 1:
        _compare_folds(path, flags)
    return rows


def _compare_folds(path: Path, flags: list[int]) -> None:
    """Warn where the folds named by genuine pairs (CALFW) differ from the consecutive ones of the protocol."""
    cut = np.concatenate([[k] * len(part) for k, part in enumerate(np.array_split(flags, DEFAULT_FOLDS), 1)])
    named = np.array(flags)
    if np.any(named[named > 0] != cut[named > 0]):
        log.warning(f"{path} names other folds than its {DEFAULT_FOLDS} consecutive parts; the parts are used")


def _parse(path: Path, lines: Lines) -> list[Row]:
    threes = [fields for _, fields in lines if len(fields) == 3]
    has_fours = any(len(fields) == 4 for _, fields in lines)
    is_answer_last, is_answer_first = (all(fields[at] in ("0", "1") for fields in threes) for at in (2, 0))
    if threes and not has_fours and is_answer_first:
        if is_answer_last:
            raise UserError(f"{path}: every line begins and ends with 0 or 1; which of them is the answer is "
                            "ambiguous")
        lines = [(number, [*fields[1:], *fields[:1]]) for number, fields in lines]
    is_lfw = has_fours or not (is_answer_last or is_answer_first)
    rows = []
    for number, fields in lines:
        if is_lfw and len(fields) == 3 and is_count(fields[1]) and is_count(fields[2]):
            rows.append((_numbered(fields[0], fields[1]), _numbered(fields[0], fields[2]), True))
        elif is_lfw and len(fields) == 4 and is_count(fields[1]) and is_count(fields[3]):
            rows.append((_numbered(fields[0], fields[1]), _numbered(fields[2], fields[3]), False))
        elif not is_lfw and len(fields) == 3:
            rows.append(([fields[0]], [fields[1]], fields[2] == "1"))
        else:
            expected = "'name i j' or 'name1 i name2 j'" if is_lfw else "'path path 0' or 'path path 1'"
            raise UserError(f"{path} line {number}: {expected} was expected, found {' '.join(fields)[:80]!r}")
    return rows


def _numbered(name: str, number: str) -> list[str]:
    padded = f"{int(number):04d}"
    return [f"{name}/{name}_{padded}", f"{name}/{int(number)}", f"{name}/{padded}", f"{name}_{padded}"]


def _listed(part: Any) -> list | None:
    if isinstance(part, np.ndarray) and part.ndim == 1:
        return part.tolist()
    return list(part) if isinstance(part, (list, tuple)) else None


def _image_bytes(item: Any, path: Path, index: int) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, bytearray) or (isinstance(item, np.ndarray) and item.dtype == np.uint8):
        return bytes(item)
    raise UserError(f"{path}: image {index} must be encoded bytes, found {_describe(item)}")


def _describe(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (list, tuple, dict, bytes, str)) else ""
    return f"{type(value).__name__}{size}"
