"""`facesyn augment`: links beside additions, joined by identity, the same after every kill."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_tars import read_tars, write_tar_set

from facesyn_cli.artifacts.context_set import write_contexts
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.origins import origins_of
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.data.pixels import encode_jpeg, encode_png
from facesyn_cli.stages import augment as stage

IDENTITIES = ("10", "2", "0", "unused")


def picture(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)


def make_samples(folder: Path, identities: tuple[str, ...] = IDENTITIES[:3]) -> Path:
    for i, identity in enumerate(identities):
        (folder / identity).mkdir(parents=True)
        for k in range(3):
            (folder / identity / f"{k}.png").write_bytes(encode_png(picture(10 * i + k)))
    return folder


def make_contexts(
    folder: Path, identities: tuple[str, ...] = IDENTITIES, faceless: str = "", origin: str | None = "generated"
) -> Path:
    """Write contexts; the face of identity number i has seed 100 + i, odd ones are JPEG."""
    with open_output(folder, "ContextSet", "gen-contexts", StageConfig(), {}) as out:
        (folder / "faces").mkdir()
        faces: list[str | None] = []
        for i, identity in enumerate(identities):
            data = encode_jpeg(picture(100 + i)) if i % 2 else encode_png(picture(100 + i))
            (folder / "faces" / f"{identity}.png").write_bytes(data)
            faces.append(None if identity == faceless else f"{identity}.png")
        vectors = np.random.RandomState(0).standard_normal((len(identities), 8))
        write_contexts(folder, list(identities), vectors, [{}] * len(identities), faces)
        out.finish({"contexts": len(identities)}, {} if origin is None else {"face_origin": origin})
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_samples(tmp_path / "work" / "4-samples")
    make_contexts(tmp_path / "work" / "3-contexts")
    return tmp_path / "work"


@pytest.fixture
def augment(run_cli, work: Path):
    def run(*arguments: object):
        ran = run_cli("augment", "--work", work, "--json", *arguments)
        assert ran.code == 0, ran.err
        return ran

    return run


def digests(folder: Path) -> dict[str, str]:
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop("facesyn.json")
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_source_faces_are_joined_by_identity(augment, work: Path):
    ran = augment()
    assert (ran.json()["images"], ran.json()["added"], ran.json()["identities"]) == (9 + 15, 15, 3)
    out = work / "5-augmented"
    for i, (identity, suffix) in enumerate((("10", "png"), ("2", "jpg"), ("0", "png"))):
        assert sorted(p.name for p in (out / identity).iterdir()) == sorted(
            ["0.png", "1.png", "2.png", *(f"{n}.{suffix}" for n in range(3, 8))]
        )
        expected = encode_jpeg(picture(100 + i)) if suffix == "jpg" else encode_png(picture(100 + i))
        assert (out / identity / f"5.{suffix}").read_bytes() == expected
    assert not (out / "unused").exists()
    assert len(ImageSet.open(out).entries) == 24


def test_photos_of_real_people_are_refused_unless_told(run_cli, assert_refused, work: Path, tmp_path: Path):
    """The issue's case: a set "of people who do not exist" with the faces of people who do."""
    photos = make_contexts(tmp_path / "photos", origin="photo")
    arguments = ("augment", "--work", work, "--contexts", photos)
    for more in ((), ("--dry-run",)):
        says = "photos of real people; adding them would put real people into the set (augmentation.allow_real=true"
        assert_refused(*arguments, *more, says=says)
    assert not (work / "5-augmented").exists()
    assert_refused(*arguments, "faces_origin=generated", says="holds photo faces according to the headers")
    ran = run_cli(*arguments, "augmentation.allow_real=true", "--json")
    assert (ran.code, ran.json()["added"]) == (0, 15)
    assert "photos of real people are added to the set; its header and card say so" in ran.err
    assert json.loads((work / "5-augmented" / "facesyn.json").read_text())["extra"]["added_faces"] == "photo"
    assert origins_of(work / "5-augmented") == {"unknown": 9, "photo": 15}  # of these samples nobody knows
    for name, says in (("4-samples", False), ("5-augmented", True)):  # the card of the packed set says it too
        run_cli("pack", "--in", work / name, "--out", tmp_path / name)
        assert ("Photos of real people" in (tmp_path / name / "README.md").read_text()) == says


