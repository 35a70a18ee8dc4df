"""ONNX recognizers: normalization, batches, dynamic quantization and refused files. Graphs are made here."""

from __future__ import annotations

import builtins
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fill import golden_uniform
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from facesyn_cli.errors import UserError
from facesyn_cli.models.onnx_files import is_pack
from facesyn_cli.plugins import registry

WEIGHT = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)


def _save(path: Path, nodes: list, shape: list, initializers: dict | None = None, output=("N", 4)) -> Path:
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(value, name) for name, value in (initializers or {"w": WEIGHT}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def _mean_nodes(axes: tuple[int, int] = (2, 3)) -> list:
    return [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=list(axes), keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]


def _quantized_nodes() -> list:
    return [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("DynamicQuantizeLinear", ["m"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]


def _open(path: Path | None, **settings):
    values = {"name": "onnx", "weights": path, "threads": 1, **settings}
    return registry.build("backbone", registry.configure("backbone", values))


def test_default_normalization_is_ours(tmp_path):
    module = _open(_save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, 112, 112]))
    pixels = golden_uniform(1, (3, 3, 112, 112))
    assert (module.input_size, module.fixed_batch) == (112, None)
    expected = pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(module(pixels), expected, rtol=0, atol=1e-5)


def test_mean_std_and_channel_order(tmp_path):
    path = _save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, 112, 112])
    module = _open(path, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0), channel_order="bgr")
    pixels = golden_uniform(2, (2, 3, 112, 112))
    levels = (pixels.double().flip(1) + 1) * 127.5                            # blue, green, red in 0..255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([10, 20, 30], [2, 4, 5]))
    expected = ((levels - mean) / std).mean((2, 3)) @ torch.from_numpy(WEIGHT).double()
    torch.testing.assert_close(module(pixels).double(), expected, rtol=1e-4, atol=1e-3)


def test_channels_last_and_another_size(tmp_path):
    module = _open(_save(tmp_path / "a.onnx", _mean_nodes((1, 2)), ["N", 96, 96, 3]))
    pixels = golden_uniform(3, (2, 3, 96, 96))
    assert module.input_size == 96
    torch.testing.assert_close(module(pixels), pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected pixels \(B, 3, 96, 96\)"):
        module(torch.zeros(1, 3, 112, 112))


def test_free_sides_mean_112(tmp_path):
    assert _open(_save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, "H", "W"])).input_size == 112


def test_a_fixed_batch_is_filled_up(tmp_path):
    module = _open(_save(tmp_path / "a.onnx", _mean_nodes(), [4, 3, 112, 112], output=(4, 4)))
    pixels = golden_uniform(4, (6, 3, 112, 112))
    assert module.fixed_batch == 4
    torch.testing.assert_close(module(pixels), pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_dynamic_quantization_runs_image_by_image_and_says_so(tmp_path, caplog, nested):
    nodes = _quantized_nodes()
    if nested:  # the same network inside both branches of an If
        branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    path = _save(tmp_path / "a.onnx", nodes, ["N", 3, 112, 112], {"w": WEIGHT, "c": np.array(True)})
    with caplog.at_level(logging.INFO, logger="facesyn"):
        module = _open(path)
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "quantizes dynamically, so results depend on the batch; running at batch size 1",
        "does not normalize inside; it gets (gray level - 127.5) / 127.5",
    ]
    pixels = golden_uniform(5, (3, 3, 112, 112)) * torch.tensor([0.05, 1.0, 0.3]).view(3, 1, 1, 1) + 0.2
    together = module(pixels)
    assert torch.equal(together, torch.cat([module(image[None]) for image in pixels]))
    module.fixed_batch = None  # what the guard prevents: neighbors change an embedding
    assert not torch.equal(module(pixels), together)


def test_a_plain_network_says_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="facesyn"):
        _open(_save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, 112, 112]))
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "does not normalize inside; it gets (gray level - 127.5) / 127.5"
    ]


def test_external_data_beside_the_file_is_read_and_from_elsewhere_refused(tmp_path):
    folder = tmp_path / "network"
    folder.mkdir()
    path = _save(folder / "a.onnx", _mean_nodes(), ["N", 3, 112, 112])
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="a.data", size_threshold=0)
    pixels = golden_uniform(6, (1, 3, 112, 112))
    expected = pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(_open(path)(pixels), expected, rtol=0, atol=1e-5)

    (folder / "a.data").rename(tmp_path / "a.data")
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../a.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"outside its folder \(\.\./a\.data\); refused"):
        _open(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no file given"):
        _open(None)
    with pytest.raises(UserError, match="does not exist"):
        _open(tmp_path / "a.onnx")


@pytest.mark.parametrize("content", [b"", b"not a network", b"PK\x03\x04", bytes(range(64))])
def test_no_network(tmp_path, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not an ONNX"):
        _open(path)


def test_a_network_for_something_else(tmp_path):
    with pytest.raises(UserError, match="a face recognizer takes"):
        _open(_save(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], ["N", 3]))


def test_a_truncated_network(tmp_path):
    path = _save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, 112, 112])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.onnx"):
        _open(path)


def test_std_of_zero(tmp_path):
    with pytest.raises(UserError, match="std must not be 0"):
        _open(tmp_path / "a.onnx", std=0.0)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    path = _save(tmp_path / "a.onnx", _mean_nodes(), ["N", 3, 112, 112])
    real = builtins.__import__

    def without(name, *rest):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf'\({package}\): pip install "facesyn\[onnx\]"'):
        _open(path)


def test_a_graph_that_fails_when_it_runs_is_one_line(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["m", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = {"w": np.ones((7, 4), np.float32), "shape": np.int64([-1, 7])}  # 2 x 3 means are no rows of 7
    network = _open(_save(tmp_path / "a.onnx", nodes, ["N", 3, 112, 112], weights))
    with pytest.raises(UserError, match="onnxruntime cannot run it"):
        network(torch.zeros(2, 3, 112, 112))


def test_a_device_is_no_pack():
    assert not is_pack(Path("/dev/zero"))
