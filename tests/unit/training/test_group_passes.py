"""Several groups in one pass against one pass for each: embeddings, gradients, statistics and dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from facesyn_cli.errors import UserError
from facesyn_cli.training.bn_groups import ImageGroup
from facesyn_cli.training.group_passes import GroupPasses, groups_of_a_pass

CPU = torch.device("cpu")


class _Backbone(nn.Module):
    """Two norms and two dropouts, one of channels and one of numbers."""

    input_size = 8

    def __init__(self, hidden_rate: float = 0.0) -> None:
        super().__init__()
        self.hidden_rate = hidden_rate
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.PReLU(4), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.4),
            nn.Linear(36, 8), nn.BatchNorm1d(8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.body(x), self.hidden_rate, self.training)


def _network(hidden_rate: float = 0.0) -> _Backbone:
    torch.manual_seed(0)
    return _Backbone(hidden_rate).train()


def _groups(first: int, count: int) -> list[ImageGroup]:
    generator = torch.Generator().manual_seed(1)
    return [
        ImageGroup(number, torch.randint(0, 256, (4, 8, 8, 3), generator=generator, dtype=torch.uint8))
        for number in range(first, first + count)
    ]


def _run(size: int, first: int, is_updated: bool = True) -> tuple[torch.Tensor, _Backbone]:
    """Return the embeddings of 5 groups, and the network with its gradients."""
    passes, groups, rows = GroupPasses(_network(), size), _groups(first, 5), []
    for places in passes.cut(5):
        embeddings = passes.embed([groups[place] for place in places], "fp32", 7, 3, is_updated)
        assert len(embeddings) == len(places) and all(part.shape == (4, 8) for part in embeddings)
        torch.cat(embeddings).pow(3).sum().backward()
        rows += [part.detach() for part in embeddings]
    return torch.cat(rows), passes.network


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("size", [2, 5])
def test_a_pass_of_several_groups_is_a_pass_for_each(size: int, first: int) -> None:
    expected, alone = _run(1, first)
    got, network = _run(size, first)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    tolerance = 1e-5 * max(p.grad.abs().max().item() for p in alone.parameters())  # sums in another order
    for ours, plain in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=tolerance)
    for (name, ours), (_, plain) in zip(network.named_buffers(), alone.named_buffers(), strict=True):
        torch.testing.assert_close(ours, plain, msg=name)
    counts = [buffer.item() for name, buffer in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [int(first == 0)] * 2  # the first group of the step alone


def test_statistics_are_those_of_a_group_and_not_of_the_pass() -> None:
    got, _ = _run(5, 0)
    for part in got.split(4):  # the last layer normalizes
        torch.testing.assert_close(part.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    assert _run(5, 0, is_updated=False)[1].body[1].num_batches_tracked == 0


def test_a_network_that_was_prepared_is_unchanged_otherwise() -> None:
    plain, passes = _network(), GroupPasses(_network(), 3)
    passes.embed(_groups(0, 3), "fp32", 0, 0, is_updated=False)
    x = torch.rand(6, 3, 8, 8)
    for one, other in ((plain.train(), passes.network.train()), (plain.eval(), passes.network.eval())):
        torch.manual_seed(5)
        expected = one(x)
        torch.manual_seed(5)
        assert torch.equal(other(x), expected)
    torch.testing.assert_close(copy.deepcopy(passes.network)(x), plain(x))
    assert passes.network.state_dict().keys() == plain.state_dict().keys()


def test_random_numbers_outside_of_dropout_layers_need_a_pass_for_each_group() -> None:
    before = torch.get_rng_state()
    network = _network().eval()
    assert groups_of_a_pass(3, network, 4, 5, CPU) == 3 and not network.training
    assert groups_of_a_pass(9, network, 4, 5, CPU) == 5 and groups_of_a_pass(None, network, 4, 5, CPU) == 1
    assert network.body[5].p == 0.4 and network.body[1].num_batches_tracked == 0
    with pytest.raises(UserError, match="groups_per_pass=3, but _Backbone draws random numbers outside of dropout"):
        groups_of_a_pass(3, _network(0.1), 4, 5, CPU)
    torch.set_rng_state(before)
