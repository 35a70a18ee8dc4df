"""`facesyn pack`: what it writes is read back by readers written from the published description alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn
from PIL import Image

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.pixels import decode_image, encode_jpeg, encode_png
from facesyn_cli.stages import pack as stage

SIZE = 16


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    """A smooth random picture, so that JPEG keeps it recognizable."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def make_set(folder: Path, counts: dict[str, int], suffix: str = ".png", size: int = SIZE) -> Path:
    """Write identity folders; picture k of identity number i has seed 100 i + k."""
    for i, (identity, count) in enumerate(counts.items()):
        (folder / identity).mkdir(parents=True)
        for k in range(count):
            pixels_u8 = picture(100 * i + k, size)
            data = encode_png(pixels_u8) if suffix == ".png" else encode_jpeg(pixels_u8, 90)
            (folder / identity / f"{k}{suffix}").write_bytes(data)
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_set(tmp_path / "faces", {"id10": 3, "id9": 2, "b": 12})


@pytest.fixture
def pack(run_cli, tmp_path: Path):
    def run(*arguments: object, out: str = "out"):
        ran = run_cli("pack", "--out", tmp_path / out, f"size={SIZE}", "--json", *arguments)
        assert ran.code == 0, ran.err
        return ran

    return run


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, the header's paths apart."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    header = json.loads(files.pop("facesyn.json"))
    digest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {**digest, "counts": str(header["counts"]), "digest": header["digest"]}


def read_record(path: Path, offset: int) -> bytes:
    """Return the image of a record: framing and message taken apart by hand."""
    with open(path, "rb") as file:
        file.seek(offset)
        length, _ = struct.unpack("<QI", file.read(12))
        data = file.read(length)

    def field(message: bytes) -> tuple[int, bytes, bytes]:
        size, at, shift = 0, 1, 0
        while True:
            size |= (message[at] & 127) << shift
            shift += 7
            at += 1
            if message[at - 1] < 128:
                return message[0] >> 3, message[at : at + size], message[at + size :]

    number, features, rest = field(data)
    assert (number, rest) == (1, b"")
    number, entry, rest = field(features)
    assert (number, rest) == (1, b"")
    number, key, rest = field(entry)
    assert (number, key) == (1, b"image")
    number, feature, rest = field(rest)
    assert (number, rest) == (2, b"")
    number, values, rest = field(feature)
    assert (number, rest) == (1, b"")
    number, image, rest = field(values)
    assert (number, rest) == (1, b"")
    return image


def read_as_admis(data_root: Path, name: str) -> list[tuple[bytes, int]]:
    """METHOD TF-Synthetic: 3 columns, the label is the second-last path component."""
    rows = []
    for line in (data_root / f"{name}.index").read_text().splitlines():
        path, shard, offset = line.split("\t")
        label = int(path.split("/")[-2])
        rows.append((read_record(data_root / f"{name}-{int(shard):05d}.tfrecord", int(offset)), label))
    return rows


def read_as_tface(root: Path, name: str) -> list[tuple[bytes, int]]:
    """DATA_ROOT = INDEX_ROOT = root: 4 columns."""
    assert "TFR" in name
    rows = []
    for line in (root / f"{name}.txt").read_text().splitlines():
        tfr, shard, offset, label = line.split("\t")
        rows.append((read_record(root / tfr / f"{tfr}-{int(shard):05d}.tfrecord", int(offset)), int(label)))
    return rows


def test_both_published_readers_find_every_image_and_label(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, "format.records_per_shard=5")
    out, name = tmp_path / "out", "TFR-facesyn"
    assert sorted(p.name for p in (out / name).glob("*.tfrecord")) == [f"{name}-{i:05d}.tfrecord" for i in range(4)]
    admis, tface = read_as_admis(out / name, name), read_as_tface(out, name)
    assert admis == tface and len(admis) == 17
    assert [label for _, label in admis] == [0] * 12 + [1] * 2 + [2] * 3       # b, id9, id10
    assert (out / "labels.txt").read_text() == "0\tb\t12\n1\tid9\t2\n2\tid10\t3\n"
    seeds = [200 + k for k in range(12)] + [100, 101] + [0, 1, 2]                # natural order: 2.png before 10.png
    for (data, _), seed in zip(admis, seeds, strict=True):
        assert np.abs(decode_image(data).astype(int) - picture(seed)).mean() < 12  # others differ by 80


