"""An ONNX recognizer as differentiable torch operations with feature maps, for losses.

`models/onnx_backbone.py` is faster if only embeddings are needed. onnxruntime folds constants (dequantized weights,
scales after convolutions), onnx2torch converts the remaining graph to modules, and the result is verified on a test
image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError, first_line
from facesyn_cli.models.onnx_backbone import OnnxBackbone
from facesyn_cli.models.onnx_files import OnnxFile, missing_packages, open_session

_TOLERANCE = 1e-3  # relative to the standard deviation of the embedding; both sides compute in float32


class OnnxTorch(nn.Module):
    """The network of an `OnnxBackbone`, with the same interface.

    Args:
        backbone: Provides file, layout and normalization.

    Attributes:
        taps: Modules whose outputs are the feature maps: the last one of each size, from fine to coarse.

    Raises:
        UserError: A package is missing, the network quantizes dynamically, has operators that onnx2torch does not
            support, or its outputs differ from those of onnxruntime.

    Shapes: pixels (B, 3, n, n) in [-1, 1] -> (B, D), not normalized.
    """

    def __init__(self, backbone: OnnxBackbone) -> None:
        super().__init__()
        name = backbone.file.name
        if backbone.fixed_batch is not None:
            raise UserError(f"{name} has a fixed batch size or quantizes dynamically, so its gradients would not be "
                            "those of single images")
        self.input_size, self._bgr = backbone.input_size, backbone.channel_order == "bgr"
        self._channels_last = backbone.channels_last
        self.register_buffer("scale", backbone.scale, persistent=False)
        self.register_buffer("shift", backbone.shift, persistent=False)
        self.network = _as_modules(backbone.file, backbone.output)
        probe = torch.linspace(-1, 1, 3 * self.input_size**2).view(1, 3, self.input_size, self.input_size)
        try:
            with torch.inference_mode():
                embedding, self.taps = self._probe(probe)
                expected = backbone(probe)
        except (RuntimeError, NotImplementedError, IndexError, TypeError) as error:
            raise UserError(f"{name}: onnx2torch cannot run it: {first_line(error)}") from error
        error = float((embedding - expected).abs().max() / expected.std())
        if not error < _TOLERANCE:
            raise UserError(f"{name}: embeddings of the torch operations differ from those of onnxruntime by "
                            f"{error:.2g} of their standard deviation, so gradients are not reliable")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D)."""
        x = (pixels.flip(1) if self._bgr else pixels) * self.scale + self.shift
        return self.network(x.movedim(1, -1) if self._channels_last else x).flatten(1)

    def _probe(self, pixels: Tensor) -> tuple[Tensor, list[nn.Module]]:
        """Return the embedding of one image, and the last module of each size of feature maps."""
        last: dict[int, nn.Module] = {}

        def record(module: nn.Module, _: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and 1 < output.shape[2] == output.shape[3]:
                last[output.shape[2]] = module

        handles = [module.register_forward_hook(record) for module in _leaves(self.network)]
        try:
            embedding = self(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return embedding, [last[size] for size in sorted(last, reverse=True)]


def _as_modules(file: OnnxFile, output: str) -> nn.Module:
    """Return the graph up to one output, its constants folded, as frozen modules in eval mode."""
    try:
        import onnx
        import onnxruntime
        from onnx2torch import convert
    except ImportError as error:
        raise UserError(missing_packages(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
        open_session(file, graph_optimization_level=basic, optimized_model_filepath=str(folded))
        model = onnx.load(str(folded))
    kept = [value for value in model.graph.output if value.name == output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    try:
        return _with_own_prelus(convert(model)).eval().requires_grad_(False)
    except Exception as error:  # converters of onnx2torch raise nearly anything
        raise UserError(f"{file.name}: onnx2torch cannot convert it to torch operations: {first_line(error)}; give the "
                        "weights of a torch network") from error


class _FrozenPrelu(nn.Module):
    """PReLU with a constant slope: (1 - slope) relu(x) + slope x, three times as fast as torch's on a CPU."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        slope = slope.detach().to(x.dtype)  # broadcasts to x, as in ONNX
        return (1 - slope) * x.relu() + slope * x


def _with_own_prelus(network: nn.Module) -> nn.Module:
    from onnx2torch.node_converters.activations import OnnxPReLU

    for name, module in list(network.named_modules()):
        if isinstance(module, OnnxPReLU):
            network.set_submodule(name, _FrozenPrelu())
    return network


def _leaves(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if not any(True for _ in module.children()))
