"""VQ-f4: the vector-quantized autoencoder of the published latent diffusion model, with its parameter names.

Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix (FFHQ 256, f = 4): latents have 3 channels and a quarter
of the side of the image. Quantization: van den Oord et al. 2017, arXiv:1711.00937, Eq. 1-2. As in LDM, `encode` returns
continuous latents and `decode` quantizes them.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.decoder_maps import inputs_of
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

NORM_GROUPS = 32
_ROWS = {"cpu": 16, "cuda": 2048}  # positions compared with the codebook at a time, by cache size


class CompvisConfig(PluginConfig):
    """Settings that `vq-f4`, `kl-f4` and `kl-f8` share."""

    channels: int = affects_result(128, "width of the first level", ge=NORM_GROUPS, multiple_of=NORM_GROUPS)
    multipliers: tuple[int, ...] = affects_result((1, 2, 4), "width of each level, relative to the first")
    num_blocks: int = affects_result(2, "residual blocks per level; the decoder has one more", ge=1)
    latent_channels: int = affects_result(3, "channels of a latent", ge=1)
    part: Literal["both", "encoder", "decoder"] = affects_result("both", "which half to build")

    @model_validator(mode="after")
    def _has_levels(self) -> CompvisConfig:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one or more numbers of at least 1, got {list(self.multipliers)}")
        return self


class VqConfig(CompvisConfig):
    """Settings of `vq-f4`; the defaults are the published FFHQ model."""

    codebook_size: int = affects_result(8192, "number of codes", ge=1)
    quantize: bool = affects_result(True, "quantize latents before decoding")


class CompvisAutoencoder(nn.Module):
    """Encoder and decoder with a 1x1 convolution behind the one and before the other.

    Args:
        cfg: Settings.
        inner: Channels between encoder and decoder and these convolutions.
        moments: 2 where the encoder predicts mean and log variance, else 1.

    Shapes: B batch, S image side, c latent channels, s = S / downscale.
    """

    def __init__(self, cfg: CompvisConfig, inner: int, moments: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.latent_channels = c = cfg.latent_channels
        self.downscale = 2 ** (len(cfg.multipliers) - 1)
        widths = [cfg.channels * m for m in cfg.multipliers]
        if cfg.part != "decoder":
            self.encoder = Encoder(widths, cfg.num_blocks, moments * inner)
            self.quant_conv = nn.Conv2d(moments * inner, moments * c, 1)
        if cfg.part != "encoder":
            self.decoder = Decoder(widths, cfg.num_blocks, inner)
            self.post_quant_conv = nn.Conv2d(c, inner, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the continuous latents (B, c, s, s) of pixels (B, 3, S, S) in [-1, 1].

        Raises:
            UserError: Only the decoder is loaded.
        """
        if self.cfg.part == "decoder":
            raise UserError(f"{self.cfg.name}: only the decoder was given; encoding images needs the encoder too")
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about [-1, 1] and not clamped, of latents (B, c, s, s).

        Raises:
            UserError: Only the encoder is loaded.
        """
        self._check_decoder()
        return self.decoder(self.post_quant_conv(latents))

    def decoder_maps(self, latents: Tensor, count: int) -> list[Tensor]:
        """Return feature maps of the decoder, of latents that are not quantized; see `models/interfaces.py`.

        Raises:
            UserError: Only the encoder is loaded.
        """
        self._check_decoder()
        enlarging = [stage.upsample for stage in reversed(self.decoder.up) if hasattr(stage, "upsample")]
        return inputs_of(enlarging[:count], lambda: self.decoder(self.post_quant_conv(latents)))

    def _check_decoder(self) -> None:
        if self.cfg.part == "encoder":
            raise UserError(f"{self.cfg.name}: only the encoder was given; decoding latents needs the decoder too")


@register(
    "autoencoder", "vq-f4",
    Card(about="Vector-quantized autoencoder of the FFHQ latent diffusion model: 3 x S/4 x S/4 latents",
         paper="Rombach et al. 2022, arXiv:2112.10752", input="RGB in [-1, 1], side divisible by 4; published use 128",
         license="CompVis latent-diffusion weights: MIT; trained on FFHQ (non-commercial)"),
)
class VqF4(CompvisAutoencoder):
    """Pixels to continuous latents, and back over the codebook; with random weights."""

    def __init__(self, cfg: VqConfig) -> None:
        super().__init__(cfg, cfg.latent_channels, moments=1)
        if cfg.part != "encoder":
            self.quantize = Codebook(cfg.codebook_size, cfg.latent_channels)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels of the quantized latents; see `CompvisAutoencoder.decode`."""
        if self.cfg.quantize and self.cfg.part != "encoder":
            latents = self.quantize(latents)[0]
        return super().decode(latents)


class Codebook(nn.Module):
    """Replace each position by the nearest code in squared Euclidean distance, the first one of ties."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantized latents (B, c, H, W) and code indices (B, H, W)."""
        rows = latents.movedim(1, -1)                                              # (B, H, W, c)
        flat = rows.reshape(-1, rows.shape[-1])
        at_once = len(flat) if torch.compiler.is_compiling() else _ROWS.get(rows.device.type, 2048)
        indices = torch.cat([self._nearest(part) for part in flat.split(at_once)])
        indices = indices.view(rows.shape[:-1])                                    # (B, H, W)
        return self.embedding(indices).movedim(-1, 1).contiguous(), indices

    def _nearest(self, rows: Tensor) -> Tensor:
        """Return the index of the nearest code of each row (N, c).

        Computed from differences instead of |z|^2 - 2 z e + |e|^2: without cancellation and matmul, so the result does
        not depend on the batch or the matmul precision of the device.
        """
        codes, rows = self.embedding.weight.float(), rows.float()
        distance = torch.zeros(len(rows), len(codes), device=rows.device)
        for channel in range(rows.shape[1]):
            distance += (rows[:, channel, None] - codes[:, channel]).square_()
        return distance.argmin(dim=1)


class Encoder(nn.Module):
    """Pixels (B, 3, S, S) to features (B, c, s, s)."""

    def __init__(self, widths: list[int], num_blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(itertools.pairwise([widths[0], *widths])):
            stage = nn.Module()
            stage.block = _blocks(before, width, num_blocks)
            if level + 1 < len(widths):
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.conv_in(pixels)
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (B, c, s, s) to pixels (B, 3, S, S)."""

    def __init__(self, widths: list[int], num_blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # index 0 is the finest level, as published; run from the last to the first
        for level, (width, before) in enumerate(itertools.pairwise([*widths, widths[-1]])):
            stage = nn.Module()
            stage.block = _blocks(before, width, num_blocks + 1)
            if level:
                stage.upsample = Upsample(width)
            self.up.append(stage)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latents))
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Middle(nn.Module):
    """Residual block, single-head attention, residual block at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = Residual(width, width)
        self.attn_1 = PositionAttention(width)
        self.block_2 = Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Residual(nn.Module):
    """Two rounds of norm, swish and 3x3 convolution, added to the input."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class PositionAttention(nn.Module):
    """Residual single-head self-attention over positions: softmax(q k^T / sqrt(C)) v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]                          # (B, H*W, C)
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Pad one row at the bottom and one column at the right, then apply a strided 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by 2, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _blocks(before: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Residual(before if i == 0 else width, width) for i in range(count))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)
