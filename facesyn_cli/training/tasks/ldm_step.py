"""Loss and gradients of a step of LDM training."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.loss import predict, squared_error
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.training.precision import autocast
from facesyn_cli.training.tasks.identity_loss import IdentityLoss
from facesyn_cli.training.tasks.ldm_batches import Batch


def accumulate_gradients(
    denoiser: nn.Module, schedule: NoiseSchedule | FlowSchedule, batch: Batch, batch_size: int, passes: int,
    precision: str, scaler: torch.amp.GradScaler, min_snr_gamma: float | None = None,
    last_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
    identity: IdentityLoss | None = None, identity_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of a process's part of the global batch's mean loss.

    Args:
        denoiser: The network.
        schedule: Noise schedule or flow.
        batch: This process's share, on the device, latents normalized.
        batch_size: Images of the global batch.
        passes: Forward and backward passes over the share.
        precision: fp32, bf16 or fp16.
        scaler: Scales the losses.
        min_snr_gamma: Weight of the loss by signal-to-noise ratio; None: none.
        last_pass: Context of the last backward pass.
        identity: The identity loss, which is added; None: none.
        identity_weight: Its weight.

    Returns:
        This process's part of the mean squared error, and of the identity loss without its weight; scalars.
    """
    count = len(batch.latents)
    size = math.ceil(count / passes)
    totals = torch.zeros(2, dtype=torch.float64, device=batch.latents.device)
    for start in range(0, count, size):
        part = slice(start, start + size)
        draws = type(batch.draws)(*(None if x is None else x[part] for x in batch.draws))
        contexts = None if batch.contexts is None else batch.contexts[part]
        with autocast(precision, batch.latents.device):
            x, output = predict(denoiser, schedule, batch.latents[part], contexts, draws)
        losses = squared_error(output, schedule, batch.latents[part], draws, min_snr_gamma)
        distances = torch.zeros_like(losses)
        if identity is not None and identity_weight and contexts is not None:
            with autocast(precision, batch.latents.device):
                distances = identity.distances(schedule.clean_latents(x, output, draws.t), contexts)
            distances = distances * schedule.signal_share(draws.t)
            if draws.drop_context is not None:
                distances = distances * ~draws.drop_context
        with last_pass() if start + size >= count else nullcontext():
            scaler.scale((losses + identity_weight * distances).sum() * (1 / batch_size)).backward()
        totals += torch.stack([losses.detach().double().sum(), distances.detach().double().sum()])
    loss, distance = (totals / batch_size).unbind()
    return loss, distance
