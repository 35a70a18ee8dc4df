"""Latents sampled from an LDM, to train a decoder on beside the latents of photos.

Samples of an LDM are distributed differently from the latents of an encoder, and there is no photo to compare their
decoded faces with. Their loss is that of a discriminator and of a recognizer that compares faces with contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm, latents_of, load_denoiser
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.progress import progress
from facesyn_cli.sampling.pipeline import ChannelScale, LdmPipeline
from facesyn_cli.training.data_order import batch_rows
from facesyn_cli.training.tasks.ldm_inputs import evenly, is_conditional

_FILE = "drawn.safetensors"
_BATCH = 256


class DrawnSettings(Settings):
    """How latents are sampled; `sample` should use the same settings."""

    count: int = Field(8192, ge=1, description="latents, sampled once and used in turn; at most one for each embedding")
    scheduler: str = Field("unipc", description="name of a scheduler")
    steps: int = Field(20, ge=1, description="steps of the scheduler")
    guidance: float = Field(1.5, ge=0, description="scale of classifier-free guidance; 1: none")
    identity_weight: float = Field(
        0.3, ge=0, description="with features: weight of 1 - cosine of a face to its context"
    )


@dataclass(frozen=True)
class DrawingInputs:
    """The LDM and contexts that latents are sampled with.

    Args:
        ldm: The LDM, on the CPU.
        embeddings: Embeddings of photos, its contexts.
    """

    ldm: LoadedLdm
    embeddings: EmbeddingSet


@dataclass(frozen=True)
class DrawnLatents:
    """Latents in the units of the decoder, and their contexts.

    Args:
        latents: (N, c, h, w) float32.
        contexts: (N, E) float32 unit embeddings.
    """

    latents: Tensor
    contexts: Tensor

    def read(self, seed: int, step: int, batch_size: int, places: range) -> tuple[Tensor, Tensor]:
        """Return latents and contexts of some places of the global batch of one step; all are used in turn."""
        rows = batch_rows(seed, step, batch_size, len(self.latents))[places.start : places.stop]
        return self.latents[rows], self.contexts[rows]


def open_drawing(
    ldm: Path, embeddings: Path, initial: Path, drawn: DrawnSettings, features: str | None, parents: dict[str, Parent]
) -> DrawingInputs:
    """Open the LDM and the contexts that latents are sampled with.

    Args:
        ldm: Folder of an LDM.
        embeddings: Folder of embeddings.
        initial: Folder of the autoencoder whose decoder is fine-tuned.
        drawn: How latents will be sampled.
        features: Digest of the recognizer that compares faces with contexts; None: none does.
        parents: Gets an entry for both.

    Raises:
        UserError: They do not fit each other, or the scheduler does not fit the LDM.
    """
    loaded, found = load_denoiser(ldm), EmbeddingSet.open(embeddings)
    settings = loaded.config
    if not is_conditional(loaded.module):
        raise UserError(f"{ldm} is an unconditional LDM: its faces have no identity")
    if found.vectors.shape[1] != settings.embedding_size:
        raise UserError(f"{embeddings} holds embeddings of {found.vectors.shape[1]} numbers, but {ldm} takes "
                        f"{settings.embedding_size}")
    embedders = {str(embeddings): found.embedder, str(ldm): settings.embedder}
    require_same_embedder(embedders, "embed the photos with the LDM's recognizer")
    if features is not None:
        advice = "give the recognizer that embedded the photos, or drawn.identity_weight=0"
        require_same_embedder({str(embeddings): found.embedder, "--features": features}, advice)
    trained_on = (settings.autoencoder or {}).get("digest")
    fits = {parents["initial"].digest, *latents_of(initial)}
    if trained_on is not None and trained_on not in fits:
        raise UserError(f"{ldm} was trained on the latents of another autoencoder than {initial}")
    _pipeline(loaded, drawn)
    parents["ldm"], parents["embeddings"] = Parent(str(ldm), loaded.digest), found.parent()
    return DrawingInputs(loaded, found)


def drawn_latents(
    inputs: DrawingInputs, settings: DrawnSettings, seed: int, folder: Path, processes: Processes
) -> DrawnLatents:
    """Sample the latents, divided over processes, or read those of an interrupted training. A collective.

    Args:
        inputs: LDM and contexts.
        settings: How they are sampled.
        seed: Seed of the noise.
        folder: Folder of their file.
        processes: Those of the training; the LDM moves to their devices.

    Raises:
        UserError: A latent is not finite.
    """
    keys = inputs.embeddings.keys
    rows = evenly(range(len(keys)), settings.count)
    contexts = torch.from_numpy(inputs.embeddings.vectors[rows])
    path = folder / _FILE
    if processes.from_first(path.is_file):
        return DrawnLatents(read_tensors(path)["latents"], contexts)
    latents = _draw(inputs.ldm, settings, seed, [keys[row] for row in rows], contexts, processes)
    if not latents.isfinite().all():
        processes.raise_in_all("the LDM gave numbers that are not finite; its weights are damaged, or it was not "
                               "trained to its end")
    processes.from_first(lambda: write_tensors(path, {"latents": latents}))
    return DrawnLatents(latents, contexts)


def _pipeline(ldm: LoadedLdm, settings: DrawnSettings, device: torch.device | None = None) -> LdmPipeline:
    """Return what draws the latents; raises UserError where the scheduler does not fit the LDM."""
    scheduler = {"name": settings.scheduler, "steps": settings.steps}
    guidance = {"name": "none"} if settings.guidance == 1 else {"name": "cfg", "scale": settings.guidance}
    return LdmPipeline.of(
        ldm, None, registry.configure("scheduler", scheduler), registry.configure("guidance", guidance),
        device or torch.device("cpu"),
    )


def _draw(
    ldm: LoadedLdm, settings: DrawnSettings, seed: int, keys: list[str], contexts: Tensor, processes: Processes
) -> Tensor:
    """Return the latents (N, c, h, w) on the CPU, in the units of the autoencoder; each process samples a share."""
    pipeline = _pipeline(ldm, settings, processes.device)
    scale = ChannelScale.of(ldm.config.latent_mean, ldm.config.latent_std, torch.device("cpu"))
    latents = torch.zeros(len(keys), *pipeline.latent_shape)
    batches = share(fixed_batches(len(keys), _BATCH), processes.rank, processes.world_size)
    with progress("sample latents", sum(map(len, batches)), "latents", 0) as bar:
        for batch in batches:
            part = slice(batch.start, batch.stop)
            noise, step_noise = pipeline.keyed_noise(seed, [(key, 0) for key in keys[part]])
            latents[part] = scale.restore(pipeline.latents(contexts[part], noise, step_noise=step_noise).cpu())
            bar.advance(len(batch))
    return processes.sum(latents.to(processes.device)).cpu()  # of one latent and zeros
