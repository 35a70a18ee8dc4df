"""`facesyn pairs`: every form in, `.bin` and folders out; a `.bin` is what InsightFace's reader expects."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_recognizer import face, write_faces, write_recognizer

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import decode_image, encode_jpeg, encode_png
from facesyn_cli.evaluation.pairs import read_bin, read_pairs

ROWS = [("p0/0", "p0/1", 1), ("p0/0", "p1/1", 0), ("p2/1", "p2/0", 1), ("p2/0", "p1/0", 0)]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    write_faces(tmp_path / "faces", people=3, photos=2)
    (tmp_path / "pairs.txt").write_text("2\n" + "".join(f"{a}.jpg {b}.jpg {s}\n" for a, b, s in ROWS))
    return tmp_path / "pairs.txt"


def test_list_to_bin_as_insightface_reads_it(run_cli, listed, tmp_path) -> None:
    ran = run_cli("pairs", listed, "--images", tmp_path / "faces", "--out", tmp_path / "own.bin", "--json")
    assert ran.code == 0, ran.err
    assert ran.json() == {"pairs": 4, "genuine": 2, "images": 6, "folds": 2, "out": str(tmp_path / "own.bin")}
    with open(tmp_path / "own.bin", "rb") as file:
        images, answers = pickle.load(file, encoding="bytes")
    assert answers == [True, False, True, False] and all(type(answer) is bool for answer in answers)
    expected = [(tmp_path / "faces" / f"{name}.png").read_bytes() for a, b, _ in ROWS for name in (a, b)]
    assert images == expected, "bytes are kept"
    assert "has 2 folds; a .bin holds no folds, and is read as 10" in ran.err


def test_round_trip_by_way_of_a_folder(run_cli, listed, tmp_path) -> None:
    run_cli("pairs", listed, "--images", tmp_path / "faces", "--out", tmp_path / "a.bin")
    (tmp_path / "big.bin").write_bytes(_repeated(tmp_path / "a.bin", 3))
    assert run_cli("pairs", tmp_path / "big.bin", "--out", tmp_path / "folder").code == 0
    again = run_cli("pairs", tmp_path / "folder/pairs.txt", "--images", tmp_path / "folder/images", "--out",
                    tmp_path / "b.bin")
    assert again.code == 0, again.err
    one, two = (pickle.loads((tmp_path / name).read_bytes()) for name in ("big.bin", "b.bin"))
    assert one == two
    assert (tmp_path / "folder/pairs.txt").read_text().splitlines()[0] == "10\t12"
    assert len(list((tmp_path / "folder/images").iterdir())) == 6, "an image of several pairs is written once"


def _repeated(path: Path, times: int) -> bytes:
    images, answers = pickle.loads(path.read_bytes())
    return pickle.dumps((images * times, answers * times), 4)


def test_eval_gives_the_same_for_both_forms(run_cli, listed, tmp_path) -> None:
    listed.write_text("10\n" + listed.read_text().split("\n", 1)[1] * 5)
    run_cli("pairs", listed, "--images", tmp_path / "faces", "--out", tmp_path / "lfw.bin")
    network = write_recognizer(tmp_path / "fr")
    ran = run_cli("eval", "--weights", network, "--pairs", listed, "--pairs", tmp_path / "lfw.bin", "--images",
                  tmp_path / "faces", "--out", tmp_path / "table", "--json")
    assert ran.code == 0, ran.err
    one, two = ran.json()["rows"]
    assert {**one, "benchmark": ""} == {**two, "benchmark": ""}


def test_other_formats_become_png_without_loss(run_cli, tmp_path) -> None:
    """JPEG and PNG are what published readers are known to take."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(face(1, 0)).save(out, "BMP")
    (tmp_path / "i").mkdir()
    (tmp_path / "i/a.bmp").write_bytes(out.getvalue())
    (tmp_path / "i/b.jpg").write_bytes(encode_jpeg(face(2, 0)))
    (tmp_path / "l.txt").write_text("2\na b 0\nb a 1\n")
    assert run_cli("pairs", tmp_path / "l.txt", "--images", tmp_path / "i", "--out", tmp_path / "x.bin").code == 0
    images, _ = pickle.loads((tmp_path / "x.bin").read_bytes())
    assert images[0].startswith(b"\x89PNG") and np.array_equal(decode_image(images[0]), face(1, 0))
    assert images[1] == (tmp_path / "i/b.jpg").read_bytes()


def test_cfp_to_bin(run_cli, assert_refused, tmp_path) -> None:
    names = {"F": [], "P": []}
    for kind, folder in (("F", "frontal"), ("P", "profile")):
        for person in (1, 2):
            path = tmp_path / f"cfp/Data/Images/{person:03d}/{folder}/01.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode_png(face(person, len(folder))))
            names[kind].append(path)
    (tmp_path / "cfp/Protocol").mkdir()
    for kind in "FP":
        (tmp_path / f"cfp/Protocol/Pair_list_{kind}.txt").write_text(
            "".join(f"{i} ../{p.relative_to(tmp_path / 'cfp')}\n" for i, p in enumerate(names[kind], 1)))
    for fold in ("01", "02"):
        folder = tmp_path / "cfp/Protocol/Split/FP" / fold
        folder.mkdir(parents=True)
        (folder / "same.txt").write_text("1,1\n2,2\n")
        (folder / "diff.txt").write_text("1,2\n2,1\n")
    assert run_cli("pairs", tmp_path / "cfp", "--out", tmp_path / "cfp_fp.bin").code == 0
    pairs = read_bin(tmp_path / "cfp_fp.bin", "x", folds=2)
    assert pairs.is_same.tolist() == [True, True, False, False] * 2
    assert pairs.read(pairs.first[2]) == names["F"][0].read_bytes()
    assert pairs.read(pairs.second[2]) == names["P"][1].read_bytes()
    assert_refused("pairs", tmp_path / "cfp", "--cfp", "FF", "--out", tmp_path / "ff.bin", says="Split/FF")
    assert_refused("pairs", tmp_path / "cfp", "--cfp", "fp", "--out", tmp_path / "ff.bin", says="FF or FP")


