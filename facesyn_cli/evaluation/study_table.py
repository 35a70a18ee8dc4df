"""Figures of a study of samplers on one set of images, and the table of all sets.

Figures of one set (a row of settings, under one seed), all in the space of a judge network:

    consistency    mean cosine of an image to the center of the other images of its identity
    eer, fdr       of genuine and impostor pairs (`score_counts.py`)
    vendi_within   mean Vendi score of an identity's images: their effective number
    vendi          Vendi score of all images
    rms            root mean square difference in gray levels to the same image of the reference
    frechet        Frechet distance of the embeddings to those of the reference

A table gives the mean over seeds and its standard error s / sqrt(seeds). Images per second are shown on a terminal
only: the bytes of a table depend on settings and inputs alone.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts import text_tables
from facesyn_cli.artifacts.text_tables import NOT_AVAILABLE, Column, Table
from facesyn_cli.evaluation.ablation import mean_and_error
from facesyn_cli.evaluation.diversity import vendi_score
from facesyn_cli.evaluation.identity_quality import loo_cosines
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import count_scores, discriminability, equal_error_rate
from facesyn_cli.evaluation.set_distance import frechet_distance

FIGURES: dict[str, tuple[str, str]] = {  # id -> (title of the column, format)
    "consistency": ("consistency", ".4f"),
    "eer": ("EER", ".4f"),
    "fdr": ("FDR", ".3f"),
    "vendi_within": ("Vendi within", ".3f"),
    "vendi": ("Vendi", ".2f"),
    "rms": ("RMS to reference", ".3f"),
    "frechet": ("Frechet to reference", ".4f"),
}
_MAX_PAIRS = 20_000_000
_RANKS = {"vendi_within": 1, "fdr": 3, "vendi": 3, "rms": 4, "frechet": 2}  # as of `Column`


def figures_of(
    vectors: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    per_id: int,
    reference: tuple[NDArray[np.float32], NDArray[np.uint8]] | None,
) -> dict[str, float | None]:
    """Return the figures of one set, except its speed; None where one is not defined.

    Args:
        vectors: (N, D) unit embeddings, identity by identity.
        pixels: (N, S, S, 3) uint8 images.
        per_id: Images of each identity.
        reference: The same of the reference; None: this is the reference.
    """
    names = [str(row // per_id) for row in range(len(vectors))]
    rows = LabeledEmbeddings.of([f"{name}/{k}" for k, name in enumerate(names)], names, vectors)
    counts = count_scores(rows, _MAX_PAIRS, seed=0)
    eer = equal_error_rate(counts.genuine, counts.impostor)
    found = {
        "consistency": float(np.mean(loo_cosines(rows))),
        "eer": eer[0] if eer else None,
        "fdr": discriminability(counts.moments)[0],
        "vendi_within": float(np.mean([vendi_score(rows.vectors[rows.rows_of(c)]) for c in range(len(rows.sizes))])),
        "vendi": vendi_score(vectors),
    }
    if reference is None:
        found.update(rms=0.0, frechet=0.0)
    else:
        difference = pixels.astype(np.float32) - reference[1]
        found["rms"] = float(np.sqrt(np.square(difference).mean(axis=(1, 2, 3))).mean())
        found["frechet"] = frechet_distance(reference[0], vectors)
    return {name: None if value is None or not np.isfinite(value) else float(value) for name, value in found.items()}


@dataclass(frozen=True)
class StudyRow:
    """The figures of one row of settings under each seed."""

    scheduler: str                        # name of the scheduler
    steps: int                            # its steps
    method: str                           # further options; empty for plain sampling
    evaluations: float                    # network evaluations per image
    seeds: list[dict[str, float | None]]  # figures under each seed
    speeds: list[float]                   # images per second under each seed

    def mean_and_error(self, figure: str) -> tuple[float | None, float | None]:
        """Return the mean of a figure over the seeds and its standard error; None where they are not defined."""
        return mean_and_error([seed.get(figure) for seed in self.seeds])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: the settings, every seed, mean and error of every figure."""
        summary = {name: dict(zip(("mean", "error"), self.mean_and_error(name), strict=True)) for name in FIGURES}
        settings = {name: value for name, value in vars(self).items() if name != "speeds"}
        return {**settings, "figures": summary}


def to_table(rows: list[StudyRow], has_speeds: bool = False) -> Table:
    """Return the table as text cells: mean and standard error of every figure, with images per second on request."""
    columns = [Column("scheduler", is_text=True), Column("steps"), Column("method", is_text=True),
               Column("evaluations", rank=2)]
    columns += [Column(title, rank=_RANKS.get(name, 0)) for name, (title, _) in FIGURES.items()]
    columns += [Column("images/s")] if has_speeds else []
    lines = []
    for row in rows:
        figures = []
        for name, (_, spec) in FIGURES.items():
            mean, error = row.mean_and_error(name)
            text = NOT_AVAILABLE if mean is None else format(mean, spec)
            figures.append(text if error is None else f"{text} +- {format(error, '.1g')}")
        speed = f"{statistics.fmean(row.speeds):.3g}" if row.speeds else NOT_AVAILABLE
        lines.append([row.scheduler, str(row.steps), row.method, f"{row.evaluations:g}", *figures,
                      *([speed] if has_speeds else [])])
    return Table(columns, lines)


def to_csv(rows: list[StudyRow]) -> str:
    """Return the table as comma-separated values, mean and error of each figure in full precision."""
    head = ["scheduler", "steps", "method", "evaluations", "seeds",
            *(f"{name}{suffix}" for name in FIGURES for suffix in ("", "_error"))]
    return text_tables.to_csv([head, *(
        [row.scheduler, row.steps, row.method, row.evaluations, len(row.seeds),
         *(value for name in FIGURES for value in row.mean_and_error(name))] for row in rows
    )])
