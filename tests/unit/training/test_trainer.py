"""The training loop on the smallest task: steps, metrics, average, checkpoints, resume, stops, and what it refuses."""

from __future__ import annotations

import copy
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from toy_task import ToyTask

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.distributed import processes
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.training import trainer as module
from facesyn_cli.training.ema import ema_decay
from facesyn_cli.training.metrics_log import read_lines
from facesyn_cli.training.trainer import Trainer, join_processes, run_training


def _run(task: ToyTask) -> dict:
    return run_training(task, processes("cpu")).summary


def _trainer(task: ToyTask) -> Trainer:
    return Trainer(task, processes("cpu"))


def _values(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in read_lines(folder / "metrics.jsonl") if name in line]


def _same(first: Path, second: Path) -> bool:
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_training_logs_validates_and_writes(tmp_path: Path) -> None:
    task = ToyTask(tmp_path, steps=7, save_steps=(5,))
    summary = _run(task)
    assert [step for step, _ in _values(tmp_path, "loss")] == [2, 4, 6, 7] == [s for s, _ in _values(tmp_path, "lr")]
    assert {"grad_norm", "images_per_s"} <= read_lines(tmp_path / "metrics.jsonl")[0].keys()
    assert task.monitored == [(3, False), (6, False), (7, False)] and task.network.training
    assert summary["val_loss"] == _values(tmp_path, "val_loss")[-1][1] and summary["steps"] == 7
    assert summary["loss"] == _values(tmp_path, "loss")[-1][1]
    assert not _same(tmp_path, tmp_path / "weights" / "step-00000005")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]


def test_metrics_are_means_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    _run(ToyTask(tmp_path / "each", log_every=1))
    _run(ToyTask(tmp_path / "third", log_every=3))
    for name in ("loss", "grad_norm"):
        each = [value for _, value in _values(tmp_path / "each", name)]
        expected = [(3, pytest.approx(sum(each[:3]) / 3)), (6, pytest.approx(sum(each[3:]) / 3))]
        assert _values(tmp_path / "third", name) == expected


def test_images_per_second_counts_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ToyTask(tmp_path, steps=4, log_every=1, validate_every=1)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    task.after = {step: lambda: now.__setitem__(0, now[0] + 2.0) for step in range(4)}
    validate = task._validate
    task._validate = lambda network, step: now.__setitem__(0, now[0] + 100.0) or validate(network, step)
    _run(task)
    assert [value for _, value in _values(tmp_path, "images_per_s")] == [2.0] * 4


@pytest.mark.parametrize("ema", [None, {"maximum": 0.6}])
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path, ema: dict | None) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"steps": 9, "ema": ema, "log_every": 4, "checkpoint_every": 100}
    _run(ToyTask(whole, **settings))
    task = ToyTask(stopped, **settings)
    task.after = {4: lambda: signals._remember(signal.SIGTERM, None)}
    with pytest.raises(Stopped):
        _run(task)
    signals.reset()
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-00000005"]
    assert (stopped / "weights" / "step-00000005" / "model.safetensors").is_file()  # a stopped training can be used
    _run(ToyTask(stopped, **settings))
    assert _same(whole, stopped)
    for name in ("loss", "grad_norm", "val_loss"):
        assert _values(whole, name) == _values(stopped, name)
    headers = [json.loads((folder / "facesyn.json").read_text()) for folder in (whole, stopped)]
    assert headers[0]["extra"] == headers[1]["extra"] and headers[0]["digest"] == headers[1]["digest"]


def test_a_signal_in_the_last_step_finishes_the_training(tmp_path: Path) -> None:
    task = ToyTask(tmp_path)
    task.after = {5: lambda: signals._remember(signal.SIGTERM, None)}
    assert _run(task)["steps"] == 6
    signals.reset()
    assert not (tmp_path / "weights").exists()


