"""Pair files of every form, made here; images are found by name and wrong files named in one line."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.benchmarks import BenchmarkConfig
from facesyn_cli.evaluation.pairs import is_bin, read_bin, read_pairs
from facesyn_cli.plugins.registry import build


def png(shade: int) -> bytes:
    return encode_png(np.full((4, 4, 3), shade, dtype=np.uint8))


def image_folder(folder: Path, locations: list[str]) -> ImageSet:
    for shade, location in enumerate(locations):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(png(shade))
    return ImageSet.open(folder)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


LFW_NAMES = ["Ann_Lee/Ann_Lee_0001.webp", "Ann_Lee/Ann_Lee_0002.png", "Bo/Bo_0001.jpg", "Bo/Bo_0012.bmp"]
LFW_TEXT = "2\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo\t1\nBo\t1\t12\nBo\t12\tAnn_Lee\t2\n"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", ["bytes", "arrays"])
def test_bin(tmp_path, protocol, form):
    encoded = [png(0), png(1), png(0), png(2), png(3), png(3)]
    images = encoded if form == "bytes" else [np.frombuffer(data, dtype=np.uint8) for data in encoded]
    answers = [True, False, True] if form == "bytes" else np.array([True, False, True])
    (tmp_path / "x.bin").write_bytes(pickle.dumps((images, answers), protocol))
    assert is_bin(tmp_path / "x.bin")
    pairs = read_bin(tmp_path / "x.bin", "x", folds=3)
    assert (len(pairs), pairs.folds, pairs.is_same.tolist()) == (3, 3, [True, False, True])
    assert [pairs.read(i) for i in pairs.first] == encoded[0::2]
    assert [pairs.read(i) for i in pairs.second] == encoded[1::2]
    assert len(pairs.images) == 4, "an image that occurs twice is held once"
    assert pairs.images[pairs.second[1]] == "image 3 of x.bin"


@pytest.mark.parametrize("content, message", [
    ([png(0)], "a pickle of .images, answers. was expected, found list of 1"),
    ((b"abc", [True]), "two lists were expected, found bytes of 3 and list of 1"),
    (([png(0)] * 3, [True] * 2), "holds 3 images for 2 pairs"),
    (([], []), "holds 0 images for 0 pairs"),
    (([png(0)] * 4, [True, 7]), "answers must be true or false, found 7"),
    (([png(0), "text"] * 2, [True] * 2), "image 1 must be encoded bytes, found"),
    (([png(0)] * 2, [True]), "10 folds of 1 pairs"),
])
def test_wrong_bins(tmp_path, content, message):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_bin(tmp_path / "x.bin", "x")


def test_unsafe_or_missing_bins(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(UserError, match="refers to os.system"):
        read_bin(tmp_path / "x.bin", "x")
    with pytest.raises(UserError, match="does not exist"):
        read_bin(tmp_path / "y.bin", "y")
    with pytest.raises(UserError, match="does not exist"):
        is_bin(tmp_path / "y.bin")


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("top", ["", "lfw/"])
def test_lfw_pairs(tmp_path, in_zip, top):
    images = image_folder(tmp_path / "faces", [top + name for name in LFW_NAMES])
    if in_zip:
        with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
            for entry in images.entries:
                archive.writestr(entry.location, images.read(entry))
        images = ImageSet.open(tmp_path / "faces.zip")
    path = write(tmp_path / "pairs.txt", LFW_TEXT)
    assert not is_bin(path)
    pairs = read_pairs(path, images, "lfw")
    assert (pairs.folds, pairs.is_same.tolist()) == (2, [True, False, True, False])
    names = [(pairs.images[a], pairs.images[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    expected = [(0, 1), (0, 2), (2, 3), (3, 1)]
    assert names == [(top + LFW_NAMES[a], top + LFW_NAMES[b]) for a, b in expected]
    assert [pairs.read(i) for i in pairs.first] == [png(a) for a, _ in expected]


def test_header_may_be_the_number_of_folds_alone(tmp_path):
    images = image_folder(tmp_path / "faces", LFW_NAMES)
    pairs = read_pairs(write(tmp_path / "pairs.txt", LFW_TEXT.replace("2\t1", "4", 1)), images, "lfw")
    assert pairs.folds == 4 and len(pairs) == 4


def test_own_image_sets_and_flat_folders(tmp_path):
    text = write(tmp_path / "pairs.txt", "2\nA 1 2\nA 1 B 1\n")
    for layout in (["A/1.png", "A/2.png", "B/1.png"], ["A/0001.png", "A/0002.png", "B/0001.png"],
                   ["A_0001.png", "A_0002.jpg", "B_0001.png"]):
        folder = tmp_path / layout[0].replace("/", "-")
        pairs = read_pairs(text, image_folder(folder, layout), "own")
        assert [pairs.images[i] for i in (*pairs.first, *pairs.second)] == [layout[0], layout[0], layout[1], layout[2]]


@pytest.mark.parametrize("style", ["{}.jpg", "{}", "./{}.png", "ROOT/{}.png"])
def test_any_list(tmp_path, style):
    images = image_folder(tmp_path / "faces", ["a/x y.png", "a/1.png", "b/1.png"])
    style = style.replace("ROOT", str(tmp_path / "faces"))
    lines = [(style.format(a), style.format(b), answer) for a, b, answer in (
        ("a/x y", "a/1", "1"), ("a/1", "b/1", "0"), ("b/1", "a/x y", "0"))]
    path = write(tmp_path / "list.txt", "3\t1\n" + "".join("\t".join(fields) + "\n" for fields in lines))
    pairs = read_pairs(path, images, "list")
    assert pairs.is_same.tolist() == [True, False, False]
    assert [pairs.images[i] for i in pairs.first] == ["a/x y.png", "a/1.png", "b/1.png"]


def test_same_name_with_two_extensions(tmp_path):
    images = image_folder(tmp_path / "faces", ["a/1.png", "a/1.jpg"])
    pairs = read_pairs(write(tmp_path / "l.txt", "2\na/1.png a/1.jpg 1\na/1.jpg a/1.png 1\n"), images, "l")
    assert [pairs.images[i] for i in pairs.first] == ["a/1.png", "a/1.jpg"]
    with pytest.raises(UserError, match="'a/1' matches several images"):
        read_pairs(write(tmp_path / "m.txt", "2\na/1 a/1.jpg 1\na/1.jpg a/1.png 1\n"), images, "m")


@pytest.mark.parametrize("text, message", [
    ("", "is empty"),
    ("Ann_Lee\t1\n", "line 1: the number of folds"),
    ("Ann_Lee\t1\t2\n", "1 folds of 1 pairs"),
    ("2\n", "no pairs after its first line"),
    ("2\t3\nAnn_Lee\t1\t2\n", "has 1 pairs; its first line announces 2 folds of 3 pairs, 6 in all or 12"),
    ("2\nAnn_Lee\t1\n", "line 2: 'path path 0' or 'path path 1' was expected, found 'Ann_Lee 1'"),
    ("2\nAnn_Lee\t1\tBo\t1\nAnn_Lee\tx\t1\n", "line 3: 'name i j' or 'name1 i name2 j' was expected"),
    ("2\nAnn_Lee 1 2 3 4\n", "line 2"),
    ("3\nAnn_Lee\t1\t2\nAnn_Lee\t1\tCy\t3\nAnn_Lee\t8\tBo\t9\n", "3 images of .* are not in .*: Cy/Cy_0003, Ann_Lee/"),
    ("1\nAnn_Lee\t1\t2\nAnn_Lee\t1\t2\n", "1 folds of 2 pairs; at least 2 folds"),
    ("9\nAnn_Lee\t1\t2\n", "has 1 pairs; its first line says 9, which is neither"),
    ("1 Bo/1 0\n0 Ann/1 1\n", "begins and ends with 0 or 1"),
])
def test_wrong_lists(tmp_path, text, message):
    images = image_folder(tmp_path / "faces", LFW_NAMES)
    with pytest.raises(UserError, match=message) as error:
        read_pairs(write(tmp_path / "pairs.txt", text), images, "x")
    assert "\n" not in str(error.value) and "pairs.txt" in str(error.value)


def test_binary_list_is_refused(tmp_path):
    images = image_folder(tmp_path / "faces", LFW_NAMES)
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        read_pairs(tmp_path / "pairs.txt", images, "x")
    with pytest.raises(UserError, match="does not exist"):
        read_pairs(tmp_path / "none.txt", images, "x")


def test_benchmarks_warn_of_unofficial_numbers(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("facesyn_cli.console.log.propagate", True)
    (tmp_path / "cfp_fp.bin").write_bytes(pickle.dumps(([png(i) for i in range(20)], [True, False] * 5)))
    benchmark = build("benchmark", BenchmarkConfig(name="cfp-fp"))
    pairs = benchmark.parts(tmp_path, None)[0].load()
    assert (pairs.name, len(pairs), pairs.folds) == ("cfp-fp", 10, 10)
    assert "has 10 pairs, the official protocol 7000" in caplog.text
    with pytest.raises(UserError, match=r"benchmark lfw: .*lfw\.bin does not exist"):
        build("benchmark", BenchmarkConfig(name="lfw")).parts(tmp_path, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    images = image_folder(tmp_path / "faces", LFW_NAMES)
    os.mkfifo(tmp_path / "pairs.txt")
    with pytest.raises(UserError, match="FIFO"):
        read_pairs(tmp_path / "pairs.txt", images, "x")
