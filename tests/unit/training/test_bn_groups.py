"""Groups of images under one BatchNorm: how they are cut, and what they do to statistics and gradients."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from facesyn_cli.errors import UserError
from facesyn_cli.training.bn_groups import (
    copy_from_first,
    group_seed,
    num_groups,
    running_statistics,
    use_global_norms,
)
from facesyn_cli.training.data_order import local_share


def test_published_batch_is_eight_groups_on_one_two_four_or_eight_processes():
    assert [num_groups(512, 64, n) for n in (1, 2, 4, 8)] == [8, 8, 8, 8]
    assert [list(local_share(8, i, 4)) for i in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_group_is_no_larger_than_the_batch():
    assert num_groups(32, 64, 1) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100, 64, 1), "batch_size 100 is not a multiple of norm_batch_size 64; use batch_size 64 or 128"),
        ((512, 64, 3), "do not divide over 3 processes; start 1, 2, 4, 8 processes or use batch_size 576"),
        ((64, 64, 2), "do not divide over 2 processes; start 1 processes or use batch_size 128"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_what_would(sizes, message):
    with pytest.raises(UserError) as error:
        num_groups(*sizes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_differ_by_seed_step_and_group():
    seeds = {group_seed(a, b, c) for a in range(3) for b in range(3) for c in range(3)}
    assert len(seeds) == 27
    assert group_seed(1, 2, 3) == group_seed(1, 2, 3)


def test_running_statistics_move_only_when_told():
    norm = nn.BatchNorm1d(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with running_statistics(norm, False):
        y = norm(x)
    torch.testing.assert_close(y, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=0, atol=1e-4)
    assert norm.running_mean.tolist() == [0, 0] and norm.num_batches_tracked == 0
    with running_statistics(norm, True):
        norm(x)
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2, 0.4]))
    assert norm.num_batches_tracked == 1 and norm.track_running_stats


def test_statistics_of_the_first_process_reach_the_others():
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    first(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    sent = []
    copy_from_first(first, SimpleNamespace(is_first=True, sum=lambda x: sent.append(x.clone()) or x))
    arriving = iter(sent)
    copy_from_first(second, SimpleNamespace(is_first=False, sum=lambda x: x + next(arriving)))
    assert torch.equal(second.running_mean, first.running_mean)
    assert torch.equal(second.running_var, first.running_var)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (6, 3)])
def test_global_norm_alone_is_batch_norm(shape):
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3).double()
    nn.init.normal_(norm.weight)
    ours = copy.deepcopy(norm)
    use_global_norms(ours, lambda total: total)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    for _ in range(2):
        norm(x).square().sum().backward()
        ours(x2).square().sum().backward()
    torch.testing.assert_close(x2.grad, x.grad)
    torch.testing.assert_close(ours.weight.grad, norm.weight.grad)
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)
    torch.testing.assert_close(ours.eval()(x2), norm.eval()(x))
