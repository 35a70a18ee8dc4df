"""Damaged lists: truncated, bytes changed, another kind, absurd numbers. Each is read or refused in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.alignment import TEMPLATE
from facesyn_cli.data.landmarks import read_landmarks
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.cfp import read_cfp
from facesyn_cli.evaluation.pairs import read_bin, read_pairs
from facesyn_cli.evaluation.templates import read_templates

NUMBERS = " ".join(f"{v:.2f}" for v in TEMPLATE.ravel())
TEXTS = {
    "celeba": f"2\nlefteye_x lefteye_y\na.jpg {NUMBERS}\nb.jpg {NUMBERS}\n",
    "pts": f"a.jpg {NUMBERS} 0.9\nb.jpg {NUMBERS} 0.8\n",
    "csv": f"path,x1,y1\na.jpg,{NUMBERS.replace(' ', ',')},1\nb.jpg,{NUMBERS.replace(' ', ',')},1\n",
    "lfw": "2 1\na\t1\t1\na\t1\tb\t1\na\t1\t1\na\t1\tb\t1\n",
    "own": "2\na.png b.png 0\na.png a.png 1\n",
    "cplfw": "x\n" + "a.png 1\na.png 1\na.png 0\nb.png 0\n" * 5,
    "tid": "a.jpg 1 1\nb.jpg 2 1\n",
    "label": "1 2 0\n2 2 1\n",
    "cfp names": "1 x/a/frontal/01.jpg\n2 x/b/frontal/01.jpg\n",
    "cfp split": "1,1\n2,1\n",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b", "a/1", "a/a_0001", "b/1", "a/frontal/01", "b/frontal/01"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(encode_png(np.full((4, 4, 3), len(name), np.uint8)))
    return ImageSet.open(folder)


def reader(name: str, folder: Path, images: ImageSet) -> tuple[Path, Callable[[], object]]:
    """Return the file to damage and a function that reads it among undamaged others."""
    path = folder / "file.txt"
    if name in ("celeba", "pts", "csv"):
        return path, lambda: read_landmarks(path)
    if name in ("tid", "label"):
        files = {"tid": folder / "tid.txt", "label": folder / "label.txt"}
        for key, file in files.items():
            file.write_text(TEXTS[key])
        return files[name], lambda: read_templates(files["tid"], files["label"], images, "x", False, "exact")
    if name.startswith("cfp"):
        split = folder / "Protocol/Split/FF/01"
        split.mkdir(parents=True)
        (folder / "Protocol/Pair_list_F.txt").write_text(TEXTS["cfp names"])
        for file in ("same.txt", "diff.txt"):
            (split / file).write_text(TEXTS["cfp split"])
        target = folder / "Protocol/Pair_list_F.txt" if name == "cfp names" else split / "same.txt"
        return target, lambda: read_cfp(folder, "FF", images, "x")
    return path, lambda: read_pairs(path, images, "x")


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_lists(tmp_path: Path, images: ImageSet, name: str) -> None:
    path, read = reader(name, tmp_path, images)
    good, random = TEXTS[name].encode(), np.random.RandomState(0)
    refused = 0
    for k in range(150):
        data = bytearray(good)
        if k % 3 == 0:
            del data[random.randint(len(data)) :]
        elif k % 3 == 1:
            for _ in range(random.randint(1, 6)):
                data[random.randint(len(data))] = random.randint(256)
        else:
            digits = [i for i, c in enumerate(good) if chr(c).isdigit()]
            at = digits[random.randint(len(digits))]
            data[at : at + 1] = (b"-1", b"9" * 30, b"1e400", b"nan", b"0x10", "\u0663".encode(), b"")[random.randint(7)]
        path.write_bytes(bytes(data))
        try:
            read()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize("content", [
    b"", b"\x00" * 4096, b"\x80\x04" + b"\xff" * 100, encode_png(np.zeros((4, 4, 3), np.uint8)), b"PK\x03\x04" * 50,
    b"1 " * 100_000, ("9" * 5000).encode(),
], ids=["empty", "zeros", "pickle", "png", "zip", "long line", "huge number"])
@pytest.mark.parametrize("name", TEXTS)
def test_another_kind_of_file(tmp_path: Path, images: ImageSet, name: str, content: bytes) -> None:
    path, read = reader(name, tmp_path, images)
    path.write_bytes(content)
    with pytest.raises(UserError):
        read()


def test_damaged_bins(tmp_path: Path) -> None:
    good = pickle.dumps(([encode_png(np.full((4, 4, 3), k, np.uint8)) for k in range(4)] * 2, [True, False] * 2), 4)
    random = np.random.RandomState(0)
    for k in range(300):
        data = bytearray(good)
        if k % 2:
            del data[random.randint(len(data)) :]
        else:
            data[random.randint(len(data))] ^= 1 << random.randint(8)
        (tmp_path / "x.bin").write_bytes(bytes(data))
        try:
            read_bin(tmp_path / "x.bin", "x", folds=2)
        except UserError as error:
            assert "x.bin" in str(error)