def test_our_reader_agrees_and_gives_the_names_back(pack, faces: Path, tmp_path: Path):
    ran = pack("--in", faces, "format.records_per_shard=5")
    records = RecordSet.open(tmp_path / "out")
    rows = read_as_tface(tmp_path / "out", "TFR-facesyn")
    assert [(records.read(i), int(records.labels[i])) for i in range(len(records))] == rows
    assert list(records.keys()) == [(e.identity, e.sample) for e in ImageSet.open(faces).entries]
    assert records.num_classes == 3 and records.identities == ["b", "id9", "id10"]
    assert ran.json()["images"] == 17 and ran.json()["identities"] == 3 and ran.json()["unreadable"] == 0


def test_fitting_jpeg_is_passed_through_bit_by_bit(pack, tmp_path: Path):
    faces = make_set(tmp_path / "jpegs", {"a": 4}, ".jpg")
    pack("--in", faces)
    records = RecordSet.open(tmp_path / "out")
    assert [records.read(k) for k in range(4)] == [(faces / "a" / f"{k}.jpg").read_bytes() for k in range(4)]


def test_what_does_not_fit_is_made_to_fit(pack, tmp_path: Path):
    folder = tmp_path / "odd" / "a"
    folder.mkdir(parents=True)
    red = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    red[..., 0] = 250
    Image.fromarray(red).save(folder / "0.png")
    Image.fromarray(red).convert("CMYK").save(folder / "1.jpg")
    Image.fromarray(red).convert("L").save(folder / "2.jpg")
    blue = np.full_like(red[:, : SIZE // 2], (0, 0, 250))
    Image.fromarray(np.hstack([blue, red, blue])).save(folder / "3.png")         # the central square is red
    turned = np.vstack([red[:8], np.zeros_like(red[8:])])                        # red above black
    exif = Image.Exif()
    exif[0x0112] = 6                                                             # shown a quarter turn clockwise
    Image.fromarray(turned).save(folder / "4.jpg", quality=95, exif=exif)
    Image.fromarray(red).convert("RGBA").save(folder / "5.webp", lossless=True)
    pack("--in", tmp_path / "odd")
    records = RecordSet.open(tmp_path / "out")
    for k in range(6):
        with Image.open(io.BytesIO(records.read(k))) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE, SIZE))
            assert image.getexif().get(0x0112, 1) == 1
    for k in (0, 1, 3, 5):
        mean = decode_image(records.read(k)).reshape(-1, 3).mean(axis=0)
        assert mean[0] > 200 and mean[1:].max() < 60, "red must stay red"
    upright = decode_image(records.read(4))
    assert upright[:, 8:, 0].mean() > 200 and upright[:, :8, 0].mean() < 60      # the right half is red now


def test_quality_and_subsampling_reach_the_encoder(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, "format.quality=60", "format.subsampling=4:4:4")
    expected = encode_jpeg(picture(200), quality=60, subsampling="4:4:4")
    assert RecordSet.open(tmp_path / "out").read(0) == expected


def test_without_a_size_every_image_keeps_its_own(run_cli, tmp_path: Path):
    make_set(tmp_path / "set", {"a": 1}, ".jpg", size=20)
    make_set(tmp_path / "set", {"b": 1}, ".jpg", size=31)
    assert run_cli("pack", "--in", tmp_path / "set", "--out", tmp_path / "out", "size=").code == 0
    records = RecordSet.open(tmp_path / "out")
    assert [decode_image(records.read(i)).shape[0] for i in (0, 1)] == [20, 31]


def test_unreadable_images_are_listed_and_leave_no_empty_class(pack, faces: Path, tmp_path: Path):
    (faces / "b" / "3.png").write_bytes(b"no image")
    (faces / "b" / "4.png").write_bytes((faces / "b" / "4.png").read_bytes()[:60])
    (faces / "a-lost").mkdir()
    (faces / "a-lost" / "0.jpg").write_bytes(b"")
    ran = pack("--in", faces)
    assert (ran.json()["images"], ran.json()["unreadable"], ran.json()["identities"]) == (15, 3, 3)
    lines = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a-lost/0", "b/3", "b/4"]
    assert all(line.split("\t")[1] for line in lines)
    assert [label for _, label in read_as_tface(tmp_path / "out", "TFR-facesyn")] == [0] * 10 + [1] * 2 + [2] * 3
    assert "3 unreadable images were left out" in ran.err


