"""A face detector with YuNet's inputs and outputs that finds red squares, and photos for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facesyn_cli.data.alignment import TEMPLATE

SHAPE = 0.5 * (TEMPLATE - TEMPLATE.mean(0))  # landmarks around a red square: a face half as large as the template
CELL = 8


def write_detector(path: Path) -> Path:
    """Write an ONNX network: score = how red the 8 x 8 cell is; landmarks at fixed places around the cell."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs, constants = [], [], [numpy_helper.from_array(np.array([0]), "first")]

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    constant("low", np.float32(0))
    constant("high", np.float32(1))
    for stride in (8, 16, 32):
        red = np.zeros((1, 3, stride, stride), np.float32)
        if stride == CELL:
            red[0, 2], red[0, 1] = 1 / (255 * stride**2), -1 / (255 * stride**2)  # OpenCV feeds BGR
        points = (SHAPE / stride).astype(np.float32).ravel()
        for name, weight, bias in (
            ("cls", red, [0.0]), ("obj", red, [0.0]),
            ("bbox", np.zeros((4, 3, stride, stride), np.float32), [0, 0, 1, 1]),
            ("kps", np.zeros((10, 3, stride, stride), np.float32), points),
        ):
            key = f"{name}_{stride}"
            constant(f"{key}_w", weight)
            constant(f"{key}_b", np.asarray(bias, np.float32))
            nodes.append(helper.make_node("Conv", ["input", f"{key}_w", f"{key}_b"], [f"{key}_map"],
                                          kernel_shape=[stride, stride], strides=[stride, stride]))
            last = f"{key}_map"
            if name in ("cls", "obj"):
                nodes.append(helper.make_node("Clip", [last, "low", "high"], [f"{key}_clip"]))
                last = f"{key}_clip"
            nodes.append(helper.make_node("Transpose", [last], [f"{key}_t"], perm=[0, 2, 3, 1]))
            constant(f"{key}_shape", np.array([1, -1, len(weight)], np.int64))
            nodes.append(helper.make_node("Reshape", [f"{key}_t", f"{key}_shape"], [key]))
    for name in ("cls", "obj", "bbox", "kps"):
        width = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}[name]
        outputs += [helper.make_tensor_value_info(f"{name}_{s}", TensorProto.FLOAT, [1, None, width])
                    for s in (8, 16, 32)]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])
    graph = helper.make_graph(nodes, "red", [given], outputs, constants[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def photo(*cells: tuple[int, int], side: int = 256, seed: int = 0) -> np.ndarray:
    """Return (side, side, 3) uint8: greenish noise with a red square in each of the given cells (column, row)."""
    noise = np.random.RandomState(seed).randint(0, 200, (side // 4, side // 4, 3))
    image = np.kron(noise, np.ones((4, 4, 1))).astype(np.uint8)
    image[:, :, 1] |= 64
    for column, row in cells:
        image[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = (255, 0, 0)
    return image


def landmarks(cell: tuple[int, int]) -> np.ndarray:
    """Return the (5, 2) landmarks the detector finds for a red square."""
    return CELL * np.array(cell) + SHAPE
