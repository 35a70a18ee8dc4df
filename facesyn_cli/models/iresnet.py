"""IResNet face recognizers with the parameter names of ElasticFace and arcface_torch checkpoints.

Duta et al. 2020, arXiv:2004.04989; Deng et al. 2019, "ArcFace", arXiv:1801.07698. The published generator is
conditioned on embeddings of Boutros et al. 2022, "ElasticFace", arXiv:2109.09416. MagFace (Meng et al. 2021,
arXiv:2103.06627) has the same layers with another BatchNorm eps, and BGR pixels in [0, 1].
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.recognizer import ALIGNED_INPUT, INPUT_SIZE, Recognizer, RecognizerConfig, initialize
from facesyn_cli.plugins.registry import Card, register

WIDTHS = (64, 128, 256, 512)
Blocks = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # units of each of four stages
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
_MAGFACE_EPS = 2e-5  # of every BatchNorm


class IresnetConfig(RecognizerConfig):
    """Settings of `iresnet-<depth>`."""

    dropout: float = affects_result(0.0, "dropout before the last linear layer, in training", ge=0, lt=1)
    variant: Literal["magface"] | None = affects_result(
        None, "MagFace's network: BatchNorm eps 2e-5, pixels BGR in [0, 1]; None: ElasticFace's and InsightFace's"
    )
    channel_order: Literal["rgb", "bgr"] | None = affects_result(
        None, "channel order that the weights expect; None: bgr for the variant magface, else rgb"
    )


class IresnetBlocksConfig(IresnetConfig):
    """Settings of `iresnet`, for other depths."""

    blocks: Blocks = affects_result((3, 4, 14, 3), "residual units of each stage")


def _register_depths(build):
    for depth in BLOCKS:
        build = register("backbone", f"iresnet-{depth}", _card(f"IResNet-{depth}"))(build)
    return build


def _card(title: str) -> Card:
    return Card(about=f"{title} as ElasticFace and InsightFace's arcface_torch; embedding not normalized",
                paper="Duta et al. 2020, arXiv:2004.04989",
                input=ALIGNED_INPUT,
                license="ElasticFace weights: CC BY-NC-SA 4.0; InsightFace weights: non-commercial research")


@_register_depths
def build_iresnet(cfg: IresnetConfig) -> nn.Module:
    """Build `iresnet-<depth>` with random weights."""
    return IresnetBackbone(cfg, BLOCKS[int(cfg.name.rpartition("-")[2])])


@register("backbone", "iresnet", _card("IResNet with any number of units per stage"))
def build_iresnet_of_blocks(cfg: IresnetBlocksConfig) -> nn.Module:
    """Build an IResNet with any number of residual units per stage, with random weights."""
    return IresnetBackbone(cfg, cfg.blocks)


class IresnetBackbone(Recognizer):
    """Four stages of residual units; see `Recognizer`.

    Args:
        cfg: Settings.
        blocks: Residual units of the four stages; the first unit of each halves the grid.

    Attributes:
        is_magface: BatchNorms have eps 2e-5, and the weights expect pixels in [0, 1], by default BGR.
    """

    first_weight = "conv1.weight"
    hidden_layers = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, cfg: IresnetConfig, blocks: tuple[int, ...]) -> None:
        is_magface = cfg.variant == "magface"
        super().__init__(cfg.embedding_size, cfg.channel_order or ("bgr" if is_magface else "rgb"))
        self.is_magface = is_magface
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        before = WIDTHS[0]
        for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            units = [IresnetUnit(before if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{stage}", nn.Sequential(*units))
            before = width
        self.bn2 = nn.BatchNorm2d(before)
        self.dropout = nn.Dropout(cfg.dropout)
        self.fc = nn.Linear(before * (INPUT_SIZE // 16) ** 2, cfg.embedding_size)
        self.features = nn.BatchNorm1d(cfg.embedding_size)
        self.features.weight.requires_grad_(False)  # the scale of the embedding stays 1
        initialize(self)
        if is_magface:
            for layer in self.modules():
                if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    layer.eps = _MAGFACE_EPS

    def embed(self, pixels: Tensor) -> Tensor:
        pixels = (pixels + 1) / 2 if self.is_magface else pixels
        x = self.prelu(self.bn1(self.conv1(pixels)))                               # (B, 64, 112, 112)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))                  # (B, 512, 7, 7)
        return self.features(self.fc(self.dropout(self.bn2(x)).flatten(1)))


class IresnetUnit(nn.Module):
    """BN-Conv-BN-PReLU-Conv-BN, added to the input or, with a stride, to its 1x1 convolution."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(y) + (x if self.downsample is None else self.downsample(x))
