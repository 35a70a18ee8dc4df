"""InsightFace packs: which of several ONNX networks is the recognizer, in folders and zips. Networks are made here."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fill import golden_uniform
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.onnx_files import is_pack
from facesyn_cli.plugins import registry

WEIGHT = np.random.RandomState(0).standard_normal((3, 512)).astype(np.float32)
PACK = {"det_10g.onnx": ("?", 2), "2d106det.onnx": (192, 212), "genderage.onnx": (96, 3), "w600k_r50.onnx": (112, 512)}


def _network(side: int | str, width: int) -> bytes:
    """A network from (N, 3, side, side) to (N, width)."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.resize(WEIGHT, (3, width)), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def _write(path: Path, pack: dict[str, tuple[int | str, int]], folder: str = "") -> Path:
    """Write a pack as a folder, or as a zip where the path says so."""
    contents = {name: _network(*shape) for name, shape in pack.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(folder + name, content)
    else:
        (path / folder).mkdir(parents=True)
        for name, content in contents.items():
            (path / folder / name).write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["buffalo_l", "buffalo_l.zip"])
@pytest.mark.parametrize("folder", ["", "buffalo_l/"])
def test_the_recognizer_of_a_pack_is_found_and_named(tmp_path, caplog, name, folder):
    path = _write(tmp_path / name, PACK, folder)
    single = tmp_path / "single.onnx"
    single.write_bytes(_network(*PACK["w600k_r50.onnx"]))
    with caplog.at_level(logging.INFO):
        loaded = load_backbone(path)
    assert "4 networks; w600k_r50.onnx is the recognizer (112 x 112 -> 512)" in caplog.text
    assert (loaded.name, loaded.input_size, loaded.digest) == ("onnx", 112, load_backbone(single).digest)
    pixels = golden_uniform(1, (2, 3, 112, 112))
    expected = pixels.mean((2, 3)) @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(loaded.module(pixels), expected, rtol=0, atol=1e-5)


def test_a_pack_takes_the_settings_of_the_plugin(tmp_path):
    path = _write(tmp_path / "pack.zip", PACK)
    cfg = registry.configure("backbone", {"name": "onnx", "mean": 0.0, "std": 255.0, "weights": path})
    pixels = golden_uniform(2, (1, 3, 112, 112))
    expected = (pixels.mean((2, 3)) + 1) / 2 @ torch.from_numpy(WEIGHT)
    torch.testing.assert_close(load_backbone(None, cfg).module(pixels), expected, rtol=0, atol=1e-4)


def test_a_pack_of_one_does_not_count_networks(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load_backbone(_write(tmp_path / "one", {"a.onnx": (112, 512)}))
    assert "networks;" not in caplog.text


def test_packs_without_one_recognizer_are_refused(tmp_path):
    none = _write(tmp_path / "none", {"det.onnx": (640, 2), "age.onnx": (112, 3)})
    with pytest.raises(UserError, match=r"none of its .* 512 outputs: age\.onnx \(Nx3x112x112 -> Nx3\), det"):
        load_backbone(none)
    several = _write(tmp_path / "several.zip", {"a.onnx": (112, 512), "b.onnx": (112, 512), "c.onnx": (96, 3)})
    with pytest.raises(UserError, match=r"several of its networks .*: a\.onnx, b\.onnx; give one of them$"):
        load_backbone(several)


def test_what_is_no_pack(tmp_path):
    (tmp_path / "empty").mkdir()
    torch.save({"a": torch.zeros(3)}, tmp_path / "weights.pth")  # a zip too
    for path in ("empty", "weights.pth", "missing"):
        assert not is_pack(tmp_path / path)
    with pytest.raises(UserError, match="is a folder without config.json"):
        load_backbone(tmp_path / "empty")
    with pytest.raises(UserError, match=re.escape("contains no .onnx file")):
        load_backbone(tmp_path / "empty", registry.configure("backbone", {"name": "onnx"}))


def test_damaged_packs(tmp_path):
    path = _write(tmp_path / "pack.zip", PACK)
    content = path.read_bytes()
    place = content.index(b"w600k_r50.onnx") + 60
    path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
    with pytest.raises(UserError, match=r"pack\.zip/w600k_r50\.onnx: cannot be read from the archive"):
        load_backbone(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"pack\.zip"):
        load_backbone(path)
    folder = _write(tmp_path / "folder", PACK)
    (folder / "det_10g.onnx").write_bytes(b"\x08hello")
    with pytest.raises(UserError, match=r"det_10g\.onnx is not an ONNX"):
        load_backbone(folder)


def test_a_network_that_grows_a_thousandfold_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "trap.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.onnx", b"\x08" + bytes(2**25))
    with pytest.raises(UserError, match=r"a\.onnx: unpacks from \d+ to 33554433 bytes; refused"):
        load_backbone(tmp_path / "trap.zip")


def test_external_data_has_no_place_in_a_zip(tmp_path):
    model = onnx.load_model_from_string(_network(112, 512))
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr("a.onnx", model.SerializeToString())
    with pytest.raises(UserError, match="refers to data in a file beside it"):
        load_backbone(tmp_path / "pack.zip")
