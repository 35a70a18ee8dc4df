"""MobileFaceNets of TFace (`mobilefacenet`) and of InsightFace's arcface_torch (`mbf`, `mbf-large`).

Chen et al. 2018, "MobileFaceNets", arXiv:1804.07573, Table 1: inverted residual blocks, and a 7x7 depthwise convolution
instead of global average pooling. Parameter names are those of the checkpoints; the stages of `mbf` are wider than the
paper's and TFace's.
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import PositiveInt
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.recognizer import ALIGNED_INPUT, Recognizer, RecognizerConfig, initialize
from facesyn_cli.plugins.registry import Card, register

Blocks = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # units of each of four stages
MBF_BLOCKS = {"mbf": ((1, 4, 6, 2), 2), "mbf-large": ((2, 8, 12, 4), 4)}  # name -> (units of each stage, scale)
_PAPER = "Chen et al. 2018, arXiv:1804.07573"
_INSIGHTFACE = "InsightFace weights: non-commercial research"


class MbfConfig(RecognizerConfig):
    """Settings of `mbf`."""

    blocks: Blocks = affects_result(MBF_BLOCKS["mbf"][0], "units of each stage; a stem of 1: one convolution")
    scale: int = affects_result(MBF_BLOCKS["mbf"][1], "factor of the width of all stages", ge=1)


class MbfLargeConfig(MbfConfig):
    """Settings of `mbf-large`."""

    blocks: Blocks = affects_result(MBF_BLOCKS["mbf-large"][0], "units of each stage")
    scale: int = affects_result(MBF_BLOCKS["mbf-large"][1], "factor of the width of all stages", ge=1)


@register(
    "backbone", "mobilefacenet",
    Card("MobileFaceNet of TFace, one million parameters; embedding not normalized", _PAPER, ALIGNED_INPUT),
)
class MobileFaceNet(Recognizer):
    """TFace's network, with random weights; see `Recognizer`."""

    hidden_layers = ("conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5", "conv_6_sep")

    def __init__(self, cfg: RecognizerConfig) -> None:
        super().__init__(cfg.embedding_size)
        self.conv1 = _named_convolution(3, 64, 3, stride=2, padding=1)             # side 56
        self.conv2_dw = _named_convolution(64, 64, 3, padding=1, groups=64)
        self.conv_23 = _InvertedBlock(64, 128, 64, stride=2)                       # side 28
        self.conv_3 = _Residuals(64, 128, 4)
        self.conv_34 = _InvertedBlock(64, 256, 128, stride=2)                      # side 14
        self.conv_4 = _Residuals(128, 256, 6)
        self.conv_45 = _InvertedBlock(128, 512, 128, stride=2)                     # side 7
        self.conv_5 = _Residuals(128, 256, 2)
        self.conv_6_sep = _named_convolution(128, 512, 1)
        self.output_layer = nn.Sequential(OrderedDict(
            conv_6_dw=_named_convolution(512, 512, 7, groups=512, has_prelu=False),  # side 1
            flatten=nn.Flatten(),
            linear=nn.Linear(512, cfg.embedding_size, bias=False),
            bn=nn.BatchNorm1d(cfg.embedding_size, affine=False),
        ))
        initialize(self)

    def embed(self, pixels: Tensor) -> Tensor:
        x = self.conv2_dw(self.conv1(pixels))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        return self.output_layer(self.conv_6_sep(x))


class _InvertedBlock(nn.Module):
    """1x1 to `expanded` channels, depthwise 3x3 with `stride`, 1x1 to `width` without activation."""

    def __init__(self, before: int, expanded: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _named_convolution(before, expanded, 1)
        self.conv_dw = _named_convolution(expanded, expanded, 3, stride=stride, padding=1, groups=expanded)
        self.project = _named_convolution(expanded, width, 1, has_prelu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.conv_dw(self.conv(x)))


class _Residuals(nn.Module):
    """Inverted blocks, each added to its input."""

    def __init__(self, width: int, expanded: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(_InvertedBlock(width, expanded, width) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.model:
            x = x + block(x)
        return x


def _named_convolution(
    before: int, width: int, side: int, stride: int = 1, padding: int = 0, groups: int = 1, has_prelu: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm and PReLU."""
    layers = OrderedDict(
        conv=nn.Conv2d(before, width, side, stride, padding, groups=groups, bias=False), bn=nn.BatchNorm2d(width)
    )
    if has_prelu:
        layers["prelu"] = nn.PReLU(width)
    return nn.Sequential(layers)


@register(
    "backbone", "mbf",
    Card("MobileFaceNet of arcface_torch; embedding not normalized", _PAPER, ALIGNED_INPUT, _INSIGHTFACE),
)
class Mbf(Recognizer):
    """arcface_torch's network, with random weights; see `Recognizer`."""

    hidden_layers = (*(f"layers.{place}" for place in range(1, 8)), "conv_sep")

    def __init__(self, cfg: MbfConfig) -> None:
        super().__init__(cfg.embedding_size)
        narrow, wide, units = 64 * cfg.scale, 128 * cfg.scale, cfg.blocks
        stem = _convolution(narrow, narrow, 3, 1, 64) if units[0] == 1 else _Residual(narrow, 128, units[0])
        self.layers = nn.Sequential(
            _convolution(3, narrow, 3, 2),                                         # side 56
            stem,
            _DepthWise(narrow, 128, narrow, 2),                                    # side 28
            _Residual(narrow, 128, units[1]),
            _DepthWise(narrow, 256, wide, 2),                                      # side 14
            _Residual(wide, 256, units[2]),
            _DepthWise(wide, 512, wide, 2),                                        # side 7
            _Residual(wide, 256, units[3]),
        )
        self.conv_sep = _convolution(wide, 512, 1)
        self.features = _Layers(
            _convolution(512, 512, 7, 1, 512, padding=0, has_prelu=False),         # side 1
            nn.Flatten(),
            nn.Linear(512, cfg.embedding_size, bias=False),
            nn.BatchNorm1d(cfg.embedding_size),
        )
        initialize(self)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.features(self.conv_sep(self.layers(pixels)))


@register(
    "backbone", "mbf-large",
    Card("arcface_torch's larger MobileFaceNet; embedding not normalized", _PAPER, ALIGNED_INPUT, _INSIGHTFACE),
)
def build_mbf_large(cfg: MbfLargeConfig) -> Mbf:
    """Build the network with random weights."""
    return Mbf(cfg)


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
