"""An ONNX recognizer as torch operations: gradients flow through it, and it shows its feature maps.

For losses. `models/onnx_backbone.py` runs the same file faster where only embeddings are wanted. onnxruntime folds
what is constant (dequantized weights, scales after convolutions), onnx2torch turns what is left into modules, and
both must agree on a picture before the network is used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.models.onnx_backbone import OnnxBackbone
from facesyn_cli.models.onnx_files import OnnxFile, first_line, missing_packages

_TOLERANCE = 1e-3  # of the spread of the embedding; both sides round in float32


class OnnxTorch(nn.Module):
    """The network of an `OnnxBackbone`, behind the same interface.

    Args:
        backbone: Gives the file, its layout and its normalization.

    Attributes:
        taps: Modules whose outputs are the feature maps: the last one of every size, from fine to coarse.

    Raises:
        UserError: A package is missing, the network quantizes dynamically, has operators that onnx2torch does not
            know, or gives other numbers there than in onnxruntime.

    Shapes: pixels (B, 3, n, n) in [-1, 1] -> (B, D), not normalized.
    """

    def __init__(self, backbone: OnnxBackbone) -> None:
        super().__init__()
        name = backbone.file.name
        if backbone.fixed_batch is not None:
            raise UserError(f"{name} runs at a fixed batch or quantizes dynamically: gradients through it would not be "
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
            raise UserError(f"{name}: gives other embeddings as torch operations than in onnxruntime (they differ by "
                            f"{error:.2g} of their spread), so its gradients are not to be trusted")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D)."""
        x = (pixels.flip(1) if self._bgr else pixels) * self.scale + self.shift
        return self.network(x.movedim(1, -1) if self._channels_last else x).flatten(1)

    def _probe(self, pixels: Tensor) -> tuple[Tensor, list[nn.Module]]:
        """Return the embedding of one image, and the last module of every size of map on the way to it."""
        last: dict[int, nn.Module] = {}

        def note(module: nn.Module, _: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and 1 < output.shape[2] == output.shape[3]:
                last[output.shape[2]] = module

        handles = [module.register_forward_hook(note) for module in _leaves(self.network)]
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
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are ours to tell
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(file.source, options, providers=["CPUExecutionProvider"])
        model = onnx.load(str(folded))
    kept = [value for value in model.graph.output if value.name == output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    try:
        return _with_own_prelus(convert(model)).eval().requires_grad_(False)
    except Exception as error:  # onnx2torch raises whatever its converters do
        raise UserError(f"{file.name}: onnx2torch cannot turn it into torch operations: {first_line(error)}; give the "
                        "weights of a torch network") from error


class _FrozenPrelu(nn.Module):
    """PReLU whose slope does not learn: (1 - slope) relu(x) + slope x, three times as quick as torch's on a CPU."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        slope = slope.detach().to(x.dtype)  # of one number, or of a shape that numpy would broadcast to x, as in ONNX
        return (1 - slope) * x.relu() + slope * x


def _with_own_prelus(network: nn.Module) -> nn.Module:
    from onnx2torch.node_converters.activations import OnnxPReLU

    for name, module in list(network.named_modules()):
        if isinstance(module, OnnxPReLU):
            network.set_submodule(name, _FrozenPrelu())
    return network


def _leaves(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if not any(True for _ in module.children()))
