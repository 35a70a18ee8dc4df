"""The perceptual loss of `train-ldm`: predicted latents are compared with true ones in feature maps of the decoder.

The latent perceptual loss of Berrada et al. 2025, "Boosting Latent Diffusion with Perceptual Objectives",
arXiv:2411.04873, section 3.2. With m_k the K maps of the decoder, each the last one of its resolution, of the latents
x_0 and of those predicted at noise level t:

    loss_i = weight s mean_k mean_chw [w_k,hw (m_k(predicted) - m_k(x_0))^2 / v_k,c],
    s = signal / (signal + noise) at t, which is 1 - t in a flow

added to the squared error of the image. v_k,c is the variance of channel c in photos of the training. The squared error
of latents weighs every difference alike, whether the decoder makes it visible or not. Nothing is decoded to the end.
`eyes_and_mouth` weighs positions of aligned faces: w is 1 + that at the centers of eyes and mouth, falls to 1 around
them, and is divided by its mean.
"""

# Differs from Berrada et al. 2025: every noise level takes part, weighed by s, instead of those below a threshold; the
# variance is that of photos of the training instead of the image's own; all maps weigh the same, none of their values
# is left out as an outlier; positions can be weighed.

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from facesyn_cli.data.alignment import template
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.sampling.pipeline import ChannelScale

MEASURED = 256  # images of the training by which the variance of each channel is measured
_MEASURED_AT_ONCE = 16
_LEAST_VARIANCE = 1e-4
_EYE, _MOUTH = (12 / 112, 8 / 112), (18 / 112, 10 / 112)  # width and height of the weights, in sides of the image


class PerceptualSettings(Settings):
    """The perceptual loss of `train-ldm`."""

    weight: float = Field(1.0, gt=0, description="weight of the perceptual loss, beside the squared error")
    maps: int = Field(
        2, ge=1, description="maps of the decoder to compare, one of each resolution from that of the latents on; more "
        "cost more, each about as much as all before it"
    )
    eyes_and_mouth: float = Field(
        0.0, ge=0, description="how much more the eyes and the mouth of aligned faces weigh; 0: all positions alike"
    )


class PerceptualLoss:
    """Feature maps of the autoencoder's decoder, which is frozen.

    Args:
        settings: Weight, number of maps, weights of positions.
        autoencoder: Whole autoencoder or its decoder.
        latent_shape: (c, h, w).

    Raises:
        UserError: The autoencoder does not give its feature maps, or has fewer.
    """

    def __init__(
        self, settings: PerceptualSettings, autoencoder: nn.Module, latent_shape: tuple[int, int, int]
    ) -> None:
        self.settings, self._autoencoder = settings, autoencoder.requires_grad_(False).eval()
        if not hasattr(autoencoder, "decoder_maps"):
            raise UserError("perceptual needs the feature maps of the autoencoder's decoder, and this one gives none: "
                            "taesd3, vq-f4, kl-f4, kl-f8, face-kl, face-vq and those of diffusers do")
        with torch.no_grad():
            maps = autoencoder.decoder_maps(torch.zeros(1, *latent_shape), settings.maps)
        if len(maps) < settings.maps:
            raise UserError(f"perceptual.maps is {settings.maps}, the decoder has {len(maps)} resolutions below that "
                            "of the image")
        self._weights = [position_weights(x.shape[-1], settings.eyes_and_mouth) for x in maps]

    @torch.no_grad()
    def prepare(self, scale: ChannelScale, latents: Tensor, device: torch.device) -> None:
        """Measure the variance of every channel.

        Args:
            scale: Restores the latents that the decoder takes.
            latents: (n, c, h, w) of photos, as the autoencoder gives them.
            device: Where the autoencoder lies.
        """
        self._scale, self._weights = scale, [weights.to(device) for weights in self._weights]
        sums: list[Tensor] = [torch.zeros(3, 1, dtype=torch.float64, device=device)] * len(self._weights)
        for part in latents.split(_MEASURED_AT_ONCE):
            maps = [x.double() for x in self._autoencoder.decoder_maps(part.to(device), self.settings.maps)]
            moments = [torch.stack([torch.ones_like(x), x, x.square()]).sum((1, 3, 4)) for x in maps]  # (3, C_k)
            sums = [before + more for before, more in zip(sums, moments, strict=True)]
        means = [total[1:] / total[0] for total in sums]
        variances = [squares - mean.square() for mean, squares in means]
        self._precisions = [(1 / (x + _LEAST_VARIANCE)).float()[:, None, None] for x in variances]

    def maps(self, latents: Tensor) -> list[Tensor]:
        """Return the maps of normalized latents (B, c, h, w), in the caller's autocast."""
        restored = self._scale.restore(latents.float()).contiguous(memory_format=torch.channels_last)
        return self._autoencoder.decoder_maps(restored, self.settings.maps)

    def distances(self, predicted: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Return the mean of weighted squares over maps, channels and positions, (B,) float32, without s and weight."""
        total: Tensor | float = 0.0
        for a, b, precision, weights in zip(predicted, real, self._precisions, self._weights, strict=True):
            total = total + ((a.float() - b.float()).square() * precision * weights).mean((1, 2, 3)) / len(real)
        return torch.as_tensor(total)


def position_weights(side: int, eyes_and_mouth: float) -> Tensor:
    """Return the weight of every position of a map of an aligned face, (side, side) float32 of mean 1."""
    left, right, _, *corners = torch.from_numpy(template(side)).float()
    at = torch.arange(side)
    weights = torch.ones(side, side)
    for center, size in ((left, _EYE), (right, _EYE), (sum(corners) / 2, _MOUTH)):
        x, y = (((at - center[axis]) / (size[axis] * side)).square() for axis in (0, 1))
        weights += eyes_and_mouth * torch.exp(-(x[None, :] + y[:, None]) / 2)
    return weights / weights.mean()
