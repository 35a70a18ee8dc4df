"""ONNX face recognizers by path, with the interface of the other backbones.

Inference only. Networks with dynamic quantization (`DynamicQuantizeLinear` and similar) derive one scale from the whole
batch, so that an embedding would depend on the other images: they run image by image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result, input_path, runtime_only
from facesyn_cli.console import log
from facesyn_cli.errors import UserError, first_line
from facesyn_cli.models.onnx_files import find_recognizer, nodes, open_session, quantizes_dynamically, read_graph
from facesyn_cli.models.onnx_input import SYMMETRIC, read_input
from facesyn_cli.models.recognizer import check_pixels
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_DEFAULT_SIDE = 112
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "ArgMax"})

GrayLevels = float | tuple[float, float, float]  # of all channels, or of each


class OnnxConfig(PluginConfig):
    """Settings of `onnx`. `mean` and `std` are in gray levels 0..255, in the network's channel order.

    Without them the normalization is derived from the graph, see `models/onnx_input.py`.
    """

    weights: Path | None = input_path(None, "the .onnx file, or a folder or zip of several (InsightFace)")
    mean: GrayLevels | None = affects_result(
        None, "subtracted from gray levels 0..255; None: derived from the graph, or 127.5"
    )
    std: GrayLevels | None = affects_result(
        None, "divisor of the difference; None: derived from the graph, or 127.5"
    )
    channel_order: Literal["rgb", "bgr"] = affects_result("rgb", "channel order that the network expects")
    threads: int = runtime_only(0, "threads of one evaluation; 0: all cores", ge=0)


@register(
    "backbone", "onnx",
    Card(about="Any ONNX face recognizer by path; inference only",
         input="size and normalization from the graph, unless mean and std are set; aligned RGB faces, or BGR if set",
         license="see the weights' own card"),
)
class OnnxBackbone(nn.Module):
    """Run the ONNX network of `cfg.weights` on pixels in [-1, 1].

    Raises:
        UserError: onnxruntime is not installed, no file is given, or it is not a face recognizer in ONNX format.

    Attributes:
        file: The network file.
        output: Name of the embedding among the outputs of the graph.
        channel_order: Channel order of the input.
        input_size: Side of the input images.
        channels_last: The input is (B, n, n, 3).
        scale, shift: (3, 1, 1), affine map from pixels in [-1, 1] (in its channel order) to the input.
        fixed_batch: Fixed number of images per evaluation (1 with dynamic quantization), or None.

    Shapes: pixels (B, 3, input_size, input_size) -> (B, D), float32, not normalized.
    """

    def __init__(self, cfg: OnnxConfig) -> None:
        super().__init__()
        if cfg.weights is None:
            raise UserError("backbone onnx: no file given; set its weights to a .onnx file")
        if cfg.std is not None and not np.all(np.asarray(cfg.std)):
            raise UserError("backbone onnx: std must not be 0")
        self.cfg = cfg
        self.file = find_recognizer(Path(cfg.weights))
        graph = read_graph(self.file)
        self._session = open_session(self.file, intra_op_num_threads=cfg.threads)
        self._input = _only_input(self._session, self.file.name)
        self.output = _embedding_of(self._session, graph, self.file.name)
        self.channels_last, self.input_size = _layout(self._input.shape, self.file.name)
        batch, name = self._input.shape[0], self.file.name
        self.fixed_batch: int | None = batch if isinstance(batch, int) and batch > 0 else None
        if self.fixed_batch != 1 and quantizes_dynamically(graph):
            if self.fixed_batch is None:
                self.fixed_batch = 1
                log.info(f"{name}: quantizes dynamically, so results depend on the batch; running at batch size 1")
            else:
                log.warning(f"{name}: quantizes dynamically over its fixed batch of {self.fixed_batch}, so an "
                            "embedding depends on the other images")
        self.set_input(*_normalization(cfg, graph, self._input, self.channels_last, name), cfg.channel_order)

    def set_input(self, mean: GrayLevels, std: GrayLevels, channel_order: Literal["rgb", "bgr"]) -> None:
        """Set the normalization of the input; arguments as the settings of the same names."""
        self.channel_order = channel_order
        # [-1, 1] -> gray levels -> (level - mean) / std, as one multiplication and one addition
        mean, std = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1) for value in (mean, std))
        self.scale, self.shift = (127.5 / std).float(), ((127.5 - mean) / std).float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D) on the device of the pixels.

        Raises:
            ValueError: The images have another size.
        """
        check_pixels(pixels, self.input_size)
        x = pixels.detach().to("cpu", torch.float32)
        x = (x.flip(1) if self.channel_order == "bgr" else x) * self.scale + self.shift
        if self.channels_last:
            x = x.movedim(1, -1)
        size = self.fixed_batch or max(len(x), 1)
        rows = [self._evaluate(part, size) for part in x.split(size)]
        return torch.cat(rows).to(pixels.device)

    def _evaluate(self, x: Tensor, size: int) -> Tensor:
        """Run one batch of at most `size` images; a fixed batch is padded with its last image."""
        count = len(x)
        if self.fixed_batch and count < size:
            x = torch.cat([x, x[-1:].expand(size - count, *x.shape[1:])])
        dtype = _DTYPES[self._input.type]
        x = x.round().clamp(0, 255) if dtype == np.uint8 else x
        try:
            result = self._session.run([self.output], {self._input.name: np.ascontiguousarray(x.numpy(), dtype)})[0]
        except Exception as error:  # onnxruntime's errors share no base class
            raise UserError(f"{self.file.name}: onnxruntime cannot run it on faces of {self.input_size} x "
                            f"{self.input_size} pixels; is it a face recognizer? {first_line(error)}") from error
        rows = torch.from_numpy(np.asarray(result, dtype=np.float32))
        if rows.ndim < 2 or len(rows) != len(x) or rows.shape[1] < 2 or rows[0].numel() != rows.shape[1]:
            raise UserError(f"{self.file.name}: gave shape {tuple(rows.shape)} for {len(x)} faces; expected one "
                            "embedding per face")
        return rows.flatten(1)[:count]


