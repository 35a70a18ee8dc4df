"""The filter `consistency`: its scores, and which blocks images are drawn in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.rejection_sampling import RejectionSampling
from facesyn_cli.stages.sample import SampleConfig

FIRST = normalize(np.random.default_rng(0).standard_normal((6, 8)))
CONTEXT = normalize(np.random.default_rng(1).standard_normal((1, 8)))[0]


def make(**settings):
    return registry.build("sample_filter", registry.configure("sample_filter", {"name": "consistency", **settings}))


def test_an_image_is_compared_with_the_center_of_the_others():
    """The first three images make the center; one of them is left out where it is judged itself."""
    sample_filter = make(center_images=3)
    samples = np.array([0, 2, 5])
    scores = sample_filter.scores(FIRST[samples], samples, FIRST, CONTEXT)
    for score, sample, others in zip(scores, samples, ([1, 2], [0, 1], [0, 1, 2]), strict=True):
        center = FIRST[others].astype(np.float64).sum(axis=0)
        assert score == pytest.approx(FIRST[sample] @ center / np.linalg.norm(center), abs=1e-7)


def test_what_is_drawn_again_is_compared_with_the_first_draws():
    again = normalize(np.random.default_rng(2).standard_normal((1, 8)))
    scores = make(center_images=3).scores(again, np.array([1]), FIRST, CONTEXT)
    center = FIRST[[0, 2]].astype(np.float64).sum(axis=0)
    assert scores[0] == pytest.approx(again[0] @ center / np.linalg.norm(center), abs=1e-7)


def test_more_images_do_not_move_the_center():
    few = make(center_images=3).scores(FIRST[:4], np.arange(4), FIRST[:4], CONTEXT)
    many = make(center_images=3).scores(FIRST, np.arange(6), FIRST, CONTEXT)
    np.testing.assert_array_equal(few, many[:4])


def test_or_with_the_context():
    scores = make(reference="context").scores(FIRST, np.arange(6), FIRST, CONTEXT)
    np.testing.assert_allclose(scores, FIRST @ CONTEXT, atol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="filter.center_images=5"):
        make().check(5, "sha256:judge", None)
    make().check(8, "sha256:judge", "sha256:other")
    with pytest.raises(UserError, match="filter.reference=center"):
        make(reference="context").check(1, "sha256:judge", "sha256:other")
    make(reference="context").check(1, "sha256:judge", "sha256:judge")


@pytest.mark.parametrize(("num_ids", "per_id", "batch_size"), [(10, 4, 3), (3, 50, 2), (7, 1, 64), (1, 5, 5)])
def test_blocks_are_whole_identities_and_do_not_move_when_identities_are_added(num_ids, per_id, batch_size):
    def blocks(count: int) -> list[range]:
        return RejectionSampling(None, None, np.zeros((count, 8)), per_id, batch_size, Path("set")).blocks

    found = blocks(num_ids)
    assert [i for block in found for i in block] == list(range(num_ids * per_id))
    assert all(block.start % per_id == 0 and len(block) % per_id == 0 for block in found)
    more = blocks(num_ids + 20)
    assert found[:-1] == more[: len(found) - 1]
    assert all(len(block) <= max(8 * batch_size, per_id) for block in found)


def test_british_spelling_of_earlier_releases_works():
    cfg = SampleConfig(filter={"name": "consistency", "reference": "centre", "centre_images": 4})
    assert (cfg.filter.reference, cfg.filter.center_images) == ("center", 4)
