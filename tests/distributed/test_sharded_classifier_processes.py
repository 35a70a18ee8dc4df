"""A classifier divided over 1, 2 and 4 processes is the whole one: losses, gradients, weights, optimizer state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import finish, spawn
from sharded_steps import GROUP_SIZE, HEADS, NUM_CLASSES, NUM_GROUPS, NUM_STEPS, SCALE, SIZE, run_steps
from tolerance import rounding

from facesyn_cli.distributed import processes

pytestmark = pytest.mark.dist

# An error of a logit is a relative error of its softmax and of the gradient; the steps add theirs. Relative to the
# largest number of a tensor.
TOLERANCE = rounding(48 + SIZE + NUM_CLASSES, SCALE * NUM_STEPS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    """Number of processes -> name of the training -> what its first process found."""
    out = tmp_path_factory.mktemp("steps")
    script = Path(__file__).with_name("sharded_steps.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return {count: torch.load(out / f"{count}-0.pt") for count in (1, 2, 4)}


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], factor: float = 1) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = factor * TOLERANCE * max(value.double().abs().max().item(), 1e-4)
        difference = (found[name].double() - value.double()).abs().max().item()
        assert found[name].shape == value.shape and difference <= tolerance, (name, difference, tolerance)


def _differences(
    found: dict[int, dict[str, dict[str, torch.Tensor]]], head: str, expected: dict[str, torch.Tensor]
) -> list[str]:
    """Return the largest relative differences on 1, 2 and 4 processes: loss, gradients and weights."""

    def largest(count: int, name: str) -> float:
        value = expected[name].double()
        return ((found[count][head][name].double() - value).abs().max() / value.abs().max()).item()

    names = ("loss", "gradient", "kernel", "backbone_gradient", "backbone")
    return [" / ".join(f"{largest(count, name):.1e}" for count in (1, 2, 4)) for name in names if name in expected]


@pytest.mark.parametrize("head", HEADS)
def test_a_sharded_classifier_is_the_whole_one(found, head: str) -> None:
    expected = run_steps(head, processes("cpu"), sharded=False)
    for count in (1, 2, 4):
        _assert_same(found[count][head], expected)
    print(f"| {head} | {' | '.join(_differences(found, head, expected))} |")  # the table of the guide measurements
    assert expected["loss"].std() > 1e-3 and expected["kernel"].shape == (SIZE, NUM_CLASSES)


def test_moments_of_adam_are_divided_with_the_classes(found) -> None:
    expected = run_steps("arcface", processes("cpu"), sharded=False, optimizer="adamw")
    assert {"state_step", "state_exp_avg", "state_exp_avg_sq"} <= expected.keys()
    for count in (1, 2, 4):
        _assert_same(found[count]["arcface, adamw"], expected, factor=10)  # it divides by the size of a gradient


@pytest.mark.parametrize("training", [*(f"{head}, sampled" for head in HEADS), "arcface, few sampled"])
def test_a_sample_of_the_classes_does_not_depend_on_the_number_of_processes(found, training: str) -> None:
    for count in (2, 4):
        _assert_same(found[count][training], found[1][training])
    print(f"| {training} | {' | '.join(_differences(found, training, found[1][training]))} |")
    whole = found[1][training.split(",")[0]]
    assert (found[1][training]["kernel"] - whole["kernel"]).abs().max() > 100 * TOLERANCE


def test_moments_of_sampled_classes_alone_change(found) -> None:
    for count in (2, 4):
        _assert_same(found[count]["arcface, adamw, sampled"], found[1]["arcface, adamw, sampled"], factor=10)
    moments = found[1]["arcface, few sampled"]["state_momentum_buffer"]
    assert 0 < (moments != 0).any(0).sum() <= NUM_STEPS * NUM_GROUPS * GROUP_SIZE


def test_an_overflow_in_one_process_is_one_in_all(found) -> None:
    for count in (1, 2, 4):
        assert not found[count]["overflow"]["gradient"].isfinite().all()


def test_bench_measures_what_a_process_holds(run_cli) -> None:
    """Two processes hold half of a sharded classifier each, and all of a whole one."""
    words = ("bench", "classifier", "classes=[100]", "rounds=1", "device=cpu", "--json")
    one, two = run_cli(*words), finish(spawn(*words, processes=2))
    assert one.code == two.code == 0, one.err + two.err
    for ran, share in ((one, 1), (two, 2)):
        rows = ran.json()["runs"]
        assert [row["name"] for row in rows] == [f"{kind}, 100 classes" for kind in ("whole", "sharded", "sampled")]
        centers_and_momentum = 2 * 100 * 512 * 4 / 2**20
        held = [row["centers and state MiB"] for row in rows]
        assert held == pytest.approx([centers_and_momentum] + 2 * [centers_and_momentum / share], abs=0.06)
        assert all(row["seconds a step"] > 0 for row in rows)
