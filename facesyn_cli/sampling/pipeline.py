"""`LdmPipeline`: from contexts and noise to faces, by noise schedule, scheduler, guidance, denoiser and decoder.

Everything that draws faces with an LDM goes through it: `sample`, `study` and `bench`, previews of training, context
sources and filters, the check of a packed starter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.data.pixels import resize_pixels, to_u8
from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.guidance import Guidance, NoGuidanceConfig, build_none
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule, ldm_schedule
from facesyn_cli.diffusion.scheduler_choice import build_scheduler
from facesyn_cli.diffusion.schedulers import MakeScheduler
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.inference import FastAutoencoder, FastDenoiser, InferenceOptions

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LdmPipeline:
    """Draws faces with an LDM; built from networks by `LdmPipeline.of`.

    Args:
        denoiser: `denoiser(x, t, context)` in eval mode, on `device`; see `diffusion.denoising_loop.sample_latents`.
        schedule: Noise schedule or flow the denoiser was trained with.
        make_scheduler: Schedule -> a fresh scheduler; every batch has its own.
        guidance: How outputs under several contexts are combined.
        latent_shape: (C, H, W).
        decoder: Latents to images, such as a `LatentDecoder`; None: only `latents` can be called.
        device: Where the networks are.

    Raises:
        UserError: The scheduler does not fit the LDM or cannot make its steps, or the guidance does not work with the
            denoiser.
    """

    denoiser: nn.Module | FastDenoiser
    schedule: NoiseSchedule | FlowSchedule
    make_scheduler: MakeScheduler
    guidance: Guidance
    latent_shape: tuple[int, int, int]
    decoder: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    device: torch.device = _CPU

    def __post_init__(self) -> None:
        needs_early = getattr(self.guidance, "needs_early_output", False)
        if needs_early and not getattr(self.denoiser, "has_early_output", False):
            raise UserError(
                "the guidance internal needs an early prediction, which this denoiser does not have (train-ldm with"
                " denoiser dit and denoiser.early_output is needed)"
            )
        if self.evaluations and not self.guidance.needs_attention:
            return
        if not getattr(self.denoiser, "has_attention_maps", False):
            raise UserError(
                "the guidance records and injects attention to contexts, which this denoiser does not have"
                " (denoiser idiff-unet with conditioning ca is needed)"
            )
        if getattr(self.denoiser, "is_traced", False):
            raise UserError("the guidance records and injects attention: it cannot run with compile or cuda_graphs")

    @staticmethod
    def of(
        ldm: LoadedLdm,
        autoencoder: nn.Module | None,
        scheduler: PluginConfig,
        guidance: PluginConfig | Guidance | None = None,
        device: torch.device = _CPU,
        options: InferenceOptions | None = None,
        size: int | None = None,
    ) -> LdmPipeline:
        """Move the networks to a device and assemble a pipeline.

        Args:
            ldm: Denoiser and its settings.
            autoencoder: Decodes its latents; None: only latents are wanted.
            scheduler: Settings of a `scheduler` plugin.
            guidance: Settings of a `guidance` plugin, or a guidance already built; None: no guidance.
            device: Where to compute.
            options: How to run the networks, which are converted in place; None: as they are.
            size: Side of the images in pixels; None: the LDM's output size.

        Raises:
            UserError: As `LdmPipeline`, or an option does not fit the network.
        """
        facts, denoiser = ldm.config, ldm.module.to(device)
        autoencoder = None if autoencoder is None else autoencoder.to(device)
        if options is not None:
            denoiser = FastDenoiser(denoiser, options)
            autoencoder = None if autoencoder is None else FastAutoencoder(autoencoder, options, device)
        decoder = None if autoencoder is None else LatentDecoder(autoencoder, facts, size or facts.output_size, device)
        shape = (facts.latent_channels, facts.latent_size, facts.latent_size)
        make_scheduler = build_scheduler(scheduler, facts.prediction)
        return LdmPipeline(denoiser, ldm_schedule(facts), make_scheduler, _built(guidance), shape, decoder, device)

    def using(self, scheduler: PluginConfig, guidance: PluginConfig | Guidance | None = None) -> LdmPipeline:
        """Return a pipeline of the same networks with another scheduler and guidance; errors as of `LdmPipeline`."""
        make_scheduler = build_scheduler(scheduler, self.schedule.prediction)
        return replace(self, make_scheduler=make_scheduler, guidance=_built(guidance))

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser for one image."""
        return count_evaluations(self.make_scheduler(self.schedule), self.guidance, self.schedule.num_timesteps)

    @property
    def is_guided(self) -> bool:
        """True when a step evaluates the denoiser under two contexts, independent of each other."""
        if self.guidance.needs_attention:
            return False
        return self.evaluations > len(self.make_scheduler(self.schedule).timesteps)

    def __call__(self, contexts: Tensor | None, noise: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Draw one batch of faces; arguments as of `latents`.

        Returns:
            (B, S, S, 3) uint8 images, and (B,) bool: all numbers of the image were finite. Both are on the device.
        """
        return self.decoder(self.latents(contexts, noise, **options))

    def latents(
        self,
        contexts: Tensor | None,
        noise: Tensor,
        step_noise: Callable[[int], Tensor] | None = None,
        negatives: Tensor | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Return the normalized latents of one batch, (B, C, H, W) float32 on the device.

        Args:
            contexts: (B, E); None: the empty context.
            noise: (B, C, H, W) float32 N(0, 1).
            step_noise: Number of a step -> the noise that a stochastic scheduler adds after it, (B, C, H, W).
            negatives: (B, E) contexts to guide away from; None: the empty one.
            on_step: Called before every step; what it raises ends the loop, for example a stop signal.
        """
        send = self._send
        return sample_latents(
            self.denoiser,
            self.make_scheduler(self.schedule),
            self.guidance,
            None if contexts is None else send(contexts),
            send(noise),
            draw_noise=None if step_noise is None else lambda step: send(step_noise(step)),
            on_step=on_step,
            negatives=None if negatives is None else send(negatives),
            num_timesteps=self.schedule.num_timesteps,
        )

    def keyed_noise(
        self, seed: int, places: Sequence[tuple[str, int]]
    ) -> tuple[Tensor, Callable[[int], Tensor]]:
        """Return `noise` and `step_noise` of a batch of images, each drawn from (seed, name, number).

        Args:
            seed: Seed.
            places: Name and number of each image.
        """
        shape = self.latent_shape
        noise = torch.stack([image_noise(seed, name, number, shape) for name, number in places])
        return noise, lambda step: torch.stack([step_noise(seed, name, number, step, shape) for name, number in places])

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")  # does not wait for earlier batches


@dataclass(frozen=True)
class ChannelScale:
    """Normalizes latents to mean 0 and standard deviation 1 in each channel, and back.

    Args:
        mean: (1, c, 1, 1), on the device.
        std: (1, c, 1, 1), on the device.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: list[float] | None, std: list[float] | None, device: torch.device) -> ChannelScale:
        """Return the scale of measured statistics; None: the identity."""
        return cls(*(
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (mean or [0.0], std or [1.0])
        ))

    def normalize(self, latents: Tensor) -> Tensor:
        """Return (B, c, h, w) latents as the denoiser takes them, on the device they are on."""
        return (latents - self.mean.to(latents.device)) / self.std.to(latents.device)

    def restore(self, latents: Tensor) -> Tensor:
        """Return normalized (B, c, h, w) latents as the autoencoder takes them."""
        return latents * self.std + self.mean


class LatentDecoder:
    """Turns normalized latents into images; nothing leaves the device on the way.

    Args:
        autoencoder: Its `decode` maps latents (B, c, h, w) to pixels (B, 3, S, S).
        settings: Of the LDM whose latents they are: their statistics per channel.
        size: Side of a finished image in pixels.
        device: Where autoencoder and latents are.
    """

    def __init__(
        self, autoencoder: nn.Module | FastAutoencoder, settings: LdmSettings, size: int, device: torch.device
    ) -> None:
        self.autoencoder, self.size = autoencoder, size
        self._scale = ChannelScale.of(settings.latent_mean, settings.latent_std, device)

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, size, size, 3) uint8 images, and (B,) bool: all numbers of the image were finite."""
        pixels = self.autoencoder.decode(self._scale.restore(latents))
        is_finite = pixels.isfinite().flatten(1).all(dim=1)
        return finish_pixels(pixels.nan_to_num(), self.size), is_finite


def finish_pixels(pixels: Tensor, size: int) -> Tensor:
    """Return finished images (B, size, size, 3) uint8 from decoded pixels (B, 3, H, W), as published.

    Clamp to [-1, 1], then resize bilinearly without antialiasing, then round to 8 bits.
    """
    return to_u8(resize_pixels(pixels.float().clamp(-1, 1), size, antialias=False))


def _built(guidance: PluginConfig | Guidance | None) -> Guidance:
    if guidance is None:
        return build_none(NoGuidanceConfig(name="none"))
    return registry.build("guidance", guidance) if isinstance(guidance, PluginConfig) else guidance
