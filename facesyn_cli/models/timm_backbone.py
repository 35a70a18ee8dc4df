"""Any image network of timm as a face recognizer; its classifier layer yields the embedding.

For training ViT-T and ViT-S (`vit_tiny_patch16_224`, `vit_small_patch16_224` at 112 px, better with patches of 8),
and for the weights of EdgeFace (George et al. 2023, arXiv:2307.01838), whose networks are timm's `edgenext_*`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError, did_you_mean, first_line
from facesyn_cli.models.recognizer import Recognizer
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class TimmConfig(PluginConfig):
    """Settings of `timm`."""

    model: str = affects_result("vit_tiny_patch16_224", "name of the network in timm; weights are never downloaded")
    img_size: int = affects_result(112, "side of the images, in pixels", ge=16)
    patch_size: int | None = affects_result(
        None, "side of a patch, for networks with patches; None: that of the model", ge=1
    )
    drop_path: float = affects_result(0.0, "probability of dropping a residual branch in training", ge=0, lt=1)
    embedding_size: int = affects_result(512, "size of an embedding", ge=1)


@register(
    "backbone", "timm",
    Card(about="A network of the package timm by name: ViT-T/S, EdgeFace's edgenext_*, ...; embedding not normalized",
         paper="Wightman 2019, PyTorch Image Models; see the network's own",
         input="RGB aligned to the ArcFace template, img_size, (x - 127.5) / 127.5",
         license="see the weights' own card"),
)
class TimmBackbone(Recognizer):
    """A network of timm with random weights; see `Recognizer`. Its images have the side `img_size`.

    Raises:
        UserError: timm is not installed, has no such network, or the network does not accept a setting.
    """

    def __init__(self, cfg: TimmConfig) -> None:
        super().__init__(cfg.embedding_size)
        self.input_size = cfg.img_size
        self.model = _create(cfg)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)


def _create(cfg: TimmConfig) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError("backbone timm needs a package that is not installed: pip install \"facesyn[timm]\"") from error
    if "/" in cfg.model or ":" in cfg.model or not timm.is_model(cfg.model):
        hint = did_you_mean(cfg.model, timm.list_models())
        raise UserError(f"backbone timm: timm {timm.__version__} has no network called {cfg.model!r}{hint}")
    settings: dict[str, Any] = {"num_classes": cfg.embedding_size}
    if getattr(timm.get_pretrained_cfg(cfg.model), "fixed_input_size", False):
        settings["img_size"] = cfg.img_size  # networks with grids or position tables of a fixed size
    if cfg.patch_size is not None:
        settings["patch_size"] = cfg.patch_size
    if cfg.drop_path:
        settings["drop_path_rate"] = cfg.drop_path
    try:
        return timm.create_model(cfg.model, pretrained=False, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"backbone timm: {cfg.model} cannot be built with {settings}: {first_line(error)}") from error
