"""Made-up embeddings and pictures whose figures are known, for the tests of the report."""

from __future__ import annotations

import numpy as np
from PIL import Image

from facesyn_cli.evaluation.labeled import LabeledEmbeddings


def people(
    identities: int, per_id: int, spread: float = 0.5, size: int = 64, seed: int = 0, prefix: str = "p"
) -> LabeledEmbeddings:
    """Random people: unit rows (center + spread * noise); a genuine score is about 1 / (1 + spread^2)."""
    generator = np.random.default_rng(seed)
    centers = unit(generator.normal(size=(identities, size)))
    noise = generator.normal(size=(identities, per_id, size)) / np.sqrt(size)
    rows = unit((centers[:, None] + spread * noise).reshape(-1, size)).astype(np.float32)
    names = [f"{prefix}{i}" for i in range(identities) for _ in range(per_id)]
    keys = [f"{name}/{k % per_id}" for k, name in enumerate(names)]
    return LabeledEmbeddings.of(keys, names, rows)


def labeled(vectors, names: str | list[str]) -> LabeledEmbeddings:
    """Label rows; keys are `name/row`. Rows are normalized."""
    names = list(names)
    rows = unit(np.asarray(vectors, dtype=np.float64)).astype(np.float32)
    return LabeledEmbeddings.of([f"{name}/{row}" for row, name in enumerate(names)], names, rows)


def unit(rows: np.ndarray) -> np.ndarray:
    """Divide rows by their length."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def angle(*degrees: float) -> np.ndarray:
    """Unit rows in the plane at the given angles."""
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], 1)


def picture(seed: int, side: int = 112) -> np.ndarray:
    """(side, side, 3) uint8: a smooth random picture, unlike any of another seed."""
    coarse = np.random.RandomState(seed).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
