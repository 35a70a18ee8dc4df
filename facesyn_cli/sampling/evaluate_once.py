"""One evaluation of a denoiser in a given number format, which `models.precision` measures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import torch

from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.sampling.inference import FastDenoiser, InferenceOptions

_FEW = 2  # images of a batch on a CPU, where the speed does not depend on them; an evaluation of eight takes seconds


def evaluation_of(ldm: LoadedLdm, device: torch.device, batch_size: int) -> Callable[[str], None]:
    """Return a function that evaluates a copy of a denoiser on noise in a number format, and waits for the device.

    Args:
        ldm: Denoiser and its settings; not modified.
        device: Where.
        batch_size: Images of a batch on a GPU.
    """
    facts, count = ldm.config, min(batch_size, _FEW) if device.type == "cpu" else batch_size

    @lru_cache
    def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        latents = torch.randn(count, facts.latent_channels, facts.latent_size, facts.latent_size, generator=random)
        contexts = torch.randn(count, facts.embedding_size, generator=random)
        t = torch.full((count,), facts.num_timesteps // 2)
        return latents.to(device), t.to(device), torch.nn.functional.normalize(contexts, dim=1).to(device)

    @lru_cache
    def denoiser(precision: str) -> FastDenoiser:
        return FastDenoiser(copy.deepcopy(ldm.module).to(device), InferenceOptions(precision))

    @torch.inference_mode()
    def evaluate(precision: str) -> None:
        network, (latents, t, contexts) = denoiser(precision), inputs()
        encode = getattr(network, "encode_context", None)
        network(latents, t, encode(contexts, batch=count) if encode else contexts)[0, 0, 0, 0].item()

    return evaluate
