"""Monitors of LDM training: the loss on held-out images, preview grids, and the identity of previews.

The validation loss is computed under fixed timesteps and noise, so that its curve is smooth.

The identity of previews is scored by a judge recognizer. For each of K people there is one real photo; its embedding by
the conditioning recognizer is the context, its embedding p by the judge the reference. M previews are sampled from each
context; f are their embeddings by the judge, all of unit length:

    consistency  mean of cos(f, f') over all pairs of previews of one person, then over people
    to_photo     mean of cos(f, p of the same person)
    to_other     mean of cos(f, p of another person), over all other people
    nearest      share of previews to which the own photo is the nearest of all K; 1 / K by chance
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.console import log
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.loss import diffusion_loss, training_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.progress import progress
from facesyn_cli.training.data_order import validation_places
from facesyn_cli.training.precision import DTYPES, autocast
from facesyn_cli.training.task import Monitor
from facesyn_cli.training.tasks.ldm_inputs import JoinedFaces, evenly
from facesyn_cli.training.tasks.previews import Previews, PreviewSampler

FIGURES = ("consistency", "to_photo", "to_other", "nearest")
VALIDATION_STEP = -1  # no training step has this number, so its noise is not used in training
_JUDGED_AT_ONCE = 32  # previews, on each process

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (n, S, S, 3) uint8 -> (n, D) unit rows
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
    if cfg.preview_every:
        preview = _previews(cfg, task.joined, sampler, task.folder) if processes.is_first else lambda *_: {}
        monitors.append(Monitor(cfg.preview_every, preview))
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


@dataclass(frozen=True)
class Validation:
    """Held-out images of this process.

    Args:
        latents: (n, c, h, w) normalized latents of this process's share.
        contexts: (n, E) or None.
        places: Place of each among all held-out images; it decides timestep and noise.
        seed: Seed of the training.
        schedule: Noise schedule or flow.
        batch_size: Images per forward pass.
        device: Where the network lies.
    """

    latents: Tensor
    contexts: Tensor | None
    places: list[int]
    seed: int
    schedule: NoiseSchedule | FlowSchedule
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def loss_sum(self, denoiser: nn.Module, autocast: AbstractContextManager) -> Tensor:
        """Return [sum of the losses, number of images] of this process, float64, on the device."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        with progress("validate", len(self.places)) as bar:
            for batch in fixed_batches(len(self.places), self.batch_size):
                places = [self.places[i] for i in batch]
                latents = self.latents[batch.start : batch.stop].to(self.device)
                contexts = None if self.contexts is None else self.contexts[batch.start : batch.stop].to(self.device)
                draws = training_noise(
                    self.seed, VALIDATION_STEP, places, tuple(latents.shape[1:]), self.schedule, 0.0, 0.0, 1
                )
                with autocast:
                    losses = diffusion_loss(denoiser, self.schedule, latents, contexts, draws.to(self.device))
                total[0] += losses.double().sum()
                total[1] += len(places)
                bar.advance(len(places))
        return total


def open_judge(path: Path, embedder: str | None, has_contexts: bool) -> LoadedBackbone:
    """Load the judge; warn when it is the network behind the contexts, whose digest is `embedder` where it is known.

    Raises:
        UserError: It is no recognizer, or there are no people to judge by.
    """
    if not has_contexts:
        raise UserError("judge compares previews with the people of their contexts; an unconditional denoiser has none")
    judge = load_backbone(path)
    if judge.digest == embedder:
        log.warning(
            f"judge {path} is the network behind the contexts: the LDM is trained on its embeddings, so its scores "
            "are better than those of any other recognizer"
        )
    return judge


