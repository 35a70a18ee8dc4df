"""What is seen of an LDM training while it runs: loss, held-out loss, previews, identity of the previews.

None of it changes the training: nothing here draws from its randomness or touches its weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn

from facesyn_cli.console import log
from facesyn_cli.distributed import Processes
from facesyn_cli.training.ldm_inputs import LdmInputs, evenly
from facesyn_cli.training.ldm_judging import FIGURES, Embed, IdentityJudging, judged_rows
from facesyn_cli.training.ldm_latents import CachedLatents, ChannelScale, EncodedLatents
from facesyn_cli.training.ldm_state import LdmState
from facesyn_cli.training.ldm_validation import Validation, validation_places
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.precision import DTYPES, autocast
from facesyn_cli.training.previews import Previews, PreviewSampler
from facesyn_cli.training.tracking import TrackingSettings

METRICS = "metrics.jsonl"
_JUDGED_AT_ONCE = 32  # pictures, on each process


class MonitorSettings(Protocol):
    """The settings of `train-ldm` that say what is looked at, and when."""

    seed: int
    num_timesteps: int
    batch_size: int
    micro_batch: int | None
    precision: str
    log_every: int
    validate_every: int
    preview_every: int
    preview_identities: int
    preview_samples: int
    preview_steps: int
    judge_every: int
    judge_identities: int
    judge_images: int
    judge_steps: int
    tracking: TrackingSettings


class LdmMonitor:
    """Reports on a training; a context manager. All processes of a training have one.

    Args:
        settings: What is looked at, and when.
        inputs: What the training started from; its networks are on the device.
        processes: Who takes part.
        latents: Where latents come from.
        scale: How they are normalized.
        step: Last finished step.
        embed: The judge; None: identity is not judged.
    """

    def __init__(
        self, settings: MonitorSettings, inputs: LdmInputs, processes: Processes,
        latents: CachedLatents | EncodedLatents, scale: ChannelScale, step: int, embed: Embed | None,
    ) -> None:
        self._settings, self._processes, self._folder = settings, processes, inputs.folder
        sampler = _sampler(settings, inputs, scale, processes.device)
        self._validation = _validation(settings, inputs, processes, latents, scale)
        self._previews = _previews(settings, inputs, sampler) if processes.is_first else None
        self._judging = _judging(settings, inputs, sampler, embed, processes) if embed is not None else None
        path = inputs.folder / METRICS
        self._metrics = MetricsLog(path, step, settings.tracking) if processes.is_first else None
        self.figures: dict[str, float] = _last_figures(path) if processes.is_first else {}
        self._reported, self._started = step, time.monotonic()

    def look(self, state: LdmState, lr: float, norm: float, is_last: bool) -> None:
        """Report what is due after a step, to `figures` and `metrics.jsonl`; all processes call it together.

        Args:
            state: After the step; only its window of losses is changed.
            lr: Learning rate of the step.
            norm: Norm of its gradient.
            is_last: It was the last one: everything is due.
        """
        settings, step, network = self._settings, state.step, state.ema.module
        if step % settings.log_every == 0 or is_last:
            self._report_loss(state, lr, norm)
        started = time.monotonic()
        if self._validation is not None and _is_due(step, settings.validate_every, is_last):
            sums = self._validation.loss_sum(network, autocast(settings.precision, self._processes.device))
            total, count = self._processes.sum(sums).tolist()
            self._report(step, val_loss=total / count)
        if self._previews is not None and _is_due(step, settings.preview_every, is_last):
            self._previews.write(network, self._folder / "previews" / f"step-{step:08d}.png")
        if self._judging is not None and _is_due(step, settings.judge_every, is_last):
            self._report(step, **self._judging.figures(network))
        self._started += time.monotonic() - started  # images/s is that of the training

    def __enter__(self) -> LdmMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def _report_loss(self, state: LdmState, lr: float, norm: float) -> None:
        total, count = self._processes.sum(state.loss_window).tolist()
        state.loss_window.zero_()
        self.figures["loss"] = total / count
        seconds, self._started = time.monotonic() - self._started, time.monotonic()
        rate = (state.step - self._reported) * self._settings.batch_size / seconds
        self._reported = state.step
        if self._metrics is not None:
            figures = {"lr": lr, "grad_norm": norm, "images_per_s": round(rate, 2)}
            self._metrics.add(state.step, loss=self.figures["loss"], **figures)

    def _report(self, step: int, **figures: float) -> None:
        self.figures.update(figures)
        if self._metrics is not None and figures:
            self._metrics.add(step, **figures)


def _is_due(step: int, every: int, is_last: bool) -> bool:
    return bool(every) and (step % every == 0 or is_last)


def _last_figures(path: Path) -> dict[str, float]:
    """Return what an earlier run reported last, so that a header does not depend on when it was killed."""
    names = ("loss", "val_loss", *FIGURES)
    return {name: line[name] for line in read_lines(path) for name in names if name in line}


def _sampler(
    settings: MonitorSettings, inputs: LdmInputs, scale: ChannelScale, device: torch.device
) -> PreviewSampler:
    return PreviewSampler(
        inputs.schedule, inputs.latent_shape, settings.seed, _decoder(inputs.autoencoder, scale), device,
        DTYPES[settings.precision],
    )


def _decoder(autoencoder: nn.Module, scale: ChannelScale) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return torch.cat([autoencoder.decode(scale.restore(part)).float().cpu() for part in latents.split(8)])

    return decode


def _validation(
    settings: MonitorSettings, inputs: LdmInputs, processes: Processes, latents: CachedLatents | EncodedLatents,
    scale: ChannelScale,
) -> Validation | None:
    held_out, contexts = inputs.joined.held_out_rows, inputs.joined.contexts
    if not held_out or not settings.validate_every:
        return None
    own_share = math.ceil(len(held_out) / processes.world_size)
    batch_size = max(1, min(settings.micro_batch or settings.batch_size, own_share))
    places = validation_places(len(held_out), batch_size, processes.rank, processes.world_size)
    rows = [held_out[place] for place in places]
    own = scale.normalize(latents.read(rows)) if rows else torch.zeros(0, *inputs.latent_shape)
    return Validation(
        own, None if contexts is None else contexts[rows], places, settings.seed, inputs.schedule, batch_size,
        processes.device,
    )


def _previews(settings: MonitorSettings, inputs: LdmInputs, sampler: PreviewSampler) -> Previews | None:
    if not settings.preview_every:
        return None
    rows = evenly(inputs.joined.train_rows, settings.preview_identities)
    faces, contexts = inputs.joined.faces, inputs.joined.contexts
    return Previews(
        sampler, torch.stack([torch.from_numpy(faces[row]) for row in rows]),
        None if contexts is None else contexts[rows], [faces.entries[row].key for row in rows],
        settings.preview_samples, min(settings.preview_steps, settings.num_timesteps),
    )


def _judging(
    settings: MonitorSettings, inputs: LdmInputs, sampler: PreviewSampler, embed: Embed, processes: Processes
) -> IdentityJudging:
    joined = inputs.joined
    faces, held_out = joined.faces, set(joined.held_out_rows)
    rows = judged_rows(faces.entries, joined.held_out_rows, joined.train_rows, settings.judge_identities)
    log.info(
        f"identity of previews: {settings.judge_images} images each of {len(rows)} people, {len(held_out & set(rows))} "
        "by photos held out of the training"
    )
    batch_size = min(_JUDGED_AT_ONCE, settings.micro_batch or _JUDGED_AT_ONCE)
    photos_u8 = torch.stack([torch.from_numpy(faces[row]) for row in rows]).numpy()
    return IdentityJudging(
        sampler, embed, photos_u8, joined.contexts[rows], [faces.entries[row].key for row in rows],
        settings.judge_images, min(settings.judge_steps, settings.num_timesteps), batch_size, processes,
    )
