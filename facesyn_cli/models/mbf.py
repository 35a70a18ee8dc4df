"""MobileFaceNet of InsightFace's arcface_torch (`mbf`, `mbf_large`), with the parameter names of its checkpoints.

Chen et al. 2018, "MobileFaceNets", arXiv:1804.07573, with wider stages than the paper's and TFace's.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.recognizer_parts import ALIGNED_INPUT, INPUT_SIZE, check_pixels, initialize
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

Blocks = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # units of each of four stages
BLOCKS = {"mbf": ((1, 4, 6, 2), 2), "mbf-large": ((2, 8, 12, 4), 4)}  # name -> (units of each stage, scale)
_CARD = {
    "paper": "Chen et al. 2018, arXiv:1804.07573",
    "input": ALIGNED_INPUT,
    "license": "InsightFace weights: non-commercial research",
}


class MbfConfig(PluginConfig):
    """Settings of `mbf`."""

    embedding_size: int = affects_result(512, "size of an embedding", ge=1)
    blocks: Blocks = affects_result(BLOCKS["mbf"][0], "units of each stage; a stem of 1: one convolution")
    scale: int = affects_result(BLOCKS["mbf"][1], "factor of the width of all stages", ge=1)


class MbfLargeConfig(MbfConfig):
    """Settings of `mbf-large`."""

    blocks: Blocks = affects_result(BLOCKS["mbf-large"][0], "units of each stage")
    scale: int = affects_result(BLOCKS["mbf-large"][1], "factor of the width of all stages", ge=1)


@register("backbone", "mbf", Card("MobileFaceNet of arcface_torch; embedding not normalized", **_CARD))
def build_mbf(cfg: MbfConfig) -> nn.Module:
    """Build the network with random weights."""
    return Mbf(cfg.blocks, cfg.scale, cfg.embedding_size)


@register("backbone", "mbf-large", Card("arcface_torch's larger MobileFaceNet; embedding not normalized", **_CARD))
def build_mbf_large(cfg: MbfLargeConfig) -> nn.Module:
    """Build the network with random weights."""
    return Mbf(cfg.blocks, cfg.scale, cfg.embedding_size)


class Mbf(nn.Module):
    """Face pixels to an embedding that is not normalized.

    Args:
        blocks: Units of the stem and of the three stages; a stem of 1 is one grouped convolution.
        scale: Factor of the widths.
        embedding_size: Size of the embedding.

    Shapes: pixels (B, 3, 112, 112), RGB in [-1, 1] -> (B, embedding_size).
    """

    input_size = INPUT_SIZE

    def __init__(self, blocks: tuple[int, ...], scale: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        narrow, wide = 64 * scale, 128 * scale
        stem = _convolution(narrow, narrow, 3, 1, 64) if blocks[0] == 1 else _Residual(narrow, 128, blocks[0])
        self.layers = nn.Sequential(
            _convolution(3, narrow, 3, 2),                                         # side 56
            stem,
            _DepthWise(narrow, 128, narrow, 2),                                    # side 28
            _Residual(narrow, 128, blocks[1]),
            _DepthWise(narrow, 256, wide, 2),                                      # side 14
            _Residual(wide, 256, blocks[2]),
            _DepthWise(wide, 512, wide, 2),                                        # side 7
            _Residual(wide, 256, blocks[3]),
        )
        self.conv_sep = _convolution(wide, 512, 1)
        self.features = _Layers(
            _convolution(512, 512, 7, 1, 512, padding=0, has_prelu=False),         # side 1
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, embedding_size).

        Raises:
            ValueError: The pixels are not 112 x 112.
        """
        check_pixels(pixels)
        return self.features(self.conv_sep(self.layers(pixels)))


class _Layers(nn.Module):
    """A sequence of modules under the name `layers`, as in the published state dict."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _DepthWise(_Layers):
    """1x1 to `middle` channels, depthwise 3x3 with `stride`, 1x1 to `width` without activation."""

    def __init__(self, before: int, middle: int, width: int, stride: int) -> None:
        super().__init__(_convolution(before, middle, 1),
                         _convolution(middle, middle, 3, stride, middle),
                         _convolution(middle, width, 1, has_prelu=False))


class _Residual(_Layers):
    """`count` depthwise units, each added to its input."""

    def __init__(self, width: int, middle: int, count: int) -> None:
        super().__init__(*(_DepthWise(width, middle, width, 1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.layers:
            x = x + unit(x)
        return x


def _convolution(
    before: int, width: int, side: int, stride: int = 1, groups: int = 1, padding: int | None = None,
    has_prelu: bool = True,
) -> _Layers:
    """Return a convolution without bias, BatchNorm and PReLU; `padding` None: half the side."""
    padding = side // 2 if padding is None else padding
    layers: list[nn.Module] = [
        nn.Conv2d(before, width, side, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(width)
    ]
    return _Layers(*layers, *([nn.PReLU(width)] if has_prelu else []))