def test_a_longer_training_extends_a_finished_one(tmp_path: Path) -> None:
    _run(ToyTask(tmp_path / "whole", steps=8))
    _run(ToyTask(tmp_path / "grown", steps=5))
    _run(ToyTask(tmp_path / "grown", steps=8))
    assert _same(tmp_path / "whole", tmp_path / "grown")
    before = (tmp_path / "grown" / "model.safetensors").stat().st_mtime_ns
    assert _run(ToyTask(tmp_path / "grown", steps=8))["steps"] == 8
    assert (tmp_path / "grown" / "model.safetensors").stat().st_mtime_ns == before


_NEVER = 100
_FIRST_USE = {  # what needs the metrics first, in step 4
    "line": {"log_every": 4}, "monitor": {"validate_every": 4}, "checkpoint": {"checkpoint_every": 4},
    "weights": {"save_steps": (4,)}, "stop": {}, "end": {}, "every step": {},
}


@pytest.mark.parametrize("use", _FIRST_USE)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_nothing_is_written_after_a_step_that_is_not_finite(tmp_path: Path, clip: float | None, use: str) -> None:
    """The step is named, however much later the metrics are read."""
    settings = {"log_every": _NEVER, "validate_every": _NEVER, "checkpoint_every": _NEVER, **_FIRST_USE[use]}
    task = ToyTask(tmp_path, clip=clip, ema={}, **settings)
    task.broken_batch = 1
    task.after = {3: lambda: signals._remember(signal.SIGTERM, None)} if use == "stop" else {}
    trainer = _trainer(task)
    trainer.most_pending = 1 if use == "every step" else _NEVER
    trainer._save()
    with pytest.raises(UserError, match="in step 2 of 6: loss nan, gradient norm nan is not finite.*optimizer.lr"):
        trainer.run()
    signals.reset()
    assert trainer.step == {"every step": 2, "end": 6}.get(use, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]
    assert not task.monitored and not read_lines(tmp_path / "metrics.jsonl")
    assert not (tmp_path / "weights").exists() and not (tmp_path / "model.safetensors").exists()


def test_metrics_that_are_read_late_are_the_same(tmp_path: Path) -> None:
    for most_pending in (1, 100):
        trainer = _trainer(ToyTask(tmp_path / str(most_pending), steps=7, log_every=3, checkpoint_every=2))
        trainer.most_pending = most_pending
        trainer.run()
        assert trainer.step == 7
    assert _same(tmp_path / "1", tmp_path / "100")
    for name in ("loss", "grad_norm", "val_loss"):
        assert _values(tmp_path / "1", name) == _values(tmp_path / "100", name) != []


def test_clipping_bounds_the_gradient_and_reports_the_norm_before_it(tmp_path: Path) -> None:
    task = ToyTask(tmp_path, clip=0.01)
    trainer = _trainer(task)
    trainer._take_step(next(task.batches(0)), 0.05)
    trainer._fetch()
    clipped = torch.nn.utils.get_total_norm([p.grad for p in task.parameters])
    assert clipped.item() == pytest.approx(0.01, rel=1e-3) and trainer.window["grad_norm"][0] > 0.1


class _OverflowingScaler:
    """A scaler as of fp16 whose first gradients overflow."""

    def __init__(self, scale: float) -> None:
        self.factor, self.steps = scale, 0

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.factor

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("inf")

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps += 1  # leaves the optimizer's step out

    def update(self) -> None:
        self.factor /= 2


def test_fp16_leaves_out_overflowing_steps_until_the_scale_is_below_one(tmp_path: Path) -> None:
    task = ToyTask(tmp_path, ema={})
    trainer = _trainer(task)
    trainer.scaler = _OverflowingScaler(2.0)
    before, batches = copy.deepcopy(trainer.ema.module.state_dict()), task.batches(0)
    for _ in range(2):
        trainer._take_step(next(batches), 0.05)
    trainer._fetch()
    assert trainer.step == trainer.scaler.steps == 2 and "grad_norm" not in trainer.window
    assert all(torch.equal(value, before[key]) for key, value in trainer.ema.module.state_dict().items())
    trainer._take_step(next(batches), 0.05)
    with pytest.raises(UserError, match="not finite"):
        trainer._fetch()


