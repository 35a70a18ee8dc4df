"""Distances of a set to a real reference, in the feature space of a judge or of another network.

A judge's features are its unit embeddings, scaled to length sqrt(D) for the kernel, which expects numbers of size 1;
the Frechet distance is of unit rows, so it is between 0 and 4. In a recognizer's space images of one person are close
together and a neighborhood is a person, so the nearest-neighbor metrics take one image of each
identity. Features of Inception-v3 are used unscaled, with all images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import DCFACE, PRDC, RECALL, Metric, declare
from facesyn_cli.evaluation.section import JACKKNIFE, Figure, Section, jackknife_error, mean_over_identities
from facesyn_cli.evaluation.set_distance import (
    classifier_auc,
    frechet_distance,
    kernel_distance,
    neighborhoods,
    recall_of_each,
)

MAX_ROWS = 10_000        # rows of each set
_GROUPS = 10             # of the jackknife
_PRECISION_K, _DENSITY_K = 3, 5
_STYLE_IDENTITIES, _STYLE_REAL = 500, 2000  # of D_intra
_PUBLISHED = 10_000      # images that published distances are of at least


@dataclass(frozen=True)
class Space:
    """A space of features."""

    prefix: str               # of the ids of its figures
    is_of_people: bool        # a recognizer's: rows of length 1, scaled for the kernel; images of one person are
                              # neighbors, so one image of each identity is used
    note: str                 # remark on its figures


_METRICS = (
    Metric("quality.frechet", "Frechet distance", "How far the images as a whole are from the real reference, in the "
        "features of the judge. Comparable only between sets measured with the same judge, reference and number of "
        "images.", formula="|m1 - m2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2))", source="Heusel et al., arXiv:1706.08500",
        better="lower", headline=90, by_group="table"),
    Metric("quality.frechet_floor", "Frechet distance of real to real", "The same between two halves of the "
        "reference with different people: a lower bound in practice. It is higher for fewer images.",
        formula="Frechet distance of two random halves of the reference"),
    Metric("quality.kernel", "Kernel distance", "As the Frechet distance, but unbiased: its expectation does not "
        "depend on the number of images.", formula="squared MMD with k(a, b) = (a.b / d + 1)^3, unbiased",
        source="Binkowski et al., arXiv:1801.01401", better="lower"),
    Metric("quality.classifier_auc", "Real or generated (AUC)", "How well a linear classifier tells generated images "
        "from real ones of other people than it was trained on: 50 % is guessing, 100 % is without error.",
        formula="area under the ROC curve of a linear discriminant, mean over 5 folds of identities",
        source="Lopez-Paz and Oquab, arXiv:1610.06545", better="lower", unit="share"),
    Metric("quality.precision", "Precision", "Share of images that look like something in the reference: fidelity.",
        formula="share of generated features within the k-nearest-neighbor radius of a real one", source=RECALL,
        better="higher", unit="share"),
    Metric("quality.recall", "Recall", "Share of the reference that the set could have produced: coverage of what is "
        "real.", formula="share of real features within the k-nearest-neighbor radius of a generated one",
        source=RECALL, better="higher", unit="share"),
    Metric("quality.density", "Density", "How many real neighborhoods an image falls into, relative to a real image; "
        "robust against outliers in the reference, may exceed 1.", formula="mean over generated features of (real "
        "k-NN balls that hold it) / k", source=PRDC, better="higher"),
    Metric("quality.coverage", "Coverage", "Share of real images with at least one generated image in their "
        "neighborhood.", formula="share of real k-NN balls that hold a generated feature", source=PRDC,
        better="higher", unit="share"),
)
declare(*_METRICS)
declare(*(replace(
    one, id=one.id.replace("quality.", "features."), title=f"{one.title}, Inception", by_group="",
    text=one.text.replace("of the judge", "of Inception-v3").replace("same judge", "same network")
    if "judge" in one.text else f"{one.text} Here: in the features of Inception-v3.",
    headline=100 if one.headline else 0,
) for one in _METRICS))
declare(
    Metric("features.d_intra", "Style coverage (D_intra), Inception", "Share of real images that the images of one "
        "person come near to, averaged over identities, as DCFace publishes it.",
        formula="per class: share of real features within the k-nearest-neighbor radius of a generated one, k = 3",
        source=f"{DCFACE}; recall of {RECALL}", better="higher", unit="share"),
)

JUDGE = Space(
    "quality", True, "Distances are in the judge's feature space: unit embeddings of a face recognizer. They are "
    "not comparable with distances in Inception's space.",
)
NETWORK = Space(
    "features", False, "Distances are comparable only between sets measured with the same network, resize "
    "filter, reference and number of images.",
)


def quality_section(rows: LabeledEmbeddings, reference: LabeledEmbeddings, seed: int, space: Space = JUDGE) -> Section:
    """Return the distances between a set and the reference, and between two halves of the reference.

    Both sides of a distance have the same number of rows: the Frechet distance grows as samples shrink.

    Args:
        rows: The set.
        reference: The real set.
        seed: Seed of all samples.
        space: What the rows are.
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
    floor = _floor(reference, size, generator, space)
    section.figures += [
        Figure(f"{space.prefix}.frechet", value, size, "images of each set", is_exact, error, JACKKNIFE), floor
    ]
    if floor.value is not None and floor.n < size:
        section.notes.append(f"The Frechet distance of real to real is of {floor.n:,} images, not {size:,} as that of "
                             "the set, and so is slightly too high for a comparison.")
    scale = np.sqrt(a.shape[1]) if space.is_of_people else 1.0
    kernel, spread = kernel_distance(a * scale, b * scale, seed)
    section.figures.append(Figure(
        f"{space.prefix}.kernel", kernel, size, "images of each set", exact=is_exact and np.isnan(spread),
        error=spread, error_from="spread over subsets of 1,000",
    ))
    aucs = classifier_auc(a, b, reference.owner[real], rows.owner[ours], seed)
    if len(aucs):
        section.figures.append(Figure(
            f"{space.prefix}.classifier_auc", float(aucs.mean()), size, "images of each set", is_exact,
            float(aucs.std(ddof=1) / np.sqrt(len(aucs))), "spread over folds",
        ))
    else:
        section.notes.append("A classifier of real and generated needs 5 identities in both sets.")
    if space.is_of_people:
        a, b = (_one_each(part, generator) for part in (reference, rows))
    section.merge(_neighbors(a, b, is_exact and not space.is_of_people, space))
    section.notes.append(space.note)
    return section


