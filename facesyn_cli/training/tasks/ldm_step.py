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
from facesyn_cli.training.tasks.perceptual_loss import PerceptualLoss


def accumulate_gradients(
    denoiser: nn.Module, schedule: NoiseSchedule | FlowSchedule, batch: Batch, batch_size: int, passes: int,
    precision: str, scaler: torch.amp.GradScaler, min_snr_gamma: float | None = None,
    last_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
    identity: IdentityLoss | None = None, identity_weight: float = 0.0,
    perceptual: PerceptualLoss | None = None, early_weight: float = 0.0,
) -> dict[str, Tensor]:
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
        perceptual: The perceptual loss, which is added with its weight; None: none.
        early_weight: Weight of the squared error of the denoiser's early prediction, which is added; 0: it has none.

    Returns:
        This process's parts of means over the global batch, without weights, as scalars: `loss`, the squared error, and
        `early`, `identity`, `features` and `perceptual`, where they are computed.
    """
    count = len(batch.latents)
    size = math.ceil(count / passes)
    totals: dict[str, Tensor] = {}
    for start in range(0, count, size):
        part, is_last = slice(start, start + size), start + size >= count
        latents, contexts = batch.latents[part], None if batch.contexts is None else batch.contexts[part]
        draws = type(batch.draws)(*(None if x is None else x[part] for x in batch.draws))
        with autocast(precision, latents.device):
            options = {"with_early": True} if early_weight else {}
            x, output = predict(denoiser, schedule, latents, contexts, draws, **options)
        early = None
        if early_weight:
            output, early = output
        figures = {"loss": squared_error(output, schedule, latents, draws, min_snr_gamma)}
        total = figures["loss"]
        if early is not None:
            figures["early"] = squared_error(early, schedule, latents, draws, min_snr_gamma)
            total = total + early_weight * figures["early"]
        share, clean = schedule.signal_share(draws.t), schedule.clean_latents(x, output, draws.t)
        features = identity.settings.feature_weight if identity is not None else 0.0
        if identity is not None and contexts is not None and (identity_weight or features):
            if features:
                with torch.no_grad(), autocast(precision, latents.device):
                    real = identity.read(latents)
            with autocast(precision, latents.device):
                seen = identity.read(clean)
            kept = share if draws.drop_context is None else share * ~draws.drop_context
            figures["identity"] = kept * identity.distances(seen, contexts)
            total = total + identity_weight * figures["identity"]
            if features:
                figures["features"] = share * identity.feature_distances(seen, real)
                total = total + features * figures["features"]
        if perceptual is not None:
            with torch.no_grad(), autocast(precision, latents.device):
                real_maps = perceptual.maps(latents)
            with autocast(precision, latents.device):  # a new one: weights cast without a gradient are kept in it
                maps = perceptual.maps(clean)
            figures["perceptual"] = share * perceptual.distances(maps, real_maps)
            total = total + perceptual.settings.weight * figures["perceptual"]
        with last_pass() if is_last else nullcontext():
            scaler.scale(total.sum() * (1 / batch_size)).backward()
        for name, values in figures.items():
            totals[name] = totals.get(name, 0) + values.detach().double().sum() / batch_size
    return totals
