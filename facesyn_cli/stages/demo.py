"""What the demos start from and are measured with.

The demo on the starter takes its contexts in two halves: people to train on, and others for verification pairs.
The demo on drawn faces (`data/drawn_faces.py`) has a training set, faces of new people for contexts, and held-out
people with verification pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from facesyn_cli.artifacts.atomic_files import update_text, write_bytes
from facesyn_cli.artifacts.context_set import ROWS, VECTORS, ContextSet, write_contexts
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result
from facesyn_cli.console import progress
from facesyn_cli.data.drawn_faces import draw_face
from facesyn_cli.data.pixels import encode_jpeg
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

TEST_FOLDER = "0-test"
TEST_CONTEXTS = "0-test-contexts"
CONTEXTS_FOLDER = "0-context-faces"
FOLDS = 10


class StarterDemoConfig(StageConfig):
    """Sizes of the demo on the starter."""

    identities: int = affects_result(40, "people to train on, the first of the starter's contexts", ge=2)
    test_identities: int = affects_result(16, "held-out people, those that follow", ge=2)
    test_samples: int = affects_result(6, "faces of each of them", ge=2)
    pairs: int = affects_result(20, "genuine pairs a fold, and as many impostor pairs", ge=1)

    @model_validator(mode="after")
    def _enough(self) -> StarterDemoConfig:
        _check_pairs(self.pairs, self.test_identities, self.test_samples)
        return self


class DemoConfig(StageConfig):
    """Settings of the drawn faces."""

    identities: int = affects_result(120, "identities to train on", ge=2)
    samples: int = affects_result(8, "pictures of each", ge=1)
    contexts: int = affects_result(60, "new people, one picture each; their embeddings become contexts", ge=2)
    test_identities: int = affects_result(50, "held-out identities", ge=2)
    test_samples: int = affects_result(5, "pictures of each", ge=2)
    pairs: int = affects_result(25, "genuine pairs a fold, and as many impostor pairs", ge=1)

    @model_validator(mode="after")
    def _enough(self) -> DemoConfig:
        _check_pairs(self.pairs, self.test_identities, self.test_samples)
        return self


def _check_pairs(pairs: int, identities: int, samples: int) -> None:
    genuine = identities * math.comb(samples, 2)
    if FOLDS * pairs > genuine:
        raise ValueError(f"{FOLDS} folds of {pairs} genuine pairs are wanted, {genuine} exist")


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
    update_text(pairs_path(work), pairs_text(cfg))
    return Outcome(folder, plan(cfg, work))


def split_contexts(cfg: StarterDemoConfig, bank: Path, work: Work) -> None:
    """Write `3-contexts`, `0-test-contexts` and the pairs of the held-out people; the first process does.

    Args:
        cfg: Sizes.
        bank: ContextSet of the starter.
        work: The demo's folder.

    Raises:
        UserError: There are fewer contexts than people are wanted.
    """
    contexts = ContextSet.open(bank)
    wanted = cfg.identities + cfg.test_identities
    if wanted > len(contexts.identities):
        raise UserError(f"{bank} holds {len(contexts.identities)} contexts; the demo needs {wanted}")
    parts = {work.folder("contexts"): slice(0, cfg.identities),
             work.path / TEST_CONTEXTS: slice(cfg.identities, wanted)}
    for folder, rows in parts.items():
        with open_output(folder, "ContextSet", "demo", cfg, {"contexts": contexts.parent()}) as output:
            if not output.finished:
                names = contexts.identities[rows]
                write_contexts(folder, names, contexts.vectors[rows], contexts.origins[rows], [None] * len(names))
                digest = json_digest([contexts.embedder, *(file_digest(folder / name) for name in (VECTORS, ROWS))])
                output.finish({"contexts": len(names)}, {"embedder": contexts.embedder}, digest)
    names = contexts.identities[cfg.identities : wanted]
    lines = [f"{FOLDS}\t{cfg.pairs}"]
    for a, i, b, j in _random_pairs(cfg.test_identities, cfg.test_samples, cfg.pairs, cfg.seed):
        lines.append(f"{names[a]}/{i}\t{names[b]}/{j}\t{int(a == b)}")
    update_text(pairs_path(work), "\n".join(lines) + "\n")


def write_untrained(train_fr: dict[str, Any], seed: int, folder: Path) -> None:
    """Write the recognizer of a recipe's section `train-fr` with the random weights it starts from: the control."""
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
    lines = [f"{FOLDS}\t{cfg.pairs}"]
    for a, i, b, j in _random_pairs(cfg.test_identities, cfg.test_samples, cfg.pairs, cfg.seed):
        other = "" if a == b else f"{_name('test', b)}\t"
        lines.append(f"{_name('test', a)}\t{i + 1}\t{other}{j + 1}")
    return "\n".join(lines) + "\n"


def _random_pairs(identities: int, samples: int, pairs: int, seed: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (identity, sample, identity, sample), in each fold `pairs` genuine ones, then as many impostor ones."""
    rng = np.random.default_rng(seed)
    seen: set[tuple] = set()
    for _ in range(FOLDS):
        for is_genuine in (True, False):
            left = pairs
            while left:
                a, b = (int(number) for number in rng.choice(identities, 2, replace=False))
                i, j = (int(number) for number in rng.choice(samples, 2, replace=False))
                b = a if is_genuine else b
                pair = min((a, i, b, j), (b, j, a, i))
                if pair not in seen:
                    seen.add(pair)
                    left -= 1
                    yield a, i, b, j


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
