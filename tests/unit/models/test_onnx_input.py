"""Which pixels an ONNX network expects is read off its first nodes; whichever, it gives the same embeddings."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from face_projection import projection, write_projection
from onnx import TensorProto, helper

from facesyn_cli.errors import UserError
from facesyn_cli.models.face_check import _faces, face_cosines
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.onnx_input import GREY_LEVELS, SYMMETRIC, UNIT, GraphInput, _normalization
from facesyn_cli.plugins import registry


def node(operator: str, given: list[str], made: str, **attributes):
    return helper.make_node(operator, given, [made], **attributes)


def f32(*values: float, shape: tuple[int, ...] = ()) -> np.ndarray:
    return np.array(values, np.float32).reshape(shape)


SUB_MUL = [node("Sub", ["x", "a"], "t"), node("Mul", ["t", "b"], "pixels")]
BN = {"g": f32(1, 1, 1, shape=(3,)), "z": f32(0, 0, 0, shape=(3,)), "m": f32(127.5, 127.5, 127.5, shape=(3,)),
      "v": f32(*[127.5**2] * 3, shape=(3,))}
GRAPHS = {
    "sface": (SUB_MUL, {"a": f32(127.5), "b": f32(1 / 127.5)}, {}, GREY_LEVELS),
    "of each channel": (SUB_MUL, {"a": f32(*[127.5] * 3, shape=(1, 3, 1, 1)), "b": f32(1 / 127.5)}, {}, GREY_LEVELS),
    "scaled, then shifted": ([node("Mul", ["x", "b"], "t"), node("Add", ["t", "a"], "pixels")],
                             {"b": f32(1 / 127.5), "a": f32(-1)}, {}, GREY_LEVELS),
    "divided": ([node("Div", ["x", "b"], "t"), node("Sub", ["t", "a"], "pixels")],
                {"b": f32(0.5), "a": f32(1)}, {}, UNIT),
    "batch norm": ([node("BatchNormalization", ["x", "g", "z", "m", "v"], "pixels")], BN, {}, GREY_LEVELS),
    "channels last": ([node("Transpose", ["x"], "c", perm=[0, 3, 1, 2]), node("Sub", ["c", "a"], "t"),
                       node("Mul", ["t", "b"], "pixels")],
                      {"a": f32(*[127.5] * 3, shape=(3, 1, 1)), "b": f32(1 / 127.5)},
                      {"shape": ["N", 112, 112, 3]}, GREY_LEVELS),
    "channels last, before they move": ([node("Sub", ["x", "a"], "t"), node("Mul", ["t", "b"], "s"),
                                         node("Transpose", ["s"], "pixels", perm=[0, 3, 1, 2])],
                                        {"a": f32(*[127.5] * 3, shape=(3,)), "b": f32(1 / 127.5)},
                                        {"shape": ["N", 112, 112, 3]}, GREY_LEVELS),
    "bytes": ([node("Cast", ["x"], "c", to=TensorProto.FLOAT), node("Sub", ["c", "a"], "t"),
               node("Mul", ["t", "b"], "pixels")],
              {"a": f32(127.5), "b": f32(1 / 127.5)}, {"dtype": TensorProto.UINT8}, GREY_LEVELS),
    "plain": (None, {}, {}, SYMMETRIC),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_normalization_of_the_graph_is_not_repeated(tmp_path: Path, caplog, name: str) -> None:
    before, constants, options, wanted = GRAPHS[name]
    path = write_projection(tmp_path / "a.onnx", before, constants, **options)
    with caplog.at_level(logging.INFO, logger="facesyn"):
        module = load_backbone(path).module
    inside = "does not normalize inside" if name == "plain" else r"normalizes inside \(x -> "
    assert len(caplog.records) == 1, caplog.text  # and no warning that it tells nobody apart
    assert caplog.records[0].getMessage().endswith(f"it gets (gray level - {wanted[0]:g}) / {wanted[1]:g}")
    assert inside.replace("\\", "") in caplog.text
    faces, _ = _faces(112)
    coarse = torch.nn.functional.avg_pool2d(faces, 16).flatten(1)
    expected = coarse @ torch.from_numpy(projection())
    # pixels of up to 255 with the rounding of float32, through sums over the projection's numbers
    rounding = 8 * 255 / 127.5 * torch.finfo(torch.float32).eps * float(np.abs(projection()).sum(0).max())
    torch.testing.assert_close(module(faces), expected, rtol=0, atol=rounding)


def test_settings_come_before_the_graph(tmp_path: Path, caplog) -> None:
    path = write_projection(tmp_path / "a.onnx", SUB_MUL, {"a": f32(127.5), "b": f32(1 / 127.5)})
    cfg = registry.configure("backbone", {"name": "onnx", "weights": path, "mean": 127.5})
    with caplog.at_level(logging.INFO, logger="facesyn"):
        module = load_backbone(None, cfg).module
    assert "it gets (gray level - 127.5) / 127.5, as set" in caplog.text
    assert not face_cosines(module, 112).are_apart
    assert "backbone onnx with mean=0 std=1 channel_order=rgb gives" in caplog.text


@pytest.mark.parametrize(("scale", "shift", "wanted"), [
    (1 / 128, -127.5 / 128, GREY_LEVELS),
    ((1 / 58.4, 1 / 57.1, 1 / 57.4), (-123.7 / 58.4, -116.3 / 57.1, -103.5 / 57.4), GREY_LEVELS),  # ImageNet
    (1, (-103.9, -116.8, -123.7), GREY_LEVELS),  # Caffe: means only
    ((1 / 0.229, 1 / 0.224, 1 / 0.225), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), UNIT),
    (255 / 128, -127.5 / 128, UNIT),
    (1 / 255, 0, GREY_LEVELS),
    (1.8, -0.18, SYMMETRIC),  # a batch norm on data around 0
    (1, 0, SYMMETRIC),
    (1, -20, None),
    (1e-6, 0, None),
    (0, 1, None),
])
def test_which_pixels_an_affine_step_expects(scale, shift, wanted) -> None:
    assert _normalization(np.broadcast_to(scale, 3) * 1.0, np.broadcast_to(shift, 3) * 1.0) == wanted


def test_a_range_that_cannot_be_told_is_said(tmp_path: Path, caplog) -> None:
    path = write_projection(tmp_path / "a.onnx", SUB_MUL, {"a": f32(20), "b": f32(1)})
    load_backbone(path)
    assert "for an unknown range of pixels" in caplog.text


@pytest.mark.parametrize(("options", "says"), [
    ({"after": [node("ReduceSum", ["e"], "y", keepdims=1)], "outputs": {"y": ["N", 1]}}, "none of its outputs is an"),
    ({"after": [node("Identity", ["coarse"], "y")], "outputs": {"y": ["N", 3, 7, 7]}}, r"'N', 3, 7, 7\] by Identity"),
    ({"after": [node("Softmax", ["e"], "y")]}, "by Softmax"),
    ({"after": [node("Identity", ["e"], "y"), node("Neg", ["e"], "z")], "outputs": {"y": ["N", 4], "z": ["N", 4]}},
     "several of its outputs may be"),
    ({"dtype": TensorProto.INT64, "before": [node("Cast", ["x"], "pixels", to=TensorProto.FLOAT)]},
     r"takes tensor\(int64\)"),
])
def test_outputs_that_are_no_embedding_are_refused(tmp_path: Path, options: dict, says: str) -> None:
    options = dict(options)
    with pytest.raises(UserError, match=says):
        load_backbone(write_projection(tmp_path / "a.onnx", options.pop("before", None), **options))


def test_the_embedding_beside_a_norm_is_taken(tmp_path: Path, caplog) -> None:
    """AdaFace's exports give both."""
    after = [node("ReduceL2", ["e"], "norm", axes=[1], keepdims=1), node("Div", ["e", "norm"], "y")]
    path = write_projection(tmp_path / "a.onnx", after=after, outputs={"norm": ["N", 1], "y": ["N", 4]})
    with caplog.at_level(logging.INFO, logger="facesyn"):
        module = load_backbone(path).module
    assert "of 2 outputs y is the embedding" in caplog.text
    assert module(torch.zeros(2, 3, 112, 112)).shape == (2, 4)


def test_a_shift_is_written_with_its_sign_as_an_operator() -> None:
    assert GraphInput(np.ones(3) / 128, -np.ones(3), None).describe() == "0.007812 x - 1"
