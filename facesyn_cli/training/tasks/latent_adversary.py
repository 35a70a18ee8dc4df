"""An adversarial loss on predicted latents: a discriminator on feature maps of the recognizer of latents.

Sauer et al. 2023, "Adversarial Diffusion Distillation", arXiv:2311.17042, section 3.2: small heads read the feature
maps of a frozen network, are told the condition of the image, and learn with hinge losses; in latent space as in Sauer
et al. 2024, arXiv:2403.12015. The frozen network is that of the identity loss, which has computed the maps of the
prediction already. With m_k the maps of a prediction x_0 or of a real latent, and s as in the identity loss:

    discriminator:  s mean_k [max(0, 1 - D_k(m_k(real))) + max(0, 1 + D_k(m_k(predicted)))] / 2
    denoiser:       weight s mean_k [-D_k(m_k(predicted))]
"""

# Differs from Sauer et al.: nothing is distilled. The squared error stays, predictions at all timesteps of the training
# take part, and the heads are told the timestep. Their penalty of the gradient at real images is left out.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.models.idiff_blocks import TimeEmbedding
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.training.gradient_sums import GradientSums

_CONDITION = 128  # width of the embedded timestep and context
_WIDTH = 64       # channels of a head
_GROUPS = 8
_BETAS = (0.0, 0.99)  # as of the discriminators of Sauer et al. 2021, arXiv:2111.01007


class LatentAdversarialSettings(Settings):
    """The adversarial part of the loss of `train-ldm`."""

    weight: float = Field(0.1, gt=0, description="weight of the adversarial loss, beside the squared error")
    start: int = Field(40, ge=0, description="steps in which only the discriminator itself learns")
    lr: float = Field(1e-3, gt=0, description="learning rate of the discriminator")

    def weight_at(self, step: int) -> float:
        """Return the weight at a step, 0-based."""
        return self.weight if step >= self.start else 0.0


class LatentDiscriminator(nn.Module):
    """Feature maps of latents to a logit for each of them, (B, K); high is real.

    Args:
        widths: Channels of the K maps.
        context_size: E of a context.

    Shapes: maps (B, C_k, H_k, W_k), timesteps (B,), contexts (B, E) of unit length; further numbers are not read.
    """

    def __init__(self, widths: Sequence[int], context_size: int) -> None:
        super().__init__()
        self.context_size = context_size
        self.time_emb = TimeEmbedding(_WIDTH, _CONDITION)
        self.context_emb = nn.Linear(context_size, _CONDITION)
        self.heads = nn.ModuleList(_Head(width) for width in widths)

    def forward(self, maps: Sequence[Tensor], timesteps: Tensor, contexts: Tensor) -> Tensor:
        """Return the logits."""
        contexts = contexts[:, : self.context_size] * self.context_size**0.5  # components of about 1
        condition = F.silu(self.time_emb(timesteps) + self.context_emb(contexts))
        return torch.stack([head(x, condition) for head, x in zip(self.heads, maps, strict=True)], dim=1)


class _Head(nn.Module):
    """A map (B, C, H, W) and the condition to the mean of its logits, (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, _WIDTH, 3, 1, 1), nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1)
        self.first_norm, self.second_norm = nn.GroupNorm(_GROUPS, _WIDTH), nn.GroupNorm(_GROUPS, _WIDTH)
        self.modulate = nn.Linear(_CONDITION, 2 * _WIDTH)
        self.last = nn.Conv2d(_WIDTH, 1, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        h = F.leaky_relu(self.first_norm(self.first(x)) * (1 + scale) + shift, 0.2)
        h = F.leaky_relu(self.second_norm(self.second(h)), 0.2)
        return self.last(h).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class LatentAdversary:
    """The discriminator and its optimizer.

    Args:
        settings: Its settings.
        network: The discriminator.
        optimizer: Over its parameters.
        gradients: Their sums over processes.
    """

    settings: LatentAdversarialSettings
    network: LatentDiscriminator
    optimizer: torch.optim.Optimizer
    gradients: GradientSums

    def discriminator_losses(
        self, real: Sequence[Tensor], predicted: Sequence[Tensor], timesteps: Tensor, contexts: Tensor
    ) -> Tensor:
        """Return the hinge losses of the discriminator, (B,) float32, not weighed by s.

        Args:
            real: Maps of the latents of the photos.
            predicted: Maps of the predictions, which get no gradient.
            timesteps: (B,) of the predictions; the photos are judged as if of the same.
            contexts: (B, E).
        """
        self.network.requires_grad_(True)
        predicted = [x.detach() for x in predicted]
        logits = self.network(real, timesteps, contexts), self.network(predicted, timesteps, contexts)
        return 0.5 * (F.relu(1 - logits[0].float()) + F.relu(1 + logits[1].float())).mean(dim=1)

    def denoiser_losses(self, predicted: Sequence[Tensor], timesteps: Tensor, contexts: Tensor) -> Tensor:
        """Return the adversarial losses of the denoiser, (B,) float32, not weighed by s; the maps get a gradient."""
        self.network.requires_grad_(False)
        return -self.network(predicted, timesteps, contexts).float().mean(dim=1)

    def take_step(self, scaler: torch.amp.GradScaler) -> None:
        """Update the discriminator by the gradients of all passes. A collective."""
        self.gradients.finish()
        scaler.unscale_(self.optimizer)
        scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)


def build_latent_adversary(
    settings: LatentAdversarialSettings, widths: Sequence[int], context_size: int, seed: int, processes: Processes
) -> LatentAdversary:
    """Build the discriminator; its weights depend on the seed alone. Arguments as of `LatentDiscriminator`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        network = LatentDiscriminator(widths, context_size)
    network = network.to(processes.device, memory_format=torch.channels_last).train()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.lr, betas=_BETAS)
    return LatentAdversary(settings, network, optimizer, GradientSums(parameters, processes))
