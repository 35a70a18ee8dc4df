"""The identity loss of `train-ldm`: a recognizer of latents compares what is predicted with the context.

For latents x_0 predicted at noise level t under a context c, and the embedding f of a frozen recognizer (`latent-ir`):

    loss_i = weight (1 - cos(f(x_0), c)) s,    s = signal / (signal + noise) at t, which is 1 - t in a flow

added to the squared error of the image; images under the empty context have none. Nothing is decoded. s is small where
x_t hardly tells who it is and predictions are means of many faces.

`feature_weight` adds the distance of predicted and true latents in the recognizer's feature maps (`unit_distance` in
`models/feature_maps.py`), weighed by s too: LPIPS with a network that reads latents, as LatentLPIPS of Kang et al.
2024, "Distilling Diffusion Models into Conditional GANs", arXiv:2405.05967, section 3.2.

A context needs no photo: `images` of each step are drawn from noise under contexts of their own by the network in
training, up to a random step of a sampler, without a gradient; the prediction there has the identity loss alone, as in
ReFL (Xu et al. 2023, "ImageReward", arXiv:2304.05977, section 4, Algorithm 1).
"""

# Differs from Xu et al. 2023: the step is drawn among all but the first, each weighed by s; there among the last ones.
# Differs from Kang et al. 2024: the network is a recognizer of faces, with one weight for all channels, and sees no
# augmented latents.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.header import Parent, require_header
from facesyn_cli.artifacts.weights import CONFIG, read_config
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.diffusion.denoising_loop import denoised_to
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.diffusion.scheduler_choice import build_scheduler, default_scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import has_feature_maps, stage_ends, tapped, unit_distance, unit_maps
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.sampling.pipeline import ChannelScale
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.precision import autocast

_EPS = 1e-6  # least product of lengths of a cosine


class IdentitySettings(Settings):
    """Weight of the identity loss, and images drawn for it alone."""

    weight: float = Field(1.0, ge=0, description="factor of 1 - cosine, beside the squared error")
    fall: float = Field(
        0.0, ge=0, le=1, description="share of the training at whose end the weight falls linearly to zero; 0: it stays"
    )
    images: int = Field(
        0, ge=0, description="images of each step that are drawn from identity_contexts for this loss alone"
    )
    steps: int = Field(8, ge=2, description="steps of the sampler that draws them, by DDIM or, in a flow, Euler")
    feature_weight: float = Field(
        0.0, ge=0, description="weight of the distance of predicted and true latents in the recognizer's feature maps"
    )

    def weight_at(self, position: float) -> float:
        """Return the weight when a share of the training in [0, 1] is done."""
        return self.weight * min(1.0, (1 - position) / self.fall) if self.fall else self.weight


@dataclass(frozen=True)
class DrawnContexts:
    """Contexts without photos, and everything random of the images that are drawn from them.

    Args:
        vectors: (N, E) unit contexts.
        seed: Seed of the training.
        count: Images of each step, over all processes.
        steps: Steps of the sampler.
        latent_shape: (c, h, w).
    """

    vectors: Tensor
    seed: int
    count: int
    steps: int
    latent_shape: tuple[int, int, int]

    def draw(self, step: int, rank: int, world_size: int) -> tuple[Tensor, Tensor, int]:
        """Return contexts (n, E) and noise (n, c, h, w) of this process, and how many steps of the sampler to take."""
        taken = 1 + int(keyed_random("identity-steps", self.seed, step).randint(self.steps - 1))
        rows, noise = [], []
        for place in local_share(self.count, rank, world_size):
            random = keyed_random("identity", self.seed, step, place)
            rows.append(int(random.randint(len(self.vectors))))
            noise.append(random.standard_normal(self.latent_shape).astype(np.float32))
        shape = (0, *self.latent_shape)
        return self.vectors[rows], torch.from_numpy(np.stack(noise)) if noise else torch.zeros(shape), taken


@dataclass(frozen=True)
class Reading:
    """What the recognizer makes of a batch of latents.

    Args:
        embeddings: (B, E) float32, not of unit length.
        maps: Maps after the stem and the stages, (B, C_k, H_k, W_k).
    """

    embeddings: Tensor
    maps: list[Tensor]


