"""The batch size `auto`: halved until it fits, a power of two, the same in all processes."""

from __future__ import annotations

import pytest
import torch

from facesyn_cli.errors import UserError
from facesyn_cli.sampling.workers import choose_batch_size, largest_batch

CPU = torch.device("cpu")


def fits(limit: int, tried: list[int] | None = None):
    def attempt(count: int) -> None:
        if tried is not None:
            tried.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    return attempt


@pytest.mark.parametrize(("limit", "num_images", "expected"), [(10_000, 10_000, 512), (100, 1000, 64), (64, 1000, 64),
                                                               (10_000, 100, 64), (1, 8, 1)])
def test_batch_is_the_largest_power_of_two_that_fits(limit, num_images, expected):
    tried = []
    assert largest_batch(fits(limit, tried), CPU, num_images) == expected
    assert tried == sorted(tried, reverse=True) and tried[-1] == expected


def test_not_even_one_image_is_a_line():
    with pytest.raises(UserError, match="cpu has no memory for a batch of one image"):
        largest_batch(fits(0), CPU, 1000)


def test_other_errors_are_not_taken_for_memory():
    def broken(count: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(broken, CPU, 8)


def test_processes_agree_on_the_smallest():
    class OtherHasMemoryForSixteen:
        def sum(self, votes: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([6, 4]), 32).sum(dim=0)  # 64 here, 16 there

    device = torch.device("meta")  # any device but a CPU is searched
    assert choose_batch_size("auto", device, 1000, fits(64)) == 64
    assert choose_batch_size("auto", device, 1000, fits(64), OtherHasMemoryForSixteen()) == 16


@pytest.mark.parametrize(("wanted", "num_images", "expected"), [(None, 1000, 8), ("auto", 1000, 8), (3, 1000, 3),
                                                                (50, 20, 20), (None, 4, 4)])
def test_on_a_cpu_the_batch_size_is_fixed(wanted, num_images, expected):
    assert choose_batch_size(wanted, CPU, num_images, fits(0)) == expected
