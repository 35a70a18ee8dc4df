"""ONNX recognizers as torch operations: the same embeddings, true gradients, feature maps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from face_projection import write_projection
from fill import fill_state, golden_uniform
from onnx import TensorProto, helper, numpy_helper, save
from tolerance import products_of, rounding

from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import feature_maps, has_feature_maps
from facesyn_cli.models.onnx_export import export_onnx
from facesyn_cli.models.onnx_torch import OnnxTorch
from facesyn_cli.plugins import registry

SIDE = 32


def _recognizer() -> torch.nn.Module:
    cfg = {"name": "ir-tiny", "widths": [4, 8], "blocks": [2, 1], "embedding_size": 8}
    return fill_state(registry.build("backbone", registry.configure("backbone", cfg))).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    network, file = _recognizer(), tmp_path_factory.mktemp("onnx") / "recognizer.onnx"
    export_onnx(network, 112, file)
    return network, file


def _open(path: Path, **settings) -> torch.nn.Module:
    values = {"name": "onnx", "weights": path, "threads": 1, **settings}
    return registry.build("backbone", registry.configure("backbone", values))


def _save(path: Path, nodes: list, weights: dict[str, np.ndarray], shape: tuple) -> Path:
    graph = helper.make_graph(
        nodes, "recognizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def test_embeddings_and_gradients_are_those_of_the_torch_network(exported):
    network, file = exported
    ours = OnnxTorch(_open(file))
    found = []
    for module in (network, ours):
        pixels = golden_uniform(3, (3, 3, 112, 112)).requires_grad_()
        embeddings = module(pixels)
        (embeddings * torch.linspace(-1, 1, 8)).sum().backward()
        found.append((embeddings.detach(), pixels.grad))
    tolerance = rounding(2 * products_of(network))  # forth and back
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert not any(p.requires_grad for p in ours.parameters())


def test_the_last_map_of_every_size_is_shown(exported):
    ours = OnnxTorch(_open(exported[1]))
    assert has_feature_maps(ours) and not has_feature_maps(_open(exported[1]))
    pixels = golden_uniform(4, (2, 3, 112, 112)).requires_grad_()
    maps = feature_maps(ours, pixels)
    sides = [x.shape[-1] for x in maps]
    assert len(maps) > 1 and sides == sorted(set(sides), reverse=True)
    sum(x.square().sum() for x in maps).backward()
    assert pixels.grad.abs().sum() > 0


def test_constants_are_folded_and_normalization_is_kept(tmp_path):
    """Int8 weights, scaled after the convolution, as in files of quantized weights; BGR, channels last, own mean."""
    draw = np.random.RandomState(0)
    weights = {"q": draw.randint(-99, 99, (4, 3, SIDE, SIDE)).astype(np.int8), "s": np.float32([[[[1e-4]]]]),
               "shape": np.int64([-1, 4])}
    nodes = [
        helper.make_node("Transpose", ["x"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["chw", "w"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["y"]),
    ]
    file = _save(tmp_path / "a.onnx", nodes, weights, ("N", SIDE, SIDE, 3))
    ours = OnnxTorch(_open(file, mean=100.0, std=(50.0, 60.0, 70.0), channel_order="bgr"))
    pixels = golden_uniform(5, (2, 3, SIDE, SIDE))
    seen = ((pixels.flip(1) + 1) * 127.5 - 100.0) / torch.tensor([50.0, 60.0, 70.0]).view(3, 1, 1)
    expected = torch.einsum("bchw,kchw->bk", seen, torch.from_numpy(weights["q"]).float()) * 1e-4
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-4)


def test_unknown_operators_and_dynamic_quantization_are_refused(tmp_path):
    weights = {"w": np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)}
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    product = helper.make_node("MatMul", ["d", "w"], ["y"])
    quantized = [mean, helper.make_node("DynamicQuantizeLinear", ["m"], ["q", "s", "z"]),
                 helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]), product]
    with pytest.raises(UserError, match="quantizes dynamically"):
        OnnxTorch(_open(_save(tmp_path / "q.onnx", quantized, weights, ("N", 3, SIDE, SIDE))))
    unknown = [mean, helper.make_node("Hardmax", ["m"], ["d"]), product]
    with pytest.raises(UserError, match="onnx2torch cannot convert it to torch operations.*Hardmax"):
        OnnxTorch(_open(_save(tmp_path / "u.onnx", unknown, weights, ("N", 3, SIDE, SIDE))))


def test_other_embeddings_than_in_onnxruntime_are_refused(exported, monkeypatch):
    backbone = _open(exported[1])
    monkeypatch.setattr(type(backbone), "forward", lambda self, pixels: torch.linspace(0, 1, 8)[None])
    with pytest.raises(UserError, match="embeddings of the torch operations differ"):
        OnnxTorch(backbone)


def test_a_network_that_normalizes_inside_and_gives_more_than_the_embedding(tmp_path):
    nodes = [helper.make_node("Sub", ["x", "a"], ["t"]), helper.make_node("Mul", ["t", "b"], ["pixels"])]
    after = [helper.make_node("Identity", ["e"], ["y"]), helper.make_node("ReduceMean", ["e"], ["m"], axes=[1])]
    path = write_projection(tmp_path / "a.onnx", nodes, {"a": np.float32(127.5), "b": np.float32(1 / 127.5)},
                            after=after, outputs={"m": ["N", 1], "y": ["N", 6]})
    backbone = _open(path)
    pixels = golden_uniform(3, (2, 3, 112, 112))
    expected = backbone(pixels)
    # the limit of the constructor's own comparison, of the spread
    torch.testing.assert_close(OnnxTorch(backbone)(pixels), expected, rtol=0, atol=1e-3 * float(expected.std()))
