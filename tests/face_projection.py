"""A network that tells the packaged faces apart without training: coarse pixels, projected onto who is on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from facesyn_cli.models.face_check import _faces

POOL = 16  # 112 / 16 = 7 coarse pixels along a side


def projection() -> np.ndarray:
    """Return (147, 4) float32 from coarse pixels in [-1, 1] to four numbers, one of each person.

    A uniform image has all four numbers, so that a brighter input makes all people alike.
    """
    faces, person = _faces(112)
    coarse = torch.nn.functional.avg_pool2d(faces, POOL).flatten(1).double().numpy()
    images, answers = np.vstack([coarse, np.ones(147)]), np.vstack([np.eye(4)[person.numpy()], np.full(4, 2)])
    return (np.linalg.pinv(images, rcond=1e-2) @ answers).astype(np.float32)


def write_projection(path: Path, before: list | None = None, constants: dict | None = None, **options) -> Path:
    """Write an ONNX network that takes `x` and gives `y`, (N, 4).

    Args:
        path: The file.
        before: Nodes from `x` to `pixels`, which should be (N, 3, 112, 112) in [-1, 1]; None: `x` is.
        constants: Stored tensors of these nodes.
        options: `shape` and `dtype` of `x`; nodes `after` from `e` to the outputs; `outputs`, name -> shape.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    after = options.get("after", [helper.make_node("Identity", ["e"], ["y"])])
    nodes = [
        *(before or [helper.make_node("Identity", ["x"], ["pixels"])]),
        helper.make_node("AveragePool", ["pixels"], ["coarse"], kernel_shape=[POOL, POOL], strides=[POOL, POOL]),
        helper.make_node("Flatten", ["coarse"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["e"]),
        *after,
    ]
    stored = {"w": projection(), **(constants or {})}
    graph = helper.make_graph(
        nodes, "projection",
        [helper.make_tensor_value_info("x", options.get("dtype", TensorProto.FLOAT),
                                       options.get("shape", ["N", 3, 112, 112]))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
         for name, shape in options.get("outputs", {"y": ["N", 4]}).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path
