from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.evaluation.largest_cluster import ClusterSettings, largest_cluster


def at(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def distance(degrees: float) -> float:
    return 1 - float(np.cos(np.radians(degrees)))


def found(vectors: np.ndarray, reach: float = 11, rounds: int = 0, **settings) -> list[int]:
    settings = ClusterSettings(distance=distance(reach), rounds=rounds, **settings)
    return np.flatnonzero(largest_cluster(vectors, settings)).tolist()


def test_a_chain_of_neighbors_is_one_cluster() -> None:
    assert found(at(0, 10, 90, 20, 100, 30, 200)) == [0, 1, 3, 5]
    assert found(at(0, 10, 90, 20, 100, 30, 200), reach=9) == []  # nobody has a neighbor
    assert found(at(0, 10, 90, 20, 100, 30, 200), reach=9, samples=1) == [0], "alone, but a core"


def test_of_equal_clusters_that_of_the_first_image_is_taken() -> None:
    assert found(at(90, 0, 5, 92)) == [0, 3]


def test_an_image_at_the_edge_joins_but_leads_no_further() -> None:
    """With four to a core, 10 is one and 20 at its edge; 29 is a neighbor of 20 alone."""
    assert found(at(0, 10, 20, 29, 5), samples=4) == [0, 1, 2, 4]
    assert found(at(0, 10, 20, 29, 5), samples=2) == [0, 1, 2, 3, 4]


def test_the_distance_is_adapted_to_the_share() -> None:
    spread = at(0, 10, 20, 30, 100, 110, 160)
    step = distance(11) - distance(5)
    assert found(spread, reach=5, rounds=1, step=step) == [0, 1, 2, 3]
    tight = at(0, 1, 2, 3, 20, 21)
    shrunk = found(tight, reach=19, rounds=1, step=distance(19) - distance(5))
    assert shrunk == [0, 1, 2, 3], "all six are 100 %, above 80 %"
    assert found(tight, reach=19, rounds=0) == [0, 1, 2, 3, 4, 5]


def test_it_agrees_with_plain_loops() -> None:
    random = np.random.RandomState(0)
    for count in (1, 2, 9, 40):
        for samples in (1, 2, 4):
            vectors = at(*random.uniform(0, 120, count))
            near = [[v @ w >= 1 - distance(6) - 1e-12 or i == j for j, w in enumerate(vectors)]
                    for i, v in enumerate(vectors)]
            cores = [i for i in range(count) if sum(near[i]) >= samples]
            best: set[int] = set()
            for core in cores:
                group, queue = {core}, [core]
                while queue:
                    one = queue.pop()
                    new = [j for j in cores if near[one][j] and j not in group]
                    group, queue = group | set(new), queue + new
                group |= {j for j in range(count) if any(near[i][j] for i in group)}
                best = group if len(group) > len(best) else best
            assert found(vectors, reach=6, samples=samples) == sorted(best)


@pytest.mark.parametrize("wrong", [{"lowest": 0.9}, {"distance": 0}, {"step": 0}, {"samples": 0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        ClusterSettings(**wrong)
