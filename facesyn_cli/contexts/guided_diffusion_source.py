"""The context source `guided-diffusion`: faces of DCFace's first stage, an unconditional UNet on FFHQ.

DCFace, Kim et al. 2023, arXiv:2304.07060; the sampler is in `diffusion/ancestral.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from facesyn_cli import signals
from facesyn_cli.contexts.endless import GeneratedFaces
from facesyn_cli.contexts.source import Resources
from facesyn_cli.data.pixels import to_u8
from facesyn_cli.diffusion.ancestral import AncestralChain
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

# Differs from DCFace: its script draws from one torch generator, so a face depends on the batch size; here
# candidate k has its own noise, whatever the batch and the start.
_IDENTITY = "guided-diffusion"  # candidate k starts from the noise of (seed, this, k)


class GuidedDiffusionConfig(PluginConfig):
    """Settings of the source `guided-diffusion`; the network is `generator`, the recognizer is `weights`."""

    steps: int = Field(100, ge=1, description="network evaluations per face; published: 100")
    crop: float = Field(1.0, gt=0, le=1, description="central share kept; 0.8 turns FFHQ framing into ArcFace framing")


@register(
    "contexts",
    "guided-diffusion",
    Card(
        about="Faces of a guided-diffusion UNet (DCFace stage 1, ffhq_10m.pt), ancestral steps, then embedded.",
        paper="DCFace, Kim et al. 2023, arXiv:2304.07060; Nichol and Dhariwal 2021, arXiv:2102.09672",
        license="ffhq_10m.pt: none stated; trained on FFHQ (non-commercial)",
    ),
)
class GuidedDiffusion(GeneratedFaces):
    """Endless faces of a guided-diffusion UNet."""

    needs = frozenset({"generator", "recognizer"})

    def __init__(self, cfg: GuidedDiffusionConfig) -> None:
        self._steps, self.crop = cfg.steps, cfg.crop
        self.evaluations = {"generator": cfg.steps, "recognizer": 1}

    def open(self, resources: Resources) -> None:
        """Take the network and the recognizer from the resources.

        Raises:
            UserError: The generator is another pipeline, or has fewer timesteps than `steps`.
        """
        super().open(resources)
        unet = getattr(resources.generator, "unet", None)
        config = getattr(unet, "config", None)
        schedule = getattr(getattr(resources.generator, "scheduler", None), "config", {})
        if (
            config is None
            or config.get("out_channels") != 2 * config.get("in_channels", 0)
            or schedule.get("variance_type") != "learned_range"
            or schedule.get("prediction_type") != "epsilon"
        ):
            raise UserError(
                "source guided-diffusion: the generator is no guided-diffusion UNet with a learned variance; "
                "use the source diffusers for other pipelines"
            )
        self._unet = unet
        betas = resources.generator.scheduler.betas
        self._chain = AncestralChain(NoiseSchedule(betas, torch.cumprod(1 - betas, dim=0)), self._steps)

    @torch.inference_mode()
    def draw(self, numbers: list[int]) -> np.ndarray:
        """Return an image of each candidate number; see `GeneratedFaces.draw`."""
        config, seed = self._unet.config, self.resources.seed
        shape = (config["in_channels"], config["sample_size"], config["sample_size"])
        device = self._unet.device

        def stack(draw: list[Tensor]) -> Tensor:
            return torch.stack(draw).to(device)

        x = stack([image_noise(seed, _IDENTITY, k, shape) for k in numbers])            # (B, 3, S, S)
        for index, t in enumerate(self._chain.timesteps):
            output = self._unet(x, torch.full((len(numbers),), t, device=device)).sample  # (B, 6, S, S)
            is_last = index == len(self._chain.timesteps) - 1
            noise = None if is_last else stack([step_noise(seed, _IDENTITY, k, index, shape) for k in numbers])
            x = self._chain.step(index, x, output, noise)
            signals.check()  # a batch takes minutes on a CPU; an unfinished one is drawn again
        return to_u8(x.clamp(-1, 1)).cpu().numpy()                                      # (B, S, S, 3)
