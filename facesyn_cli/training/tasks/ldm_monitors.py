"""Monitors of LDM training: the loss on held-out images, preview grids, and the identity of previews.

The validation loss is computed under fixed timesteps and noise, so that its curve is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.console import log
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.diffusion.loss import diffusion_loss, training_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.distributed import Processes
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import LoadedBackbone
from facesyn_cli.training.data_order import validation_places
from facesyn_cli.training.precision import DTYPES, autocast
from facesyn_cli.training.task import Monitor
from facesyn_cli.training.tasks.ldm_inputs import JoinedFaces, evenly
from facesyn_cli.training.tasks.ldm_judging import IdentityJudging, judged_rows
from facesyn_cli.training.tasks.previews import Previews, PreviewSampler

VALIDATION_STEP = -1  # no training step has this number, so its noise is not used in training
_JUDGED_AT_ONCE = 32  # previews, on each process

Run = Callable[[nn.Module, int], dict[str, float]]


def ldm_monitors(task: Any) -> list[Monitor]:
    """Return the monitors that are switched on; `task` is an `LdmTask` with its latents and networks."""
    cfg, processes, autoencoder, scale = task.cfg, task.processes, task.autoencoder, task.scale

    @torch.no_grad()
    def decode(normalized: Tensor) -> Tensor:
        return torch.cat([autoencoder.decode(scale.restore(part)).float().cpu() for part in normalized.split(8)])

    monitors = []
    if task.joined.held_out_rows and cfg.validate_every:
        monitors.append(Monitor(cfg.validate_every, _validation(task)))
    sampler = PreviewSampler(
        task.schedule, task.latent_shape, cfg.seed, decode, processes.device, DTYPES[cfg.precision]
    )
    if cfg.preview_every and processes.is_first:
        monitors.append(Monitor(cfg.preview_every, _previews(cfg, task.joined, sampler, task.folder)))
    if task.judge is not None:
        monitors.append(Monitor(cfg.judge_every, _judging(cfg, task.joined, task.judge, sampler, processes)))
    return monitors


def _validation(task: Any) -> Run:
    cfg, processes = task.cfg, task.processes
    held_out, contexts = task.joined.held_out_rows, task.joined.contexts
    own_share = math.ceil(len(held_out) / processes.world_size)
    batch_size = max(1, min(math.ceil(cfg.batch_size / cfg.accumulate), own_share))
    places = validation_places(len(held_out), batch_size, processes.rank, processes.world_size)
    rows = [held_out[place] for place in places]
    own = task.scale.normalize(task.latents.read(rows)) if rows else torch.zeros(0)
    validation = Validation(
        own, None if contexts is None else contexts[rows], places, cfg.seed, task.schedule, batch_size,
        processes.device,
    )

    def validate(network: nn.Module, step: int) -> dict[str, float]:
        sums = validation.loss_sum(network, autocast(cfg.precision, processes.device))
        total, count = processes.sum(sums).tolist()
        return {"val_loss": total / count}

    return validate


def _previews(cfg: Any, joined: JoinedFaces, sampler: PreviewSampler, folder: Path) -> Run:
    rows = evenly(joined.train_rows, cfg.preview_identities)
    previews = Previews(
        sampler, torch.stack([torch.from_numpy(joined.faces[row]) for row in rows]),
        None if joined.contexts is None else joined.contexts[rows], [joined.faces.entries[row].key for row in rows],
        cfg.preview_samples, min(cfg.preview_steps, cfg.num_timesteps),
    )

    def preview(network: nn.Module, step: int) -> dict[str, float]:
        previews.write(network, folder / "previews" / f"step-{step:08d}.png")
        return {}

    return preview


def _judging(
    cfg: Any, joined: JoinedFaces, judge: LoadedBackbone, sampler: PreviewSampler, processes: Processes
) -> Run:
    faces, held_out = joined.faces, set(joined.held_out_rows)
    rows = judged_rows(faces.entries, joined.held_out_rows, joined.train_rows, cfg.judge_identities)
    log.info(
        f"identity of previews: {cfg.judge_images} images each of {len(rows)} people, {len(held_out & set(rows))} "
        "by photos held out of the training"
    )
    at_once = math.ceil(cfg.batch_size / cfg.accumulate) if cfg.accumulate > 1 else _JUDGED_AT_ONCE
    judging = IdentityJudging(
        sampler, FaceEmbedder.of(judge, processes.device).embed,
        torch.stack([torch.from_numpy(faces[row]) for row in rows]).numpy(), joined.contexts[rows],
        [faces.entries[row].key for row in rows], cfg.judge_images, min(cfg.judge_steps, cfg.num_timesteps),
        min(_JUDGED_AT_ONCE, at_once), processes,
    )
    return lambda network, step: judging.figures(network)


class Validation:
    """Held-out images of this process.

    Args:
        latents: (n, c, h, w) normalized latents of this process's share.
        contexts: (n, E) or None.
        places: Place of each among all held-out images; it decides timestep and noise.
        seed: Seed of the training.
        schedule: Noise schedule.
        batch_size: Images per forward pass.
        device: Where the network lies.
    """

    def __init__(
        self, latents: Tensor, contexts: Tensor | None, places: list[int], seed: int, schedule: NoiseSchedule,
        batch_size: int, device: torch.device,
    ) -> None:
        self.latents, self.contexts, self.places, self.seed = latents, contexts, places, seed
        self.schedule, self.batch_size, self.device = schedule, batch_size, device

    @torch.no_grad()
    def loss_sum(self, denoiser: nn.Module, autocast: AbstractContextManager) -> Tensor:
        """Return [sum of the losses, number of images] of this process, float64, on the device."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in fixed_batches(len(self.places), self.batch_size):
            places = [self.places[i] for i in batch]
            latents = self.latents[batch.start : batch.stop].to(self.device)
            contexts = None if self.contexts is None else self.contexts[batch.start : batch.stop].to(self.device)
            draws = training_noise(
                self.seed, VALIDATION_STEP, places, tuple(latents.shape[1:]), self.schedule.num_timesteps, 0.0, 0.0, 1
            )
            with autocast:
                losses = diffusion_loss(denoiser, self.schedule, latents, contexts, draws.to(self.device))
            total[0] += losses.double().sum()
            total[1] += len(places)
        return total
