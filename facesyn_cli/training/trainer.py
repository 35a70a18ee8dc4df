"""The training loop of all training commands; what differs between them is a `Task`.

Whatever is random is a function of (seed, step, place in the global batch), so neither a kill nor, up to rounding, the
number of processes changes the weights. A training that is resumed on a CPU with the same number of processes ends with
the bits of an uninterrupted one. Resumed with another number of processes or on another device it differs by rounding,
as sums are computed in another order, and with another precision by the rounding of that format: as much as a training
that had it from the start. Batches, learning rates, noise and dropout are the same. Two settings depend on the number
of processes, by more than rounding: sync_batchnorm, under which each process draws the dropout of its share, and random
layers without a seed in a denoiser. The header lists the parts of a training that ran in different ways.

The host does not wait for the device in every step: metrics stay on it until a line, a monitor, weights or a checkpoint
needs them. A loss or a gradient that is not finite is found then, before anything that follows from it is written.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import open_shared_output
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes, check_device
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.progress import progress
from facesyn_cli.training.bn_groups import group_seed
from facesyn_cli.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from facesyn_cli.training.ema import Ema
from facesyn_cli.training.gradient_sums import GradientSums
from facesyn_cli.training.host_memory import freed_memory_is_kept
from facesyn_cli.training.metrics_log import METRICS, MetricsLog, check_trackers, read_lines
from facesyn_cli.training.optimization import (
    build_optimizer,
    gradient_norm,
    set_lr,
    share_overflow,
)
from facesyn_cli.training.precision import check_precision, loss_scaler
from facesyn_cli.training.sharded_tensors import join_columns
from facesyn_cli.training.shared_settings import CompiledConfig, TrainingConfig
from facesyn_cli.training.task import Monitor, Task

_TITLES = {"top1": "top-1"}  # metric -> its name in the progress
_MOST_PENDING = 100  # steps between two looks at the metrics, at most


def run_training(task: Task, processes: Processes) -> Outcome:
    """Train, or resume, and write the header. A collective."""
    with (
        open_shared_output(processes, task.folder, "Weights", task.command, task.cfg, task.parents) as out,
        freed_memory_is_kept(processes.device),
    ):
        if not out.finished:
            counts, extra = Trainer(task, processes).run()
            if processes.is_first:
                lines = read_lines(task.folder / METRICS)
                last = {name: value for line in lines for name, value in line.items()
                        if name in task.summary or name.startswith("val_")}
                out.finish(counts, {**last, **extra}, file_digest(task.folder / "model.safetensors"))
        processes.barrier()
        header = out.header
    return Outcome(task.folder, {**header.counts, **header.extra} if header else {})


def check_environment(cfg: TrainingConfig) -> None:
    """Refuse a device or a tracker that is not there, before anything starts.

    Raises:
        UserError: Naming it.
    """
    check_trackers(cfg.tracking)
    if cfg.device != "auto":
        check_device(cfg.device)


def join_processes(cfg: TrainingConfig) -> Processes:
    """Return the processes of a training, after checks of what their device can do.

    Raises:
        UserError: The device does not exist or cannot train with these settings.
    """
    check_environment(cfg)
    processes = distributed.processes(cfg.device)
    check_precision(cfg.precision, processes.device.type)
    if isinstance(cfg, CompiledConfig) and cfg.compile and processes.device.type != "cuda":
        raise UserError(f"compile=true needs a CUDA device, this run is on {processes.device.type}")
    if processes.world_size > cfg.batch_size:
        raise UserError(f"batch_size {cfg.batch_size} cannot be shared by {processes.world_size} processes")
    return processes


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step that are still on the device.

    Args:
        number: Of the step, 1-based.
        lr: Its learning rate.
        names: Of the values that the task returned.
        values: (len(names) + 1,) this process's parts of them, and the norm of the gradient.
        is_left_out: The gradient overflowed (fp16) and the optimizer's step was left out.
    """

    number: int
    lr: float
    names: tuple[str, ...]
    values: torch.Tensor
    is_left_out: bool


