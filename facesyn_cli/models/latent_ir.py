"""`latent-ir`: a small recognizer that reads latents of an autoencoder instead of pixels.

`train-identity` teaches it the embeddings of a recognizer of photos, `train-ldm` takes it as a judge of
predicted latents, which need not be decoded then. Its units are those of the IR networks; see `models/ir.py`.
"""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.ir import IrUnit, check_stages, lite_output_layer
from facesyn_cli.models.recognizer import Recognizer, RecognizerConfig, initialize
from facesyn_cli.plugins.registry import Card, register


class LatentIrConfig(RecognizerConfig):
    """Settings of `latent-ir`; the defaults cost 90 million multiply-adds per face and have 2.9 million parameters."""

    in_channels: int = affects_result(16, "channels of the latents: 16 for TAESD3, 3 for vq-f4", ge=1)
    latent_size: int = affects_result(14, "side of the latents: that of the image over the autoencoder's factor", ge=2)
    widths: tuple[int, ...] = affects_result(
        (64, 128, 256), "channels of the stages, increasing; each but the first halves the grid"
    )
    blocks: tuple[int, ...] = affects_result((2, 2, 2), "residual units of each stage")
    dropout: float = affects_result(0.2, "dropout before the last linear layer, in training", ge=0, lt=1)

    @model_validator(mode="after")
    def _has_stages(self) -> LatentIrConfig:
        check_stages(self.widths, self.blocks)
        return self


@register(
    "backbone", "latent-ir",
    Card("Recognizer of latents, for the identity loss of train-ldm; no stage that reads photos takes it",
         "units: Deng et al. 2019, arXiv:1801.07698; layout: this project",
         "latents (B, in_channels, latent_size, latent_size) as the autoencoder gives them"),
)
class LatentIr(Recognizer):
    """Latents to an embedding that is not normalized.

    The mean and standard deviation of each channel, by which latents are normalized, are part of the weights.

    Shapes: latents (B, in_channels, latent_size, latent_size) -> (B, embedding_size).
    """

    reads = "latents"
    hidden_layers = ("body",)

    def __init__(self, cfg: LatentIrConfig) -> None:
        super().__init__(cfg.embedding_size)
        self.in_channels, self.input_size = cfg.in_channels, cfg.latent_size
        self.register_buffer("mean", torch.zeros(cfg.in_channels, 1, 1))
        self.register_buffer("std", torch.ones(cfg.in_channels, 1, 1))
        before, side = cfg.widths[0], cfg.latent_size
        self.input_layer = nn.Sequential(
            nn.Conv2d(cfg.in_channels, before, 3, 1, 1, bias=False), nn.BatchNorm2d(before), nn.PReLU(before)
        )
        units = []
        for stage, (width, count) in enumerate(zip(cfg.widths, cfg.blocks, strict=True)):
            stride = 2 if stage else 1
            side = (side + stride - 1) // stride
            units += [IrUnit(before, width, stride, use_se=False, steps_first=True)]
            units += [IrUnit(width, width, 1, use_se=False) for _ in range(count - 1)]
            before = width
        self.body = nn.Sequential(*units)
        self.output_layer = lite_output_layer(before, side, cfg)
        initialize(self)
        nn.init.constant_(self.output_layer.pool.weight, 1 / side**2)  # initialized as an average

    def forward(self, latents: Tensor) -> Tensor:
        """Return embeddings (B, D).

        Raises:
            ValueError: The latents have another shape.
        """
        expected = (self.in_channels, self.input_size, self.input_size)
        if tuple(latents.shape[1:]) != expected:
            raise ValueError(f"expected latents (B, {', '.join(map(str, expected))}), got {tuple(latents.shape)}")
        return self.output_layer(self.body(self.input_layer((latents - self.mean) / self.std)))

    def normalize_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics (in_channels,) of the latents that it will read."""
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.view_as(self.std))