def _only_input(session: Any, name: str) -> Any:
    """Return the only input of a network, which must be of a type for pixels."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(given.name for given in inputs)
        raise UserError(f"{name}: takes {len(inputs)} inputs ({names}); a face recognizer takes one, the faces")
    if inputs[0].type not in _DTYPES:
        raise UserError(f"{name}: takes {inputs[0].type}; a face recognizer takes {' or '.join(_DTYPES)}")
    return inputs[0]


def _embedding_of(session: Any, graph: Any, name: str) -> str:
    """Return the name of the only output that can be an embedding.

    Raises:
        UserError: There is none, or several.
    """
    made_by = {output: node.op_type for node in nodes(graph) for output in node.output}
    outputs = session.get_outputs()
    found = [o.name for o in outputs if _may_be_embedding(o) and made_by.get(o.name) not in _PROBABILITIES]
    if len(found) != 1:
        seen = ", ".join(f"{o.name} {o.shape} by {made_by.get(o.name, 'nothing')}" for o in outputs)
        which = "none of its outputs is" if not found else "several of its outputs may be"
        raise UserError(f"{name}: {which} an embedding, (batch, size) numbers a face: {seen}")
    if len(outputs) > 1:
        log.info(f"{name}: of {len(outputs)} outputs {found[0]} is the embedding")
    return found[0]


def _may_be_embedding(output: Any) -> bool:
    shape = output.shape or []
    is_row = not shape or (len(shape) >= 2 and shape[1] not in (0, 1) and all(side == 1 for side in shape[2:]))
    return is_row and output.type in ("tensor(float)", "tensor(float16)", "tensor(double)")


def _normalization(
    cfg: OnnxConfig, graph: Any, given: Any, channels_last: bool, name: str
) -> tuple[GrayLevels, GrayLevels]:
    """Return mean and std from the settings or the graph; log which."""
    read = read_input(graph, given.name, 3 if channels_last else 1, given.type == "tensor(uint8)")
    inside = "does not normalize inside" if read.is_plain else f"normalizes inside (x -> {read.describe()})"
    if cfg.mean is not None or cfg.std is not None:
        mean, std = (127.5 if value is None else value for value in (cfg.mean, cfg.std))
        log.info(f"{name}: {inside}; it gets (gray level - {mean}) / {std}, as set")
        return mean, std
    if read.normalization is None:
        log.warning(f"{name}: {inside} for an unknown range of pixels; it gets (gray level - 127.5) / 127.5 "
                    "unless mean and std of backbone onnx are set")
        return SYMMETRIC
    mean, std = read.normalization
    log.info(f"{name}: {inside}; it gets (gray level - {mean:g}) / {std:g}")
    return mean, std


def _layout(shape: list[Any], name: str) -> tuple[bool, int]:
    """Return whether channels come last, and the side of the images; a free side means 112."""
    if len(shape) == 4:
        for channels_last, channel, sides in ((False, shape[1], shape[2:]), (True, shape[3], shape[1:3])):
            fixed = {side for side in sides if isinstance(side, int)}
            if channel == 3 and len(fixed) <= 1:
                return channels_last, fixed.pop() if fixed else _DEFAULT_SIDE
    raise UserError(f"{name}: takes input of shape {shape}; a face recognizer takes (batch, 3, side, side)")
