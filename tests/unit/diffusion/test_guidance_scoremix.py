from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.diffusion.denoising_loop import sample_latents
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.guidance_scoremix import Partners
from facesyn_cli.diffusion.scheduler_choice import build_scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.conditions import open_negatives

NAMES = [f"p{k}" for k in range(40)]


def unit(count: int, seed: int = 0, size: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(len(NAMES))


def choose(
    choice: str = "far", candidates: int = 8, names: list[str] = NAMES, pool: np.ndarray = VECTORS, seed: int = 0
) -> np.ndarray:
    return Partners(choice, candidates).choose(names, VECTORS[: len(names)], pool, seed)


class OfGaussians(nn.Module):
    """The exact velocity of a flow to N(c, s^2) under the context c: images (B, 2, 1, 1), contexts (B, 2)."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        t, c, s = t.view(-1, 1, 1, 1) / 1000, context[:, :, None, None], 0.3
        spread = ((1 - t) * s) ** 2 + t**2
        noise = t / spread * (x - (1 - t) * c)                     # E[noise | x]
        return noise - (c + (1 - t) * s**2 / spread * (x - (1 - t) * c))


def test_the_mix_of_two_gaussians_is_the_one_between_them() -> None:
    """Scores of Gaussians of one width are linear in their means."""
    first, second, weight = torch.tensor([[2.0, -1.0]]), torch.tensor([[-1.0, 0.5]]), 0.3
    mixed = registry.build("guidance", registry.configure("guidance", {"name": "scoremix", "weight": weight}))
    plain = registry.build("guidance", registry.configure("guidance", {"name": "none"}))
    noise = torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    cfg = registry.configure("scheduler", {"name": "flow-euler", "steps": 20})

    def drawn(guidance, contexts, negatives=None):
        return sample_latents(OfGaussians(), build_scheduler(cfg, "flow")(FlowSchedule()), guidance, contexts, noise,
                              negatives=negatives)

    between = drawn(plain, weight * first + (1 - weight) * second)
    torch.testing.assert_close(drawn(mixed, first, second), between, atol=1e-5, rtol=1e-5)
    assert (drawn(mixed, first, second) - drawn(plain, first)).abs().max() > 1


@pytest.mark.parametrize(("choice", "best"), [("far", np.argmin), ("close", np.argmax)])
def test_of_all_others_the_farthest_or_nearest_is_taken(choice: str, best) -> None:
    cosines = VECTORS[0] @ VECTORS.T
    cosines[0] = {"far": 2, "close": -2}[choice]
    assert choose(choice, candidates=2000)[0] == best(cosines)
    mean = {name: np.mean([VECTORS[k] @ VECTORS[row] for k, row in enumerate(choose(name))])
            for name in ("far", "close", "random")}
    assert mean["far"] < mean["random"] - 0.2 < mean["close"] - 0.4


@pytest.mark.parametrize("choice", ["far", "close", "random"])
def test_no_pair_is_taken_twice_and_nobody_is_their_own_partner(choice: str) -> None:
    rows = choose(choice, candidates=2000)
    assert len({frozenset((k, int(row))) for k, row in enumerate(rows)}) == len(NAMES)
    assert all(k != row for k, row in enumerate(rows))


def test_partners_stay_when_more_people_are_sampled_and_follow_the_seed() -> None:
    assert np.array_equal(choose(names=NAMES[:10]), choose()[:10])
    assert not np.array_equal(choose(), choose(seed=1))


def test_the_candidates_come_from_the_given_contexts() -> None:
    pool = unit(3, seed=1)
    rows = choose(pool=pool)
    assert set(rows) <= {0, 1, 2}
    assert set(choose(pool=np.concatenate([VECTORS[:1], pool]), names=NAMES[:1])) <= {1, 2, 3}, "not the own context"


def test_too_few_contexts_are_refused() -> None:
    with pytest.raises(UserError, match=r"nobody to mix identity 'p0' with among 1 contexts"):
        choose(names=NAMES[:1], pool=VECTORS[:1])
    with pytest.raises(UserError, match="nobody to mix identity 'p1'"):
        choose(names=NAMES[:2], pool=VECTORS[:2])


def test_the_partner_is_that_of_the_identity_in_every_image() -> None:
    contexts = ContextSet(NAMES, VECTORS, [{}] * 40, [None] * 40, None, Path("contexts"), "sha256:1", "sha256:2")
    cfg = registry.configure("guidance", {"name": "scoremix"})
    partners, parents = open_negatives(registry.build("guidance", cfg), cfg, contexts, 0)
    rows = choose(candidates=64)
    for sample in (0, 5):
        assert torch.equal(partners.context(torch.zeros(6), "p3", sample), torch.from_numpy(VECTORS[rows[3]]))
    assert parents["partners"].digest == parents["all_contexts"].digest == "sha256:1"