def test_other_sizes(run_cli, assert_refused, listed, tmp_path) -> None:
    (tmp_path / "faces/p1/1.png").write_bytes(encode_png(face(1, 1, side=160)))
    arguments = ("pairs", listed, "--images", tmp_path / "faces", "--out", tmp_path / "x.bin")
    assert_refused(*arguments, says=("p1/1.png cannot be used", "160 x 160 pixels", "--resize"))
    assert not (tmp_path / "x.bin").exists()
    assert run_cli(*arguments, "--resize").code == 0
    (tmp_path / "faces/p1/1.png").write_bytes(encode_png(face(1, 1, side=160)[:100]))
    ran = run_cli(*arguments[:-1], tmp_path / "y.bin", "--resize")
    assert "1 of 6 images are not square" in ran.err


def test_wrong_inputs(assert_refused, run_cli, listed, tmp_path) -> None:
    faces = ("--images", tmp_path / "faces")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/diary.txt").write_text("mine")
    (tmp_path / "there.bin").write_bytes(b"x")
    (tmp_path / "broken").mkdir()
    for name in ("p0", "p1", "p2"):
        (tmp_path / "broken" / name).mkdir()
        for k in (0, 1):
            (tmp_path / "broken" / name / f"{k}.png").write_bytes(b"no image")
    for arguments, says in (
        ((listed, "--out", tmp_path / "x.bin"), "with --images"),
        ((tmp_path / "none.bin", "--out", tmp_path / "x.bin"), "none.bin"),
        ((tmp_path / "there.bin", "--out", tmp_path / "x.bin"), "safe to read"),
        ((listed, *faces, "--out", tmp_path / "there.bin"), "there.bin exists with other content"),
        ((listed, *faces, "--out", tmp_path / "strange"), "diary.txt"),
        ((listed, *faces, "--out", listed), "pairs.txt"),
        ((listed, *faces, "--size", "0", "--out", tmp_path / "x.bin"), "--size"),
        ((tmp_path / "faces", "--out", tmp_path / "x.bin"), "Protocol/Split/FP"),
        ((listed, "--images", tmp_path / "broken", "--out", tmp_path / "x.bin"), "cannot be used: not an image"),
    ):
        assert_refused("pairs", *arguments, says=says)
        assert not (tmp_path / "x.bin").exists()


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["out.bin", "out"])
def test_the_same_command_again_is_finished_and_another_one_is_refused(
    run_cli, assert_refused, listed, tmp_path, name
) -> None:
    out = tmp_path / "made" / name
    command = ("pairs", listed, "--images", tmp_path / "faces", "--out", out)
    first = run_cli(*command)
    before = _state(out.parent)
    again = run_cli(*command)
    assert again.code == 0 and again.out == first.out and "is finished already" in again.err
    assert _state(out.parent) == before
    says = "size 112 56" if name == "out" else "out.bin exists with other content"
    assert_refused(*command, "--size", 56, "--resize", says=says)
    assert _state(out.parent) == before


@pytest.mark.parametrize("name", ["out.bin", "out"])
def test_what_a_kill_leaves_is_finished(run_cli, listed, tmp_path, monkeypatch, name) -> None:
    out = tmp_path / "made" / name
    command = ("pairs", listed, "--images", tmp_path / "faces", "--out", out)
    monkeypatch.setattr(os, "replace", _killed_at(os.replace, 3 if name == "out" else 1))
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
    with pytest.raises(Killed):
        run_cli(*command)
    monkeypatch.undo()
    assert any(path.name.startswith(".tmp-") for path in (tmp_path / "made").rglob("*"))
    assert not (out / "pairs.txt").exists() and not out.is_file()
    Path.unlink(next((tmp_path / "made").rglob(".lock-*")))  # its process, this one, is not gone
    assert run_cli(*command).code == 0
    if name == "out":
        pairs = read_pairs(out / "pairs.txt", ImageSet.open(out / "images"), "x")
        assert pairs.read(pairs.first[0]) == (tmp_path / "faces/p0/0.png").read_bytes() and pairs.folds == 2
    else:
        assert read_bin(out, "x", folds=2).is_same.tolist() == [True, False, True, False]
    assert not any(path.name.startswith((".tmp-", ".lock-")) for path in (tmp_path / "made").rglob("*"))


class Killed(BaseException):
    """What ends a command at once."""


def _killed_at(replace, number: int):
    """Return `os.replace` that ends the command at its call of this number."""
    calls = iter(range(1, number + 1))

    def call(*arguments) -> None:
        if next(calls) == number:
            raise Killed
        replace(*arguments)

    return call