def test_several_inputs_keep_their_identities_apart(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, out="first")
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("b/0.png", encode_png(picture(1)))
        file.writestr("c/0.png", encode_png(picture(2)))
    ran = pack("--in", tmp_path / "first", "--in", archive)
    assert ran.json()["identities"] == 5 and ran.json()["images"] == 19
    records = RecordSet.open(tmp_path / "out")
    assert records.identities == ["1-b", "1-id9", "1-id10", "2-b", "2-c"]
    first = RecordSet.open(tmp_path / "first")
    assert [records.read(i) for i in range(17)] == [first.read(i) for i in range(17)]
    parents = json.loads((tmp_path / "out" / "facesyn.json").read_text())["parents"]
    assert parents["input-1"]["digest"] == first.digest


def test_drop_first_drops_the_first_file_in_string_order(pack, tmp_path: Path):
    faces = make_set(tmp_path / "faces", {"a": 3, "one": 1, "z": 2})
    for old, new in (("0.png", "b.png"), ("1.png", "a.png"), ("2.png", "a-x.png")):
        (faces / "a" / old).rename(faces / "a" / new)                            # "a-x.png" < "a.png" < "b.png"
    pack("--in", faces, "drop_first=true")
    records = RecordSet.open(tmp_path / "out")
    assert list(records.keys()) == [("a", "a"), ("a", "b"), ("z", "1")]
    assert records.identities == ["a", "z"]


def test_small_identities_can_be_left_out(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, "min_images=3")
    assert RecordSet.open(tmp_path / "out").identities == ["b", "id10"]


def test_shuffle_is_a_permutation_by_the_seed(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, out="straight")
    for out, seed in (("s0", 0), ("s0-again", 0), ("s1", 1)):
        pack("--in", faces, "shuffle=true", "--seed", seed, out=out)

    def rows(out: str) -> list[tuple[bytes, str]]:
        records = RecordSet.open(tmp_path / out)
        return [(records.read(i), identity + sample) for i, (identity, sample) in enumerate(records.keys())]

    assert rows("s0") != rows("straight") and rows("s0") != rows("s1")
    assert sorted(rows("s0")) == sorted(rows("straight")) == sorted(rows("s1"))
    assert digests(tmp_path / "s0") == digests(tmp_path / "s0-again")


def test_unpacking_gives_the_same_bytes_back(pack, tmp_path: Path):
    faces = make_set(tmp_path / "jpegs", {"a": 12, "b c": 2}, ".jpg")
    pack("--in", faces)
    pack("--in", tmp_path / "out", "--to", "folder", out="back")
    original, back = ImageSet.open(faces), ImageSet.open(tmp_path / "back")
    assert [e.key for e in back.entries] == [e.key for e in original.entries]
    assert [back.read(e) for e in back.entries] == [original.read(e) for e in original.entries]
    pack("--in", tmp_path / "back", out="again")
    assert (tmp_path / "again/TFR-facesyn/TFR-facesyn-00000.tfrecord").read_bytes() == (
        tmp_path / "out/TFR-facesyn/TFR-facesyn-00000.tfrecord"
    ).read_bytes()


def test_folders_keep_lossless_images_lossless(pack, faces: Path, tmp_path: Path):
    pack("--in", faces, "--to", "folder")
    assert (tmp_path / "out/b/3.png").read_bytes() == (faces / "b/3.png").read_bytes()


def test_published_index_is_an_input(pack, faces: Path, tmp_path: Path):
    pack("--in", faces)
    published = tmp_path / "out" / "TFR-facesyn.txt"
    pack("--in", published, "--from", "tfrecord", out="again")
    assert read_as_tface(tmp_path / "again", "TFR-facesyn") == read_as_tface(tmp_path / "out", "TFR-facesyn")


