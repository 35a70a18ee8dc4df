"""Drawn images with an aligner: faces are cut out, images without one are reported and cost no identity."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.contexts.endless import GeneratedFaces
from facesyn_cli.contexts.source import Resources
from facesyn_cli.data.alignment import NoFace
from facesyn_cli.data.pixels import decode_image


def embed(faces_u8: np.ndarray) -> np.ndarray:
    assert faces_u8.shape[1:] == (112, 112, 3)
    return np.repeat(faces_u8[:, :1, 0, 0].astype(np.float32), EMBEDDING_SIZE, axis=1)


def align(image_u8: np.ndarray) -> np.ndarray:
    if image_u8[0, 0, 0] % 4 >= 2:
        raise NoFace("no_face", "no face was found")
    return image_u8[:112, :112] + 100


class Drawn(GeneratedFaces):
    """Draws gray images."""

    def __init__(self, **resources: Any) -> None:
        self.open(Resources(batch_size=2, features=embed, **resources))

    def draw(self, numbers: list[int]) -> np.ndarray:
        return np.stack([np.full((150, 150, 3), k, np.uint8) for k in numbers])


def test_images_without_a_face_are_left_out() -> None:
    batches = list(itertools.islice(Drawn(align=align).candidates(1), 3))
    assert [(b.start, b.stop) for b in batches] == [(1, 3), (3, 5), (5, 7)]
    assert [[o["candidate"] for o in b.origins] for b in batches] == [[1], [4], [5]]
    assert [b.failed for b in batches] == [[(k, f"candidate {k}: no face was found")] for k in (2, 3, 6)]
    assert [int(decode_image(b.faces[0])[0, 0, 0]) for b in batches] == [101, 104, 105]
    assert all(len(b.vectors) == len(b.faces) == 1 for b in batches)


def test_a_batch_without_any_face() -> None:
    first = next(Drawn(align=align).candidates(2))
    assert first.vectors.shape == (0, EMBEDDING_SIZE) and first.faces == [] and len(first.failed) == 2


def test_without_an_aligner_the_center_is_the_face() -> None:
    source = Drawn()
    source.crop = 0.8
    first = next(source.candidates(2))
    assert [o["candidate"] for o in first.origins] == [2, 3] and first.failed == []
