"""The faces of the demo: a training set, faces of new people for contexts, held-out people with verification pairs.

They are drawn (`data/drawn_faces.py`), so that the whole way runs with nothing but the package.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from facesyn_cli.artifacts.files import write_bytes, write_text
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, identity
from facesyn_cli.console import progress
from facesyn_cli.data.drawn_faces import draw_face
from facesyn_cli.data.pixels import encode_jpeg
from facesyn_cli.plugins import registry

TEST_FOLDER = "0-test"
CONTEXTS_FOLDER = "0-context-faces"
FOLDS = 10


class DemoConfig(StageConfig):
    """Settings of the drawn faces."""

    identities: int = identity(120, "identities to train on", ge=2)
    samples: int = identity(8, "pictures of each", ge=1)
    contexts: int = identity(60, "new people, one picture each; their embeddings become contexts", ge=2)
    test_identities: int = identity(50, "held-out identities", ge=2)
    test_samples: int = identity(5, "pictures of each", ge=2)
    pairs: int = identity(25, "genuine pairs a fold, and as many impostor pairs", ge=1)

    @model_validator(mode="after")
    def _enough(self) -> DemoConfig:
        genuine = self.test_identities * math.comb(self.test_samples, 2)
        if FOLDS * self.pairs > genuine:
            raise ValueError(f"{FOLDS} folds of {self.pairs} genuine pairs are wanted, {genuine} exist")
        return self


def plan(cfg: DemoConfig, work: Work) -> dict:
    """Return the counts of what `run` draws."""
    return {
        "training_images": cfg.identities * cfg.samples,
        "context_faces": cfg.contexts,
        "test_images": cfg.test_identities * cfg.test_samples,
        "test_pairs": 2 * FOLDS * cfg.pairs,
    }


def run(cfg: DemoConfig, work: Work) -> Outcome:
    """Draw `0-images`, `0-context-faces`, and `0-test` with its `pairs.txt`."""
    folder = work.folder("images")
    _draw_set(folder, cfg, "train", cfg.identities, cfg.samples)
    _draw_set(work.path / CONTEXTS_FOLDER, cfg, "context", cfg.contexts, 1)
    test = work.path / TEST_FOLDER
    _draw_set(test, cfg, "test", cfg.test_identities, cfg.test_samples)
    write_text(pairs_path(work), pairs_text(cfg))
    return Outcome(folder, plan(cfg, work))


def write_untrained(train_fr: dict[str, Any], seed: int, folder: Path) -> None:
    """Write the recogniser of a recipe's section `train-fr` with the random weights it starts from: the control."""
    section = registry.configure("backbone", train_fr["backbone"])
    torch.manual_seed(seed)
    backbone = registry.build("backbone", section)
    config = {
        "kind": "backbone", "backbone": section.model_dump(mode="json"), "input_size": backbone.input_size,
        "embedding_size": backbone.embedding_size,
    }
    write_weights(folder, backbone.state_dict(), config)


def pairs_path(work: Work) -> Path:
    """Return where the verification pairs of the held-out identities lie."""
    return work.path / f"{TEST_FOLDER}-pairs.txt"


def pairs_text(cfg: DemoConfig) -> str:
    """Return random pairs in the format of LFW's `pairs.txt`; folds share no pair."""
    rng = np.random.default_rng(cfg.seed)
    lines = [f"{FOLDS}\t{cfg.pairs}"]
    seen: set[tuple] = set()
    for _ in range(FOLDS):
        for is_genuine in (True, False):
            left = cfg.pairs
            while left:
                a, b = rng.choice(cfg.test_identities, 2, replace=False)
                i, j = rng.choice(cfg.test_samples, 2, replace=False)
                pair = (a, a, min(i, j), max(i, j)) if is_genuine else (a, b, i, j)
                if pair in seen:
                    continue
                seen.add(pair)
                left -= 1
                name_a, name_b = _name("test", a), _name("test", b)
                lines.append(f"{name_a}\t{i + 1}\t{j + 1}" if is_genuine else f"{name_a}\t{i + 1}\t{name_b}\t{j + 1}")
    return "\n".join(lines) + "\n"


def _draw_set(folder: Path, cfg: DemoConfig, part: str, identities: int, samples: int) -> None:
    with open_output(folder, "ImageSet", "demo", cfg, {}) as output:
        if output.finished:
            return
        jobs = [(_name(part, i), j) for i in range(identities) for j in range(samples)]
        with progress(f"drawing {part} faces", len(jobs)) as bar, ThreadPoolExecutor() as pool:
            def draw(job: tuple[str, int]) -> None:
                name, sample = job
                path = folder / name / f"{name}_{sample + 1:04d}.jpg"
                if not path.exists():
                    write_bytes(path, encode_jpeg(draw_face(cfg.seed, name, str(sample))), durable=False)

            for _ in pool.map(draw, jobs):
                bar.advance()
        output.finish({"images": len(jobs), "identities": identities})


def _name(part: str, number: int) -> str:
    return f"{part}{number:04d}"