def test_odd_names_survive(pack, tmp_path: Path):
    faces = tmp_path / "odd"
    names = [("x y", "a\tb"), ("deep/er", "100%"), ("\u00e4", "line\nbreak"), ("n", "a.b.c")]
    for identity, sample in names:
        (faces / identity).mkdir(parents=True)
        (faces / identity / f"{sample}.png").write_bytes(encode_png(picture(0)))
    pack("--in", faces)
    # The keys that `embed` gives these images.
    keys = [("x y", "a%0009b"), ("deep/er", "100%"), ("\u00e4", "line%000abreak"), ("n", "a.b.c")]
    assert sorted(RecordSet.open(tmp_path / "out").keys()) == sorted(keys)
    assert len(read_as_admis(tmp_path / "out" / "TFR-facesyn", "TFR-facesyn")) == 4


def test_workers_do_not_change_the_files(pack, faces: Path, tmp_path: Path):
    for workers in (0, 1, 5):
        pack("--in", faces, f"workers={workers}", "format.records_per_shard=4", out=f"w{workers}")
    assert digests(tmp_path / "w0") == digests(tmp_path / "w1") == digests(tmp_path / "w5")


@pytest.mark.parametrize("target", ["tfrecord", "folder"])
def test_interrupted_anywhere_and_run_again_gives_the_same_files(
    run_cli, pack, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
):
    (faces / "b" / "3.png").write_bytes(b"no image")
    shards = ["format.records_per_shard=5"] if target == "tfrecord" else []
    pack("--in", faces, "--to", target, *shards, out="straight")
    monkeypatch.setattr(stage, "_COMMIT_EVERY", 3)
    write_json = stage.write_json
    for stop_after in range(1, 6):
        out = tmp_path / f"stopped-{stop_after}"

        def stop(path: Path, value: dict, after: int = stop_after) -> None:
            """Die right before the journal says so: everything newer must be cut off again."""
            if value["done"] >= 3 * after:
                raise KeyboardInterrupt
            write_json(path, value)

        monkeypatch.setattr(stage, "write_json", stop)
        interrupted = run_cli("pack", "--in", faces, "--out", out, f"size={SIZE}", "--to", target, *shards)
        assert interrupted.code != 0 and not (out / "facesyn.json").exists()
        monkeypatch.setattr(stage, "write_json", write_json)
        pack("--in", faces, "--to", target, *shards, out=out.name)
        assert digests(out) == digests(tmp_path / "straight")
        assert not list(out.rglob(".*"))


def test_killed_and_run_again_gives_the_same_files(run_cli, tmp_path: Path):
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(5000):
            file.writestr(f"{i // 20}/{i % 20}.png", encode_png(picture(i % 50, 8)))
    settings = ["--in", archive, "size=256", "format.records_per_shard=600", "workers=1"]
    out, journal = tmp_path / "out", tmp_path / "out" / ".unfinished" / "progress.json"
    first_shard = out / "TFR-facesyn" / "TFR-facesyn-00000.tfrecord"
    seen = None
    for wanted in (700, 1500):  # the first shard is full; work is committed every second
        process = spawn("pack", *settings, "--out", out)
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            if journal.is_file() and json.loads(journal.read_text())["done"] >= wanted:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL
        assert not (out / "facesyn.json").exists() and first_shard.is_file()
        now = (first_shard.stat().st_ino, first_shard.stat().st_mtime_ns)
        assert seen in (None, now), "a finished shard was written again"
        seen = now
    ran = finish(spawn("pack", *settings, "--out", out))
    assert ran.code == 0, ran.err
    assert (first_shard.stat().st_ino, first_shard.stat().st_mtime_ns) == seen
    straight = run_cli("pack", *settings, "--out", tmp_path / "straight")
    assert straight.code == 0, straight.err
    assert digests(out) == digests(tmp_path / "straight")


def test_a_finished_set_is_left_alone(pack, faces: Path, tmp_path: Path):
    pack("--in", faces)
    shard = tmp_path / "out/TFR-facesyn/TFR-facesyn-00000.tfrecord"
    before = os.stat(shard)
    ran = pack("--in", faces)
    assert ran.json()["images"] == 17 and os.stat(shard).st_mtime_ns == before.st_mtime_ns


