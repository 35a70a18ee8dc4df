"""All results of one set by one judge, in five sections; and the comparison of several sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from facesyn_cli import signals
from facesyn_cli.console import log
from facesyn_cli.evaluation.copies import Pixels
from facesyn_cli.evaluation.diversity import spread_section, vendi_section
from facesyn_cli.evaluation.fairness import Groups, group_section
from facesyn_cli.evaluation.identity_quality import (
    VEC2FACE_THRESHOLD,
    KeepUnique,
    center_section,
    fidelity_section,
    reference_section,
    score_section,
)
from facesyn_cli.evaluation.label_faults import mixed_identities, split_identities, wrong_labels
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.leakage import privacy_section
from facesyn_cli.evaluation.near_duplicates import duplicates_section
from facesyn_cli.evaluation.perceptual import PerceptualSpace, perceptual_section
from facesyn_cli.evaluation.score_counts import STEP, ScoreCounts, count_scores
from facesyn_cli.evaluation.section import Figure, Section
from facesyn_cli.evaluation.set_quality import quality_section

SECTIONS = ("identity", "diversity", "quality", "privacy", "fairness")


@dataclass(frozen=True)
class Analysis:
    """Settings of the analyses."""

    r: float                                   # cosine above which two embeddings match, of U_class and C_intra
    max_pairs: int                             # products of two vectors to compute at most for one figure
    seed: int                                  # seed of all samples
    unique: Callable[[float], KeepUnique]      # from a radius to the greedy choice of unique centers
    pixels: Pixels                             # (name of the set, key) -> pixels, or None
    groups: tuple[str, Groups] | None = None   # key of the groups (`identity` or `key`) and the groups; None: no groups
    perceptual: PerceptualSpace | None = None  # the judge's feature maps; None: it has none


def analyze(
    own: LabeledEmbeddings, training: LabeledEmbeddings | None, training_counts: ScoreCounts | None, how: Analysis,
    photos: Mapping[str, str] | None = None,
) -> dict[str, Section]:
    """Return the five sections of one set.

    Args:
        own: The set.
        training: The real reference, or None.
        training_counts: Scores of the reference.
        how: Settings.
        photos: Key of the photo whose embedding is the context of an identity, where it is one.
    """
    log.info(f"{own.name}: {len(own.keys):,} images of {len(own.identities):,} identities")
    counts = count_scores(own, how.max_pairs, how.seed)
    sections = {
        "identity": _identity(own, counts, training, training_counts, how),
        "diversity": _diversity(own, training, how),
        "quality": Section(notes=["Distances need a real reference set (--reference)."]),
        "privacy": Section(notes=["The leakage check needs the training images (--reference)."]),
        "fairness": Section(notes=["Figures by group need a table of groups (--groups)."]),
    }
    if training is not None and training_counts is not None:
        sections["identity"].merge(fidelity_section(own, training, photos or {}))
        sections["quality"] = quality_section(own, training, how.seed)
        signals.check()
        sections["privacy"] = privacy_section(own, training, training_counts, how.pixels, how.max_pairs, how.seed)
    if how.groups is not None:

        def more(part: LabeledEmbeddings, part_counts: ScoreCounts) -> list[Figure]:
            return _fairness(part, part_counts, training, training_counts, how)

        sections["fairness"] = group_section(own, *how.groups, counts, how.max_pairs, how.seed, more)
    return sections


def compare(results: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Compare the figures of every set with those of the first one.

    The error of a difference is that of two independent sets, sqrt(e_a^2 + e_b^2); it is clear above twice that.

    Args:
        results: Of the report: set, judge (or another network) and sections as JSON values.
        names: Names of the sets; the others are compared with the first.
    """
    rows = []
    by_place = {(result["set"], result["judge"]): _figures(result) for result in results}
    for judge in dict.fromkeys(result["judge"] for result in results):
        first = by_place.get((names[0], judge), {})
        for other_name in names[1:]:
            other = by_place.get((other_name, judge), {})
            for name in first:
                if name not in other or first[name]["value"] is None or other[name]["value"] is None:
                    continue
                a, b = first[name], other[name]
                difference = b["value"] - a["value"]
                known = a["error"] is not None and b["error"] is not None
                error = float(np.hypot(a["error"], b["error"])) if known else None
                rows.append({
                    "judge": judge, "id": name, "first": names[0], "other": other_name,
                    "values": [a["value"], b["value"]], "difference": difference, "error": error,
                    "clear": abs(difference) > 2 * error if known else None,
                })
    return rows


