"""Epochs are permutations, padded by repetition; groups are consecutive parts of a batch."""

from __future__ import annotations

from facesyn_cli.training.epoch_batches import EpochBatches


def test_an_epoch_holds_every_row_and_is_padded_with_its_own_beginning():
    batches = EpochBatches(seed=3, count=10, batch_size=4, group_size=2)
    assert batches.steps_per_epoch == 3
    seen = [row for step in range(3) for group in range(2) for _, row in batches.rows(step, group)]
    assert sorted(seen[:10]) == list(range(10))
    assert seen[10:] == seen[:2]
    assert {epoch for step in (3, 4, 5) for epoch, _ in batches.rows(step, 0)} == {1}
    assert [row for _, row in batches.rows(3, 0)] != seen[:2] or [row for _, row in batches.rows(3, 1)] != seen[2:4]


def test_groups_of_any_share_come_in_order():
    batches = EpochBatches(seed=0, count=16, batch_size=8, group_size=2)
    everything = list(batches.groups(0, 3, range(4)))
    assert list(batches.groups(0, 3, range(2, 4))) == [everything[i] for i in (2, 3, 6, 7, 10, 11)]
    assert list(batches.groups(2, 3, range(4))) == everything[8:]


def test_a_set_smaller_than_a_batch_repeats_within_it():
    batches = EpochBatches(seed=0, count=3, batch_size=8, group_size=8)
    rows = [row for _, row in batches.rows(0, 0)]
    assert batches.steps_per_epoch == 1
    assert sorted(rows[:3]) == [0, 1, 2] and rows[3:6] == rows[:3] and rows[6:] == rows[:2]
