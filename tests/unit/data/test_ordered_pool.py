"""Results come in the items' order, few items ahead, and an error comes at its place."""

from __future__ import annotations

import threading
import time

import pytest

from facesyn_cli.data.ordered_pool import ordered_map


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_is_that_of_the_items(workers: int):
    def slow_when_even(item: int) -> int:
        time.sleep(0.002 * (item % 2 == 0))
        return item * item

    assert list(ordered_map(slow_when_even, range(50), workers)) == [i * i for i in range(50)]


def test_only_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i, items(), workers=2, ahead=3)
    for due in range(100):
        assert next(results) == due
        assert len(taken) <= due + 6
    results.close()


def test_items_are_worked_on_at_the_same_time():
    barrier = threading.Barrier(3, timeout=20)
    assert list(ordered_map(lambda i: barrier.wait() >= 0, range(3), workers=3)) == [True] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_the_place_of_its_item(workers: int):
    got = []
    with pytest.raises(ZeroDivisionError):
        for result in ordered_map(lambda i: 1 // (i - 3), range(10), workers):
            got.append(result)
    assert len(got) == 3
