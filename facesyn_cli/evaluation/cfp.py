"""The protocol folders of CFP, Celebrities in Frontal-Profile (Sengupta et al., WACV 2016).

    Data/Images/<person>/frontal/01..10.jpg, profile/01..04.jpg
    Protocol/Pair_list_F.txt, Pair_list_P.txt        lines `index path` of the frontal and profile images
    Protocol/Split/{FF,FP}/<fold>/{same,diff}.txt    lines `i,j`: FF both into F; FP i into F, j into P
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

from facesyn_cli.artifacts.image_set import ImageSet, natural_key
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import PairSet, Row, is_count, pairs_of_names
from facesyn_cli.untrusted.input_files import read_lines


def has_cfp(root: Path, kind: Literal["FF", "FP"]) -> bool:
    """True when a folder holds the protocol of CFP."""
    return (root / "Protocol" / "Split" / kind).is_dir()


def read_cfp(root: Path, kind: Literal["FF", "FP"], images: ImageSet, name: str) -> PairSet:
    """Read CFP as it is distributed; the folds are those of the protocol, genuine pairs first in each.

    Args:
        root: Folder that holds `Protocol`.
        kind: Frontal against frontal, or frontal against profile.
        images: The images, `<person>/frontal/01.jpg` and so on, usually aligned crops of them.
        name: Name in the table.

    Raises:
        UserError: A file is missing or malformed (with the line), or images are missing.
    """
    split = root / "Protocol" / "Split" / kind
    first = _read_names(root / "Protocol" / "Pair_list_F.txt")
    second = first if kind == "FF" else _read_names(root / "Protocol" / "Pair_list_P.txt")
    folders = sorted((p for p in split.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name))
    if not folders:
        raise UserError(f"{split} has no folds; folders with same.txt and diff.txt were expected")
    rows: list[Row] = []
    sizes = set()
    for folder in folders:
        pairs = [(pair, is_same) for file, is_same in (("same.txt", True), ("diff.txt", False))
                 for pair in _read_pairs(folder / file, first, second)]
        sizes.add(len(pairs))
        rows += [([i], [j], is_same) for (i, j), is_same in pairs]
    if len(sizes) > 1:
        raise UserError(f"{split}: the folds have {min(sizes)} to {max(sizes)} pairs; as many in each were expected")
    return pairs_of_names(rows, len(folders), images, name, split)


def _read_names(path: Path) -> dict[str, str]:
    """Return the `person/frontal/01.jpg` of every index of a pair list."""
    names = {}
    for number, line in _lines(path):
        index, _, file = line.partition(" ") if " " in line else line.partition("\t")
        if not is_count(index) or not file.strip():
            raise UserError(f"{path} line {number}: 'index path' was expected, found {line[:80]!r}")
        parts = PurePosixPath(file.strip().replace("\\", "/")).parts
        names[str(int(index))] = "/".join(parts[-3:])
    return names


def _read_pairs(path: Path, first: dict[str, str], second: dict[str, str]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in _lines(path):
        i, _, j = (part.strip() for part in line.partition(","))
        if not (is_count(i) and is_count(j)):
            raise UserError(f"{path} line {number}: 'i,j' was expected, found {line[:80]!r}")
        found = first.get(str(int(i))), second.get(str(int(j)))
        if None in found:
            raise UserError(f"{path} line {number}: the pair lists have no image {i if found[0] is None else j}")
        pairs.append(found)
    return pairs


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(read_lines(path, "a list of CFP"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]
