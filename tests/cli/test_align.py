"""`facesyn align`: crops where the landmarks say, reports, kills, wrong inputs; and `align` inside other stages."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn
from tiny_detector import SHAPE, landmarks, photo, write_detector
from tiny_recognizer import embedding_rounding, write_recognizer

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.alignment import TEMPLATE, similarity_transform, template, warp
from facesyn_cli.data.pixels import decode_image, encode_png

CELLS = {"ann/0": [(10, 12)], "ann/1": [(14, 9), (16, 16)], "bob/x": [(20, 18)], "bob/none": []}


def row(cell: tuple[int, int]) -> str:
    return " ".join(repr(float(v)) for v in landmarks(cell).ravel())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos: one face, two faces, one face, no face; and a file that is no image."""
    folder = tmp_path / "photos"
    for seed, (key, cells) in enumerate(CELLS.items()):
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(photo(*cells, seed=seed)))
    (folder / "bob" / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Landmarks of the same faces as a text list; `bob/none` is not in it."""
    lines = [f"{key}.png {row(cell)} 0.9\n" for key, cells in CELLS.items() for cell in cells]
    (tmp_path / "pts.txt").write_text("".join(lines))
    return tmp_path / "pts.txt"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "red.onnx")


def pixels(folder: Path) -> dict[str, np.ndarray]:
    images = ImageSet.open(folder)
    return {entry.key: decode_image(images.read(entry)) for entry in images.entries}


def expected(key: str, seed: int, cell: tuple[int, int]) -> np.ndarray:
    return warp(photo(*CELLS[key], seed=seed), similarity_transform(landmarks(cell), TEMPLATE), 112)


def test_crops_are_where_the_landmarks_say(run_cli, photos, listed, tmp_path) -> None:
    ran = run_cli("align", "--images", photos, "--landmarks", listed, "--work", tmp_path / "w", "--json")
    assert ran.code == 0, ran.err
    assert ran.json() == {
        "photos": 5, "images": 3, "identities": 2, "several_faces": 1, "turned": 0, "no_face": 0,
        "too_small": 0,
        "no_landmarks": 1, "unreadable": 1, "folder": str(tmp_path / "w" / "0-images"),
    }
    found = pixels(tmp_path / "w" / "0-images")
    assert set(found) == {"ann/0", "ann/1", "bob/x"}
    assert np.array_equal(found["ann/0"], expected("ann/0", 0, (10, 12)))
    assert np.array_equal(found["bob/x"], expected("bob/x", 2, (20, 18)))
    report = (tmp_path / "w" / "0-images" / "left-out.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in report] == [
        ["bob/broken.jpg", "unreadable"], ["bob/none.png", "no_landmarks"]]
    assert "2 of 5 photos have no crop" in ran.err
    assert read_header(tmp_path / "w" / "0-images").kind == "ImageSet"


def test_detector_finds_the_same_crops(run_cli, photos, listed, detector, tmp_path) -> None:
    ran = run_cli("align", "--images", photos, "--detector", detector, "--out", tmp_path / "a", "--json",
                  "pick=central")
    assert ran.code == 0, ran.err
    assert {k: v for k, v in ran.json().items() if v} == {
        "photos": 5, "images": 3, "identities": 2, "several_faces": 1, "no_face": 1, "unreadable": 1,
        "folder": str(tmp_path / "a"),
    }
    run_cli("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "b", "pick=central")
    one, two = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert set(one) == set(two)
    for key in one:
        assert np.abs(one[key].astype(int) - two[key]).max() <= 1, key
    assert np.array_equal(two["ann/1"], expected("ann/1", 1, (16, 16))), "the central one of two"


def test_photos_that_lie_are_turned_and_counted(run_cli, tmp_path, monkeypatch) -> None:
    """A detector as YuNet: surer of upright faces, and finding others with eyes for mouth."""
    import facesyn_cli.stages.align as stage

    class Detector:
        digest = "sha256:0"

        def __init__(self, path: Path) -> None:
            pass

        def find(self, pixels_u8: np.ndarray):
            return [(landmarks((10, 12)), 0.93 if pixels_u8[0].mean() > 200 else 0.87)]

    monkeypatch.setattr(stage, "Yunet", Detector)
    upright = photo((10, 12))
    upright[:2] = 255
    (tmp_path / "photos").mkdir()
    for k in range(4):
        (tmp_path / "photos" / f"{k}.png").write_bytes(encode_png(np.ascontiguousarray(np.rot90(upright, k))))
    ran = run_cli("align", "--images", tmp_path / "photos", "--detector", tmp_path / "d.onnx", "--out", tmp_path / "a",
                  "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["turned"] == 3 and read_header(tmp_path / "a").counts["turned"] == 3
    assert "3 of 4 photos lie on their side or upside down" in ran.err
    crops = list(pixels(tmp_path / "a").values())
    assert all(np.abs(crop.astype(int) - crops[0]).max() <= 1 for crop in crops)
    run_cli("align", "--images", tmp_path / "photos", "--landmarks", tmp_path / "a" / "landmarks.csv", "--out",
            tmp_path / "b")
    assert all(np.array_equal(one, two) for one, two in zip(crops, pixels(tmp_path / "b").values(), strict=True))


def test_written_landmarks_give_the_same_crops_without_the_detector(run_cli, photos, detector, tmp_path) -> None:
    assert run_cli("align", "--images", photos, "--detector", detector, "--out", tmp_path / "a").code == 0
    given = tmp_path / "a" / "landmarks.csv"
    again = run_cli("align", "--images", photos, "--landmarks", given, "--out", tmp_path / "b")
    assert again.code == 0, again.err
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize(("setting", "kept"), [("min_size=55", 3), ("min_size=57", 0)])
def test_tiny_faces_are_left_out(run_cli, photos, listed, tmp_path, setting, kept) -> None:
    """The faces are half as large as the template: their crops cover 56 pixels of the photo."""
    ran = run_cli("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "a", "--json", setting)
    if kept:
        assert ran.json()["images"] == kept
    else:
        assert ran.code == 2 and "the largest face has 56 pixels, at least 57" in ran.err


def test_size_and_largest(run_cli, photos, tmp_path) -> None:
    big = " ".join(repr(float(v)) for v in (1.5 * SHAPE + [128, 128]).ravel())
    (tmp_path / "pts.txt").write_text(f"ann/0.png {row((10, 12))} 1\nann/0.png {big} 0.1\n")
    ran = run_cli("align", "--images", photos, "--landmarks", tmp_path / "pts.txt", "--out", tmp_path / "a", "size=168",
                  "--json")
    assert ran.code == 0, ran.err
    (found,) = pixels(tmp_path / "a").values()
    matrix = similarity_transform(1.5 * SHAPE + [128, 128], template(168))
    assert np.array_equal(found, warp(photo(*CELLS["ann/0"]), matrix, 168))
    assert ran.json()["several_faces"] == 1


def test_killed_and_started_again(run_cli, tmp_path) -> None:
    lines = []
    (tmp_path / "photos").mkdir()
    for k in range(150):
        (tmp_path / "photos" / f"{k}.png").write_bytes(encode_png(photo((10 + k % 9, 12), seed=k)))
        lines.append(f"{k}.png {row((10 + k % 9, 12))}\n")
    (tmp_path / "pts.txt").write_text("".join(lines))
    arguments = ("align", "--images", tmp_path / "photos", "--landmarks", tmp_path / "pts.txt", "workers=1")
    assert run_cli(*arguments, "--out", tmp_path / "whole", "workers=3").code == 0
    process = spawn(*arguments, "--out", tmp_path / "out")
    deadline = time.monotonic() + 120
    while process.poll() is None and not list((tmp_path / "out").glob(".unfinished/*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    ran = finish(spawn(*arguments, "--out", tmp_path / "out"))
    assert ran.code == 0, ran.err
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for name in files - {Path("facesyn.json")}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_interrupted_run_does_only_the_rest(run_cli, photos, listed, tmp_path, monkeypatch) -> None:
    import facesyn_cli.stages.align as stage

    calls = []
    original = stage.align_face

    def count(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the machine fell over")
        return original(*arguments)

    monkeypatch.setattr(stage, "align_face", count)
    arguments = ("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "a", "workers=0",
                 "part_size=2")
    with pytest.raises(RuntimeError):
        run_cli(*arguments)
    assert run_cli(*arguments).code == 0
    assert len(calls) == 4, "ann/0, ann/1, bob/x (fails), bob/x"


def test_shards_in_any_order_join_what_one_run_writes(run_cli, photos, listed, tmp_path) -> None:
    arguments = ("align", "--images", photos, "--landmarks", listed, "part_size=1", "--json", "--out")
    whole = run_cli(*arguments, tmp_path / "whole").json()
    plan = run_cli(*arguments, tmp_path / "a", "--shard", "2/3", "--dry-run").json()["plan"]
    assert plan["counts"] == {"photos": 2, "photos_left": 2}
    for part in ("2/3", "3/3"):
        ran = run_cli(*arguments, tmp_path / "a", "--shard", part)
        assert ran.json() == {"part": part, "folder": str(tmp_path / "a")} and read_header(tmp_path / "a") is None
    assert "part 3 of 3 is finished; 2 blocks of photos of other parts are missing" in ran.err
    assert run_cli(*arguments, tmp_path / "a", "--shard", "1/3").json() == {**whole, "folder": str(tmp_path / "a")}
    names = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert sorted(names) == sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")
                                   if p.is_file())
    for name in names:
        if name != Path("facesyn.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_an_identity_called_like_our_folder_keeps_its_crops(run_cli, photos, listed, tmp_path) -> None:
    """The rows of an unfinished set lie in a hidden folder, which no identity can have for a name."""
    for name in ("rows", ".unfinished"):
        (photos / name).mkdir()
        (photos / name / "0.png").write_bytes((photos / "ann" / "0.png").read_bytes())
    listed.write_text(listed.read_text() + f"rows/0.png {row((10, 12))} 1\n")
    ran = run_cli("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "a", "--json")
    assert ran.json()["images"] == 4 and "rows/0" in pixels(tmp_path / "a")


def test_dry_run_and_second_run(run_cli, photos, listed, tmp_path, monkeypatch) -> None:
    arguments = ("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "a", "--json")
    plan = run_cli(*arguments, "--dry-run").json()["plan"]
    assert (plan["counts"], plan["state"]) == ({"photos": 5, "photos_left": 5}, "new") and not (tmp_path / "a").exists()
    first = run_cli(*arguments).json()
    import facesyn_cli.stages.align as stage

    monkeypatch.setattr(stage, "_align", lambda *_: pytest.fail("done twice"))
    assert run_cli(*arguments).json() == first


def test_align_is_the_first_stage_of_a_recipe(run_cli, photos, listed, tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"# photos to embeddings\nalign: {{images: {photos}, landmarks: {listed}}}\n"
                      f"embed: {{weights: {write_recognizer(tmp_path / 'net')}}}\n")
    ran = run_cli("run", "--config", recipe, "--work", tmp_path / "w", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json()) == ["align", "embed"] and ran.json()["embed"]["embeddings"] == 3


def test_embed_aligns_photos_itself(run_cli, photos, detector, tmp_path) -> None:
    """The same vectors as align, then embed; photos without a face are listed."""
    network = write_recognizer(tmp_path / "net")
    run_cli("align", "--images", photos, "--detector", detector, "--out", tmp_path / "a")
    run_cli("embed", "--images", tmp_path / "a", "--weights", network, "--out", tmp_path / "e1")
    ran = run_cli("embed", "--images", photos, "--weights", network, "--out", tmp_path / "e2",
                  f"align.detector={detector}")
    assert ran.code == 0, ran.err
    one, two = EmbeddingSet.open(tmp_path / "e1"), EmbeddingSet.open(tmp_path / "e2")
    assert one.keys == two.keys
    np.testing.assert_allclose(one.vectors, two.vectors, rtol=0, atol=embedding_rounding(network))
    assert "no face was found" in (tmp_path / "e2" / "unreadable.txt").read_text()
    assert "detector" in read_header(tmp_path / "e2").parents


def test_contexts_come_from_aligned_faces(run_cli, photos, detector, tmp_path) -> None:
    network = write_recognizer(tmp_path / "net")
    run_cli("align", "--images", photos, "--detector", detector, "--out", tmp_path / "a")
    ran = run_cli("gen-contexts", "--source", "images", "--images", photos, "--weights", network, "filters=[]",
                  "--out", tmp_path / "c", f"align.detector={detector}", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["contexts"] == 3 and ran.json()["failed"] == 2
    crops = list(pixels(tmp_path / "a").values())
    faces = [decode_image(p.read_bytes()) for p in sorted((tmp_path / "c" / "faces").iterdir())]
    assert all(np.array_equal(a, b) for a, b in zip(crops, faces, strict=True))
    rows = [json.loads(line) for line in (tmp_path / "c" / "contexts.jsonl").read_text().splitlines()]
    assert len(rows) == 3


def test_wrong_inputs(assert_refused, photos, listed, tmp_path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "other.txt").write_text(f"zoe/7.png {row((10, 12))}\n")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "diary.txt").write_text("mine")
    given = ["--images", photos, "--landmarks", listed]
    for arguments, says in (
        (["--landmarks", listed], "align needs photos"),
        (["--images", photos], "either --detector FILE"),
        ([*given, "--detector", tmp_path / "text.onnx"], "either --detector FILE"),
        (["--images", tmp_path / "none", "--landmarks", listed], "none does not exist"),
        (["--images", photos, "--landmarks", tmp_path / "none.txt"], "none.txt"),
        (["--images", photos, "--landmarks", tmp_path / "other.txt"], ("none of the images", "'zoe/7.png'")),
        ([*given, "pick=biggest"], "pick"),
        ([*given, "min_sise=3"], "did you mean 'min_size'"),
        ([*given, "--batch-size", "3"], "No such option: --batch-size"),
        ([*given, "--out", tmp_path / "strange"], "diary.txt"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert_refused("align", *arguments, *out, says=says)
        assert not (tmp_path / "out").exists()


def test_wrong_detector(assert_refused, photos, tmp_path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    for name, says in (("text.onnx", "is not YuNet"), ("none.onnx", "does not exist")):
        assert_refused("align", "--images", photos, "--detector", tmp_path / name, "--out", tmp_path / "out",
                       says=(name, says))
    assert_refused("embed", "--images", photos, "--weights", write_recognizer(tmp_path / "net"), "--out",
                   tmp_path / "out", "align.detektor=x", says=("align.detector", "did you mean 'detector'"))


def test_other_settings_are_refused_on_the_same_folder(run_cli, assert_refused, photos, listed, tmp_path) -> None:
    arguments = ("align", "--images", photos, "--landmarks", listed, "--out", tmp_path / "a")
    assert run_cli(*arguments).code == 0
    assert_refused(*arguments, "pick=central", says="pick largest central")
    listed.write_text(listed.read_text().replace("0.9", "0.8"))
    assert_refused(*arguments, says="input landmarks")
