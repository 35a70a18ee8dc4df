"""CFP's protocol folders and the two-line lists of CALFW and CPLFW, made here."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.console import log
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.benchmarks import BenchmarkConfig
from facesyn_cli.evaluation.cfp import read_cfp
from facesyn_cli.evaluation.pairs import read_pairs
from facesyn_cli.plugins.registry import build

PEOPLE, FRONTAL, PROFILE, FOLDS = 4, 3, 2, 2


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def png(*shade: int) -> bytes:
    return encode_png(np.full((4, 4, 3), shade, np.uint8))


def write_cfp(root: Path) -> list[tuple[str, str, str, bool]]:
    """Write a small CFP; return (kind, first, second, same) of every pair in the order of the protocol."""
    names: dict[str, list[str]] = {"F": [], "P": []}
    for person in range(1, PEOPLE + 1):
        for kind, folder, count in (("F", "frontal", FRONTAL), ("P", "profile", PROFILE)):
            for k in range(1, count + 1):
                name = f"{person:03d}/{folder}/{k:02d}.jpg"
                names[kind].append(name)
                (root / "Data/Images" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "Data/Images" / name).write_bytes(png(person, k, kind == "F"))
    (root / "Protocol").mkdir()
    for kind, listed in names.items():
        lines = [f"{i} ../Data/Images/{name}\n" for i, name in enumerate(listed, 1)]
        (root / "Protocol" / f"Pair_list_{kind}.txt").write_text("".join(lines))
    random, pairs = np.random.RandomState(0), []
    for kind in ("FF", "FP"):
        for fold in range(1, FOLDS + 1):
            folder = root / "Protocol/Split" / kind / f"{fold:02d}"
            folder.mkdir(parents=True)
            for file, same in (("same.txt", True), ("diff.txt", False)):
                lines = []
                for _ in range(3):
                    a = random.randint(PEOPLE)
                    b = a if same else (a + 1 + random.randint(PEOPLE - 1)) % PEOPLE
                    per = FRONTAL if kind == "FF" else PROFILE
                    i, j = a * FRONTAL + random.randint(FRONTAL), b * per + random.randint(per)
                    lines.append(f"{i + 1},{j + 1}\n")
                    pairs.append((kind, names["F"][i], names["F" if kind == "FF" else "P"][j], same))
                (folder / file).write_text("".join(lines))
    return pairs


@pytest.mark.parametrize("kind", ["FF", "FP"])
def test_cfp(tmp_path: Path, kind: str) -> None:
    expected = [row[1:] for row in write_cfp(tmp_path) if row[0] == kind]
    images = ImageSet.open(tmp_path / "Data/Images")
    pairs = read_cfp(tmp_path, kind, images, "cfp")
    found = [(pairs.images[a], pairs.images[b], bool(s))
             for a, b, s in zip(pairs.first, pairs.second, pairs.is_same, strict=True)]
    assert found == expected and pairs.folds == FOLDS
    assert pairs.read(pairs.second[0]) == (tmp_path / "Data/Images" / expected[0][1]).read_bytes()
    profile = [("profile" in second) for _, second, _ in found]
    assert all(profile) if kind == "FP" else not any(profile)


def test_cfp_as_a_benchmark(tmp_path: Path, warned) -> None:
    """Found in the data folder where there is no .bin; aligned crops elsewhere are taken with --images."""
    write_cfp(tmp_path / "cfp")
    (tmp_path / "cfp/Data").rename(tmp_path / "Data")
    benchmark = build("benchmark", BenchmarkConfig(name="cfp-fp"))
    (part,) = benchmark.parts(tmp_path / "cfp", tmp_path / "Data/Images")
    assert len(part.load()) == 12
    assert "has 12 pairs, the official protocol 7000" in warned.text
    with pytest.raises(UserError, match="CFP's own folders"):
        benchmark.parts(tmp_path / "Data", None)


@pytest.mark.parametrize(("file", "text", "says"), [
    ("Pair_list_P.txt", "1 a\nx b\n", "Pair_list_P.txt line 2"),
    ("Split/FP/01/same.txt", "1,2\n3;4\n", "same.txt line 2"),
    ("Split/FP/01/diff.txt", "1,999\n", "have no image 999"),
    ("Split/FP/02/diff.txt", "1,1\n", "the folds have 4 to 6 pairs"),
])
def test_broken_cfp(tmp_path: Path, file: str, text: str, says: str) -> None:
    write_cfp(tmp_path)
    (tmp_path / "Protocol" / file).write_text(text)
    with pytest.raises(UserError, match=says):
        read_cfp(tmp_path, "FP", ImageSet.open(tmp_path / "Data/Images"), "cfp")


def two_line(tmp_path: Path, header: str = "name\tflag\n", calfw: bool = False) -> tuple[Path, list]:
    """20 pairs in 10 folds: one genuine and one impostor pair a fold."""
    lines, expected = [], []
    for fold in range(1, 11):
        for same in (True, False):
            a, b = f"Ann_{fold:04d}.jpg", f"{'Ann' if same else 'Bo'}_{fold + 20:04d}.jpg"
            flag = (fold if calfw else 1) if same else 0
            lines += [f"{a}\t{flag}\n", f"{b}\t{flag}\n"]
            expected.append((a, b, same))
            for name in (a, b):
                (tmp_path / "images").mkdir(exist_ok=True)
                (tmp_path / "images" / name).write_bytes(png(len(lines), fold, same))
    (tmp_path / "list.txt").write_text(header + "".join(lines))
    return tmp_path / "list.txt", expected


@pytest.mark.parametrize("calfw", [False, True])
@pytest.mark.parametrize("header", ["name\tflag\n", "pairs of cross-pose LFW\n", ""])
def test_two_line_lists(tmp_path: Path, header: str, calfw: bool, warned) -> None:
    path, expected = two_line(tmp_path, header, calfw)
    pairs = read_pairs(path, ImageSet.open(tmp_path / "images"), "x")
    assert pairs.folds == 10
    assert [(pairs.images[a], pairs.images[b], bool(s))
            for a, b, s in zip(pairs.first, pairs.second, pairs.is_same, strict=True)] == expected
    assert not warned.text


def test_calfw_folds_that_are_not_consecutive_are_said(tmp_path: Path, warned) -> None:
    path, _ = two_line(tmp_path, calfw=True)
    path.write_text(path.read_text().replace("\t1\n", "\t11\n").replace("\t7\n", "\t1\n").replace("\t11\n", "\t7\n"))
    assert len(read_pairs(path, ImageSet.open(tmp_path / "images"), "x")) == 20
    assert "names other folds than its 10 consecutive parts" in warned.text


def test_two_line_list_as_a_benchmark(tmp_path: Path, warned) -> None:
    two_line(tmp_path)
    benchmark = build("benchmark", BenchmarkConfig(name="cplfw", file="list.txt"))
    for images in (None, tmp_path / "images"):
        (part,) = benchmark.parts(tmp_path, images)
        assert len(part.load()) == 20 and "official protocol 6000" in warned.text


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.replace("\t1\n", "\t0\n", 1), "line 2: the two images of a pair have the flags 0 and 1"),
    (lambda t: t.rsplit("\n", 2)[0] + "\n", "39 images; two lines a pair"),
    (lambda t: t.replace("Bo_0021", "Zoe_1"), "1 images of"),
])
def test_broken_two_line_lists(tmp_path: Path, change, says: str) -> None:
    path, _ = two_line(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=says):
        read_pairs(path, ImageSet.open(tmp_path / "images"), "x")


@pytest.mark.parametrize(("name", "number"), [("lfw", 6000), ("calfw", 6000), ("agedb-30", 6000), ("cfp-ff", 7000)])
def test_official_sizes(tmp_path: Path, warned, name: str, number: int) -> None:
    import pickle

    file = tmp_path / f"{name.replace('-', '_')}.bin"
    for count in (number, number - 1):
        file.write_bytes(pickle.dumps(([png(1), png(2)] * count, ([True, False] * count)[:count]), 4))
        build("benchmark", BenchmarkConfig(name=name)).parts(tmp_path, None)[0].load()
    assert [r.getMessage() for r in warned.records] == [
        f"{name}: {file} has {number - 1} pairs, the official protocol {number}; "
        "the result does not compare with published ones"]
