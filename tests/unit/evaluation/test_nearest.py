"""Nearest neighbors in blocks: the same as one big product."""

from __future__ import annotations

import numpy as np
from made_embeddings import people
from tolerance import rounding

from facesyn_cli.evaluation import nearest as module
from facesyn_cli.evaluation.nearest import nearest, pairs_above


def test_blocks_change_nothing(monkeypatch):
    queries, bank = people(9, 3, seed=1).vectors, people(7, 5, seed=2).vectors
    product = queries @ bank.T
    monkeypatch.setattr(module, "_QUERY_ROWS", 4)
    monkeypatch.setattr(module, "_BANK_ROWS", 6)
    cosines, rows = nearest(queries, bank)
    np.testing.assert_array_equal(rows, product.argmax(1))
    np.testing.assert_allclose(cosines, product.max(1), rtol=0, atol=rounding(terms=64))


def test_own_identity_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_BANK_ROWS", 4)
    rows = people(5, 3, spread=0.1)
    _, where = nearest(rows.vectors, rows.vectors, rows.owner, rows.owner)
    assert (rows.owner[where] != rows.owner).all()
    product = np.where(rows.owner[:, None] == rows.owner, -2, rows.vectors @ rows.vectors.T)
    np.testing.assert_array_equal(where, product.argmax(1))
    lone = people(1, 3)
    cosines, where = nearest(lone.vectors, lone.vectors, lone.owner, lone.owner)
    assert (where == -1).all() and np.isneginf(cosines).all()


def test_pairs_above(monkeypatch):
    rows = people(6, 4, spread=0.4).vectors
    monkeypatch.setattr(module, "_QUERY_ROWS", 5)
    monkeypatch.setattr(module, "_BANK_ROWS", 7)
    product = np.triu(rows @ rows.T, 1)
    expected = np.argwhere(product >= 0.7)
    pairs, scores, total = pairs_above(rows, 0.7, most=1000)
    assert total == len(expected) > 10 and sorted(map(tuple, pairs)) == sorted(map(tuple, expected))
    assert (np.diff(scores) <= 0).all()
    few, highest, total_again = pairs_above(rows, 0.7, most=3)
    assert total_again == total
    np.testing.assert_allclose(highest, np.sort(product.ravel())[::-1][:3], rtol=0, atol=rounding(terms=64))
    assert len(few) == 3