def test_faces_of_unknown_origin_are_added_with_a_warning(run_cli, work: Path, tmp_path: Path):
    unknown = make_contexts(tmp_path / "unknown", origin=None)  # as written before origins were kept
    ran = run_cli("augment", "--work", work, "--contexts", unknown, "--out", tmp_path / "a")
    assert ran.code == 0 and ran.err.count("the source faces are of unknown origin, and so are the added images") == 1
    assert json.loads((tmp_path / "a" / "facesyn.json").read_text())["extra"]["added_faces"] == "unknown"
    words = ("augment", "--work", work, "--contexts", unknown, "faces_origin=generated", "--out")
    stated = run_cli(*words, tmp_path / "b")
    assert stated.code == 0 and "unknown origin" not in stated.err
    again = run_cli(*words, tmp_path / "a")
    assert again.code == 0 and "of origin unknown; its header keeps that, generated is not stored" in again.err


def test_a_folder_of_faces_may_be_photos_too(assert_refused, work: Path, tmp_path: Path):
    faces = make_samples(tmp_path / "given", ("p",)) / "p"
    samples = make_samples(tmp_path / "two", ("0", "1"))
    arguments = ("augment", "--in", samples, f"faces={faces}", "--out", tmp_path / "out")
    assert_refused(*arguments, "faces_origin=photo", says="photos of real people")


def test_samples_are_linked_and_never_changed(augment, work: Path):
    before = digests_of_tree(work / "4-samples")
    augment()
    assert digests_of_tree(work / "4-samples") == before
    for path in (work / "4-samples").rglob("*.png"):
        assert os.path.samefile(path, work / "5-augmented" / path.relative_to(work / "4-samples"))


