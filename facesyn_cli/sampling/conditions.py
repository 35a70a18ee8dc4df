"""The inputs of each image of a set: its context, its negative context, its starting noise, the noise of its steps.

All of them depend on (seed, identity, sample) and the input files alone, never on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.guidance_negative import NegativeContexts
from facesyn_cli.diffusion.guidance_scoremix import PartnerContexts, Partners
from facesyn_cli.diffusion.noise import image_noise, open_noise_file, step_noise
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.inputs import SampleInputs
from facesyn_cli.sampling.pose import PoseSettings


class Variation(Protocol):
    """A plugin of kind `context_variation`; its base class is in `contexts/variation.py`."""

    varies_contexts: bool

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return the context of one image, (E,) float32."""

    def noise(self, own: Tensor, row: int, sample: int) -> Tensor:
        """Return the starting noise of one image from its own independent noise."""


@dataclass(frozen=True)
class Conditions:
    """Contexts and noise by number of the image; number i is sample i % per_id of identity i // per_id.

    Args:
        identities: Names of the N identities; the noise of an image is drawn from its identity's name.
        vectors: (N, E) float32 contexts.
        per_id: Images of each identity.
        seed: Seed of all noise.
        latent_shape: (C, H, W).
        given_noise: (N, per_id, C, H, W) of any float type, or None: the noise is drawn from the seed.
        variation: Gives every image a context or noise of its own; None: those of its identity.
        negative_contexts: Chooses the negative context of each image, or its partner's; None: there are none.
        pose: How far heads are turned; None: that is left to the LDM.

    An image that a filter rejected is drawn again with an attempt number from 1: other noise, the same contexts.
    """

    identities: list[str]
    vectors: Tensor
    per_id: int
    seed: int
    latent_shape: tuple[int, int, int]
    given_noise: np.ndarray | None = None
    variation: Variation | None = None
    negative_contexts: NegativeContexts | PartnerContexts | None = None
    pose: PoseSettings | None = None

    def key(self, image: int) -> str:
        """Return `identity/sample` of an image."""
        row, sample = divmod(image, self.per_id)
        return f"{self.identities[row]}/{sample}"

    def contexts(self, images: Sequence[int]) -> Tensor:
        """Return the contexts of B images, (B, E) float32, without the yaw."""
        if self.variation is None:
            return self.vectors[[image // self.per_id for image in images]]
        varied = [self.variation.context(*divmod(image, self.per_id)) for image in images]
        return torch.from_numpy(np.stack(varied))

    def yaw(self, images: Sequence[int]) -> Tensor | None:
        """Return the yaw of B images, (B,) float32 in degrees, NaN where it is left to the LDM; None: in all."""
        if self.pose is None:
            return None
        places = [divmod(image, self.per_id) for image in images]
        return torch.tensor([self.pose.yaw(self.seed, self.identities[row], sample) for row, sample in places])

    def with_yaw(self, contexts: Tensor, images: Sequence[int]) -> Tensor:
        """Return contexts (B, E) as the denoiser takes them: (B, E + 1) where heads are turned."""
        yaw = self.yaw(images)
        return contexts if yaw is None else torch.cat([contexts, yaw[:, None].to(contexts.dtype)], dim=1)

    def negatives(self, images: Sequence[int]) -> Tensor | None:
        """Return the negative contexts of B images, (B, E) float32; None: there are none."""
        if self.negative_contexts is None:
            return None
        places = [divmod(image, self.per_id) for image in images]
        return torch.stack([
            self.negative_contexts.context(self.vectors[row], self.identities[row], sample) for row, sample in places
        ])

    def noise(self, images: Sequence[int], attempts: Sequence[int] | None = None) -> Tensor:
        """Return the starting noise of B images, (B, C, H, W) float32; `attempts` as in `BatchEngine.start`."""
        return torch.stack([
            self._noise(*divmod(image, self.per_id), attempt)
            for image, attempt in zip(images, attempts or [0] * len(images), strict=True)
        ])

    def step_noise(self, images: Sequence[int], step: int, attempts: Sequence[int] | None = None) -> Tensor:
        """Return the noise that a stochastic scheduler adds to B images after step `step`, (B, C, H, W) float32."""
        places = [divmod(image, self.per_id) for image in images]
        return torch.stack([
            step_noise(self.seed, self.identities[row], sample, step, self.latent_shape, attempt)
            for (row, sample), attempt in zip(places, attempts or [0] * len(images), strict=True)
        ])

    def _noise(self, row: int, sample: int, attempt: int) -> Tensor:
        if self.given_noise is not None and attempt == 0:
            own = torch.from_numpy(np.array(self.given_noise[row, sample], dtype=np.float32))
            if not own.isfinite().all():
                raise UserError(f"noise.file: the noise of image {self.identities[row]}/{sample} is not finite")
        else:
            own = image_noise(self.seed, self.identities[row], sample, self.latent_shape, attempt)
        # A variation that shares noise between identities applies to the first attempt alone.
        return own if self.variation is None or attempt else self.variation.noise(own, row, sample)


def open_conditions(
    inputs: SampleInputs,
    per_id: int,
    seed: int,
    variation: PluginConfig | None,
    guidance: Guidance,
    guidance_cfg: PluginConfig,
    noise_file: Path | None = None,
    pose: PoseSettings | None = None,
) -> tuple[Conditions, dict[str, Parent]]:
    """Build the conditions of a set; return them and the files they depend on, for the header.

    Args:
        inputs: Contexts and LDM.
        per_id: Images of each identity.
        seed: Seed of everything random.
        variation: Settings of a `context_variation` plugin; None: no variation.
        guidance: Built from `guidance_cfg`.
        guidance_cfg: Settings of a `guidance` plugin.
        noise_file: Starting noise, `.npy`; None: drawn from the seed.
        pose: How far heads are turned; None: that is left to the LDM.

    Raises:
        UserError: A file is not what was expected, or belongs to another recognizer, or the LDM takes no poses.
    """
    if pose is not None and not getattr(inputs.ldm.module, "takes_pose", False):
        raise UserError("pose turns heads, which this LDM did not learn: train one with denoiser.pose=true, on "
                        "embeddings made with pose_detector=YUNET")
    shape, num_ids = inputs.latent_shape, len(inputs.identities)
    given_noise = open_noise_file(noise_file, num_ids, per_id, shape)
    varied, parents = open_variation(variation, inputs.contexts, seed)
    negatives, more = open_negatives(guidance, guidance_cfg, inputs.contexts, seed)
    conditions = Conditions(
        inputs.identities, inputs.vectors, per_id, seed, shape, given_noise, varied, negatives, pose
    )
    return conditions, {**parents, **more}


def open_variation(
    cfg: PluginConfig | None, contexts: ContextSet, seed: int
) -> tuple[Variation | None, dict[str, Parent]]:
    """Build a variation and return it with the files it read, for the header.

    A variation or a choice of negatives may depend on contexts of identities that are not sampled, such as the nearest
    one. Then the whole set of contexts is an input, compared by content: images would change where the set grows.

    Args:
        cfg: Settings of a `context_variation` plugin; None: no variation.
        contexts: The whole set.
        seed: Seed of everything random.

    Raises:
        UserError: One of its inputs is not what was expected, or belongs to another recognizer.
    """
    if cfg is None:
        return None, {}
    variation = registry.build("context_variation", cfg)
    parents = variation.open(np.asarray(contexts.vectors, dtype=np.float32), contexts.identities, seed)
    require_same_embedder(
        {str(contexts.path): contexts.embedder, f"variation {cfg.name}": variation.embedder},
        "give contexts of the same recognizer",
    )
    if variation.needs_all_contexts:
        parents = {**parents, "all_contexts": Parent(str(contexts.path), contexts.digest)}
    return variation, parents


def open_negatives(
    guidance: Guidance, cfg: PluginConfig, contexts: ContextSet, seed: int
) -> tuple[NegativeContexts | PartnerContexts | None, dict[str, Parent]]:
    """Open the pool of negative contexts, or of partners, where the guidance uses one; return it and its header entry.

    Args:
        guidance: Built from `cfg`.
        cfg: Its settings; `contexts` is the path of a set, None for the set that is sampled.
        contexts: The set that is sampled.
        seed: Seed of everything random.

    Raises:
        UserError: The pool belongs to another recognizer, has another size, or is too small.
    """
    if guidance.negatives is None:
        return None, {}
    path = getattr(cfg, "contexts", None)
    pool = contexts if path is None else ContextSet.open(path)
    name = f"guidance.contexts {pool.path}"
    if pool.vectors.shape[1] != contexts.vectors.shape[1]:
        raise UserError(
            f"{name} holds contexts of {pool.vectors.shape[1]} numbers, {contexts.path} of {contexts.vectors.shape[1]}"
        )
    require_same_embedder(
        {name: pool.embedder, str(contexts.path): contexts.embedder}, "give contexts of the same recognizer"
    )
    vectors, choice = normalize(pool.vectors), guidance.negatives
    if not isinstance(choice, Partners):
        return NegativeContexts(vectors, choice, seed), {"negatives": Parent(str(pool.path), pool.digest)}
    rows = choice.choose(contexts.identities, normalize(contexts.vectors), vectors, seed)
    return PartnerContexts(contexts.identities, vectors[rows]), {
        "all_contexts": Parent(str(contexts.path), contexts.digest), "partners": Parent(str(pool.path), pool.digest)
    }
