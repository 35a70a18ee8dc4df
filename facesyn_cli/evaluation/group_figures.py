"""The same figures for groups of people, where somebody has said who belongs to which.

A group has its own scores: pairs inside the group only, as RFW does (arXiv:1812.00194). Beside its own error rates,
FMR and FNMR at one threshold for all say whom a system would treat worse: the threshold at which 0.1 % of all
impostor pairs of the set match.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.names import nfc
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.figures import BOOTSTRAP, SPREAD, Figure, Section
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import NUM_BINS, STEP, ScoreCounts, count_scores, error_rates
from facesyn_cli.untrusted.input_files import read_lines

COMMON_RATE = 1e-3
_MIN_IDENTITIES = 2
KEY_COLUMNS = ("identity", "key")

Groups = dict[str, dict[str, str]]  # attribute -> identity or image key -> value


def read_groups(path: Path) -> tuple[str, Groups]:
    """Read a table of attributes: a column `identity` (or `key`), then one column an attribute.

    Returns:
        What the rows are of, `identity` or `key`; and attribute -> name -> value. Empty cells are left out.

    Raises:
        UserError: It cannot be read, has no such columns, or says two things about one name.
    """
    try:
        rows = list(csv.reader(read_lines(path, "a table of attributes (.csv)")))
    except csv.Error as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows or rows[0][0].strip() not in KEY_COLUMNS or len(rows[0]) < 2:
        raise UserError(f"{path}: a first line `identity,ATTRIBUTE,...` (or `key,ATTRIBUTE,...`) was expected, "
                        f"found {','.join(rows[0])[:80] if rows else 'an empty file'}")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{path}: two columns have the same name, or one has none: {','.join(names)}")
    groups: Groups = {name: {} for name in names[1:]}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise UserError(f"{path}, row {number}: {len(row)} values, {len(names)} were expected")
        for name, cell in zip(names[1:], row[1:], strict=True):
            value = cell.strip()
            if value and groups[name].setdefault(nfc(row[0].strip()), value) != value:
                raise UserError(f"{path}, row {number}: {row[0]} has {name} {value} here and another value before")
    return names[0], groups


def group_section(
    rows: LabeledEmbeddings, kind: str, groups: Groups, counts: ScoreCounts, max_pairs: int, seed: int,
    more: Callable[[LabeledEmbeddings, ScoreCounts], list[Figure]],
) -> Section:
    """Return every figure by group, and how far the groups lie apart.

    Args:
        rows: The set.
        kind: What `groups` is keyed by, `identity` or `key`.
        groups: Attribute -> name -> value.
        counts: Scores of the whole set.
        max_pairs: See `count_scores`.
        seed: Seed of samples.
        more: Further figures of a part of the set, from its rows and its scores.
    """
    section = Section()
    threshold = counts.threshold_at(COMMON_RATE)
    if threshold is None:
        section.notes.append("The set has too few impostor pairs for a common threshold at FMR 0.1 %.")
    for attribute, values in groups.items():
        member = np.array([
            values.get(rows.identities[owner] if kind == "identity" else key, "")
            for key, owner in zip(rows.keys, rows.owner, strict=True)
        ])
        if not (member != "").any():
            example = rows.identities[0] if kind == "identity" else rows.keys[0]
            raise UserError(f"groups: no {kind} of the set has a value of {attribute}; names such as {example!r} were "
                            "expected")
        unknown = int((member == "").sum())
        if unknown:
            section.notes.append(f"{unknown:,} of {len(member):,} images have no value of {attribute}.")
        for value in sorted(set(member) - {""}):
            part = _part(rows, member == value)
            label = f"{attribute}={value}"
            if len(part.identities) < _MIN_IDENTITIES:
                section.notes.append(f"{label}: fewer than {_MIN_IDENTITIES} identities, no figures.")
                continue
            own = count_scores(part, max_pairs, seed)
            figures = [Figure("fairness.images", len(part.keys), len(part.keys), "images", "count"),
                       Figure("fairness.identities", len(part.identities), len(part.identities), "identities", "count")]
            figures += _at_common(own, threshold) + [_renamed(figure) for figure in more(part, own)]
            section.figures += [Figure(**{**vars(figure), "group": label}) for figure in figures]
        section.figures += _spreads(section.figures, attribute)
    return section


def _part(rows: LabeledEmbeddings, member: NDArray[np.bool_]) -> LabeledEmbeddings:
    chosen = np.flatnonzero(member)
    return LabeledEmbeddings.of(
        [rows.keys[row] for row in chosen], [rows.identities[rows.owner[row]] for row in chosen], rows.vectors[chosen]
    )


def _at_common(counts: ScoreCounts, threshold: float | None) -> list[Figure]:
    """FMR and FNMR of a group at the threshold of the whole set."""
    if threshold is None or not counts.num_impostor or not counts.num_genuine:
        return []
    at = round((threshold + 1) / STEP)
    figures = []
    for place, (name, kind) in enumerate((("fmr", "impostor"), ("fnmr", "genuine"))):

        def figure(genuine: NDArray, impostor: NDArray, place: int = place) -> float:
            rate = error_rates(genuine, impostor)[place]
            return float(rate[round(at * (len(rate) - 2) / (NUM_BINS - 1))])   # the bootstrap has wider bins

        scores = {"genuine": counts.genuine, "impostor": counts.impostor}
        is_exact = {"genuine": counts.genuine_exact, "impostor": counts.impostor_exact}[kind]
        figures.append(Figure(
            f"fairness.{name}", figure(counts.genuine, counts.impostor), int(scores[kind].sum()), f"{kind} pairs",
            "share", is_exact, counts.error_of(figure), BOOTSTRAP, threshold,
        ))
    return figures


def _renamed(figure: Figure) -> Figure:
    return Figure(**{**vars(figure), "id": f"fairness.{figure.id}"})


def _spreads(figures: list[Figure], attribute: str) -> list[Figure]:
    """Largest minus smallest value over the groups of an attribute; counts of images have no spread."""
    by_name: dict[str, list[Figure]] = {}
    for figure in figures:
        if (figure.group or "").startswith(f"{attribute}=") and figure.value is not None and figure.unit != "count":
            by_name.setdefault(figure.id, []).append(figure)
    spreads = []
    for name, found in by_name.items():
        if len(found) < 2:
            continue
        low, high = min(found, key=lambda f: f.value), max(found, key=lambda f: f.value)
        errors = [figure.error for figure in (low, high)]
        spreads.append(Figure(
            f"{name}_spread", high.value - low.value, len(found), f"groups of {attribute}", low.unit,
            all(figure.exact for figure in found), None if None in errors else float(np.hypot(*errors)), SPREAD,
            group=attribute,
        ))
    return spreads
