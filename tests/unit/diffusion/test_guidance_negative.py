from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facesyn_cli.diffusion.guidance_negative import NegativeContexts
from facesyn_cli.errors import UserError


def at(*degrees: float) -> np.ndarray:
    """Return unit vectors of the plane at these angles."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=np.float32)


POOL = at(0, 10, 90, 170, 35)


@pytest.mark.parametrize(("choice", "row"), [("close", 1), ("mid", 4), ("far", 3)])
def test_rank_by_cosine_leaves_out_the_identity_itself(choice, row):
    negatives = NegativeContexts(POOL, choice, seed=0)
    own = torch.from_numpy(POOL[0])
    assert torch.equal(negatives.context(own, "a", 0), torch.from_numpy(POOL[row]))
    assert torch.equal(negatives.context(own, "a", 7), torch.from_numpy(POOL[row]))  # the same for all its images


def test_the_identity_need_not_be_in_the_pool():
    assert torch.equal(NegativeContexts(POOL, "close", 0).context(torch.from_numpy(at(80)[0]), "b", 0),
                       torch.from_numpy(POOL[2]))


def test_random_belongs_to_seed_identity_and_sample_and_spares_the_identity():
    def draws(seed, identity="a", num=400):
        negatives = NegativeContexts(POOL, "random", seed)
        own = torch.from_numpy(POOL[0])
        vectors = torch.stack([negatives.context(own, identity, k) for k in range(num)])
        return (vectors @ torch.from_numpy(POOL).T).argmax(dim=1).numpy()

    rows = draws(0)
    assert np.array_equal(rows, draws(0))
    assert not np.array_equal(rows, draws(1)) and not np.array_equal(rows, draws(0, "b"))
    counts = np.bincount(rows, minlength=5)
    assert counts[0] == 0
    assert (abs(counts[1:] - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)).all()  # the others, equally often


@pytest.mark.parametrize("choice", ["close", "random"])
def test_a_pool_of_nobody_else_is_refused(choice):
    with pytest.raises(UserError, match="2 or more contexts"):
        NegativeContexts(POOL[:1], choice, 0)
    with pytest.raises(UserError, match="but the context of"):
        NegativeContexts(at(20, 20), choice, 0).context(torch.from_numpy(at(20)[0]), "a", 0)
