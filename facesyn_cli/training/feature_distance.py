"""How far two faces are from each other in the eyes of a face recogniser, differentiably.

Zhang et al. 2018, arXiv:1801.03924, Eq. 1 with w = 1, on the recogniser's own feature maps:

    d(x, y) = sum over layers l of  mean over positions of  || f_l(x) / ||f_l(x)|| - f_l(y) / ||f_l(y)|| ||^2

with norms over channels; and 1 - cosine of the final embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.data.pixels import resize_pixels
from facesyn_cli.errors import UserError

_SMALLEST_MAP = 4  # positions on a side; smaller maps say little about where things are
_EPS = 1e-10


class FeatureDistance(nn.Module):
    """Distances between images in the feature maps and embeddings of a recogniser.

    Of every resolution in the network the last map is taken that a block or stage (a module with parts) returns.

    Args:
        backbone: Recogniser, (B, 3, n, n) in [-1, 1] -> (B, E); it is frozen and stays in eval mode.
        input_size: Its n.
        name: Name of the recogniser for messages.
        use_maps: Whether the maps are needed; without them any recogniser will do.

    Raises:
        UserError: Maps are needed and the network has them at fewer than two resolutions.
    """

    def __init__(self, backbone: nn.Module, input_size: int, name: str, use_maps: bool = True) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.input_size = input_size
        self._maps: dict[str, Tensor] = {}
        self._layers: tuple[str, ...] = ()
        if use_maps:
            self._layers = _last_of_each_size(self.backbone, input_size)
            if len(self._layers) < 2:
                raise UserError(f"{name} has feature maps at {len(self._layers)} resolutions, at least 2 are needed; "
                                "use feature_weight=0 with identity_weight, or another recogniser")
            modules = dict(self.backbone.named_modules())
            for layer in self._layers:
                modules[layer].register_forward_hook(self._keeper(layer))

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in eval mode: running statistics of the recogniser never move."""
        return super().train(False)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (distance of the maps, 1 - cosine of the embeddings), (B,) each, float32.

        Args:
            made: (B, 3, S, S), gradients flow into it.
            real: (B, 3, S, S), taken as constant.
        """
        with torch.no_grad():
            real_maps, real_embeddings = self._look(real)
        maps, embeddings = self._look(made)
        pairs = zip(maps, real_maps, strict=True)
        distance = sum((unit_distance(a, b) for a, b in pairs), torch.zeros(len(made), device=made.device))
        return distance, 1.0 - F.cosine_similarity(embeddings, real_embeddings)

    def _look(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        embeddings = self.backbone(resize_pixels(pixels, self.input_size, antialias=True))
        maps = [self._maps.pop(layer) for layer in self._layers]
        return maps, embeddings.float()

    def _keeper(self, layer: str):
        def keep(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            self._maps[layer] = output

        return keep


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return (B,): squared distance of channel vectors of length 1, mean over the positions of (B, C, H, W)."""
    difference = F.normalize(a.float(), dim=1, eps=_EPS) - F.normalize(b.float(), dim=1, eps=_EPS)
    return (difference**2).sum(dim=1).mean(dim=(1, 2))


@torch.no_grad()
def _last_of_each_size(backbone: nn.Module, input_size: int) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are the last (B, C, n, n) of each n, large n first."""
    found: dict[int, str] = {}

    def note(name: str):
        def look(module: nn.Module, arguments: tuple, output: object) -> None:
            if torch.is_tensor(output) and output.ndim == 4 and output.shape[2] == output.shape[3] >= _SMALLEST_MAP:
                found[output.shape[2]] = name

        return look

    parts = [(name, module) for name, module in backbone.named_modules() if name and _has_parts(module.children())]
    hooks = [module.register_forward_hook(note(name)) for name, module in parts]
    try:
        backbone(torch.zeros(1, 3, input_size, input_size))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found[size] for size in sorted(found, reverse=True))


def _has_parts(children: Iterable[nn.Module]) -> bool:
    return next(iter(children), None) is not None
