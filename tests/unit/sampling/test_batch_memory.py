"""Batch sizes that fit: bytes are counted, limits respected."""

from __future__ import annotations

import pytest
import torch

from facesyn_cli.errors import UserError
from facesyn_cli.sampling import memory
from facesyn_cli.sampling.memory import available_bytes, fitting_batch, peak_bytes

CPU = torch.device("cpu")
MIB = 2**20


def use(mib: float) -> torch.Tensor:
    return torch.zeros(int(mib * MIB) // 4)


def test_peak_counts_what_lives_at_one_time():
    def run():
        x = use(4)
        for _ in range(5):
            x = x + 1                 # old and new: 8 MiB
        view = x.view(-1, 2)          # no memory of its own
        y = torch.cat([view, view])   # 4 + 8 MiB
        del x, view
        return y

    assert peak_bytes(run) == 12 * MIB


def test_inputs_do_not_count():
    given = use(16)
    assert peak_bytes(lambda: given.add_(1)) == 0


@pytest.mark.parametrize(("free", "workers", "expected"), [(100, 1, 8), (100, 4, 2), (10_000, 1, 32), (20, 1, 1)])
def test_batch_is_the_power_of_two_that_fits(monkeypatch, free, workers, expected):
    """5 MiB an image, as much again in reserve, 80 % of what is free."""
    monkeypatch.setattr(memory, "available_bytes", lambda: free * MIB)
    assert fitting_batch(lambda count: use(5 * count), CPU, workers, 1000) == expected
    assert fitting_batch(lambda count: use(5 * count), CPU, workers, 3) == min(expected, 2)


def test_not_even_one_image_is_a_line(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 5 * MIB)
    with pytest.raises(UserError, match="needs 10 MiB on each of 2 cores"):
        fitting_batch(lambda count: use(5 * count), CPU, 2, 1000)


def test_available_bytes_are_those_of_this_machine():
    assert 2**20 < available_bytes() < 2**50


@pytest.mark.parametrize("limit", [999, 1000, 1001])
def test_the_line_through_two_peaks_ends_at_the_limit(limit):
    batch = memory._extrapolated((4, 8), [140, 180], limit)  # 100 + 10 an image
    assert 100 + 10 * batch <= limit < 100 + 10 * (batch + 1)
