"""Identity of previews: the figures on made embeddings, and who is judged."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.errors import UserError
from facesyn_cli.training.tasks.ldm_monitors import IdentityJudging, identity_figures, judged_rows

ROOT = 0.5**0.5


def test_figures_of_hand_sized_embeddings():
    photos = np.eye(3)[:2]
    images = np.array([
        [[1, 0, 0], [ROOT, ROOT, 0], [0, 0, 1]],  # own, halfway, nobody
        [[0, 1, 0], [1, 0, 0], [0, 0.8, 0.6]],    # own, the other one, mostly own
    ])
    figures = identity_figures(images, photos)
    assert figures["consistency"] == pytest.approx(((ROOT + 0 + 0) / 3 + (0 + 0.8 + 0) / 3) / 2)
    assert figures["to_photo"] == pytest.approx((1 + ROOT + 0 + 1 + 0 + 0.8) / 6)
    assert figures["to_other"] == pytest.approx((0 + ROOT + 0 + 0 + 1 + 0) / 6)
    images[0, 1] = [0.6, 0.8, 0]  # nearer to the other photo
    assert identity_figures(images[:, :2], photos)["nearest"] == pytest.approx(2 / 4)


def test_figures_agree_with_loops_over_pairs():
    generator = np.random.default_rng(0)
    images, photos = generator.standard_normal((5, 4, 8)), generator.standard_normal((5, 8))
    images /= np.linalg.norm(images, axis=2, keepdims=True)
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    pairs = [images[k, m] @ images[k, n] for k in range(5) for m in range(4) for n in range(m)]
    own = [images[k, m] @ photos[k] for k in range(5) for m in range(4)]
    other = [images[k, m] @ photos[j] for k in range(5) for m in range(4) for j in range(5) if j != k]
    nearest = [np.argmax([images[k, m] @ p for p in photos]) == k for k in range(5) for m in range(4)]
    assert identity_figures(images, photos) == pytest.approx({
        "consistency": np.mean(pairs), "to_photo": np.mean(own), "to_other": np.mean(other),
        "nearest": np.mean(nearest),
    })


def test_one_person_or_one_picture_gives_fewer_figures():
    assert identity_figures(np.ones((1, 1, 1)), np.ones((1, 1))) == {"to_photo": 1.0}


def _entries(identities: str) -> list[ImageEntry]:
    return [ImageEntry(f"{name}/{i}", name, str(i), f"{name}/{i}.png") for i, name in enumerate(identities)]


def test_held_out_photos_of_different_people_come_first():
    entries = _entries("aabbccdd")
    assert judged_rows(entries, [1, 2, 3], [0, 4, 5, 6, 7], 3) == [1, 2, 4]
    assert judged_rows(entries, [1, 2, 3], [0, 4, 5, 6, 7], 9) == [1, 2, 4, 6]
    assert judged_rows(entries, [1, 2, 4], [0], 2) == [1, 2]
    assert judged_rows(entries, [], [0, 1, 2], 2) == [0, 2]


class _Sampler:
    """Draws the context itself as a picture of one pixel."""

    def noise(self, places: list[tuple[str, int]]) -> torch.Tensor:
        return torch.tensor([[sample] for _, sample in places])

    def draw(self, denoiser: object, contexts: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        return (contexts + denoiser * noise)[:, None, None].to(torch.uint8)  # (n, 1, 1, 3)


def _judging(index: int, count: int, gathered: list[torch.Tensor], embed=None) -> IdentityJudging:
    contexts = torch.tensor([[200, 10, 30], [20, 180, 40], [30, 20, 150]])
    processes = SimpleNamespace(
        rank=index, world_size=count, device=torch.device("cpu"), sum=lambda x: (gathered.append(x), x)[1]
    )

    def unit(faces_u8: np.ndarray) -> np.ndarray:
        flat = faces_u8.reshape(len(faces_u8), 3).astype(np.float32)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    photos = contexts.numpy().astype(np.uint8)[:, None, None]
    return IdentityJudging(_Sampler(), embed or unit, photos, contexts, ["a/0", "b/0", "c/0"], 4, 2, 2, processes)


def test_processes_share_the_pictures():
    alone, shared = [], []
    figures = _judging(0, 1, alone).figures(7)
    for index in range(3):
        _judging(index, 3, shared).figures(7)
    assert torch.equal(sum(shared), alone[0])
    assert all((part == 0).all(dim=1).any() for part in shared)  # nobody draws all of them
    assert figures["nearest"] == 1.0 and 0.9 < figures["consistency"] < 1


def test_a_picture_without_an_embedding_is_said_and_ends_nothing(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(logging.getLogger("facesyn"), "propagate", True)
    seen = []

    def embed(faces_u8: np.ndarray) -> np.ndarray:
        seen.append(len(faces_u8))
        if len(seen) > 1:  # the photos were fine
            raise UserError("an embedding is zero")
        return np.eye(3, dtype=np.float32)

    assert _judging(0, 1, [], embed).figures(0) == {}
    assert "not scored at this step" in caplog.text
