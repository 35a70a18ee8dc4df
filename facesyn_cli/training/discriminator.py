"""Discriminators, of image patches and of a recogniser's feature maps, and the losses around them.

PatchGAN: Isola et al. 2017, arXiv:1611.07004, section 3.2.2 and appendix 6.1.2. Hinge losses: Lim and Ye 2017,
arXiv:1705.02894. How it is weighed against the reconstruction: Esser et al. 2021, arXiv:2012.09841, Eq. 6-7.
Discriminators on the maps of a frozen network: Sauer et al. 2021, arXiv:2111.01007, Eq. 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_DELTA = 1e-6          # Eq. 7
_LARGEST_FACTOR = 1e4  # as in the published code


class AdversarialSettings(BaseModel):
    """The adversarial part of a loss; off while both weights are 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(0.0, ge=0)             # weight of the discriminator of patches; 0: none
    feature_weight: float = Field(0.0, ge=0)     # weight of that of the feature maps of `features`; 0: none
    start: int = Field(0, ge=0)                  # steps of training before it begins
    adaptive: bool = True                        # multiply `weight` by Eq. 7, so that both gradients are alike
    channels: int = Field(32, ge=8, multiple_of=8)  # width of the first layer of the discriminator of patches
    layers: int = Field(3, ge=1)                 # its layers of stride 2
    lr_factor: float = Field(1.0, gt=0)          # learning rate of both over that of the autoencoder


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

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits; high is real."""
        return self.network(pixels)


class MapDiscriminator(nn.Module):
    """Feature maps of a frozen network to logits: a small network for each map.

    A recogniser has learnt what eyes and mouths look like and how they lie to each other, so little is left to learn
    and few images suffice. The maps have unit length over their channels, times the root of their number, and the
    layers have spectral norm 1 (Miyato et al. 2018, arXiv:1802.05957), so that a fixed weight suits.

    Args:
        channels: C_l of each map.
        width: Channels of the small networks.
    """

    # Differs from Sauer et al. 2021: the maps are not mixed across channels and scales by random layers.

    def __init__(self, channels: Sequence[int], width: int = 32) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(number, width, 1)), nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for number in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits (B, 1, H_l, W_l) of each map (B, C_l, H_l, W_l) of unit length; high is real."""
        return [head(x * x.shape[1] ** 0.5) for head, x in zip(self.heads, maps, strict=True)]


def discriminator_loss(real_logits: Tensor, made_logits: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator, (B,): (max(0, 1 - real) + max(0, 1 + made)) / 2, mean of patches.

    Args:
        real_logits: (B, 1, n, n).
        made_logits: (k B, 1, n, n); the mean over the k made images of each real one counts.
    """
    real = F.relu(1.0 - real_logits.float()).flatten(1).mean(dim=1)
    made = F.relu(1.0 + made_logits.float()).flatten(1).mean(dim=1)
    return 0.5 * (real + made.view(-1, len(real)).mean(dim=0))


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