def digests_of_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_where_links_are_impossible_copies_are_made(augment, work: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    augment()
    source, copy = work / "4-samples/2/1.png", work / "5-augmented/2/1.png"
    assert copy.read_bytes() == source.read_bytes() and not os.path.samefile(copy, source)


def test_copies_may_grow_but_not_shrink(augment, assert_refused, work: Path):
    augment("--copies", 2)
    first = digests(work / "5-augmented")
    assert augment("--copies", 4).json()["added"] == 12
    grown = digests(work / "5-augmented")
    assert all(grown[name] == digest for name, digest in first.items()) and len(grown) == 9 + 12
    assert_refused("augment", "--work", work, "--copies", 3, says="4 3 (can only be raised)")


def test_interrupted_and_run_again_gives_the_same_files(augment, run_cli, work: Path, monkeypatch, tmp_path: Path):
    augment("augmentation=photometric", "--out", tmp_path / "straight")
    write_bytes, written = stage.write_bytes, []

    def stop(path: Path, data: bytes, durable: bool) -> None:
        if len(written) % 4 == 3:
            written.append("stop")
            raise KeyboardInterrupt
        written.append(path.name)
        write_bytes(path, data, durable)

    monkeypatch.setattr(stage, "write_bytes", stop)
    command = ["augment", "--work", work, "--out", tmp_path / "stopped", "augmentation=photometric"]
    codes = [run_cli(*command).code for _ in range(4)]
    assert codes[0] != 0 and codes[-1] == 0
    assert digests(tmp_path / "stopped") == digests(tmp_path / "straight")
    assert written.count("stop") == 2 and len(written) == 9 + 2, "a finished variant was rendered again"


def test_photometric_needs_no_contexts(run_cli, tmp_path: Path):
    samples = make_samples(tmp_path / "samples")
    ran = run_cli("augment", "--in", samples, "--out", tmp_path / "out", "augmentation=photometric", "--copies", 2,
                  "--json")
    assert ran.code == 0 and ran.json()["added"] == 18
    header = json.loads((tmp_path / "out" / "facesyn.json").read_text())
    assert list(header["parents"]) == ["images"] and header["config"]["growing"] == {"augmentation": {"copies": 2}}


def test_the_seed_changes_photometric_variants(augment, tmp_path: Path):
    for out, seed in (("a", 0), ("b", 1), ("c", 0)):
        augment("augmentation=photometric", "--seed", seed, "--out", tmp_path / out)
    assert digests(tmp_path / "a") == digests(tmp_path / "c") != digests(tmp_path / "b")


def test_a_zip_is_unpacked_beside_the_additions(run_cli, work: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "samples.zip", "w") as file:
        for path in sorted((work / "4-samples").rglob("*.png")):
            file.write(path, path.relative_to(work / "4-samples").as_posix())
    run_cli("augment", "--work", work, "--in", tmp_path / "samples.zip", "--out", tmp_path / "zip")
    run_cli("augment", "--work", work, "--out", tmp_path / "folder")
    assert digests(tmp_path / "zip") == digests(tmp_path / "folder")


def test_keys_of_odd_folders_stay(run_cli, tmp_path: Path):
    folder = tmp_path / "odd"
    for location in ("flat.png", "a/b/x.png", "a/same.png", "a/same.jpg", "c/UPPER.PNG"):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        data = encode_jpeg(picture(0)) if location.endswith("jpg") else encode_png(picture(0))
        (folder / location).write_bytes(data)
    (folder / "notes.csv").write_text("a,b\n")
    ran = run_cli("augment", "--in", folder, "--out", tmp_path / "out", "augmentation=photometric")
    assert ran.code == 0, ran.err
    header = json.loads((tmp_path / "out" / "facesyn.json").read_text())
    assert header["extra"] == {"left_out": {".csv": 1}}
    before = {e.key for e in ImageSet.open(folder).entries}
    after = {e.key for e in ImageSet.open(tmp_path / "out").entries}
    assert before == {"flat/0", "a/b/x", "a/same.png", "a/same.jpg", "c/UPPER"}
    assert before < after and len(after) == 10


def test_dry_run_counts_and_writes_nothing(augment, work: Path):
    plan = augment("--dry-run", "--copies", 2).json()["plan"]
    assert plan["counts"] == {"images": 15, "identities": 3, "linked": 9, "added": 6} and plan["state"] == "new"
    assert not (work / "5-augmented").exists()


def test_a_finished_set_is_left_alone(augment, work: Path):
    augment()
    before = os.stat(work / "5-augmented" / "facesyn.json").st_mtime_ns
    assert augment().json()["added"] == 15
    assert os.stat(work / "5-augmented" / "facesyn.json").st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--in", "{tmp}/nowhere"], "nowhere does not exist"),
        (["--in", "{tmp}/empty"], "holds no images"),
        (["--in", "{tmp}/text.zip"], "neither a folder nor a zip"),
        (["--contexts", "{tmp}/nowhere"], "nowhere does not exist"),
        (["--contexts", "{tmp}/published.npy"], "3 of 3 contexts have no source face"),
        (["--contexts", "{tmp}/others"], "1 of 3 identities have no context, the first is '10'"),
        (["--contexts", "{tmp}/faceless"], "1 of 3 contexts have no source face, the first is '2'"),
        (["--contexts", "{work}/4-samples"], "ContextSet"),
        (["--copies", "0"], "augmentation.copies"),
        (["augmentation=oversampel"], "did you mean 'oversample'?"),
        (["augmentation.copy=3"], "unknown setting 'augmentation.copy', did you mean 'copies'?"),
        (["augmentation=photometric", "augmentation.brightness=2"], "augmentation.brightness"),
        (["--batch-size", "4"], "No such option: --batch-size"),
        (["--out", "{work}/4-samples"], "was not made by facesyn"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_wrong_inputs(assert_refused, work: Path, tmp_path: Path, arguments: list[str], says: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    np.save(tmp_path / "published.npy", np.random.RandomState(0).standard_normal((11, 8)).astype(np.float32))
    make_contexts(tmp_path / "others", ("0", "2"))
    make_contexts(tmp_path / "faceless", faceless="2")
    arguments = [a.format(tmp=tmp_path, work=work) for a in arguments]
    assert_refused("augment", "--work", work, *arguments, says=says)
    assert not (work / "5-augmented" / "facesyn.json").exists()


def test_a_broken_face_names_its_identity(assert_refused, work: Path):
    (work / "3-contexts" / "faces" / "2.png").write_bytes(b"no image")
    assert_refused("augment", "--work", work, says=("2.png of identity '2'", "cannot read the source face"))


# tar shards


@pytest.fixture
def tars(work: Path) -> Path:
    images = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in (work / "4-samples").rglob("*.png")}
    return write_tar_set(work.parent / "tars", dict(sorted(images.items())), per_shard=4)


def test_additions_are_shards_beside_links(augment, work: Path, tars: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "_IMAGES_PER_SHARD", 8)
    plan = augment("--in", tars, "--dry-run").json()["plan"]
    assert plan["counts"] == {"images": 24, "identities": 3, "linked": 9, "added": 15, "shards_linked": 3}
    ran = augment("--in", tars)
    assert (ran.json()["images"], ran.json()["added"], ran.json()["identities"]) == (9 + 15, 15, 3)
    out = work / "5-augmented"
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        "augmented-000000.tar", "augmented-000001.tar", *(f"images-00000{k}.tar" for k in range(3))
    ]
    for path in (tars / "images").iterdir():
        assert os.path.samefile(path, out / "images" / path.name)
    # the same images as an augmented folder has
    augment("--out", work / "folder")
    plain, packed = ImageSet.open(work / "folder"), open_images(out)
    assert {e.key: plain.read(e) for e in plain.entries} == {e.key: packed.read(e) for e in packed.entries}
    assert {name for name in read_tars(out)["augmented-000000.tar"] if name.startswith("2/")} == {
        f"2/{k}.jpg" for k in range(3, 6)  # the suffix is that of the content
    }


def test_augmented_shards_grow_resume_and_can_be_augmented_again(augment, work: Path, tars: Path, monkeypatch):
    monkeypatch.setattr(stage, "_IMAGES_PER_SHARD", 4)
    augment("--in", tars, "--copies", 2)
    augment("--in", tars, "--copies", 3)
    augment("--in", tars, "--copies", 3, "--out", work / "fresh")
    out = work / "5-augmented"
    assert read_tars(out) == read_tars(work / "fresh")

    (out / "facesyn.json").rename(out / "facesyn.begun.json")
    kept, lost = out / "images" / "augmented-000000.tar", out / "images" / "augmented-000001.tar"
    written = kept.stat().st_mtime_ns
    lost.write_bytes(lost.read_bytes()[:700])
    augment("--in", tars, "--copies", 3)
    assert read_tars(out) == read_tars(work / "fresh") and kept.stat().st_mtime_ns == written

    again = augment("--in", out, "--copies", 1, "--out", work / "again")
    assert again.json()["images"] == 9 + 9 + 3
    assert "augmented-2-000000.tar" in read_tars(work / "again")


def test_variants_are_rendered_from_shards(augment, work: Path, tars: Path):
    augment("augmentation.name=photometric", "--out", work / "folder")
    augment("augmentation.name=photometric", "--in", tars)
    plain, packed = ImageSet.open(work / "folder"), open_images(work / "5-augmented")
    assert {e.key: plain.read(e) for e in plain.entries} == {e.key: packed.read(e) for e in packed.entries}


def test_a_set_with_labels_is_too_late_to_augment(run_cli, assert_refused, work: Path):
    packed = work / "packed"
    ran = run_cli("pack", "--in", work / "4-samples", "--to", "webdataset", "size=null", "--out", packed)
    assert ran.code == 0, ran.err
    assert_refused("augment", "--work", work, "--in", packed, says=("packed", "labels come last"))


@pytest.mark.parametrize("length", [244, 255])
def test_names_as_long_as_files_may_have(run_cli, assert_refused, tmp_path: Path, length: int):
    name = "n" * length
    make_samples(tmp_path / "in", (name, "b", "c"))
    (tmp_path / "in" / name / f"{name[4:]}.png").write_bytes(encode_png(picture(7)))
    ran = run_cli("augment", "--in", tmp_path / "in", "--out", tmp_path / "out", "augmentation=photometric")
    assert ran.code == 0, ran.err
    assert len(ImageSet.open(tmp_path / "out").entries) == 20
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        archive.writestr(f"{'é' * 128}/1.png", encode_png(picture(0)))
    assert_refused("augment", "--in", tmp_path / "long.zip", "--out", tmp_path / "no", "augmentation=photometric",
                   says="names of at most 255 bytes")
    assert not (tmp_path / "no").exists()