def _figures(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        figure["id"]: figure
        for section in result["sections"].values() for figure in section["figures"] if figure["group"] is None
    }


def _identity(
    own: LabeledEmbeddings, counts: ScoreCounts, reference: LabeledEmbeddings | None, training: ScoreCounts | None,
    how: Analysis,
) -> Section:
    section = score_section(counts)
    signals.check()
    keep = {radius: how.unique(radius) for radius in (how.r, VEC2FACE_THRESHOLD)}
    section.merge(center_section(own, how.r, keep))
    if reference is not None and training is not None:
        section.merge(reference_section(reference, training, len(own.identities), how.r, keep[how.r]))
    section.merge(wrong_labels(own, how.max_pairs, how.seed))
    source = "the reference" if training is not None else "the set itself"
    section.notes += _about_thresholds(training or counts, how.r, source)
    limits = [(training or counts).threshold_at(rate) for rate in (1e-2, 1e-3, 1e-4)]
    if limits[2] is None:
        section.notes.append(f"Too few impostor pairs in {source} for thresholds down to FMR 0.01 %: no search for "
                             "labels that hold two people, or people with two labels.")
        return section
    loose, middle, strict = limits
    section.merge(mixed_identities(own, middle, loose))
    section.merge(split_identities(own, strict))
    section.notes.append(f"Thresholds for faulty labels are those of {source}.")
    return section


def _about_thresholds(counts: ScoreCounts, r: float, source: str) -> list[str]:
    """Return a note on the false match rates of this judge at the published thresholds, chosen for others."""
    if not counts.num_impostor:
        return []
    rates = [counts.impostor[round((t + 1) / STEP):].sum() / counts.num_impostor for t in (r, VEC2FACE_THRESHOLD)]
    return [f"r = {r:g} (DCFace's is 0.3) and {VEC2FACE_THRESHOLD:.2f} (Vec2Face) were chosen for other recognizers. "
            f"With this judge, {100 * rates[0]:.3g} % and {100 * rates[1]:.3g} % of the pairs of different people in "
            f"{source} reach them: compare figures that use them within one judge only."]


def _diversity(own: LabeledEmbeddings, training: LabeledEmbeddings | None, how: Analysis) -> Section:
    section = vendi_section(own, how.seed)
    section.merge(spread_section(own, training, how.seed))
    section.merge(duplicates_section(own, how.max_pairs, how.seed))
    if how.perceptual is None:
        section.notes.append("A perceptual distance needs a judge with feature maps (torch networks, not ONNX files), "
                             "or the two files of LPIPS (--perceptual).")
        return section
    section.notes.append("The perceptual distance is LPIPS on the judge's feature maps, without learned weights.")
    return section.merge(perceptual_section(own, training, how.perceptual))


def _fairness(
    part: LabeledEmbeddings, counts: ScoreCounts, training: LabeledEmbeddings | None,
    training_counts: ScoreCounts | None, how: Analysis,
) -> list[Figure]:
    """Return every figure of one group, without those of label errors and of the reference itself."""
    section = score_section(counts)
    section.merge(center_section(part, how.r, {r: how.unique(r) for r in (how.r, VEC2FACE_THRESHOLD)}))
    section.merge(vendi_section(part, how.seed))
    section.merge(spread_section(part, training, how.seed))
    if training is not None and training_counts is not None:
        section.merge(quality_section(part, training, how.seed))
        section.merge(privacy_section(part, training, training_counts, lambda *_: None, how.max_pairs, how.seed))
    return [figure for figure in section.figures if not figure.id.startswith("privacy.real")]
