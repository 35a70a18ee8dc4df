"""`embed`, `align`, `eval` and `report` in several processes, or runs, write what one process writes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from conftest import Ran, finish, spawn
from tiny_detector import landmarks, photo, write_detector
from tiny_recognizer import face, write_faces, write_recognizer

from facesyn_cli.data.pixels import encode_png

pytestmark = pytest.mark.dist


def run_in(processes: int, *arguments: object, code: int = 0) -> Ran:
    """Run a command; it prints one JSON document, or one error."""
    ran = finish(spawn(*arguments, processes=processes))
    assert ran.code == code, ran.err
    assert sum(line.startswith("error: ") for line in ran.err.splitlines()) == bool(code), ran.err
    return ran


def files(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, without the header (it has paths in it)."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "facesyn.json"}


def test_embed_in_two_processes_and_three_shards(tmp_path):
    images, weights = write_faces(tmp_path / "faces", people=5, photos=3), write_recognizer(tmp_path / "fr")
    (images / "p2" / "1.png").write_bytes(b"broken")
    arguments = ("embed", "--images", images, "--weights", weights, "--device", "cpu", "--json",
                 "batch_size=2", "part_size=2")
    one = run_in(1, *arguments, "--out", tmp_path / "one").json()
    assert one["embeddings"] == 14 and one["unreadable"] == 1
    runs = [spawn(*arguments, "--out", tmp_path / "two", "--shard", f"{part}/3", processes=number)
            for part, number in ((3, 1), (1, 2), (2, 1))]  # at the same time
    ends = [finish(run) for run in runs]
    assert [ran.code for ran in ends] == [0, 0, 0], [ran.err for ran in ends]
    assert {**one, "folder": ""} in [{**ran.json(), "folder": ""} for ran in ends], "one run found all parts"
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_align(tmp_path):
    for key in range(7):
        path = tmp_path / "photos" / f"p{key % 3}" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(photo(*([] if key == 5 else [(10 + key, 12)]), seed=key)))
    (tmp_path / "photos" / "p0" / "broken.jpg").write_bytes(b"no image")
    lines = [f"p{key % 3}/{key}.png {' '.join(repr(float(v)) for v in landmarks((10 + key, 12)).ravel())} 0.9\n"
             for key in range(7) if key != 5]
    (tmp_path / "pts.txt").write_text("".join(lines))
    arguments = ("align", "--images", tmp_path / "photos", "--landmarks", tmp_path / "pts.txt", "--json", "part_size=2")
    one = run_in(1, *arguments, "--out", tmp_path / "one").json()
    assert (one["images"], one["unreadable"], one["no_landmarks"]) == (6, 1, 1)
    ran = run_in(2, *arguments, "--out", tmp_path / "two")
    assert {**one, "folder": ""} == {**ran.json(), "folder": ""}
    assert ran.err.count("2 of 8 photos have no crop") == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_eval(tmp_path):
    """The images of a benchmark are divided; the first of two broken ones is named, whichever process met it."""
    weights = write_recognizer(tmp_path / "fr")
    pairs = []
    for name, shift in (("a", 0), ("b", 40)):
        photos = [(shift + p, k) for p in range(5) for k in (0, 1)] + [(shift + p, 0) for p in range(10)]
        images = [encode_png(face(*photo)) for photo in photos]
        if name == "b":
            images[6] = images[9] = b"broken"
        (tmp_path / f"{name}.bin").write_bytes(pickle.dumps((images, [True] * 5 + [False] * 5)))
        pairs += ["--pairs", tmp_path / f"{name}.bin"]
    arguments = ("eval", "--weights", weights, *pairs, "--device", "cpu", "--json", "batch_size=3")
    one, two = (run_in(number, *arguments, "--out", tmp_path / str(number), code=2) for number in (1, 2))
    errors = [ran.err.strip().splitlines()[-1] for ran in (one, two)]
    assert errors[0] == errors[1] and "1 of the first 9 images cannot be used, image 6 of b.bin" in errors[0]
    assert files(tmp_path / "1").keys() == files(tmp_path / "2").keys()
    for name in ("table.csv", "table.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_report(tmp_path):
    """Embeddings in two parts, perceptual distances in batches, poses in turn; one line where a set is of no use."""
    weights, detector = write_recognizer(tmp_path / "judge"), write_detector(tmp_path / "red.onnx")
    images = write_faces(tmp_path / "faces", people=65, photos=4)
    (images / "p2" / "1.png").write_bytes(b"broken")
    arguments = ("report", images, "--judge", weights, f"detector={detector}", "--device", "cpu", "--json",
                 "perceptual_images=100")
    one, two = (run_in(number, *arguments, "--out", tmp_path / str(number)) for number in (1, 2))
    assert {**one.json(), "folder": ""} == {**two.json(), "folder": ""}
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert two.err.count("1 of 260 images could not be embedded") == 1 == two.err.count("faces: poses")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "0.png").write_bytes(b"broken")
    ran = run_in(2, *arguments, "--reference", tmp_path / "real", f"cache={tmp_path / '1' / 'cache'}", "--out",
                 tmp_path / "3", code=2)
    assert "none of the 1 images" in ran.err
