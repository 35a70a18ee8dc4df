"""MobileFaceNet of TFace, with the parameter names of its checkpoints.

Chen et al. 2018, "MobileFaceNets", arXiv:1804.07573, Table 1: inverted residual blocks, and a 7x7 depthwise
convolution instead of global average pooling.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.recognizer_parts import ALIGNED_INPUT, INPUT_SIZE, check_pixels, initialize
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class MobileFaceNetConfig(PluginConfig):
    """Settings of `mobilefacenet`."""

    embedding_size: int = affects_result(512, "size of an embedding", ge=1)


@register(
    "backbone", "mobilefacenet",
    Card(about="MobileFaceNet of TFace, one million parameters; embedding not normalized",
         paper="Chen et al. 2018, arXiv:1804.07573", input=ALIGNED_INPUT),
)
def build_mobilefacenet(cfg: MobileFaceNetConfig) -> nn.Module:
    """Build the network with random weights."""
    return MobileFaceNet(cfg.embedding_size)


class MobileFaceNet(nn.Module):
    """Face pixels to an embedding that is not normalized.

    Args:
        embedding_size: Size of the embedding.

    Shapes: pixels (B, 3, 112, 112) in [-1, 1] -> (B, embedding_size).
    """

    input_size = INPUT_SIZE

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.conv1 = _convolution(3, 64, 3, stride=2, padding=1)                   # side 56
        self.conv2_dw = _convolution(64, 64, 3, padding=1, groups=64)
        self.conv_23 = InvertedBlock(64, 128, 64, stride=2)                        # side 28
        self.conv_3 = Residuals(64, 128, 4)
        self.conv_34 = InvertedBlock(64, 256, 128, stride=2)                       # side 14
        self.conv_4 = Residuals(128, 256, 6)
        self.conv_45 = InvertedBlock(128, 512, 128, stride=2)                      # side 7
        self.conv_5 = Residuals(128, 256, 2)
        self.conv_6_sep = _convolution(128, 512, 1)
        self.output_layer = nn.Sequential(
            OrderedDict(
                conv_6_dw=_convolution(512, 512, 7, groups=512, has_prelu=False),  # side 1
                flatten=nn.Flatten(),
                linear=nn.Linear(512, embedding_size, bias=False),
                bn=nn.BatchNorm1d(embedding_size, affine=False),
            )
        )
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, embedding_size).

        Raises:
            ValueError: The pixels are not 112 x 112.
        """
        check_pixels(pixels)
        x = self.conv2_dw(self.conv1(pixels))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        return self.output_layer(self.conv_6_sep(x))


class InvertedBlock(nn.Module):
    """1x1 to `expanded` channels, depthwise 3x3 with `stride`, 1x1 to `width` without activation."""

    def __init__(self, before: int, expanded: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _convolution(before, expanded, 1)
        self.conv_dw = _convolution(expanded, expanded, 3, stride=stride, padding=1, groups=expanded)
        self.project = _convolution(expanded, width, 1, has_prelu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.conv_dw(self.conv(x)))


class Residuals(nn.Module):
    """Inverted blocks, each added to its input."""

    def __init__(self, width: int, expanded: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(InvertedBlock(width, expanded, width) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.model:
            x = x + block(x)
        return x


def _convolution(
    before: int, width: int, side: int, stride: int = 1, padding: int = 0, groups: int = 1, has_prelu: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm and PReLU."""
    layers = OrderedDict(
        conv=nn.Conv2d(before, width, side, stride, padding, groups=groups, bias=False), bn=nn.BatchNorm2d(width)
    )
    if has_prelu:
        layers["prelu"] = nn.PReLU(width)
    return nn.Sequential(layers)
