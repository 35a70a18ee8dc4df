"""Sums of gradients over processes: what is summed, when a sum begins, and what is left without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from facesyn_cli.training import gradient_sums
from facesyn_cli.training.gradient_sums import GradientSums


class _Pair:
    """Two processes that run one after the other: the first is recorded, the second gets the sums."""

    world_size = 2

    def __init__(self, first: _Pair | None = None) -> None:
        self.first, self.sent, self.flags = first, list[Tensor](), list[bool]()
        self.begun: Callable[[Tensor], None] = lambda values: None

    def begin_sum(self, values: Tensor) -> SimpleNamespace:
        self.begun(values)
        self.sent.append(values.clone())
        if self.first is not None:
            assert values.shape == self.first.sent[len(self.sent) - 1].shape
            values += self.first.sent[len(self.sent) - 1]
        return SimpleNamespace(wait=lambda: None)

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        self.flags = list(flags)
        return self.flags if self.first is None else [a or b for a, b in zip(flags, self.first.flags, strict=True)]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.PReLU(3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    return network.to(memory_format=torch.channels_last)


def _inputs(process: int) -> Tensor:
    return torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(process))


def _step(network: nn.Module, sums: GradientSums, inputs: Tensor, overlaps: bool = True) -> None:
    """Two backward passes, the last of which is announced."""
    network.zero_grad(set_to_none=True)
    network(inputs[:3]).square().sum().backward()
    loss = network(inputs[3:]).square().sum()
    if overlaps:
        with sums.last_pass():
            loss.backward()
    else:
        loss.backward()
    sums.finish()


def _after_both(overlaps: bool) -> tuple[nn.Module, _Pair]:
    """Return network and record of the second process after a step, the second one in the first process."""
    first = _Pair()
    network = _network()
    sums = GradientSums(list(network.parameters()), first)
    for _ in range(2):
        first.sent = []
        _step(network, sums, _inputs(0), overlaps)
    second = _Pair(first)
    network = _network()
    _step(network, GradientSums(list(network.parameters()), second), _inputs(1), overlaps)
    return network, second


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("bucket", [20, 1 << 20])
def test_gradients_of_several_passes_are_sums_over_the_processes(
    monkeypatch: pytest.MonkeyPatch, bucket: int, overlaps: bool
) -> None:
    monkeypatch.setattr(gradient_sums, "_BUCKET", bucket)
    network, processes = _after_both(overlaps)
    # in reverse order; what is larger than a bucket has one of its own
    sizes = {20: [17, 60, 6, 108], 1 << 20: [191]}[bucket]
    assert [len(flat) for flat in processes.sent] == sizes
    expected = _network()
    for number in range(2):
        expected(_inputs(number)).square().sum().backward()
    for ours, plain in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-5)
        assert ours.grad.stride() == ours.stride()  # a fused optimizer needs it


def test_a_sum_begins_before_the_backward_pass_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sums, "_BUCKET", 20)
    network, processes = _network(), _Pair()
    sums = GradientSums(list(network.parameters()), processes)
    remaining = []
    processes.begun = lambda values: remaining.append(sum(p.grad is None for p in network.parameters()))
    with sums.last_pass():
        network(_inputs(0)).square().sum().backward()
    assert remaining[0] >= 3 and remaining == sorted(remaining, reverse=True) and len(remaining) == 4
    sums.finish()
    assert len(remaining) == 4


def test_unused_parameters_have_no_gradient_and_those_used_elsewhere_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sums, "_BUCKET", 4)
    first = None
    for number in range(2):
        a, b, c = (nn.Parameter(torch.full((3,), float(i + 1))) for i in range(3))
        processes = _Pair(first)
        sums = GradientSums([a, b, c], processes)
        for _ in range(2):  # the second step finds no trace of the first
            for parameter in (a, b, c):
                parameter.grad = None
            processes.sent = []
            with sums.last_pass():
                (a.sum() + (b.square().sum() if number == 0 else 0)).backward()
            sums.finish()
        first = processes
    assert a.grad.tolist() == [2.0] * 3 and b.grad.tolist() == [4.0] * 3 and c.grad is None


def test_a_second_pass_in_the_last_one_is_an_error() -> None:
    weight = nn.Parameter(torch.ones(2))
    sums = GradientSums([weight], _Pair())
    with sums.last_pass():
        weight.sum().backward()
        with pytest.raises(RuntimeError, match="second backward pass"):
            weight.sum().backward()


def test_a_single_process_keeps_its_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))
    sums = GradientSums([weight], SimpleNamespace(world_size=1))
    with sums.last_pass():
        weight.sum().backward()
        weight.sum().backward()
    sums.finish()
    assert weight.grad.tolist() == [2.0, 2.0]
