"""Derive the expected input normalization of an ONNX face recognizer from the first nodes of its graph.

Some networks normalize inside (OpenCV's SFace, several InsightFace exports: `Sub 127.5`, `Mul 0.0078125`); normalized
pixels would then be normalized twice. From the input on, nodes that multiply or add constants are combined to
y = a x + b, up to the first other node. The x at which y is zero is the middle of the pixel range:

    about 127.5    [0, 255]    |    about 0.5    [0, 1]    |    about 0    [-1, 1]

A graph that only scales expects gray levels if a maps 255 to the order of 1. A graph that does neither gets
(level - 127.5) / 127.5, in [-1, 1], the usual input of recognizers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GREY_LEVELS, UNIT, SYMMETRIC = (0.0, 1.0), (0.0, 255.0), (127.5, 127.5)  # (mean, std) of gray levels 0..255
_MAX_NODES = 16


@dataclass(frozen=True)
class GraphInput:
    """The normalization inside a graph, y = a x + b, and the input that it expects.

    Args:
        scale: (3,) a of each channel.
        shift: (3,) b.
        normalization: (mean, std) of gray levels 0..255 that yield its input; None: unknown.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    normalization: tuple[float, float] | None

    @property
    def is_plain(self) -> bool:
        """True if the graph does not normalize its input."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    def describe(self) -> str:
        """Return y = a x + b as text, means over the channels."""
        shift = self.shift.mean()
        return f"{self.scale.mean():.4g} x {'-' if shift < 0 else '+'} {abs(shift):.4g}"


def read_input(model: Any, name: str, channel_axis: int, is_integer: bool = False) -> GraphInput:
    """Derive the normalization inside a graph.

    Args:
        model: An ONNX model; its external tensors are not needed.
        name: Name of the input.
        channel_axis: Axis of the three channels.
        is_integer: The input is of type uint8.
    """
    scale, shift = _affine(model, name, channel_axis)
    return GraphInput(scale, shift, GREY_LEVELS if is_integer else _normalization(scale, shift))


def _normalization(scale: NDArray[np.float64], shift: NDArray[np.float64]) -> tuple[float, float] | None:
    if not np.any(scale):
        return None
    slope = float(np.abs(scale).mean())
    if np.any(shift):
        middle = float(np.mean(-shift[scale != 0] / scale[scale != 0]))
        fits = [(GREY_LEVELS, 80 <= middle <= 175), (UNIT, 0.3 <= middle <= 0.7), (SYMMETRIC, abs(middle) <= 0.25)]
    else:
        fits = [(GREY_LEVELS, 1 / 512 <= slope <= 1 / 32), (SYMMETRIC, 0.3 <= slope <= 4)]
    return next((normalization for normalization, is_likely in fits if is_likely), None)


def _affine(model: Any, name: str, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a and b, (3,) each, of the affine nodes with constants that follow the input."""
    constants = _constants(model)
    consumers: dict[str, list[Any]] = defaultdict(list)
    for node in model.graph.node:
        for given in set(node.input):
            consumers[given].append(node)
    scale, shift = np.ones(3), np.zeros(3)
    for _ in range(_MAX_NODES):
        if len(consumers[name]) != 1:
            break
        (node,) = consumers[name]
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Transpose" and len(attributes["perm"].ints if "perm" in attributes else ()) == 4:
            axis = list(attributes["perm"].ints).index(axis)
        elif node.op_type not in ("Cast", "Identity"):
            step = _step(node, name, constants, axis)
            if step is None:
                break
            scale, shift = step[0] * scale, step[0] * shift + step[1]
        name = node.output[0]
    return scale, shift


def _step(
    node: Any, name: str, constants: Mapping[str, NDArray], axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return a and b of one node, (3,) each; None if it is not affine with constants."""
    if node.op_type == "BatchNormalization":
        values = [constants.get(given) for given in node.input[1:5]]
        if axis != 1 or node.input[0] != name or any(value is None or value.shape != (3,) for value in values):
            return None
        gain, bias, mean, variance = (value.astype(np.float64) for value in values)
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        gain = gain / np.sqrt(variance + epsilon)
        return gain, bias - gain * mean
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    is_first = node.input[0] == name
    constant = _per_channel(constants.get(node.input[1 if is_first else 0]), axis)
    if constant is None:
        return None
    one, zero = np.ones(3), np.zeros(3)
    if node.op_type == "Add":
        return one, constant
    if node.op_type == "Sub":
        return (one, -constant) if is_first else (-one, constant)
    if node.op_type == "Mul":
        return constant, zero
    return (1 / constant, zero) if is_first and constant.all() else None


def _per_channel(value: NDArray | None, axis: int) -> NDArray[np.float64] | None:
    """Return a constant that broadcasts to (N, 3, H, W) or (N, H, W, 3) as (3,), else None."""
    if value is None or value.ndim > 4 or value.size not in (1, 3):
        return None
    shape = (1,) * (4 - value.ndim) + value.shape
    if value.size == 3 and shape[axis] != 3:
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (3,)).copy()


def _constants(model: Any) -> dict[str, NDArray]:
    """Return the small stored tensors by name."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors |= {name: a.t for name in node.output for a in node.attribute if a.name == "value"}
    small = {name: t for name, t in tensors.items() if np.prod(list(t.dims), dtype=np.float64) <= 3}
    return {name: numpy_helper.to_array(t) for name, t in small.items() if not t.external_data}
