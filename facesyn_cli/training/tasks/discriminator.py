"""A discriminator of image patches and the losses around it.

PatchGAN: Isola et al. 2017, arXiv:1611.07004, section 3.2.2 and appendix 6.1.2. Hinge losses: Lim and Ye 2017,
arXiv:1705.02894. Its weight against the reconstruction: Esser et al. 2021, arXiv:2012.09841, Eq. 6-7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from facesyn_cli.plugins.settings import Settings

_DELTA = 1e-6          # Eq. 7
_LARGEST_FACTOR = 1e4  # of Eq. 7 in the published code, while the discriminator's gradient is small


class AdversarialSettings(Settings):
    """The adversarial part of a loss; off while `weight` is 0."""

    weight: float = Field(0.0, ge=0, description="weight of the adversarial loss; 0: no discriminator")
    start: int = Field(0, ge=0, description="steps in which only the discriminator itself learns")
    adaptive: bool = Field(True, description="multiply `weight` by Eq. 7, which balances the gradients")
    channels: int = Field(32, ge=8, multiple_of=8, description="width of the discriminator's first layer")
    layers: int = Field(3, ge=1, description="layers of the discriminator with stride 2")


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, S, S) in [-1, 1] to one logit for each patch, (B, 1, n, n).

    Args:
        channels: Width of the first layer; each further one has twice as many, at most 8 times.
        layers: Layers of stride 2.
    """

    # Differs from Isola et al. / Esser et al.: GroupNorm for BatchNorm, so that an image's logits do not depend on
    # the others of its batch, nor the training on the number of processes.

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        network: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for level in range(1, layers + 1):
            wider, stride = channels * min(2**level, 8), 2 if level < layers else 1
            network += [nn.Conv2d(width, wider, 4, stride, 1, bias=False), nn.GroupNorm(8, wider), nn.LeakyReLU(0.2)]
            width = wider
        self.network = nn.Sequential(*network, nn.Conv2d(width, 1, 4, 1, 1))
        self.hidden_layers = tuple(f"network.{place}" for place in range(2, len(network)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits; high is real."""
        return self.network(pixels)


def smallest_side(layers: int) -> int:
    """Return the smallest side of an image of which a discriminator of so many layers of stride 2 makes a logit."""
    return 3 * 2**layers


def discriminator_loss(real_logits: Tensor, made_logits: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator, (B,): (max(0, 1 - real) + max(0, 1 + made)) / 2, mean of patches.

    Args:
        real_logits: (B, 1, n, n).
        made_logits: (B, 1, n, n).
    """
    real = F.relu(1.0 - real_logits.float()).flatten(1).mean(dim=1)
    made = F.relu(1.0 + made_logits.float()).flatten(1).mean(dim=1)
    return 0.5 * (real + made)


def generator_loss(made_logits: Tensor) -> Tensor:
    """Return the adversarial loss of the autoencoder, (B,): minus the mean logit."""
    return -made_logits.float().flatten(1).mean(dim=1)


def adaptive_factor(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Return lambda of Esser et al. 2021, Eq. 7: the ratio of two gradients' norms at the last layer of the decoder.

    Args:
        reconstruction_gradient: Gradient of the reconstruction loss of the whole global batch.
        adversarial_gradient: Gradient of the adversarial loss of the whole global batch.
    """
    norm = torch.linalg.vector_norm
    ratio = norm(reconstruction_gradient) / (norm(adversarial_gradient) + _DELTA)
    return ratio.clamp(0.0, _LARGEST_FACTOR).detach()