def test_the_average_is_what_is_validated_and_written(tmp_path: Path) -> None:
    task = ToyTask(tmp_path, ema={"minimum": 0.5})
    trainer, expected, mean = _trainer(task), None, None
    for number, batch in enumerate(task.batches(0), 1):
        if expected is None:
            expected, mean = task.network[0].weight.detach().clone(), task.network[1].running_mean.clone()
        trainer._take_step(batch, 0.05)
        decay = ema_decay(number, trainer.ema.settings)
        expected = decay * expected + (1 - decay) * task.network[0].weight.detach()
        mean = decay * mean + (1 - decay) * task.network[1].running_mean  # statistics belong to the weights
    torch.testing.assert_close(trainer.network[0].weight, expected)
    torch.testing.assert_close(trainer.network[1].running_mean, mean)
    assert trainer.network[1].num_batches_tracked == 6
    task.finish(trainer.network)
    assert torch.equal(read_tensors(tmp_path / "model.safetensors")["0.weight"], trainer.network[0].weight)


def test_weights_are_initialized_once_and_checkpoints_win_afterwards(tmp_path: Path) -> None:
    task = ToyTask(tmp_path)
    trainer = _trainer(task)
    assert (task.network[0].bias == 0.5).all()
    trainer._take_step(next(task.batches(0)), 0.05)
    trainer._fetch()
    trainer._save()
    other = ToyTask(tmp_path)
    other.initialize = lambda: pytest.fail("initialized although there is a checkpoint")
    resumed = _trainer(other)
    assert resumed.step == 1 and torch.equal(other.network[0].bias, task.network[0].bias)
    assert resumed.window == trainer.window


def test_a_checkpoint_of_an_earlier_release_is_resumed_without_its_metrics(tmp_path: Path) -> None:
    trainer = _trainer(ToyTask(tmp_path, ema={}))
    trainer._take_step(next(trainer.task.batches(0)), 0.05)
    trainer._fetch()
    trainer._save()
    folder = tmp_path / "checkpoints" / "step-00000001"
    (folder / "optimizer.safetensors").rename(folder / "optimiser.safetensors")
    files = json.loads((folder / "state.json").read_text())["files"]
    files["optimiser.safetensors"] = files.pop("optimizer.safetensors")
    old = {"step": 1, "window": {"loss": [8.0, 4.0]}, "loss_window": [8.0, 4.0], "scaler": {}, "files": files}
    (folder / "state.json").write_text(json.dumps(old))
    resumed = _trainer(ToyTask(tmp_path, ema={}))
    assert resumed.step == 1 and resumed.window == {}
    moments = [state["exp_avg"] for state in resumed.optimizer.state.values()]
    expected = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert len(moments) == len(expected) > 0 and all(map(torch.equal, moments, expected))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trainer = _trainer(ToyTask(tmp_path))
    trainer._save()
    (tmp_path / "checkpoints" / "step-00000000" / "optimizer.safetensors").replace(
        tmp_path / "checkpoints" / "step-00000000" / "model.safetensors")
    path = tmp_path / "checkpoints" / "step-00000000" / "state.json"
    path.write_text(json.dumps({"step": 0, "scaler": {}}))
    with pytest.raises(UserError, match="does not fit this training; remove it"):
        _trainer(ToyTask(tmp_path))


def test_an_unreadable_input_ends_the_training_with_one_line(tmp_path: Path) -> None:
    task = ToyTask(tmp_path)
    task.unreadable = 2
    with pytest.raises(UserError, match="photo 7 is unreadable"):
        _run(task)
    assert not (tmp_path / "facesyn.json").exists()


def test_settings_that_the_device_cannot_honor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 trains on a CUDA device"):
        join_processes(ToyTask(tmp_path, precision="fp16").cfg)
    assert join_processes(ToyTask(tmp_path).cfg).world_size == 1


def test_monitors_of_zero_steps_never_run(tmp_path: Path) -> None:
    task = ToyTask(tmp_path, validate_every=0)
    started = time.monotonic()
    _run(task)
    assert not task.monitored and time.monotonic() - started < 60