def test_dry_run_counts_and_writes_nothing(pack, faces: Path, tmp_path: Path):
    plan = pack("--in", faces, "--dry-run", "format.records_per_shard=5").json()["plan"]
    assert (plan["counts"], plan["state"]) == ({"images": 17, "identities": 3, "shards": 4}, "new")
    assert plan["chosen"] == {"format": "tfrecord"} and list(plan["inputs"]) == ["input"]
    assert not (tmp_path / "out").exists()


def test_default_input_is_the_augmented_set_else_the_samples(run_cli, tmp_path: Path):
    work = tmp_path / "work"
    make_set(work / "4-samples", {"s": 2})
    assert run_cli("pack", "--work", work, "--out", tmp_path / "one", f"size={SIZE}").code == 0
    make_set(work / "5-augmented", {"s": 3})
    assert run_cli("pack", "--work", work, f"size={SIZE}").code == 0
    assert len(RecordSet.open(tmp_path / "one")) == 2 and len(RecordSet.open(work / "6-records")) == 3


def test_a_name_that_tface_ignores_is_pointed_out(pack, faces: Path):
    assert "contains TFR" in pack("--in", faces, "name=Syn_10k").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--in", "{tmp}/nowhere"], "nowhere does not exist"),
        (["--work", "{tmp}/empty-work"], "write it with: facesyn sample --work "),
        (["--in", "{tmp}/text.jpg"], "neither a folder nor a zip"),
        (["--in", "{tmp}/empty"], "holds no images"),
        (["--in", "{faces}", "--to", "tfrecords"], "did you mean 'tfrecord'?"),
        (["--in", "{faces}", "--from", "hdf5"], "one of auto, folder, lmdb, parquet"),
        (["--in", "{faces}", "--from", "tfrecord"], "one index file was expected, found none"),
        (["--in", "{faces}", "shufle=true"], "did you mean 'shuffle'?"),
        (["--in", "{faces}", "name=a/b"], "file name"),
        (["--in", "{faces}", "name=labels"], "a name other than"),
        (["--in", "{faces}", "size=0"], "size"),
        (["--in", "{faces}", "format.records_per_shard=0"], "format.records_per_shard"),
        (["--in", "{faces}", "format.subsampling=4:1:1"], "format.subsampling"),
        (["--in", "{faces}", "format.subsampling=[4]"], "format.subsampling"),
        (["--in", "{faces}", "size=999999"], "size"),
        (["--in", "{faces}", "min_images=50"], "nothing to pack: of 17 images of 3 identities"),
        (["--in", "{faces}", "--batch-size", "3"], "No such option: --batch-size"),
        (["--in", "{broken}"], "none of the 1 images is readable"),
        (["--in", "{faces}", "--out", "{faces}"], "was not made by facesyn"),
        (["--in", "{unfinished}"], "is unfinished"),
        (["--in", "{truncated}"], "truncated"),
    ],
)
def test_wrong_inputs(assert_refused, faces: Path, tmp_path: Path, arguments: list[str], says: str):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "0.png").write_bytes(b"x")
    unfinished = make_set(tmp_path / "unfinished", {"a": 1})
    begun = {"kind": "ImageSet", "command": "sample", "config": {}, "parents": {}}
    (unfinished / "facesyn.begun.json").write_text(json.dumps(begun))
    (tmp_path / "truncated").mkdir()
    (tmp_path / "truncated" / "s.index").write_text("s/0/a.jpg\t0\t10\n")
    (tmp_path / "truncated" / "s-00000.tfrecord").write_bytes(b"12345")
    places = {"tmp": tmp_path, "faces": faces}
    places |= {name: tmp_path / name for name in ("broken", "unfinished", "truncated")}
    arguments = [a.format(**places) for a in arguments]
    if "--out" not in arguments and "--work" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    assert_refused("pack", *arguments, says=says)
    assert not (tmp_path / "out" / "facesyn.json").exists()


def test_damaged_records_stop_the_packing_with_file_and_offset(pack, assert_refused, faces: Path, tmp_path: Path):
    pack("--in", faces)
    shard = tmp_path / "out/TFR-facesyn/TFR-facesyn-00000.tfrecord"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    assert_refused(
        "pack", "--in", tmp_path / "out", "--out", tmp_path / "again",
        says=("TFR-facesyn-00000.tfrecord, record at byte 0", "checksum"),
    )


