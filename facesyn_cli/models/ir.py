"""IR and IR-SE face recognizers with the parameter names of TFace's checkpoints, and their variants.

Residual units after Deng et al. 2019, "ArcFace", arXiv:1801.07698, section 2.2.1 ("improved residual unit":
BN-Conv-BN-PReLU-Conv-BN); squeeze and excitation: Hu et al. 2018, arXiv:1709.01507, Eq. 2-4.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.recognizer import ALIGNED_INPUT, INPUT_SIZE, Recognizer, RecognizerConfig, initialize
from facesyn_cli.plugins.registry import Card, register

WIDTHS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}
BOTTLENECK_WIDTHS = (256, 512, 1024, 2048)
BOTTLENECK_BLOCKS = {152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
SE_REDUCTION, _REDUCTION = 16, 4  # of squeeze and excitation, and of bottleneck units


def check_stages(widths: Sequence[int], blocks: Sequence[int]) -> None:
    """Check the channels and the residual units of the stages of a network.

    Raises:
        ValueError: They do not make stages of increasing width.
    """
    if not widths or len(widths) != len(blocks):
        raise ValueError(f"widths {list(widths)} and blocks {list(blocks)} must have the same length, at least 1")
    if min(widths) < 1 or any(b <= a for a, b in itertools.pairwise(widths)):
        raise ValueError(f"widths must increase from stage to stage, got {list(widths)}")
    if min(blocks) < 1:
        raise ValueError(f"blocks must be 1 or more, got {list(blocks)}")


class IrBaseConfig(RecognizerConfig):
    """Settings of all IR networks."""

    dropout: float = affects_result(0.4, "dropout before the last linear layer, in training", ge=0, lt=1)
    channel_order: Literal["rgb", "bgr"] = affects_result("rgb", "channel order that the weights expect; AdaFace: bgr")

    @model_validator(mode="after")
    def _has_stages(self) -> IrBaseConfig:
        if "widths" in type(self).model_fields:
            check_stages(self.widths, self.blocks)
        return self


class IrConfig(IrBaseConfig):
    """Settings of `ir-<depth>` and `ir-se-<depth>`."""

    variant: Literal["curricularface", "face-evolve"] | None = affects_result(
        None, "architecture of the CurricularFace repository (no BatchNorm before the PReLU of a unit), or of "
        "face.evoLVe (the same, and an affine last BatchNorm); None: of TFace and AdaFace"
    )

    @model_validator(mode="after")
    def _has_variants(self) -> IrConfig:
        if self.variant is not None and self.name.endswith(tuple(f"-{depth}" for depth in BOTTLENECK_BLOCKS)):
            raise ValueError(f"{self.name} has bottleneck units, which have no variants")
        return self


class IrTinyConfig(IrConfig):
    """Settings of `ir-tiny`; the defaults cost 27 million multiply-adds per image."""

    dropout: float = affects_result(0.0, "dropout before the last linear layer, in training", ge=0, lt=1)
    widths: tuple[int, ...] = affects_result(
        (16, 32, 64, 128), "channels of the stages, increasing; each halves the grid"
    )
    blocks: tuple[int, ...] = affects_result((1, 1, 1, 1), "residual units of each stage")
    stem_stride: int = affects_result(2, "stride of the first convolution, 1 or 2", ge=1, le=2)


class IrLiteConfig(IrBaseConfig):
    """Settings of `ir-lite`; the defaults cost 90 million multiply-adds per image and have 1.4 million parameters."""

    dropout: float = affects_result(0.0, "dropout before the last linear layer, in training", ge=0, lt=1)
    widths: tuple[int, ...] = affects_result((32, 80, 192), "channels of the stages, increasing; each halves the grid")
    blocks: tuple[int, ...] = affects_result((1, 1, 2), "residual units of each stage")


def _register_depths(build):
    for depth in (*BLOCKS, *BOTTLENECK_BLOCKS):
        plain = f"IR-{depth} as TFace trains it; embedding not normalized"
        squeezed = f"IR-{depth} with squeeze and excitation, as TFace"
        paper = "Deng et al. 2019, arXiv:1801.07698"
        build = register("backbone", f"ir-{depth}", Card(plain, paper, ALIGNED_INPUT))(build)
        build = register("backbone", f"ir-se-{depth}", Card(squeezed, paper, ALIGNED_INPUT))(build)
    return build


@_register_depths
def build_ir(cfg: IrConfig) -> nn.Module:
    """Build `ir-<depth>` or `ir-se-<depth>` with random weights."""
    depth = int(cfg.name.rpartition("-")[2])
    use_se = cfg.name.startswith("ir-se-")
    if depth in BOTTLENECK_BLOCKS:
        return IrBackbone(cfg, BOTTLENECK_WIDTHS, BOTTLENECK_BLOCKS[depth], use_se=use_se, reduction=_REDUCTION)
    return IrBackbone(cfg, WIDTHS, BLOCKS[depth], use_se=use_se)


@register("backbone", "ir-tiny", Card("Small IR network for demonstrations and tests", "this project", ALIGNED_INPUT))
def build_ir_tiny(cfg: IrTinyConfig) -> nn.Module:
    """Build the network with random weights."""
    return IrBackbone(cfg, cfg.widths, cfg.blocks, cfg.stem_stride)


@register("backbone", "ir-lite", Card("IR network for CPUs, as fast as EdgeFace-XXS", "this project", ALIGNED_INPUT))
def build_ir_lite(cfg: IrLiteConfig) -> nn.Module:
    """Build the network with random weights."""
    return IrBackbone(cfg, cfg.widths, cfg.blocks, stem_stride=2, is_lite=True)


class IrBackbone(Recognizer):
    """Stages of residual units; see `Recognizer`.

    Args:
        cfg: Settings. The variant "curricularface" has units without BatchNorm before their PReLU, "face-evolve" such
            units and an affine last BatchNorm.
        widths: Channels of each stage.
        blocks: Residual units of each stage; the first unit halves the grid.
        stem_stride: Stride of the first convolution.
        use_se: End each unit with squeeze and excitation.
        is_lite: The fast layout: units have their stride in the first convolution, and a depthwise convolution over the
            last grid (Chen et al. 2018, arXiv:1804.07573, section 3.1) replaces the linear layer over it. The last
            BatchNorm is affine, so that embeddings can have any mean, such as that of a teacher.
        reduction: Above 1: bottleneck units, whose 3x3 convolution has width // reduction channels, as has the stem.
    """

    first_weight = "input_layer.0.weight"
    hidden_layers = ("body",)

    def __init__(
        self, cfg: IrConfig | IrLiteConfig, widths: tuple[int, ...], blocks: tuple[int, ...], stem_stride: int = 1,
        use_se: bool = False, is_lite: bool = False, reduction: int = 1,
    ) -> None:
        super().__init__(cfg.embedding_size, cfg.channel_order)
        variant = getattr(cfg, "variant", None)
        before = widths[0] // reduction
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, before, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(before), nn.PReLU(before)
        )
        side = final_side(stem_stride, len(widths))
        self.output_layer = (
            lite_output_layer(widths[-1], side, cfg) if is_lite
            else _output_layer(widths[-1], side, cfg, is_affine=variant == "face-evolve")
        )
        units: list[nn.Module] = []
        for width, count in zip(widths, blocks, strict=True):
            for unit in range(count):
                stride = 2 if unit == 0 else 1
                units.append(
                    IrUnit(before, width, stride, use_se, is_lite, has_middle_norm=variant is None) if reduction == 1
                    else IrBottleneck(before, width, stride, use_se, reduction)
                )
                before = width
        self.body = nn.Sequential(*units)
        initialize(self)
        if is_lite:
            nn.init.constant_(self.output_layer.pool.weight, 1 / side**2)  # initialized as an average

    def embed(self, pixels: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(pixels)))


class IrUnit(nn.Module):
    """BN-Conv-BN-PReLU-Conv-BN (and squeeze and excitation), added to a shortcut.

    Args:
        before: Channels of the input.
        width: Channels of the output.
        stride: Stride of the unit; 2 halves the grid.
        steps_first: The stride is in the first convolution, which is faster; published networks have it in the second.
        has_middle_norm: There is a BN between the first convolution and the PReLU; without it, the index names of the
            layers include squeeze and excitation.
    """

    def __init__(
        self, before: int, width: int, stride: int, use_se: bool, steps_first: bool = False,
        has_middle_norm: bool = True,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if steps_first else (1, stride)
        self.shortcut_layer = _shortcut(before, width, stride)
        layers = [
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, first, 1, bias=False),
            *([nn.BatchNorm2d(width)] if has_middle_norm else []),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, second, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.res_layer = nn.Sequential(*layers)
        if use_se:
            self.res_layer.add_module("se_block" if has_middle_norm else str(len(layers)), SqueezeExcite(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class IrBottleneck(nn.Module):
    """The unit of IR-152 and IR-200: 1x1, 3x3 and 1x1 convolutions, each after a BN, added to a shortcut.

    Widths, blocks and the reduction of 4 are published. The stride in the last convolution, as in `IrUnit`, and the
    PReLU after each of the first two convolutions were not checked against a second source. Files with another order of
    layers do not load; another place of the stride would go unnoticed. Arguments are those of `IrUnit`; there are width
    // reduction channels between the 1x1 convolutions.
    """

    def __init__(self, before: int, width: int, stride: int, use_se: bool, reduction: int) -> None:
        super().__init__()
        inner = width // reduction
        self.shortcut_layer = _shortcut(before, width, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, inner, 1, 1, 0, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
            nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
            nn.Conv2d(inner, width, 1, stride, 0, bias=False),
            nn.BatchNorm2d(width),
        )
        if use_se:
            self.res_layer.add_module("se_block", SqueezeExcite(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


def _shortcut(before: int, width: int, stride: int) -> nn.Module:
    if before == width:
        return nn.MaxPool2d(1, stride)
    return nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class SqueezeExcite(nn.Module):
    """Scale each channel by sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // SE_REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(width // SE_REDUCTION, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def _output_layer(width: int, side: int, cfg: IrBaseConfig, is_affine: bool) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width),
                         nn.Dropout(cfg.dropout),
                         nn.Flatten(),
                         nn.Linear(width * side * side, cfg.embedding_size),
                         nn.BatchNorm1d(cfg.embedding_size, affine=is_affine))


def lite_output_layer(width: int, side: int, cfg: Any) -> nn.Sequential:
    """Return the layers from a grid (B, width, side, side) to embeddings; `cfg` has `dropout` and `embedding_size`."""
    return nn.Sequential(OrderedDict(
        pool=nn.Conv2d(width, width, side, groups=width, bias=False),
        norm=nn.BatchNorm2d(width),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(cfg.dropout),
        linear=nn.Linear(width, cfg.embedding_size, bias=False),
        embedding_norm=nn.BatchNorm1d(cfg.embedding_size),
    ))


def final_side(stem_stride: int, num_stages: int) -> int:
    """Return the side of the last feature grid; strided 3x3 convolutions round up."""
    side = INPUT_SIZE // stem_stride
    for _ in range(num_stages):
        side = (side + 1) // 2
    return side
