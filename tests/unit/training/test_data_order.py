"""Order of training: complete, without a gap, and a function of the step; groups are consecutive parts of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.training.data_order import (
    EpochBatches,
    batch_rows,
    continued_seed,
    epoch_order,
    is_held_out,
    local_share,
)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (10, 10), (4, 9), (1, 5)])
def test_every_epoch_shows_every_example_once(count: int, batch_size: int):
    stream = np.concatenate([batch_rows(1, step, batch_size, count) for step in range(4 * count)])
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_training_that_goes_on_has_a_seed_of_its_own():
    seeds = {continued_seed(seed, digest) for seed in (0, 1) for digest in ("sha256:a", "sha256:b")}
    assert len(seeds) == 4 and not seeds & {0, 1} and continued_seed(0, "sha256:a") in seeds
    orders = {tuple(epoch_order(seed, 0, 50)) for seed in (*seeds, 0, 1)}
    assert len(orders) == 6


def test_one_step_can_be_asked_for_alone():
    whole = [batch_rows(7, step, 4, 9) for step in range(20)]
    epoch_order.cache_clear()
    assert np.array_equal(batch_rows(7, 13, 4, 9), whole[13])


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 2), (7, 3), (4, 4)])
def test_shares_of_processes_make_the_batch(batch_size: int, processes: int):
    shares = [local_share(batch_size, index, processes) for index in range(processes)]
    assert [place for share in shares for place in share] == list(range(batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_held_out_share_is_about_the_fraction_and_depends_on_the_key_alone():
    keys = [f"person-{i}/{i}" for i in range(4000)]
    held_out = [key for key in keys if is_held_out(key, 0.1)]
    assert 0.08 < len(held_out) / len(keys) < 0.12
    assert set(held_out) <= {key for key in keys if is_held_out(key, 0.2)}
    assert not any(is_held_out(key, 0.0) for key in keys) and all(is_held_out(key, 1.0) for key in keys)


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


def test_a_curriculum_begins_with_the_first_rows_in_as_many_steps():
    plain, batches = (EpochBatches(3, 10, 4, 2, curriculum) for curriculum in ((), ((0, 3), (1, 7), (2, 10))))
    groups = [pair for group in batches.groups(0, 12, range(2)) for pair in group]
    seen = [groups[start : start + 12] for start in range(0, 48, 12)]
    assert batches.steps_per_epoch == plain.steps_per_epoch
    for part in range(0, 12, 3):
        assert sorted(row for _, row in seen[0][part : part + 3]) == [0, 1, 2]
    assert len(set(seen[0])) == 12 and len({epoch for epoch, _ in seen[0]}) == 4, "another pass, another number"
    assert sorted(row for _, row in seen[1][:7]) == list(range(7)) and max(row for _, row in seen[1]) == 6
    for step in range(6, 12):
        assert [batches.rows(step, group) for group in range(2)] == [plain.rows(step, group) for group in range(2)]
