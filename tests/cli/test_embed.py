"""`facesyn embed`: what it writes, what it survives and what it refuses."""

from __future__ import annotations

import os
import shutil
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import finish, spawn
from tiny_recognizer import embedding_rounding, face, write_faces, write_recognizer

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.data.pixels import encode_jpeg, encode_png
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.stages import embed as stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_faces(folder / "faces", people=4, photos=3), write_recognizer(folder / "fr")


def files(folder) -> dict[str, bytes]:
    """Return what an embedding folder holds, without the header (it has paths in it)."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "facesyn.json"}


def test_embeddings_are_unit_and_joined_by_key(run_cli, inputs, tmp_path):
    images, weights = inputs
    ran = run_cli("embed", "--images", images, "--weights", weights, "--work", tmp_path, "--batch-size", 5, "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["embeddings"] == 12 and ran.json()["unreadable"] == 0
    found = EmbeddingSet.open(tmp_path / "1-embeddings")
    assert found.keys == [f"p{i}/{k}" for i in range(4) for k in range(3)]
    backbone = load_backbone(weights)
    assert found.embedder == backbone.digest == ran.json()["embedder"]
    from facesyn_cli.data.pixels import to_pixels

    expected = backbone.module(to_pixels(np.stack([face(i, k) for i in range(4) for k in range(3)]))).detach().numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=embedding_rounding(weights))
    assert sorted(files(tmp_path / "1-embeddings")) == ["embeddings.npy", "keys.txt"]


def test_same_result_from_folder_zip_and_any_order(run_cli, inputs, tmp_path):
    images, weights = inputs
    shuffled = tmp_path / "shuffled"
    names = sorted(p.relative_to(images) for p in images.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in reversed(names):
            (shuffled / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / name, shuffled / name)
            archive.write(images / name, name.as_posix())
    results = []
    for number, source in enumerate((images, shuffled, tmp_path / "faces.zip")):
        ran = run_cli("embed", "--images", source, "--weights", weights, "--out", tmp_path / f"out{number}")
        assert ran.code == 0, ran.err
        results.append(files(tmp_path / f"out{number}"))
    assert results[0] == results[1] == results[2]


def test_batch_and_part_size_hardly_matter(run_cli, inputs, tmp_path):
    images, weights = inputs
    vectors = []
    for number, sizes in enumerate((("batch_size=1", "part_size=5"), ("batch_size=8", "part_size=512"))):
        out = tmp_path / str(number)
        assert run_cli("embed", "--images", images, "--weights", weights, "--out", out, *sizes).code == 0
        vectors.append(EmbeddingSet.open(out).vectors)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=embedding_rounding(weights))


def test_flip_is_symmetric(run_cli, inputs, tmp_path):
    images, weights = inputs
    mirrored = tmp_path / "mirrored"
    for path in images.rglob("*.png"):
        person, photo = int(path.parent.name[1:]), int(path.stem)
        target = mirrored / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_png(np.ascontiguousarray(face(person, photo)[:, ::-1])))
    for name, source, flip in (("a", images, "true"), ("b", mirrored, "true"), ("c", mirrored, "false")):
        run_cli("embed", "--images", source, "--weights", weights, "--out", tmp_path / name, f"flip={flip}")
    a, b, c = (EmbeddingSet.open(tmp_path / name).vectors for name in "abc")
    np.testing.assert_allclose(a, b, rtol=0, atol=embedding_rounding(weights))
    assert np.abs(a - c).max() > 1e-3


def test_unreadable_images_are_listed_and_counted(run_cli, inputs, tmp_path):
    images, weights = inputs
    shutil.copytree(images, tmp_path / "faces")
    faces = tmp_path / "faces"
    (faces / "p1" / "0.png").write_bytes((faces / "p1" / "0.png").read_bytes()[:300])
    (faces / "p2" / "text.jpg").write_text("no image")
    (faces / "p2" / "empty.png").write_bytes(b"")
    (faces / "p3" / "wide.jpg").write_bytes(encode_jpeg(np.zeros((50, 60, 3), dtype=np.uint8)))
    (faces / "p3" / "large.png").write_bytes(encode_png(face(3, 9, side=130)))
    ran = run_cli("embed", "--images", faces, "--weights", weights, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert {k: ran.json()[k] for k in ("images", "embeddings", "unreadable")} == {
        "images": 16, "embeddings": 13, "unreadable": 3}
    rows = [line.split("\t") for line in (tmp_path / "out" / "unreadable.txt").read_text().splitlines()]
    assert [(key, location) for key, location, _ in rows] == [
        ("p1/0", "p1/0.png"), ("p2/empty", "p2/empty.png"), ("p2/text", "p2/text.jpg")]
    assert "3 images could not be embedded" in ran.err
    keys = EmbeddingSet.open(tmp_path / "out").keys
    assert "p3/large" in keys and "p1/0" not in keys
    plain = EmbeddingSet.open(tmp_path / "out")
    assert f"{faces}: 1 of 16 images are not square; their central squares were taken" in ran.err
    assert read_header(tmp_path / "out").extra["cut_to_square"] == 1
    run_cli("embed", "--images", faces, "--weights", weights, "--out", tmp_path / "strict", "fit=refuse")
    strict = EmbeddingSet.open(tmp_path / "strict")
    assert "p3/wide" not in strict.keys and "60 x 50" in (tmp_path / "strict" / "unreadable.txt").read_text()
    np.testing.assert_array_equal(plain.join(strict.keys), strict.vectors)
    earlier = run_cli("embed", "--images", faces, "--weights", weights, "--out", tmp_path / "out", "fit=crop")
    assert earlier.code == 0 and "finished already" in earlier.err  # the word of earlier versions for `square`
    assert earlier.err.count("fit=crop is now called fit=square") == 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names do not exist there")
def test_any_file_name(run_cli, inputs, tmp_path):
    """A line break, a tab and a byte that is no UTF-8; `keys.txt` is a list of lines all the same."""
    folder = os.fsencode(tmp_path) + b"/f\xe9"
    for name in (b"p/a\nb.png", b"p/c\td.png", b"lat\xedn/1.png", b"p/bad\xff\n.png", "\u4eba/ä ö.png".encode()):
        os.makedirs(os.path.dirname(folder + b"/" + name), exist_ok=True)
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"" if b"bad" in name else encode_png(face(0, 0)))
    ran = run_cli("embed", "--images", os.fsdecode(folder), "--weights", inputs[1], "--work", tmp_path)
    assert ran.code == 0, ran.err
    found = EmbeddingSet.open(tmp_path / "1-embeddings")
    assert found.keys == ["lat%dcedn/1", "p/a%000ab", "p/c%0009d", "\u4eba/ä ö"]
    unreadable = (tmp_path / "1-embeddings" / "unreadable.txt").read_text(encoding="utf-8")
    assert unreadable.splitlines() == ["p/bad%dcff%000a\tp/bad%dcff%000a.png\tnot an image in a format that is read"]
    again = run_cli("embed", "--images", os.fsdecode(folder), "--weights", inputs[1], "--work", tmp_path)
    assert again.code == 0, again.err
    packed = run_cli("pack", "--in", os.fsdecode(folder), "--work", tmp_path, "--json")
    assert packed.code == 0 and packed.json()["images"] == 4, packed.err


def test_nothing_readable_is_an_error(assert_refused, inputs, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").write_bytes(b"")
    assert_refused("embed", "--images", tmp_path / "faces", "--weights", inputs[1], "--out", tmp_path / "out",
                   says=("none of the 1 images", "first a.png"))


def test_not_finite_embeddings_are_listed(run_cli, inputs, tmp_path, monkeypatch):
    images, weights = inputs
    original = FaceEmbedder.files

    def spoiled(*args):
        for batch in original(*args):
            for row, index in enumerate(batch.indices):
                batch.vectors[row] = {2: np.nan, 5: 0.0}.get(index, batch.vectors[row])
            yield batch

    monkeypatch.setattr(FaceEmbedder, "files", spoiled)
    ran = run_cli("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", "--json")
    assert ran.code == 0 and ran.json()["unreadable"] == 2
    text = (tmp_path / "out" / "unreadable.txt").read_text()
    assert text == "p0/2\tp0/2.png\tits embedding is not finite\np1/2\tp1/2.png\tits embedding is zero\n"


def test_dry_run_writes_nothing(run_cli, inputs, tmp_path):
    images, weights = inputs
    ran = run_cli("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", "--dry-run", "--json",
                  "flip=true", "--batch-size", 8)
    assert ran.code == 0, ran.err
    plan = ran.json()["plan"]
    assert plan["counts"] == {"images": 12, "images_left": 12} and plan["network_evaluations"] == {"recognizer": 2 * 16}
    assert not (tmp_path / "out").exists()


def test_finished_work_is_not_done_again(run_cli, inputs, tmp_path, monkeypatch):
    images, weights = inputs
    arguments = ("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", "--json")
    first = run_cli(*arguments)
    monkeypatch.setattr(FaceEmbedder, "files", lambda *args: pytest.fail("the network ran again"))
    assert run_cli(*arguments).json() == first.json()


def cut_off(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:50])


def lose_an_array(part: Path) -> None:
    with np.load(part) as stored:
        kept = {name: stored[name] for name in stored.files if name != "bad"}
    np.savez(part, **kept)


@pytest.mark.parametrize("damage", [cut_off, lose_an_array])
def test_finished_parts_are_not_done_again(run_cli, inputs, tmp_path, monkeypatch, damage):
    """Stopped after two of three parts, the same command computes the third only, with the same result."""
    images, weights = inputs
    sizes = ("part_size=4", "batch_size=2")
    run_cli("embed", "--images", images, "--weights", weights, "--out", tmp_path / "whole", *sizes)
    original, seen = FaceEmbedder.files, []

    def killed(self, read, batches):
        for number, batch in enumerate(original(self, read, batches)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    def counted(self, read, batches):
        seen.extend(i for batch in batches for i in batch)
        return original(self, read, batches)

    arguments = ("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", *sizes)
    monkeypatch.setattr(FaceEmbedder, "files", killed)
    assert run_cli(*arguments).code == 130
    damaged = sorted((tmp_path / "out" / "parts").iterdir())[0]
    damage(damaged)
    monkeypatch.setattr(FaceEmbedder, "files", counted)
    assert run_cli(*arguments).code == 0
    assert seen == [0, 1, 2, 3, 8, 9, 10, 11], "the damaged part and the missing one"
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_shards_of_any_number_in_any_order_give_the_same_bytes(run_cli, inputs, tmp_path, monkeypatch):
    """A part that is on disk is not computed again by a run of another number of parts."""
    images, weights = inputs
    sizes = ("part_size=2", "batch_size=2")
    run_cli("embed", "--images", images, "--weights", weights, "--out", tmp_path / "whole", *sizes)
    original, seen = FaceEmbedder.files, []

    def counted(self, read, batches):
        seen.extend(i for batch in batches for i in batch)
        return original(self, read, batches)

    monkeypatch.setattr(FaceEmbedder, "files", counted)
    arguments = ("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", *sizes, "--json")
    plan = run_cli(*arguments, "--shard", "2/3", "--dry-run").json()["plan"]
    assert plan["counts"] == {"images": 4, "images_left": 4} and plan["network_evaluations"] == {"recognizer": 4}
    ran = run_cli(*arguments, "--shard", "2/3")
    assert ran.json() == {"part": "2/3", "folder": str(tmp_path / "out")} and seen == [2, 3, 8, 9]
    assert "part 2 of 3 is finished; 4 blocks of images of other parts are missing" in ran.err
    assert run_cli(*arguments, "--shard", "1/2").json()["part"] == "1/2" and seen[4:] == [0, 1, 4, 5]
    (tmp_path / "out" / "parts" / f".tmp-x-{'0' * 8}-1-1").write_bytes(b"of a run killed on another host")
    assert run_cli(*arguments, "--shard", "2/2").json()["embeddings"] == 12 and seen[8:] == [6, 7, 10, 11]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    again = run_cli(*arguments, "--shard", "1/2")
    assert again.json()["embeddings"] == 12 and len(seen) == 12 and files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_run_that_another_one_overtakes_computes_nothing_again(run_cli, inputs, tmp_path, monkeypatch):
    """Another run joins and removes the parts while this one is between opening the folder and looking for parts."""
    images, weights = inputs
    arguments = ("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out", "part_size=2", "--json")
    run_cli(*arguments, "--shard", "1/2")
    original, is_first = stage._parts_of_run, True

    def overtaken(cfg, inputs):
        nonlocal is_first
        if cfg.shard == "1/2" and is_first:
            is_first = False
            assert finish(spawn(*arguments, "--shard", "2/2")).json()["embeddings"] == 12
        return original(cfg, inputs)

    monkeypatch.setattr(stage, "_parts_of_run", overtaken)
    monkeypatch.setattr(FaceEmbedder, "files", lambda *args: iter(pytest.fail("again") if args[2] else ()))
    ran = run_cli(*arguments, "--shard", "1/2")
    assert ran.json()["embeddings"] == 12, ran.err
    assert sorted(files(tmp_path / "out")) == ["embeddings.npy", "keys.txt"]


def test_killed_at_any_moment(run_cli, inputs, tmp_path):
    """SIGKILL once the first part is on disk; the same command finishes, bit for bit."""
    images, weights = write_faces(tmp_path / "faces", people=8, photos=8), inputs[1]
    arguments = ("embed", "--images", images, "--weights", weights, "--device", "cpu", "part_size=2", "batch_size=2")
    assert run_cli(*arguments, "--out", tmp_path / "whole").code == 0
    process = spawn(*arguments, "--out", tmp_path / "out")
    parts = tmp_path / "out" / "parts"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (parts.is_dir() and any(parts.glob("*.npz"))):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    ran = finish(spawn(*arguments, "--out", tmp_path / "out"))
    assert ran.code == 0, ran.err
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def wrong_inputs(tmp_path, images, weights) -> dict[str, tuple[list, tuple[str, ...]]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.zip").write_text("not a zip")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "diary.txt").write_text("mine")
    good = ["--images", images, "--weights", weights]
    return {
        "no weights": (["--images", images, "--work", tmp_path / "w"], ("--weights", "--starter")),
        "missing images": (["--images", tmp_path / "none", "--weights", weights], ("none does not exist",)),
        "no images inside": (["--images", tmp_path / "empty", "--weights", weights], ("holds no images",)),
        "not a zip": (["--images", tmp_path / "text.zip", "--weights", weights], ("neither a folder nor a zip",)),
        "default images missing": (["--weights", weights, "--work", tmp_path / "w"], ("0-images does not exist",)),
        "missing weights": (["--images", images, "--weights", tmp_path / "none.pth"], ("none.pth",)),
        "not weights": (["--images", images, "--weights", tmp_path / "text.pth"], ("text.pth",)),
        "unknown backbone": ([*good, "--backbone", "ir-51"], ("did you mean 'ir-",)),
        "another backbone": ([*good, "--backbone", "ir-50"], ("ir-tiny", "ir-50")),
        "unknown setting": ([*good, "flipp=true"], ("did you mean 'flip'",)),
        "wrong type": ([*good, "--batch-size", "0"], ("batch_size",)),
        "bad choice": ([*good, "fit=stretch"], ("fit", "'square' or 'refuse'")),
        "no such device": ([*good, "--device", "cuda:99"], ("cuda:99",)),
        "somebody's folder": ([*good, "--out", tmp_path / "strange"], ("diary.txt",)),
        "a name too long": (["--images", tmp_path / ("n" * 300), "--weights", weights], ("n" * 300,)),
        "log file is a folder": ([*good, "--log-file", tmp_path], ("cannot write the log file",)),
        "out is a file": ([*good, "--out", tmp_path / "text.pth"], ("is a file",)),
    }


def test_wrong_inputs(assert_refused, inputs, tmp_path):
    for arguments, says in wrong_inputs(tmp_path, *inputs).values():
        out = [] if "--out" in arguments or "--work" in arguments else ["--out", tmp_path / "out"]
        assert_refused("embed", *arguments, *out, says=says)
        assert not (tmp_path / "out" / "facesyn.json").exists()
    assert os.listdir(tmp_path / "strange") == ["diary.txt"]


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."),
    RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
    TypeError("empty(): argument 'size' failed to unpack the object with error \"Overflow when unpacking long"),
])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_memory_that_ran_out_is_one_line(assert_refused, inputs, tmp_path, monkeypatch, error, more):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("facesyn_cli.stages.embed._open_inputs", fail)
    assert_refused("embed", "--images", inputs[0], "--weights", inputs[1], "--out", tmp_path / "out", *more,
                   says=("not enough memory", "--batch-size"))


def test_other_settings_on_the_same_folder_are_refused(assert_refused, run_cli, inputs, tmp_path):
    images, weights = inputs
    arguments = ["embed", "--images", images, "--weights", weights, "--out", tmp_path / "out"]
    assert run_cli(*arguments).code == 0
    assert_refused(*arguments, "flip=true", says=("flip false true",))
    write_faces(tmp_path / "faces", people=2, photos=1)
    assert_refused("embed", "--images", tmp_path / "faces", "--weights", weights, "--out", tmp_path / "out",
                   says=("input images",))


def test_parts_are_joined_one_at_a_time(tmp_path):
    """20,000 images of 64 numbers: no more than their names and some parts in memory."""
    count, width, size = 20_000, 64, 256
    entries = [ImageEntry(f"p{k // 50}/{k % 50}", f"p{k // 50}", f"{k % 50}", f"{k}.png") for k in range(count)]
    images = ImageSet(tmp_path, entries, "sha256:0")
    backbone = SimpleNamespace(digest="sha256:1", name="none")
    inputs = stage._Inputs(images, backbone, {}, tmp_path / "out", None)
    parts = fixed_batches(count, size)
    vectors = np.random.default_rng(0).standard_normal((count, width))
    with open_output(tmp_path / "out", "EmbeddingSet", "embed", StageConfig(), {}) as output:
        for part in parts:
            problems = {part.start: "broken"} if part.start == 512 else {}
            stage._write_part(tmp_path / "out", part, vectors[part.start : part.stop], problems, 0)
        tracemalloc.start()
        stage._join(inputs, parts, output)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    found = EmbeddingSet.open(tmp_path / "out")
    assert len(found.keys) == count - 1 and "p10/12" not in found.keys
    rows = [row for row in range(count) if row != 512]
    unit = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors, unit, rtol=0, atol=2 * np.finfo(np.float32).eps)
    assert peak < count * 64 + 30 * size * width * 8, "some pointers and texts an image, and some parts"
    assert peak < vectors.nbytes / 2


def test_parts_left_after_the_header_are_removed(run_cli, inputs, tmp_path):
    images, weights = inputs
    words = ("embed", "--images", images, "--weights", weights, "--out", tmp_path / "out")
    assert run_cli(*words).code == 0
    (tmp_path / "out" / "parts").mkdir()
    (tmp_path / "out" / "parts" / "000000000-000000012.npz").write_bytes(b"of a run killed before it removed this")
    assert run_cli(*words).code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["embeddings.npy", "facesyn.json", "keys.txt"]
