"""What training from a teacher carries from step to step: student, average, optimizer, loss scaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.bn_groups import sum_gradients
from facesyn_cli.training.checkpoint import latest_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from facesyn_cli.training.ema import Ema, ema_decay
from facesyn_cli.training.embedder_step import Distiller, TaughtGroup

FIGURES = ("loss", "cosine", "relational", "grad_norm")


class StudentEma(Ema):
    """An average of the weights in which the running statistics of BatchNorm are averaged too.

    They describe what the layers before them give out, so those of the newest weights would not fit average ones.
    """

    @torch.no_grad()
    def update(self, module: nn.Module, num_updates: int) -> None:
        """Move the average towards the weights and statistics of `module`."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        super().update(module, num_updates)
        share = 1.0 - ema_decay(num_updates, self.settings)
        for ours, old in zip(self.module.buffers(), before, strict=True):
            if ours.is_floating_point():
                ours.copy_(old.lerp(ours, share))


@dataclass
class EmbedderState:
    """The moving parts of a training.

    Args:
        student: The network.
        ema: Its average, or None.
        optimizer: Over the parameters of `student`.
        scaler: Loss scaler; does nothing outside fp16.
        step: Finished optimizer steps.
        window: Sums of `FIGURES` over the steps since the last report, then the number of those steps.
    """

    student: nn.Module
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * (len(FIGURES) + 1))

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average where there is one."""
        return self.student if self.ema is None else self.ema.module

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint."""
        groups = {"model": self.student.state_dict(), "optimizer": pack_optimizer(self.optimizer)}
        if self.ema is not None:
            groups["ema"] = self.ema.state_dict()
        save_checkpoint(folder, self.step, groups, {"window": self.window, "scaler": self.scaler.state_dict()}, keep)

    def restore(self, folder: Path, processes: Processes) -> None:
        """Resume from the newest whole checkpoint, if there is one.

        Raises:
            UserError: It is of another training, or all are damaged.
        """
        checkpoint = latest_checkpoint(folder, processes)
        if checkpoint is None:
            return
        with checkpoint.fitting():
            self.student.load_state_dict(checkpoint.tensors("model"), strict=True)
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint.tensors("ema"))
            unpack_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
            state = checkpoint.state()
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            self.window = list(state["window"])
        self.step = checkpoint.step

    def take_window(self) -> dict[str, float]:
        """Return the means since the last report and begin anew."""
        *sums, count = self.window
        means = {name: value / max(count, 1.0) for name, value in zip(FIGURES, sums, strict=True)}
        self.window = [0.0] * len(self.window)
        return means


def take_step(
    state: EmbedderState, distiller: Distiller, groups: Sequence[TaughtGroup], clip: float | None,
    all_reduce: Callable[[Tensor], Tensor],
) -> float:
    """Take one optimizer step with the learning rate that is set, and move the average.

    Args:
        state: Changed in place.
        distiller: Of the same student.
        groups: Those of this process, on the device.
        clip: Largest norm of the gradient; None: no clipping.
        all_reduce: Returns the sum of a tensor over all processes.

    Returns:
        Loss of the global batch.

    Raises:
        UserError: Loss or gradient is not finite; no weight was touched in this step.
    """
    state.optimizer.zero_grad(set_to_none=True)
    figures = all_reduce(distiller.accumulate(groups, state.step, state.scaler.scale(groups[0].targets.new_ones(()))))
    parameters = [p for p in state.student.parameters() if p.grad is not None]
    sum_gradients(parameters, all_reduce)
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    loss, cosine, relational, length = torch.cat([figures, norm[None]]).tolist()  # here the CPU waits for the device
    is_finite = bool(torch.isfinite(norm))
    is_overflow = state.scaler.is_enabled() and state.scaler.get_scale() >= 1  # fp16: the scaler leaves the step out
    if loss != loss or not (is_finite or is_overflow):
        raise UserError(
            f"training stopped before step {state.step + 1}: loss {loss:.4g}, gradient norm {length:.4g}; checkpoints "
            "are untouched. A lower optimizer.lr, optimizer.clip=1 or precision=fp32 may help"
        )
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    if is_finite:
        if state.ema is not None:
            state.ema.update(state.student, state.step)
        for place, value in enumerate((loss, cosine, relational, length, 1.0)):
            state.window[place] += value
    return loss