class Trainer:
    """The state of a training, and the loop over its steps."""

    def __init__(self, task: Task, processes: Processes) -> None:
        self.task, self.cfg, self.processes = task, task.cfg, processes
        torch.manual_seed(self.cfg.seed)
        task.build(processes)
        self.optimizer = build_optimizer(task.groups, self.cfg.optimizer, task.network)
        self.scaler = loss_scaler(self.cfg.precision, processes.device)
        self.step = 0
        self.gradients = task.gradients = GradientSums(task.parameters, processes)
        self.window: dict[str, list[float]] = {}  # metric -> [sum, number of steps] since the last line
        self.pending: list[StepMetrics] = []      # of steps that are not in the window yet
        self.most_pending = 1 if processes.device.type == "cpu" else _MOST_PENDING
        self.shown: dict[str, float] = {}         # beside the progress
        self.parts: list[dict[str, Any]] = []     # of the training, by how they ran
        self.seconds = 0.0                        # of the training until `self.since`, over all its runs
        self.since = time.monotonic()
        checkpoint = latest_checkpoint(task.folder / "checkpoints", processes)
        if checkpoint is None:
            task.initialize()
        self.ema = None if self.cfg.ema is None else Ema(task.network, self.cfg.ema)
        self.modules = task.modules if self.ema is None else {**task.modules, "ema": self.ema.module}
        self.optimizers = {"optimizer": self.optimizer, **task.optimizers}
        if checkpoint is not None:
            self._restore(checkpoint)
        part = {"precision": self.cfg.precision, "processes": processes.world_size, "device": processes.device.type}
        if not self.parts or {**self.parts[-1], **part} != self.parts[-1]:
            self.parts.append({"from_step": self.step, **part})
        if isinstance(self.cfg, CompiledConfig) and self.cfg.compile:
            import torch._inductor.config as inductor

            inductor.fallback_random = True  # the random numbers of eager mode
            task.network.compile()

    @property
    def network(self) -> nn.Module:
        """The network to validate and write: the average where there is one."""
        return self.task.network if self.ema is None else self.ema.module

    def run(self) -> tuple[dict[str, int], dict[str, Any]]:
        """Train to the last step and write the weights; return what the header says."""
        task, cfg, total = self.task, self.cfg, self.task.total_steps
        limit = getattr(cfg, "minutes", None)
        metrics, self.since = None, time.monotonic()
        if self.processes.is_first:
            metrics = MetricsLog(task.folder / METRICS, self.step, cfg.tracking, f"facesyn-{task.command}")
        logged, started = self.step, time.monotonic()
        with (
            metrics or nullcontext(), progress(task.command, total, "steps", self.step) as bar,
            closing(task.batches(self.step)) as batches,
        ):
            task.position = self._position(limit)
            while task.position < 1:
                batch = self._next(batches)
                at = None if limit is None else task.position
                lr = cfg.optimizer.lr * cfg.lr_schedule.factor(self.step, total, task.epoch_steps or 1, at)
                self._take_step(batch, lr)
                task.position = self._position(limit)
                step, is_last = self.step, task.position >= 1
                if limit is not None:
                    bar.total = round(step / task.position)
                is_epoch_end = task.epoch_steps is not None and step % task.epoch_steps == 0
                epoch = {} if task.epoch_steps is None else {"epoch": -(-step // task.epoch_steps)}
                is_line = step % cfg.log_every == 0 or is_epoch_end or is_last
                due = [monitor for monitor in task.monitors if monitor.is_due(step, is_last)]
                if is_line or due or len(self.pending) >= self.most_pending:
                    self._fetch()
                bar.advance(1, **self.shown, lr=lr)

                if is_line:
                    speed = (step - logged) * cfg.batch_size / max(time.monotonic() - started, 1e-9)
                    means = {name: value / count for name, (value, count) in self.window.items()}
                    self.window, logged, started = {}, step, time.monotonic()
                    if metrics is not None:
                        metrics.add(step, **epoch, **means, lr=lr, images_per_s=round(speed, 2))

                paused = time.monotonic()  # images_per_s and the rate of the progress count training alone
                for monitor in due:
                    with bar.paused():
                        found = self._look(monitor)
                    if metrics is not None and found:
                        metrics.add(step, **epoch, **found)
                is_stopping = self.processes.any(signals.received() is not None) and not is_last
                kept = task.kept_folder(step) or (f"weights/step-{step:08d}" if is_stopping else None)
                is_due = cfg.checkpoint_every and step % cfg.checkpoint_every == 0
                is_saved = is_due or is_epoch_end or is_last or is_stopping
                if kept or is_saved:
                    self._fetch()
                if kept and self.processes.is_first:  # a stopped training can be used
                    task.write(task.folder / kept, self.network, step)
                if kept:
                    task.write_shards(step)
                if is_saved:
                    with bar.paused():
                        self._save()
                if is_stopping:
                    raise Stopped(signals.received() or signal.SIGTERM)
                started += time.monotonic() - paused
        task.total_steps = self.step
        counts, extra = task.finish(self.network)
        return counts, extra | ({"parts": self.parts} if len(self.parts) > 1 else {})

    def _position(self, limit: float | None) -> float:
        """Return the share of the training that is done, of its steps or of its `limit` in minutes. A collective."""
        share = self.step / self.task.total_steps
        if limit is None:
            return share
        return min(1.0, max(share, self.processes.from_first(self._spent) / (60 * limit)))

    def _spent(self) -> float:
        """Return the seconds of the training so far, over all its runs, without what comes before the first step."""
        return self.seconds + time.monotonic() - self.since

    def _next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch; an input that one process cannot read is an error in all of them."""
        batch, problem = None, ""
        try:
            batch = next(batches)
        except UserError as error:
            problem = str(error)
        self.processes.raise_in_all(problem)
        return batch

    def _take_step(self, batch: Any, lr: float) -> None:
        """Take one optimizer step and update the average. Only fp16 waits for the device."""
        cfg, task = self.cfg, self.task
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(group_seed(task.seed, self.step, self.processes.rank))  # for layers without a seed
        parts = task.step(batch, self.step, lr, self.scaler)
        self.gradients.finish()
        if task.sharded_parameters and self.scaler.is_enabled():
            share_overflow(task.parameters, task.sharded_parameters, self.processes)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(task.parameters, task.sharded_parameters, self.processes)
        is_left_out = self.scaler.is_enabled() and self.scaler.get_scale() >= 1 and not bool(norm.isfinite())
        if cfg.clip is not None:
            nn.utils.clip_grads_with_norm_([*task.parameters, *task.sharded_parameters], cfg.clip, norm)
        with task.updating(self.optimizer):
            self.scaler.step(self.optimizer)  # fp16: leaves out a step that overflows
        self.scaler.update()
        self.step += 1
        if self.ema is not None and not is_left_out:
            self.ema.update(task.network, self.step)
        wide = torch.float32 if norm.device.type == "mps" else torch.float64
        values = torch.stack([*(part.to(wide) for part in parts.values()), norm.to(wide)])
        self.pending.append(StepMetrics(self.step, lr, tuple(parts), values, is_left_out))

    def _fetch(self) -> None:
        """Add the metrics of the pending steps to the window. A collective; the host waits for the device.

        Raises:
            UserError: Loss or gradient of a step is not finite. Nothing was written since.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        values = self.processes.gather(torch.cat([step.values for step in pending])[None]).tolist()
        columns = iter(list(zip(*values, strict=True)))
        for step in pending:
            named = {name: sum(next(columns)) for name in step.names}  # of ranks in their order, so resumes are exact
            length = next(columns)[0]
            if named["loss"] != named["loss"] or not (math.isfinite(length) or step.is_left_out):
                raise UserError(
                    f"training stopped in step {step.number} of {self.task.total_steps}: loss {named['loss']:.4g}, "
                    f"gradient norm {length:.4g} is not finite; no weights of this or a later step were written and "
                    f"checkpoints are intact. Train in another --out with a smaller optimizer.lr (it is {step.lr:g} "
                    f"here), clip=1, more lr_schedule.warmup_steps or precision=fp32"
                )
            if not step.is_left_out:
                named["grad_norm"] = length
            for name, value in named.items():
                total, count = self.window.get(name, (0.0, 0))
                self.window[name] = [total + value, count + 1]
            self.shown = {_TITLES.get(name, name): named[name] for name in self.task.watched}

    def _look(self, monitor: Monitor) -> dict[str, float]:
        network, was_training = self.network, self.network.training
        try:
            return monitor.run(network.eval(), self.step)
        finally:
            network.train(was_training)

    def _save(self) -> None:
        """Write a checkpoint. A collective."""
        tensors = {name: module.state_dict() for name, module in self.modules.items()}
        tensors |= {name: pack_optimizer(optimizer) for name, optimizer in self.optimizers.items()}
        tensors = join_columns(tensors, self.task.columns, self.processes)
        if self.processes.is_first:
            state = {"metrics": self.window, "scaler": self.scaler.state_dict(), "parts": self.parts,
                     "seconds": self._spent()}
            save_checkpoint(self.task.folder / "checkpoints", self.step, tensors, state, self.cfg.keep_checkpoints)
        self.processes.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint."""
        with checkpoint.fitting():
            for name, module in self.modules.items():
                module.load_state_dict(checkpoint.tensors(name, self.task.columns), strict=True)
            for name, optimizer in self.optimizers.items():
                unpack_optimizer(optimizer, checkpoint.tensors(name, self.task.columns))
            state = checkpoint.state()
            if self.scaler.is_enabled() and state["scaler"]:  # empty after steps of another precision
                self.scaler.load_state_dict(state["scaler"])
            self.parts, self.seconds = list(state.get("parts", [])), float(state.get("seconds", 0.0))
            self.window = dict(state.get("metrics", {}))  # earlier releases counted in another way
        self.step = checkpoint.step
        log.info(f"resuming from step {self.step} of {self.task.total_steps}")
