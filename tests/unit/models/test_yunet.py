"""The detector wrapper with a network of YuNet's form that finds red squares."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_detector import landmarks, photo, write_detector

from facesyn_cli.errors import UserError  # noqa: E402
from facesyn_cli.models.yunet import Yunet  # noqa: E402


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Yunet:
    return Yunet(write_detector(tmp_path_factory.mktemp("net") / "red.onnx"))


def test_landmarks_are_where_the_face_is(detector: Yunet) -> None:
    ((points, score),) = detector.find(photo((10, 12)))
    np.testing.assert_allclose(points, landmarks((10, 12)), atol=1e-4)
    assert score == pytest.approx(1.0)


def test_red_is_red(detector: Yunet) -> None:
    assert detector.find(photo((10, 12))[:, :, ::-1]) == []


def test_several_and_none(detector: Yunet) -> None:
    found = detector.find(photo((5, 6), (20, 9)))
    assert sorted(points.mean(0).round().tolist() for points, _ in found) == [[40, 48], [160, 72]]
    assert detector.find(photo()) == []


def test_large_images_are_shrunk_and_points_scaled_back(detector: Yunet) -> None:
    image = np.kron(photo((30, 20), side=640), np.ones((2, 2, 1), np.uint8))
    ((points, _),) = detector.find(image)
    np.testing.assert_allclose(points, 2 * landmarks((30, 20)) + 0.5, atol=0.01)


def test_second_try_with_a_margin(detector: Yunet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that finds nothing in small images, as YuNet does where a face fills the image."""
    original = Yunet._detect

    def only_in_large(self: Yunet, pixels_u8: np.ndarray) -> np.ndarray:
        return original(self, pixels_u8) if len(pixels_u8) >= 200 else np.empty((0, 15))

    monkeypatch.setattr(Yunet, "_detect", only_in_large)
    ((points, _),) = detector.find(photo((6, 7), side=128))
    np.testing.assert_allclose(points, landmarks((6, 7)), atol=1e-4)


def test_threads(detector: Yunet) -> None:
    cells = [(4 + k % 20, 5 + k % 17) for k in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda cell: detector.find(photo(cell)), cells))
    for cell, ((points, _),) in zip(cells, found, strict=True):
        np.testing.assert_allclose(points, landmarks(cell), atol=1e-4)


def test_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    cut = write_detector(tmp_path / "cut.onnx")
    cut.write_bytes(cut.read_bytes()[:3000])
    for name in ("text.onnx", "cut.onnx", "none.onnx"):
        with pytest.raises(UserError, match=name):
            Yunet(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match="facesyn\\[align\\]"):
        Yunet(tmp_path / "cut.onnx")


def test_other_network_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    shape = [1, 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["out"])], "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "r.onnx")
    with pytest.raises(UserError, match="r.onnx is not YuNet"):
        Yunet(tmp_path / "r.onnx")
