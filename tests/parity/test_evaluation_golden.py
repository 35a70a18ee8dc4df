"""The k-fold protocol against numbers of the published evaluation.

`golden/evaluate.npz` is cut from the reference vectors (10 folds, 600 pairs of 64-d unit embeddings): the
squared distances of all pairs, the first 24 embeddings (12 pairs), and the published results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.evaluation.verification import squared_distances, verify_folds

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluate.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def test_folds_match_published(golden):
    result = verify_folds(golden["distance"], golden["issame"], 10)
    np.testing.assert_array_equal(result.accuracy, golden["accuracy"])
    np.testing.assert_allclose(result.threshold, golden["best_thresholds"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.tpr, golden["tpr"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.fpr, golden["fpr"], rtol=0, atol=1e-12)


def test_distances_match_published(golden):
    e = golden["embeddings"]
    np.testing.assert_allclose(squared_distances(e[0::2], e[1::2]), golden["distance"][:12], rtol=0, atol=1e-12)
