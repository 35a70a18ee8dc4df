"""What LDM training carries from step to step: network, average, optimizer, loss scaler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn

from facesyn_cli.diffusion.loss import diffusion_loss
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.distributed import Processes, launched_processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.checkpoint import latest_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from facesyn_cli.training.ema import Ema
from facesyn_cli.training.ldm_batches import Batch
from facesyn_cli.training.precision import autocast


@dataclass
class LdmState:
    """The moving parts of a training.

    Args:
        denoiser: The network itself, never wrapped.
        ema: Its average.
        optimizer: Over the parameters of `denoiser`.
        scaler: Loss scaler; does nothing outside fp16.
        loss_window: [sum of losses, number of images] since the last report, of this process, float64.
        step: Finished optimizer steps.
    """

    denoiser: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_window: Tensor
    step: int = 0

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint; `loss_window` must be that of all processes together."""
        groups = {
            "model": self.denoiser.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": pack_optimizer(self.optimizer),
        }
        state = {"loss_window": self.loss_window.tolist(), "scaler": self.scaler.state_dict()}
        save_checkpoint(folder, self.step, groups, state, keep)

    def restore(self, folder: Path, processes: Processes) -> None:
        """Resume from the newest whole checkpoint, if there is one; the first process takes the loss window.

        Raises:
            UserError: It is of another training, or all are damaged.
        """
        checkpoint = latest_checkpoint(folder, processes)
        if checkpoint is None:
            return
        with checkpoint.fitting():
            self.denoiser.load_state_dict(checkpoint.tensors("model"), strict=True)
            self.ema.load_state_dict(checkpoint.tensors("ema"))
            unpack_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
            state = checkpoint.state()
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            if processes.is_first:
                self.loss_window.copy_(torch.tensor(state["loss_window"], dtype=torch.float64))
        self.step = checkpoint.step


def wrapper_options() -> dict[str, Any]:
    """Return the options of Accelerate under which several processes round their sums alike after a resume.

    Looking for unused parameters keeps the gradient buckets as they are from the first step on.
    """
    if launched_processes() == 1:
        return {}
    return {"kwargs_handlers": [DistributedDataParallelKwargs(find_unused_parameters=True)]}


@dataclass(frozen=True)
class GradientSettings:
    """How the gradient of a global batch is gathered.

    Args:
        batch_size: Global batch.
        num_processes: Processes that share it.
        micro_batch: Largest number of images per forward pass; None: the whole share at once.
        precision: fp32, bf16 or fp16.
        clip: Largest norm of the gradient; None: no clipping.
        min_snr_gamma: Weight of the loss by signal-to-noise ratio; None: none.
    """

    batch_size: int
    num_processes: int
    micro_batch: int | None
    precision: str
    clip: float | None
    min_snr_gamma: float | None = None


def take_step(
    state: LdmState, model: nn.Module, batch: Batch, schedule: NoiseSchedule, settings: GradientSettings
) -> float:
    """Take one optimizer step with the learning rate that is set, and move the average.

    Args:
        state: Changed in place.
        model: `state.denoiser`, or its wrapper that averages gradients over processes.
        batch: This process's share, on the device, latents normalized.

    Returns:
        Norm of the gradient before clipping.

    Raises:
        UserError: The gradient is not finite; no weight was touched in this step.
    """
    state.optimizer.zero_grad(set_to_none=True)
    size = settings.micro_batch or len(batch.latents)
    starts = range(0, len(batch.latents), size)
    # processes average their gradients: with this factor the result is the mean over the global batch
    factor = settings.num_processes / settings.batch_size
    for start in starts:
        part = _part(batch, start, start + size)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.require_backward_grad_sync = start == starts[-1]
        with autocast(settings.precision, batch.latents.device):
            losses = diffusion_loss(model, schedule, part.latents, part.contexts, part.draws, settings.min_snr_gamma)
        state.scaler.scale(losses.sum() * factor).backward()
        state.loss_window[0] += losses.detach().double().sum()
        state.loss_window[1] += len(losses)

    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.denoiser.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    is_finite = bool(torch.isfinite(norm))  # waits for the device: a broken step must not reach the weights
    if not is_finite and (not state.scaler.is_enabled() or state.scaler.get_scale() < 1):
        raise UserError(
            f"training stopped before step {state.step + 1}: the gradient is not finite (loss "
            f"{float(losses.detach().mean()):.4g}); checkpoints are untouched. A lower optimizer.lr, "
            "optimizer.clip=1 or precision=fp32 may help"
        )
    if settings.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
    state.scaler.step(state.optimizer)  # fp16: left out where the scaled gradient overflowed
    state.scaler.update()
    state.step += 1
    if is_finite:
        state.ema.update(state.denoiser, state.step)
    return float(norm)


def _part(batch: Batch, start: int, end: int) -> Batch:
    draws = type(batch.draws)(*(None if x is None else x[start:end] for x in batch.draws))
    contexts = None if batch.contexts is None else batch.contexts[start:end]
    return Batch(batch.latents[start:end], contexts, draws)
