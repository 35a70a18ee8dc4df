"""Nearest neighbors in blocks: the same as one big product."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from made_embeddings import people
from tolerance import rounding

from facesyn_cli.evaluation import nearest as module
from facesyn_cli.evaluation.near_duplicates import duplicates_section
from facesyn_cli.evaluation.nearest import nearest, pairs_above
from facesyn_cli.evaluation.score_counts import count_scores
from facesyn_cli.evaluation.set_distance import recall_of_each


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


def test_equal_pairs_are_counted_and_the_first_returned(monkeypatch):
    """A collapsed set: every pair is above the threshold."""
    monkeypatch.setattr(module, "_QUERY_ROWS", 4)
    monkeypatch.setattr(module, "_BANK_ROWS", 8)
    rows = np.tile(np.float32([[0.6, 0.8]]), (20, 1))
    pairs, scores, total = pairs_above(rows, 0.5, most=5)
    assert total == 190 and pairs.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]] and len(scores) == 5
    rows[19] = [1, 0]
    rows[18] = [0.8, 0.6]
    pairs, scores, total = pairs_above(rows, 0.5, most=1)
    assert total == 190 and pairs.tolist() == [[0, 1]]


def test_memory_bounds_change_no_figure(monkeypatch):
    rows = replace(people(6, 5, spread=0.5), thumbnails=np.random.RandomState(0).randint(0, 99, (30, 16, 16), np.uint8))
    rows.thumbnails[7] = rows.thumbnails[5]
    before = count_scores(rows, 10_000, 0), duplicates_section(rows, 10_000, 0).to_json()
    recall = recall_of_each(rows.vectors[:20], [rows.vectors[:9], rows.vectors[12:]], 3)
    monkeypatch.setattr(module, "_PRODUCTS", 25)
    counts, section = count_scores(rows, 10_000, 0), duplicates_section(rows, 10_000, 0).to_json()
    np.testing.assert_array_equal(counts.impostor, before[0].impostor)
    np.testing.assert_array_equal(counts.genuine, before[0].genuine)
    assert section == before[1] and section["figures"][0]["value"] > 0
    np.testing.assert_array_equal(recall_of_each(rows.vectors[:20], [rows.vectors[:9], rows.vectors[12:]], 3), recall)