def features_section(
    rows: LabeledEmbeddings, reference: LabeledEmbeddings, seed: int, is_whole: bool, is_reference_whole: bool
) -> Section:
    """Return the distances in the features of a network for images in general, and D_intra as DCFace defines it.

    D_intra (DCFace, arXiv:2304.07060): mean over identities of the share of real images in a ball around one of the
    identity's images that reaches the third nearest other one.

    Args:
        rows: Features of the set, as the network gives them.
        reference: Features of the real set.
        seed: Seed of all samples.
        is_whole: `rows` are all images of the set, not some drawn at random.
        is_reference_whole: The same of `reference`.
    """
    section = quality_section(rows, reference, seed, NETWORK)
    section.figures = [
        replace(figure, exact=figure.exact and is_whole and is_reference_whole) for figure in section.figures
    ]
    if not section.figures:
        return section
    size = section.figures[0].n
    if size < _PUBLISHED:
        section.notes.append(f"Published Frechet distances are of {_PUBLISHED:,} images or more; of {size:,}, as here, "
                             "they are higher. Compare it with the distance of real to real.")
    generator = np.random.default_rng(seed)
    enough = np.flatnonzero(rows.sizes > _PRECISION_K)
    if not is_whole or not len(enough):
        section.notes.append("D_intra needs identities with 4 images and all images of the set (see --max-images).")
        return section
    chosen = np.sort(generator.choice(enough, min(len(enough), _STYLE_IDENTITIES), replace=False))
    real = np.sort(generator.choice(len(reference.keys), min(len(reference.keys), _STYLE_REAL), replace=False))
    values = recall_of_each(reference.vectors[real], [rows.vectors[rows.rows_of(c)] for c in chosen], _PRECISION_K)
    section.figures.append(mean_over_identities(
        "features.d_intra", values, "identities with at least 4 images",
        is_reference_whole and len(real) == len(reference.keys) and len(chosen) == len(enough),
    ))
    return section


def _neighbors(real: NDArray, generated: NDArray, is_exact: bool, space: Space) -> Section:
    """Return precision, recall, density and coverage."""
    what = "identities" if space.is_of_people else "images"
    if min(len(real), len(generated)) <= _DENSITY_K:
        return Section(notes=[f"Precision, recall, density and coverage need {_DENSITY_K + 1} {what} in both sets."])
    narrow, wide = (neighborhoods(real, generated, k) for k in (_PRECISION_K, _DENSITY_K))
    section = Section()
    for name, values in (("precision", narrow), ("recall", narrow), ("density", wide), ("coverage", wide)):
        is_ours = name in ("precision", "density")
        section.figures.append(Figure(
            f"{space.prefix}.{name}", values[name], len(generated if is_ours else real),
            f"{what} of the {'set' if is_ours else 'reference'}", is_exact,
        ))
    return section


def _floor(reference: LabeledEmbeddings, size: int, generator: np.random.Generator, space: Space) -> Figure:
    """Return the Frechet distance of two halves of the reference with different people: the value of a perfect set."""
    order = generator.permutation(len(reference.identities))
    halves = [np.flatnonzero(np.isin(reference.owner, part)) for part in np.array_split(order, 2)]
    rows = min(size, *map(len, halves))
    value = None
    if rows >= 10:
        a, b = (reference.vectors[generator.choice(half, rows, replace=False)] for half in halves)
        value = frechet_distance(a, b)
    return Figure(f"{space.prefix}.frechet_floor", value, rows, "images of each half of the reference", exact=False)


def _one_each(rows: LabeledEmbeddings, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return one random image of each identity, of at most `MAX_ROWS` of them."""
    chosen = rows.starts[:-1] + (generator.random(len(rows.sizes)) * rows.sizes).astype(np.int64)
    if len(chosen) > MAX_ROWS:
        chosen = generator.choice(chosen, MAX_ROWS, replace=False)
    return rows.vectors[chosen]


def _jackknife(
    a: NDArray, b: NDArray, owner_a: NDArray, owner_b: NDArray, generator: np.random.Generator
) -> float | None:
    """Return the standard error from leaving out a tenth of the identities of both sets at a time."""
    groups = [generator.permutation(np.arange(owner.max() + 1) % _GROUPS)[owner] for owner in (owner_a, owner_b)]
    if any(len(group) - np.bincount(group, minlength=_GROUPS).max() < 2 for group in groups):
        return None
    values = []
    for number in range(_GROUPS):
        values.append(frechet_distance(*(rows[group != number] for rows, group in zip((a, b), groups, strict=True))))
        signals.check()
    return jackknife_error(values)
