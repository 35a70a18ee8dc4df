"""Parts that the face recognizers (backbones) share: input, initialization, and their published state dict."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.convert.wrappers import MAGFACE
from facesyn_cli.plugins.settings import PluginConfig

INPUT_SIZE = 112  # side of the images, in pixels
ALIGNED_INPUT = "RGB 112 x 112 aligned to the ArcFace template, (x - 127.5) / 127.5"


class RecognizerConfig(PluginConfig):
    """The setting that all recognizers with our own layers share."""

    embedding_size: int = affects_result(512, "size of an embedding", ge=1)


class Recognizer(nn.Module):
    """Face pixels to an embedding that is not normalized; a subclass implements `embed`.

    Args:
        embedding_size: D, size of the embedding.
        channel_order: Channel order that the weights expect. Pixels are always RGB; "bgr" flips them.

    Shapes: pixels (B, 3, input_size, input_size), RGB in [-1, 1] -> (B, D).
    """

    input_size = INPUT_SIZE
    first_weight: str  # name of the weight of the first convolution; of networks with a setting `channel_order`

    def __init__(self, embedding_size: int, channel_order: Literal["rgb", "bgr"] = "rgb") -> None:
        super().__init__()
        self.embedding_size, self.channel_order = embedding_size, channel_order

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D).

        Raises:
            ValueError: The images have another size.
        """
        check_pixels(pixels, self.input_size)
        return self.embed(pixels.flip(1) if self.channel_order == "bgr" else pixels)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D) of pixels in the channel order of the weights."""
        raise NotImplementedError

    def state_in(self, channel_order: Literal["rgb", "bgr"]) -> dict[str, Tensor]:
        """Return the state dict of an equal network with another `channel_order`."""
        state = self.state_dict()
        if channel_order != self.channel_order:
            state[self.first_weight] = state[self.first_weight].flip(1)
        return state


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a recognizer's state dict as its published code writes it: RGB and flat; MagFace's under its wrapper, BGR.

    Read back by `models/convert`, it is the same network.

    Args:
        network: A recognizer whose own parameter names are the published ones.
    """
    if getattr(network, "is_magface", False):  # names and shapes are those of other IResNets, pixels and eps are not
        return {f"{MAGFACE}.module.{key}": value for key, value in network.state_in("bgr").items()}
    return network.state_in("rgb") if isinstance(network, Recognizer) else network.state_dict()


def check_pixels(pixels: Tensor, side: int) -> None:
    """Check the shape of a batch of face images.

    Raises:
        ValueError: The pixels are not (B, 3, side, side).
    """
    if tuple(pixels.shape[1:]) != (3, side, side):
        raise ValueError(f"expected pixels (B, 3, {side}, {side}), got {tuple(pixels.shape)}")


def initialize(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions and linear layers, biases 0, as in TFace; norms keep 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