class IdentityLoss:
    """A frozen recognizer of latents.

    Args:
        path: Weights that `train-identity` wrote.
        settings: Weight of the loss, and images drawn for it.
        contexts: Contexts for those images; None: there are none.
        autoencoder: Section of the LDM's autoencoder.
        embedder: Digest of the recognizer whose embeddings are the contexts; None when unknown.
        latent_shape: (c, h, w) of the LDM.
        context_size: Length of a context.
        seed: Seed of the training.

    Raises:
        UserError: The recognizer reads other latents, or its embeddings are of another space than the contexts.
    """

    def __init__(
        self, path: Path, settings: IdentitySettings, contexts: Path | None, autoencoder: dict[str, Any],
        embedder: str | None, latent_shape: tuple[int, int, int], context_size: int, seed: int,
    ) -> None:
        self.settings = settings
        loaded = load_backbone(path, reads="latents")
        self.module: nn.Module = loaded.module.requires_grad_(False)
        if settings.feature_weight and not has_feature_maps(self.module):
            raise UserError(f"{path} ({loaded.name}) does not give its feature maps, latent-ir does: leave "
                            "identity.feature_weight out")
        self._stages = stage_ends(self.module) if settings.feature_weight else []
        self.parents = {"identity_recognizer": Parent(str(path), loaded.digest)}
        self._check(path, autoencoder, embedder, latent_shape, context_size)
        self.drawn: DrawnContexts | None = None
        if contexts is not None:
            found = ContextSet.open(contexts)
            if found.vectors.shape[1] != context_size:
                raise UserError(f"contexts in {contexts} have {found.vectors.shape[1]} numbers; the embeddings have "
                                f"{context_size}")
            _check_space(f"contexts in {contexts} are", found.embedder, embedder)
            self.parents["identity_contexts"] = Parent(str(contexts), found.digest)
            self.drawn = DrawnContexts(
                torch.from_numpy(np.array(found.vectors)), seed, settings.images, settings.steps, latent_shape
            )

    def prepare(self, scale: ChannelScale, device: torch.device) -> None:
        """Put the recognizer on the device; `scale` restores the latents that it reads."""
        self.module.to(device, memory_format=torch.channels_last).eval()
        self.scale, self.device = scale, device

    def read(self, latents: Tensor) -> Reading:
        """Return what the recognizer makes of normalized latents (B, c, h, w), in the caller's autocast."""
        restored = self.scale.restore(latents.float()).contiguous(memory_format=torch.channels_last)
        *maps, embeddings = tapped(self.module, [*self._stages, self.module], restored)
        return Reading(embeddings.float(), maps)

    def feature_distances(self, predicted: Reading, real: Reading) -> Tensor:
        """Return the distance of feature maps, (B,) float32, at most 4 for each map."""
        return unit_distance([unit_maps(x) for x in predicted.maps], [unit_maps(x) for x in real.maps])

    def distances(self, seen: Reading, contexts: Tensor) -> Tensor:
        """Return 1 - cosine of embeddings and unit contexts (B, E), (B,) float32 in [0, 2].

        Numbers behind the E of a face embedding, such as a yaw, are not compared.
        """
        contexts = contexts[:, : seen.embeddings.shape[1]].float()
        return 1 - F.cosine_similarity(seen.embeddings, contexts, dim=1, eps=_EPS)

    def of_drawn(
        self, denoiser: nn.Module, schedule: NoiseSchedule | FlowSchedule, step: int, rank: int, world_size: int,
        precision: str = "fp32",
    ) -> Tensor | None:
        """Return s (1 - cosine) of the images that this process draws in a step, (n,); None: it draws none.

        Args:
            denoiser: The network in training, on the device.
            schedule: Noise schedule or flow.
            step: Number of the step, 0-based.
            rank: Of this process.
            world_size: Number of processes.
            precision: fp32, bf16 or fp16.
        """
        if self.drawn is None:
            return None
        contexts, noise, taken = self.drawn.draw(step, rank, world_size)
        if not len(noise):
            return None
        contexts, noise = contexts.to(self.device), noise.to(self.device)
        scheduler = build_scheduler(
            default_scheduler(schedule.prediction, "ddim", steps=self.drawn.steps), schedule.prediction
        )(schedule)
        denoiser.eval()
        with autocast(precision, self.device):
            x, t = denoised_to(denoiser, scheduler, contexts, noise, taken)
        denoiser.train()
        with autocast(precision, self.device):  # a new one: weights cast without a gradient must not be used again
            output = denoiser(x, t, contexts).float()
            seen = self.read(schedule.clean_latents(x, output, t))
        return schedule.signal_share(t) * self.distances(seen, contexts)

    def _check(
        self, path: Path, autoencoder: dict[str, Any], embedder: str | None, latent_shape: tuple[int, int, int],
        context_size: int,
    ) -> None:
        config = read_config(path) if (path / CONFIG).is_file() else {}
        read = config.get("autoencoder")
        if isinstance(read, dict) and (read.get("name"), read.get("digest")) != (
            autoencoder["name"], autoencoder["digest"]
        ):
            raise UserError(f"{path} reads latents of {read.get('path') or read.get('name')}, the LDM is trained on "
                            f"those of {autoencoder['path'] or autoencoder['name']}")
        shape = (self.module.in_channels, self.module.input_size, self.module.input_size)
        if shape != latent_shape:
            raise UserError(f"{path} reads latents {shape}, those of the LDM are {latent_shape}")
        if self.module.embedding_size != context_size:
            raise UserError(f"{path} gives embeddings of {self.module.embedding_size} numbers, contexts have "
                            f"{context_size}")
        if embedder is None or embedder != config.get("teacher"):
            _check_space(f"{path} was taught embeddings", config.get("distilled_from"), embedder)


def find_recognizer(cfg: Any, work: Work) -> Path | None:
    """Return the recognizer of latents: the given one, else that of the run; None: none is needed, or there is none.

    Args:
        cfg: Settings, a `TrainLdmConfig`.
        work: Work folder.

    Raises:
        UserError: The identity loss is described, but there is no recognizer.
    """
    if not (cfg.identity.weight or cfg.identity.feature_weight):
        return None
    own = work.folder("identity")
    found = cfg.identity_recognizer or (own if own.exists() else None)
    if found is None and (cfg.identity != IdentitySettings() or cfg.identity_contexts):
        raise UserError("identity and identity_contexts describe the identity loss, which needs a recognizer of "
                        "latents: run train-identity first, or give identity_recognizer")
    if found is not None and cfg.identity_recognizer is None:
        require_header(found, "Weights")
        log.info(f"train-ldm: identity loss by the recognizer of latents in {found}")
    return found


def _check_space(what: str, found: str | None, expected: str | None) -> None:
    if None not in (found, expected) and found != expected:
        raise UserError(f"{what} of recognizer {str(found)[:19]}, the LDM's embeddings are of {str(expected)[:19]}")
