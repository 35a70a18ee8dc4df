"""Which number formats pay; the speeds are given, not measured, but for one that must be a number."""

from __future__ import annotations

import time

import pytest
import torch

from facesyn_cli.config.fields import StageConfig, affects_result
from facesyn_cli.models import precision as formats
from facesyn_cli.models.precision import (
    PrecisionOrAuto,
    computes,
    gain,
    matrix_gain,
    products_that_pay,
    with_precision,
)

CPU = torch.device("cpu")


class _Config(StageConfig):
    precision: PrecisionOrAuto = affects_result("auto", "a format")


def test_the_fastest_round_counts(monkeypatch):
    clock = {"now": 0.0}
    seconds = {"fp32": iter([9.0, 3.0]), "bf16": iter([8.0, 2.0])}  # the first of each loads kernels

    def evaluate(precision: str) -> None:
        clock["now"] += next(seconds[precision])

    monkeypatch.setattr(time, "process_time", lambda: clock["now"])
    assert gain(evaluate, "bf16", CPU) == pytest.approx(1.5)


def test_products_in_every_format_are_measured_on_this_machine():
    threads = torch.get_num_threads()
    matrix_gain.cache_clear()
    assert 0 < matrix_gain("bf16", CPU) < 100
    assert torch.get_num_threads() == threads and computes("bf16", CPU)


def test_other_processes_take_what_the_first_one_chose(tmp_path):
    class Processes:
        def from_first(self, compute):
            return "bf16"

    def never(precision: str) -> None:
        pytest.fail("measured in another process than the first")

    found = with_precision(_Config(), tmp_path / "out", "ImageSet", CPU, never, Processes())
    assert found.precision == "bf16" and not (tmp_path / "out").exists()


def test_fp32_is_never_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "gain", lambda *_: pytest.fail("measured"))
    cfg = _Config(precision="fp32")
    assert with_precision(cfg, tmp_path, "ImageSet", CPU, lambda precision: pytest.fail("evaluated")) is cfg


@pytest.mark.parametrize(("gains", "pays"), [
    ({"bf16": 2.2, "fp16": 0.01}, "bf16"), ({"bf16": 0.6, "fp16": 0.01}, "fp32"), ({"bf16": 1.02, "fp16": 0.9}, "fp32"),
    ({"bf16": 7.0, "fp16": 9.0}, "fp16"),
])
def test_a_format_pays_where_its_products_are_clearly_faster(monkeypatch, gains, pays):
    monkeypatch.setattr(formats, "matrix_gain", lambda name, device: gains[name])
    monkeypatch.setattr(formats, "computes", lambda name, device: True)
    assert products_that_pay(CPU) == (pays, gains)
    monkeypatch.setattr(formats, "computes", lambda name, device: name == "fp32")
    assert products_that_pay(CPU) == ("fp32", {})