class IdentityJudging:
    """Samples previews of a few people and scores them; the processes share the work.

    Args:
        sampler: Samples the previews.
        embed: The judge recognizer.
        photos_u8: (K, S, S, 3) uint8, the photo each context comes from.
        contexts: (K, E).
        keys: Keys of the photos; with the seed they decide the noise.
        num_images: M, previews of each person.
        steps: Steps of DDIM, or of Euler for a flow.
        batch_size: Previews of one batch.
        processes: Those that share the work.

    Raises:
        UserError: The judge has no embedding for a photo.
    """

    def __init__(
        self, sampler: PreviewSampler, embed: Embed, photos_u8: NDArray[np.uint8], contexts: Tensor, keys: list[str],
        num_images: int, steps: int, batch_size: int, processes: Processes,
    ) -> None:
        self._sampler, self._embed, self._contexts, self._steps = sampler, embed, contexts, steps
        self._processes, self._num_images = processes, num_images
        self._photos = embed(photos_u8)                                                       # (K, D)
        self._places = [(row, sample) for row in range(len(keys)) for sample in range(num_images)]
        self._keys = keys
        batches = fixed_batches(len(self._places), batch_size)
        self._batches = share(batches, processes.rank, processes.world_size)

    def figures(self, denoiser: nn.Module) -> dict[str, float]:
        """Return the figures of previews by `denoiser`, which is in eval mode. A collective.

        Returns:
            The figures; empty, with a warning, where the judge could not embed a preview.
        """
        vectors = torch.zeros(len(self._places), self._photos.shape[1])
        with progress("score previews", sum(map(len, self._batches))) as bar:
            for batch in self._batches:
                vectors[batch.start : batch.stop] = self._judged(denoiser, batch)
                bar.advance(len(batch))
        vectors = self._processes.sum(vectors.to(self._processes.device)).cpu().numpy()
        if not np.isfinite(vectors).all():
            log.warning("the judge has no embedding for some previews, so their identity is not scored at this step")
            return {}
        return identity_figures(vectors.reshape(-1, self._num_images, vectors.shape[1]), self._photos)

    def _judged(self, denoiser: nn.Module, batch: range) -> Tensor:
        places = [self._places[i] for i in batch]
        noise = self._sampler.noise([(self._keys[row], sample) for row, sample in places])
        pictures = self._sampler.draw(denoiser, self._contexts[[row for row, _ in places]], noise, self._steps)
        try:
            return torch.from_numpy(self._embed(pictures.numpy()))
        except UserError:  # a preview without an embedding must not end a training
            return torch.full((len(batch), self._photos.shape[1]), torch.nan)


def identity_figures(images: NDArray, photos: NDArray) -> dict[str, float]:
    """Return the figures of the module docstring, without those that need more people or pictures than there are.

    Args:
        images: (K, M, D) unit embeddings of pictures.
        photos: (K, D) unit embeddings of the photos.
    """
    images, photos = np.asarray(images, dtype=np.float64), np.asarray(photos, dtype=np.float64)
    num_people, num_images = images.shape[:2]
    cosines = images @ photos.T                                                               # (K, M, K)
    is_own = np.broadcast_to(np.eye(num_people, dtype=bool)[:, None], cosines.shape)
    figures = {"to_photo": float(cosines[is_own].mean())}
    if num_images > 1:
        among = images @ images.swapaxes(1, 2)                                                # (K, M, M)
        is_pair = np.triu(np.ones(among.shape[1:], dtype=bool), 1)
        figures["consistency"] = float(among[:, is_pair].mean())
    if num_people > 1:
        figures["to_other"] = float(cosines[~is_own].mean())
        figures["nearest"] = float((cosines.argmax(axis=2) == np.arange(num_people)[:, None]).mean())
    return figures


def judged_rows(entries: Sequence[ImageEntry], held_out: Sequence[int], train: Sequence[int], count: int) -> list[int]:
    """Return at most `count` rows of photos of different people, those of `held_out` rows first."""
    unseen = _one_each(entries, held_out, set())
    people = {entries[row].identity for row in unseen}
    rows = evenly(unseen, count)
    return rows + evenly(_one_each(entries, train, people), count - len(rows))


def _one_each(entries: Sequence[ImageEntry], rows: Sequence[int], without: set[str]) -> list[int]:
    """Return the first row of every person who is not in `without`."""
    first: dict[str, int] = {}
    for row in rows:
        if entries[row].identity not in without:
            first.setdefault(entries[row].identity, row)
    return list(first.values())
