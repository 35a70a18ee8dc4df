"""The autoencoder `face-pca`: principal components of a whole face, and a refining decoder network.

Aligned faces are described well by a few hundred numbers (Turk and Pentland 1991, "Eigenfaces for Recognition",
J. Cognitive Neuroscience 3(1)). The encoder is linear and has a closed form: principal components of blocks of pixels,
then principal components of all block components of the face. It is fitted in one pass over the photos, in seconds and
without gradients; an LDM on it works on a vector, not on a grid. The decoder is the transposed transform followed by a
convolutional network, trained by `train-autoencoder`, that adds detail to the smooth reconstruction.

Component i is scaled to the variance v_i^(1 - whitening), times a constant that makes the mean variance 1. With
whitening 1, diffusion would weight all components alike, down to the finest detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.face_autoencoder import TrainableAutoencoder, TrainingPass
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_GROUPS = 8
_DEPTH = 2  # levels of the refining network


class FacePcaConfig(PluginConfig):
    """Settings of `face-pca`; with the defaults, latents of 112 x 112 pixels are 320 numbers."""

    image_size: int = affects_result(112, "side of the images in pixels", ge=8)
    patch: int = affects_result(16, "side of the blocks of the first transform; must divide image_size", ge=1)
    patch_components: int = affects_result(32, "components of a block", ge=1)
    latent_channels: int = affects_result(320, "components of a face", ge=1)
    whitening: float = affects_result(0.5, "0: components keep their variances; 1: equal variances", ge=0, le=1)
    refine_patch: int = affects_result(4, "side of the pixel blocks that are channels of the refining network", ge=1)
    refine_channels: int = affects_result(64, "width of the refining network; doubled at half resolution", ge=_GROUPS,
                                    multiple_of=_GROUPS)
    refine_blocks: int = affects_result(2, "residual units at each of three places of the refining network", ge=1)
    smooth: int = affects_result(16, "width of the convolutions at full resolution; 0: none", ge=0)
    refine_fine: int = affects_result(0, "width of a residual unit at half of the resolution; 0: none", ge=0,
                                multiple_of=_GROUPS)
    refine_latent: bool = affects_result(False, "modulate the units at the lowest resolution by the latent")
    latent_noise: float = affects_result(
        0.0, "training decodes latents with so much normal noise on them, so that made-up latents decode well too", ge=0
    )
    part: Literal["both", "encoder", "decoder"] = affects_result("both", "which half to build")

    @model_validator(mode="after")
    def _agree(self) -> FacePcaConfig:
        if self.image_size % self.patch or self.image_size % (_DEPTH * self.refine_patch):
            raise ValueError(f"image_size {self.image_size} must be divisible by patch {self.patch} and by "
                             f"{_DEPTH} * refine_patch {self.refine_patch}")
        if self.refine_fine and self.refine_patch % 2:
            raise ValueError(f"refine_fine needs an even refine_patch, got {self.refine_patch}")
        if self.patch_components > 3 * self.patch**2:
            raise ValueError(f"patch_components {self.patch_components} is more than a block has, {3 * self.patch**2}")
        if self.latent_channels > self.num_coefficients:
            raise ValueError(f"latent_channels {self.latent_channels} is more than the blocks of a face have, "
                             f"{self.num_coefficients}")
        return self

    @property
    def num_coefficients(self) -> int:
        """Number of components of all blocks of a face."""
        return (self.image_size // self.patch) ** 2 * self.patch_components


@register(
    "autoencoder", "face-pca",
    Card("Aligned faces as principal components, with a decoder that refines; trained by train-autoencoder",
         "Turk and Pentland 1991, Eigenfaces for Recognition", "RGB in [-1, 1], side exactly image_size"),
)
def build_face_pca(cfg: FacePcaConfig) -> nn.Module:
    """Build the autoencoder with an arbitrary orthonormal transform, which is to be fitted."""
    return FacePca(cfg)


class FacePca(TrainableAutoencoder):
    """Faces to vectors and back.

    Args:
        cfg: Settings.

    Shapes: B batch, S image side, c latent channels; latents are (B, c, 1, 1). N blocks of P = 3 * patch^2 values,
    of which K are kept.
    """

    def __init__(self, cfg: FacePcaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.latent_channels = cfg.latent_channels
        self.downscale = cfg.image_size
        self.transform = _Transform(cfg)
        if cfg.part != "encoder":
            self.decoder = _Refiner(cfg)
            self.hidden_layers = ("decoder.before", "decoder.inner", "decoder.after")

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, c, 1, 1) of pixels (B, 3, S, S) in [-1, 1].

        Raises:
            UserError: Only the decoder was loaded.
            ValueError: The side is not `image_size`.
        """
        if self.cfg.part == "decoder":
            raise UserError("face-pca: only the decoder was given; encoding images needs the encoder too")
        if pixels.shape[-2:] != (self.cfg.image_size, self.cfg.image_size):
            raise ValueError(f"face-pca takes images of side {self.cfg.image_size}, got {tuple(pixels.shape[-2:])}")
        return self.transform.forwards(pixels)[:, :, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about [-1, 1] and not clamped, of latents (B, c, 1, 1).

        Raises:
            UserError: Only the encoder was loaded.
        """
        if self.cfg.part == "encoder":
            raise UserError("face-pca: only the encoder was given; decoding latents needs the decoder too")
        return self.decoder(self.decode_linear(latents), latents[:, :, 0, 0])

    def decode_linear(self, latents: Tensor) -> Tensor:
        """Return the smooth linear reconstruction (B, 3, S, S), the input of the refining network."""
        return self.transform.backwards(latents[:, :, 0, 0])

    def training_pass(self, pixels: Tensor, noise: Tensor) -> TrainingPass:
        """Decode the latents with `latent_noise` times the noise (B, c, 1, 1) added; there are no penalties."""
        with torch.no_grad():
            latents = self.encode(pixels) + self.cfg.latent_noise * noise
        return TrainingPass(self.decode(latents), {})

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the last layer of the decoder."""
        return self.decoder.last_layer()

    def latent_side(self) -> list[nn.Parameter]:
        """Return no parameters: the encoder is fitted, not trained."""
        return []

    def fit(
        self, photos: Callable[[], Iterator[Tensor]], total: Callable[[Tensor], Tensor] = lambda share: share
    ) -> None:
        """Fit the transform to photos and their mirror images; deterministic for the same photos in the same batches.

        Args:
            photos: Returns an iterator over this process's share of the photos, in batches (B, 3, S, S) in [-1, 1];
                called twice.
            total: Sums a tensor over the processes.

        Raises:
            UserError: There are fewer photos than components.
        """
        self.transform.fit(photos, total)


class _Transform(nn.Module):
    """Pixels to the components of a face and back; an arbitrary orthonormal transform until it is fitted.

    Shapes: N blocks of P = 3 * patch^2 values, of which K are kept; c components of the face.
    """

    def __init__(self, cfg: FacePcaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        size, kept = 3 * cfg.patch**2, cfg.num_coefficients
        self.register_buffer("patch_mean", torch.zeros(size))
        self.register_buffer("patch_basis", torch.eye(size, cfg.patch_components))  # (P, K)
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("basis", torch.eye(kept, cfg.latent_channels))         # (N K, c)
        self.register_buffer("scale", torch.ones(cfg.latent_channels))

    def forwards(self, pixels: Tensor) -> Tensor:
        """Return the components (B, c) of pixels (B, 3, S, S)."""
        return (self._coefficients(pixels) - self.mean) @ self.basis / self.scale

    def backwards(self, components: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S) of components (B, c)."""
        coefficients = (components * self.scale) @ self.basis.T + self.mean
        blocks = coefficients.unflatten(1, (-1, self.cfg.patch_components)) @ self.patch_basis.T + self.patch_mean
        return _from_blocks(blocks, self.cfg.patch)

    @torch.no_grad()
    def fit(self, photos: Callable[[], Iterator[Tensor]], total: Callable[[Tensor], Tensor]) -> None:
        """See `FacePca.fit`."""
        moments = _Moments(len(self.patch_mean))
        for pixels in photos():
            moments.add(_to_blocks(pixels, self.cfg.patch).flatten(0, 1))
        moments.share(total)
        self.patch_mean.copy_(moments.mean())
        self.patch_basis.copy_(moments.components(self.cfg.patch_components)[0])
        moments = _Moments(len(self.mean))
        for pixels in photos():
            for seen in (pixels, pixels.flip(-1)):
                moments.add(self._coefficients(seen))
        moments.share(total)
        if moments.count < 2 * self.cfg.latent_channels:
            raise UserError(f"face-pca: {moments.count // 2} photos are too few for "
                            f"latent_channels={self.cfg.latent_channels}; give more photos or fewer channels")
        self.mean.copy_(moments.mean())
        basis, variances = moments.components(self.cfg.latent_channels)
        self.basis.copy_(basis)
        variances = variances.clamp(min=1e-12)
        wanted = variances ** (1.0 - self.cfg.whitening)
        self.scale.copy_((variances / (wanted / wanted.mean())).sqrt())

    def _coefficients(self, pixels: Tensor) -> Tensor:
        """Return the components of all blocks, (B, N K)."""
        return ((_to_blocks(pixels, self.cfg.patch) - self.patch_mean) @ self.patch_basis).flatten(1)


class _Moments:
    """Mean and covariance of batches of vectors, accumulated in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        self.count += len(vectors)
        self._sum += vectors.sum(0, dtype=torch.float64).cpu()
        self._products += (vectors.T @ vectors).double().cpu()

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add the vectors of other processes."""
        self.count = int(total(torch.tensor(self.count)))
        self._sum, self._products = total(self._sum), total(self._products)

    def mean(self) -> Tensor:
        return self._sum / self.count

    def components(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the first components as columns, the largest entry of each positive, and their variances."""
        mean = self.mean()
        covariance = self._products / self.count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)
        vectors, variances = vectors.flip(1)[:, :number], variances.flip(0)[:number]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return vectors * largest.sign(), variances


def _to_blocks(pixels: Tensor, patch: int) -> Tensor:
    """Return (B, N, 3 * patch^2): the blocks of (B, 3, S, S), row by row."""
    return F.pixel_unshuffle(pixels, patch).flatten(2).transpose(1, 2)


def _from_blocks(blocks: Tensor, patch: int) -> Tensor:
    """Undo `_to_blocks`."""
    side = round(blocks.shape[1] ** 0.5)
    return F.pixel_shuffle(blocks.transpose(1, 2).unflatten(2, (side, side)), patch)


class _Refiner(nn.Module):
    """Add detail to smooth faces: a small UNet on blocks of pixels, initialized to the identity.

    Shapes: pixels (B, 3, S, S), latents (B, c).
    """

    def __init__(self, cfg: FacePcaConfig) -> None:
        super().__init__()
        width, values = cfg.refine_channels, 3 * cfg.refine_patch**2
        self.patch = cfg.refine_patch
        self.enter = nn.Conv2d(values, width, 3, padding=1)
        self.before = nn.Sequential(*(_Unit(width) for _ in range(cfg.refine_blocks)))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        channels = cfg.latent_channels if cfg.refine_latent else 0
        self.inner = nn.ModuleList(_Unit(2 * width, channels) for _ in range(cfg.refine_blocks))
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.after = nn.Sequential(*(_Unit(width) for _ in range(cfg.refine_blocks)))
        self.leave = _zeroed(nn.Conv2d(width, values, 3, padding=1))
        self.fine = _Fine(width, cfg.refine_fine, cfg.refine_patch) if cfg.refine_fine else None
        self.smooth = None
        if cfg.smooth:
            last = _zeroed(nn.Conv2d(cfg.smooth, 3, 3, padding=1))
            self.smooth = nn.Sequential(nn.Conv2d(3, cfg.smooth, 3, padding=1), nn.SiLU(), last)

    def forward(self, pixels: Tensor, latents: Tensor) -> Tensor:
        h = self.before(self.enter(F.pixel_unshuffle(pixels, self.patch)))
        inner = self.down(h)
        for unit in self.inner:
            inner = unit(inner, latents)
        h = self.after(h + F.pixel_shuffle(self.up(inner), 2))
        pixels = pixels + F.pixel_shuffle(self.leave(h), self.patch)
        if self.fine is not None:
            pixels = pixels + self.fine(h, pixels)
        return pixels if self.smooth is None else pixels + self.smooth(pixels)

    def last_layer(self) -> nn.Parameter:
        return self.leave.weight if self.smooth is None else self.smooth[-1].weight


class _Unit(nn.Module):
    """Residual unit of two convolutions, each after GroupNorm and SiLU (He et al. 2016, arXiv:1603.05027).

    With a latent the second GroupNorm is modulated by it (Perez et al. 2018, arXiv:1709.07871, Eq. 1).
    """

    def __init__(self, width: int, latent_channels: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width), nn.SiLU(), _zeroed(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.modulate = _zeroed(nn.Linear(latent_channels, 2 * width)) if latent_channels else None

    def forward(self, x: Tensor, latents: Tensor | None = None) -> Tensor:
        if self.modulate is None:
            return x + self.body(x)
        shift, scale = self.modulate(latents)[:, :, None, None].chunk(2, dim=1)
        h = self.body[3](self.body[:3](x)) * (1 + scale) + shift
        return x + self.body[4:](h)


class _Fine(nn.Module):
    """Residual for the pixels from half of their resolution, initialized to zero.

    Without it every block of `patch` pixels is one linear map of one place of the network, and the seams of the
    blocks show as a pattern of dots.
    """

    def __init__(self, width: int, fine: int, patch: int) -> None:
        super().__init__()
        self.factor = patch // 2
        self.up = nn.Conv2d(width, fine * self.factor**2, 1)
        self.enter = nn.Conv2d(fine + 12, fine, 3, padding=1)
        self.unit = _Unit(fine)
        self.leave = _zeroed(nn.Conv2d(fine, 12, 3, padding=1))

    def forward(self, h: Tensor, pixels: Tensor) -> Tensor:
        seen = torch.cat([F.pixel_shuffle(self.up(h), self.factor), F.pixel_unshuffle(pixels, 2)], dim=1)
        return F.pixel_shuffle(self.leave(self.unit(self.enter(seen))), 2)


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