def test_other_settings_or_inputs_are_refused_with_the_difference(pack, assert_refused, faces: Path, tmp_path: Path):
    pack("--in", faces)
    common = ["pack", "--out", tmp_path / "out", "--in"]
    assert_refused(*common, faces, "size=20", says="size 16 20")
    assert_refused(*common, faces, f"size={SIZE}", "drop_first=true", says="drop_first false true")
    make_set(tmp_path / "other", {"a": 1})
    assert_refused(*common, tmp_path / "other", f"size={SIZE}", says="input sha256:")


def test_a_flat_folder_is_said_and_its_list_is_taken(pack, run_cli, tmp_path: Path):
    """CelebA as torchvision unpacks it: images in one folder, `identity_CelebA.txt` beside it."""
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 13)]
    for k, name in enumerate(names):
        (folder / name).write_bytes(encode_jpeg(picture(k), 90))
    who = folder.parent / "identity_CelebA.txt"
    who.write_text("".join(f"{name} {2880 + k % 4}\n" for k, name in enumerate(names)))
    flat = run_cli("pack", "--in", folder, "--out", tmp_path / "flat", f"size={SIZE}", "--json")
    assert flat.json()["identities"] == 12 and f"{who} lists the identities" in flat.err
    listed = pack("--in", who)
    assert listed.json()["identities"] == 4 and listed.json()["images"] == 12 and "who is who" not in listed.err
    records = RecordSet.open(tmp_path / "out")
    assert records.identities == ["2880", "2881", "2882", "2883"] and set(np.bincount(records.labels)) == {3}


def test_every_image_of_a_mixed_folder_is_packed(pack, tmp_path: Path):
    """Endings that were passed over, names of Windows in a zip, and two Unicode forms of one name: all 12 images."""
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for k, (folder, name) in enumerate([
            ("Zoe\u0308", "1.jfif"), ("Zoe\u0308", "2.tif"), ("Zo\u00eb", "3.gif"), ("Zo\u00eb", "4"),
            ("b", "1.ppm"), ("b", "2.jpe"), ("b", "3.TIFF"), ("b", "4.bmp"),
        ]):
            out = io.BytesIO()
            kind = {"tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "ppm": "PPM", "bmp": "BMP"}
            Image.fromarray(picture(k)).save(out, kind.get(name.lower().rpartition(".")[2], "JPEG"))
            archive.writestr(f"{folder}\\{name}", out.getvalue())
        archive.writestr("b\\readme.txt", b"text")
    for target in ("tfrecord", "folder"):
        ran = pack("--in", tmp_path / "mixed.zip", "--to", target, out=target)
        assert ran.json()["images"] == 8 and ran.json()["identities"] == 2 and ran.json()["unreadable"] == 0
        assert "1 file is not an image: 1 .txt" in ran.err
        header = json.loads((tmp_path / target / "facesyn.json").read_text())
        assert header["extra"]["left_out"] == {str(tmp_path / "mixed.zip"): {".txt": 1}}
    images = ImageSet.open(tmp_path / "folder")
    assert [e.key for e in images.entries] == [f"{name}/{k}" for name in ("Zo\u00eb", "b") for k in range(1, 5)]
    assert all(decode_image(images.read(e)).shape == (SIZE, SIZE, 3) for e in images.entries)


def test_names_too_long_for_files_are_refused_before_any_work(assert_refused, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        archive.writestr(f"{'n' * 252}/{'s' * 252}", encode_png(picture(0)))
    assert_refused("pack", "--in", tmp_path / "long.zip", "--to", "folder", "--out", tmp_path / "out",
                   says=("1 files cannot be written", "names of at most 255 bytes"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", ["images", "unreadable"])
def test_a_finished_set_whose_header_lacks_a_count_is_refused(pack, assert_refused, faces, tmp_path: Path, count: str):
    pack("--in", faces)
    path = tmp_path / "out" / "facesyn.json"
    header = json.loads(path.read_text())
    del header["counts"][count]
    path.write_text(json.dumps(header))
    says = f"the header of a RecordSet that `facesyn pack` made has no number '{count}'"
    assert_refused("pack", "--out", tmp_path / "out", f"size={SIZE}", "--in", faces, says=says)
