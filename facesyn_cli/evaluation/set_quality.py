"""How real does a set look to a judge? Distances to a real reference set in the judge's feature space.

The features are the judge's unit embeddings, scaled to length sqrt(D) as the kernel expects numbers of size 1; the
Frechet distance is given for unit rows and so lies between 0 and 4. A recogniser's space is about who is shown, and
images of one person lie close together: neighbourhoods would be those of persons, so the figures that use them take
one image of each identity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.evaluation.figures import JACKKNIFE, Figure, Section
from facesyn_cli.evaluation.labelled import LabelledEmbeddings
from facesyn_cli.evaluation.set_distance import (
    frechet_distance,
    frechet_of_moments,
    kernel_distance,
    mean_covariance,
    neighbourhoods,
)

MAX_ROWS = 10_000        # rows of each set
_GROUPS = 10             # of the jackknife
_PRECISION_K, _DENSITY_K = 3, 5


def quality_section(rows: LabelledEmbeddings, reference: LabelledEmbeddings, seed: int) -> Section:
    """Return the distances between a set and the reference, and between two halves of the reference.

    Both sides of a distance have the same number of rows: the Frechet distance grows as samples shrink.

    Args:
        rows: The set.
        reference: The real set.
        seed: Seed of all samples.
    """
    section = Section()
    size = min(len(rows.keys), len(reference.keys), MAX_ROWS)
    if size < 10:
        section.notes.append(f"Distances to the reference need 10 images in both sets; there are {size}.")
        return section
    generator = np.random.default_rng(seed)
    ours, real = (generator.choice(len(part.keys), size, replace=False) for part in (rows, reference))
    is_exact = size == len(rows.keys) == len(reference.keys)
    a, b = reference.vectors[real], rows.vectors[ours]
    value = frechet_distance(a, b)
    error = _jackknife(a, b, reference.owner[real], rows.owner[ours], generator)
    section.figures.append(Figure(
        "quality.frechet", value, size, "images of each set", exact=is_exact, error=error, error_from=JACKKNIFE,
    ))
    section.figures.append(_floor(reference, size, generator))
    scale = np.sqrt(a.shape[1])
    kernel, spread = kernel_distance(a * scale, b * scale, seed)
    section.figures.append(Figure(
        "quality.kernel", kernel, size, "images of each set", exact=is_exact and np.isnan(spread), error=spread,
        error_from="spread over subsets of 1,000",
    ))
    one_a, one_b = (_one_each(part, generator) for part in (reference, rows))
    if min(len(one_a), len(one_b)) > _DENSITY_K:
        narrow, wide = (neighbourhoods(one_a, one_b, k) for k in (_PRECISION_K, _DENSITY_K))
        for name, values in (("precision", narrow), ("recall", narrow), ("density", wide), ("coverage", wide)):
            section.figures.append(Figure(
                f"quality.{name}", values[name], len(one_b) if name in ("precision", "density") else len(one_a),
                "identities of the set" if name in ("precision", "density") else "identities of the reference",
                "" if name == "density" else "share", exact=False,
            ))
    else:
        section.notes.append("Precision, recall, density and coverage need 6 identities in both sets.")
    section.notes.append(
        "Distances are in the judge's feature space: unit embeddings of a face recogniser. They are not comparable "
        "with distances in Inception's space."
    )
    return section


def _floor(reference: LabelledEmbeddings, size: int, generator: np.random.Generator) -> Figure:
    """Frechet distance of two halves of the reference with different people: what a perfect set would have."""
    order = generator.permutation(len(reference.identities))
    halves = [np.flatnonzero(np.isin(reference.owner, part)) for part in np.array_split(order, 2)]
    rows = min(size, *map(len, halves))
    value = None
    if rows >= 10:
        a, b = (reference.vectors[generator.choice(half, rows, replace=False)] for half in halves)
        value = frechet_distance(a, b)
    return Figure("quality.frechet_floor", value, rows, "images of each half of the reference", exact=False)


def _one_each(rows: LabelledEmbeddings, generator: np.random.Generator) -> NDArray[np.float32]:
    """One random image of each identity, of at most `MAX_ROWS` of them."""
    chosen = rows.starts[:-1] + (generator.random(len(rows.sizes)) * rows.sizes).astype(np.int64)
    if len(chosen) > MAX_ROWS:
        chosen = generator.choice(chosen, MAX_ROWS, replace=False)
    return rows.vectors[chosen]


def _jackknife(
    a: NDArray, b: NDArray, owner_a: NDArray, owner_b: NDArray, generator: np.random.Generator
) -> float | None:
    """Standard error from leaving out a tenth of the identities of both sets at a time."""
    left = [_moments_without(rows, owner, generator) for rows, owner in ((a, owner_a), (b, owner_b))]
    if any(part is None for part in left):
        return None
    values = [frechet_of_moments(*ours, *theirs) for ours, theirs in zip(*left, strict=True)]
    return float(np.sqrt((_GROUPS - 1) / _GROUPS * np.square(np.array(values) - np.mean(values)).sum()))


def _moments_without(
    rows: NDArray, owner: NDArray, generator: np.random.Generator
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]] | None:
    """Mean and covariance without each group of identities, from those of the groups; None where one leaves nothing."""
    group = generator.permutation(np.arange(owner.max() + 1) % _GROUPS)[owner]
    counts = np.bincount(group, minlength=_GROUPS)
    if (len(rows) - counts < 2).any():
        return None
    centred = rows - mean_covariance(rows)[0]                                  # keeps the differences below exact
    shift = rows[0] - centred[0]
    sums = np.stack([centred[group == number].sum(axis=0) for number in range(_GROUPS)])
    squares = np.stack([centred[group == number].T @ centred[group == number] for number in range(_GROUPS)])
    found = []
    for number, count in enumerate(counts):
        left = len(rows) - count
        mean = (sums.sum(0) - sums[number]) / left
        covariance = (squares.sum(0) - squares[number] - left * np.outer(mean, mean)) / (left - 1)
        found.append((mean + shift, covariance))
    return found
