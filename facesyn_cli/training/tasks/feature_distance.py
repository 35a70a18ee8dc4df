"""Distance of two faces in the feature maps and the embedding of a face recognizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.data.pixels import resize_pixels
from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import feature_maps, has_feature_maps, unit_distance, unit_maps


class FeatureDistance(nn.Module):
    """The perceptual distance of `models/feature_maps.py` and 1 - cosine of the embeddings, differentiable.

    Args:
        backbone: Recognizer, (B, 3, n, n) in [-1, 1] -> (B, E); it is frozen and stays in eval mode.
        input_size: Its n; images are resized to it.
        name: The setting and file it comes from, for messages.
        use_maps: Compare the feature maps.
        use_embeddings: Compare the embeddings.

    Raises:
        UserError: The network does not expose its feature maps.
    """

    def __init__(
        self, backbone: nn.Module, input_size: int, name: str, use_maps: bool = True, use_embeddings: bool = True
    ) -> None:
        super().__init__()
        if use_maps and not has_feature_maps(backbone):
            raise UserError(f"{name} does not expose its feature maps; ir, iresnet, mobilefacenet and timm "
                            "networks do, or set feature_weight=0 and identity_weight")
        self.backbone = backbone.eval().requires_grad_(False)
        self.input_size, self.use_maps, self.use_embeddings = input_size, use_maps, use_embeddings
        self._embeddings: Tensor | None = None
        self.backbone.register_forward_hook(self._keep)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in eval mode: the recognizer's running statistics never change."""
        return super().train(False)

    def forward(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return `feature` and `identity` as far as they are used, (B,) each, float32.

        Args:
            made: (B, 3, S, S) in about [-1, 1], gradients flow into it.
            real: (B, 3, S, S), taken as constant.
        """
        with torch.no_grad():
            real_maps, real_embeddings = self._extract(real)
        made_maps, made_embeddings = self._extract(made)
        distances = {}
        if self.use_maps:
            distances["feature"] = unit_distance(made_maps, real_maps)
        if self.use_embeddings:
            distances["identity"] = 1.0 - F.cosine_similarity(made_embeddings.float(), real_embeddings.float())
        return distances

    def _extract(self, pixels: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return the features of pixels (B, 3, S, S), in one pass.

        Maps, (B, C_l, H_l, W_l) each, of unit length over channels, and embeddings (B, E), not normalized; maps are
        empty where they are not used.
        """
        pixels = resize_pixels(pixels, self.input_size, antialias=True)
        self._embeddings = None
        maps = [unit_maps(x) for x in feature_maps(self.backbone, pixels)] if self.use_maps else []
        if self.use_embeddings and self._embeddings is None:
            self.backbone(pixels)
        embeddings, self._embeddings = self._embeddings, None
        return maps, embeddings

    def _keep(self, backbone: nn.Module, arguments: tuple, output: Tensor) -> None:
        self._embeddings = output
