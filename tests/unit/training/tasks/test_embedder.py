"""Photos joined with a teacher's embeddings, and who is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.errors import UserError
from facesyn_cli.training.tasks.embedder import join_teacher

KEYS = [f"p{person}/{photo}" for person in range(40) for photo in range(3)]


def _images(keys: list[str] = KEYS) -> ImageSet:
    entries = [ImageEntry(key, *key.split("/"), f"{key}.png") for key in keys]
    return ImageSet(Path("faces"), entries, "sha256:0")


def _embeddings(keys: list[str]) -> EmbeddingSet:
    numbers = [KEYS.index(key) if key in KEYS else 999 for key in keys]
    return EmbeddingSet(keys, np.array([[n, 1] for n in numbers], np.float32), None, Path("embeddings"), "sha256:1")


def test_targets_follow_the_photos_whatever_the_order() -> None:
    keys = [*KEYS[:100], "q/0"]
    taught = join_teacher(_images(), _embeddings(keys[::-1]), 0.25, 1000)
    assert taught.num_without == 20
    for faces, targets in ((taught.train, taught.train_targets), (taught.held_out, taught.held_out_targets)):
        assert [KEYS.index(entry.key) for entry in faces.entries] == targets[:, 0].tolist()
        assert faces.labels.tolist() == list(range(len(faces.entries)))
        assert targets.dtype == torch.float32


def test_held_out_people_are_not_trained_on_and_do_not_depend_on_the_set() -> None:
    taught = join_teacher(_images(), _embeddings(KEYS), 0.25, 1000)
    train, held_out = ({entry.identity for entry in faces.entries} for faces in (taught.train, taught.held_out))
    assert not train & held_out and len(train | held_out) == 40 and 3 <= len(held_out) <= 18
    part = join_teacher(_images(KEYS[:60]), _embeddings(KEYS), 0.25, 1000)
    assert {entry.identity for entry in part.held_out.entries} == {f"p{n}" for n in range(20)} & held_out
    fewer = join_teacher(_images(), _embeddings(KEYS), 0.25, 5)
    assert len(fewer.held_out.entries) == 5 and fewer.train.entries == taught.train.entries
    assert not join_teacher(_images(), _embeddings(KEYS), 0.0, 5).held_out.entries


def test_sets_that_do_not_meet_are_refused() -> None:
    with pytest.raises(UserError, match="no image of faces has an embedding in embeddings: keys look like 'p0/0'"):
        join_teacher(_images(), _embeddings(["other/0"]), 0.1, 10)
    with pytest.raises(UserError, match="1 of 1 images are left to train on, at least 2 are needed"):
        join_teacher(_images(), _embeddings(KEYS[:1]), 0.0, 10)
