"""Held-out identities: who they are, how labels close up, and which pairs they give."""

from __future__ import annotations

import numpy as np

from facesyn_cli.training.tasks.fr_validation import held_out_pairs, split_identities


class _Set:
    labels = np.array([0, 0, 1, 2, 2, 3, 3, 5], dtype=np.int32)  # label 4 has no image
    num_classes = 6

    def read(self, index: int) -> bytes:
        return bytes([index])

    def name_of(self, index: int) -> str:
        return f"row {index}"


def test_every_row_is_on_one_side_and_labels_have_no_gaps():
    names = [f"person {i}" for i in range(6)]
    train, rest = split_identities(_Set(), names, seed=2, fraction=0.5)
    assert 0 < rest.num_classes < 5 and train.num_classes + rest.num_classes == 5
    seen = []
    for part in (train, rest):
        assert sorted(set(part.labels.tolist())) == list(range(part.num_classes))
        for index, label in enumerate(part.labels):
            row = part.read(index)[0]
            assert _Set.labels[row] == part.old_labels[label]
            assert part.name_of(index) == f"row {row}"
            seen.append(row)
    assert sorted(seen) == list(range(8))
    assert not set(train.old_labels) & set(rest.old_labels)


def test_the_choice_follows_from_name_and_seed():
    names = [f"person {i}" for i in range(6)]
    chosen = [split_identities(_Set(), names, seed, 0.5)[1].old_labels.tolist() for seed in (2, 2, 3, 4, 5)]
    assert chosen[0] == chosen[1]
    assert len({tuple(c) for c in chosen}) > 1
    everything, nothing = split_identities(_Set(), names, 0, 0.0)
    assert len(everything.labels) == 8 and len(nothing.labels) == 0


def test_pairs_are_true_and_balanced():
    labels = np.array([0, 1, 0, 2, 1, 0])
    pairs = held_out_pairs(labels, num_pairs=10, seed=1)
    assert [labels[first] == labels[second] for first, second in pairs] == [True, False] * 3
    assert len(held_out_pairs(labels, num_pairs=2, seed=1)) == 4
    assert np.array_equal(held_out_pairs(labels, num_pairs=10, seed=1), pairs)


def test_no_pairs_without_two_identities_or_two_images_of_one():
    assert held_out_pairs(np.array([0, 0, 0]), 10, 1) is None
    assert held_out_pairs(np.array([0, 1, 2]), 10, 1) is None
