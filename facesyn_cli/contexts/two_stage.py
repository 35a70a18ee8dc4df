"""Identities drawn by the own LDM: a face under the empty context, then its embedding.

The two-stage contexts of IDiff-Face (Boutros et al. 2023, arXiv:2308.04995): an LDM trained with
whole-context dropout also draws faces without a context; their embeddings are identities that its
training set did not hold, yet lie where real embeddings lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from torch import Tensor

from facesyn_cli.contexts.generated import generated_candidates
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.sampling import sample_latents
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_IDENTITY = "context"  # whose noise it is: candidate k starts from the noise of (seed, "context", k)


def _scheduler(value: Any) -> Any:
    """Validate a scheduler section; one without a name means `ddim`."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        try:
            return registry.configure("scheduler", {"name": "ddim", **value})
        except ValidationError as error:
            problems = [f"scheduler.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise UserError("; ".join(problems)) from error
    return value


class TwoStageConfig(PluginConfig):
    """Settings of the source `two-stage`; the networks are `ldm`, `autoencoder` and `weights`."""

    scheduler: Annotated[SerializeAsAny[PluginConfig], BeforeValidator(_scheduler)] = {"name": "ddim"}


class TwoStage:
    """Endless faces of the own LDM under the empty context.

    Args:
        scheduler: Settings of the scheduler.
    """

    needs: frozenset[str] = frozenset({"ldm", "recogniser"})
    may_use: frozenset[str] = frozenset()
    num_candidates = None

    def __init__(self, scheduler: PluginConfig) -> None:
        self._make_scheduler = registry.build("scheduler", scheduler)
        self._resources = Resources()
        self.evaluations: dict[str, int] = {}

    def open(self, resources: Resources) -> None:
        """Take the networks.

        Raises:
            UserError: The scheduler cannot make its steps.
        """
        self._resources = resources
        self._schedule = ldm_schedule(resources.ldm.settings)
        steps = len(self._make_scheduler(self._schedule).timesteps)  # refuses numbers of steps that do not go
        self.evaluations = {"denoiser": steps, "decoder": 1, "recogniser": 1}

    @property
    def embedder(self) -> str | None:
        """The recogniser."""
        return self._resources.embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield one batch at a time."""
        return generated_candidates(self._resources, start, self._draw)

    def _draw(self, numbers: list[int]) -> np.ndarray:
        ldm, seed = self._resources.ldm, self._resources.seed
        settings = ldm.settings
        shape = (settings.latent_channels, settings.latent_size, settings.latent_size)

        def draw_noise(index: int) -> Tensor:
            return torch.stack([step_noise(seed, _IDENTITY, k, index, shape) for k in numbers]).to(ldm.device)

        noise = torch.stack([image_noise(seed, _IDENTITY, k, shape) for k in numbers]).to(ldm.device)
        latents = sample_latents(                                           # (B, c, h, w)
            ldm.denoiser, self._make_scheduler(self._schedule), build_none(NoGuidanceConfig()), None, noise, draw_noise
        )
        decode = LatentDecoder(ldm.autoencoder, settings, settings.output_size, ldm.device)
        images, is_finite = decode(latents)
        if not is_finite.all():
            raise UserError("source two-stage: the LDM gave numbers that are not finite; its weights are damaged, or it"
                            " was not trained to its end")
        return images.cpu().numpy()                                         # (B, 112, 112, 3)


@register(
    "contexts",
    "two-stage",
    Card(
        about="Faces the own LDM draws under the empty context, then embedded; wants one trained with context dropout.",
        paper="IDiff-Face, Boutros et al. 2023, arXiv:2308.04995",
    ),
)
def build_two_stage(cfg: TwoStageConfig) -> TwoStage:
    """Build the source."""
    return TwoStage(cfg.scheduler)
