"""`facesyn pack` from every record format to every other, and the stages that read packed sets."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_fr
import tiny_ldm
import tiny_recognizer
import yaml
from conftest import finish, spawn
from tiny_records import FORMATS, PASSTHROUGH, SIZE, encoded

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet, build_format
from facesyn_cli.data import pack_blocks
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.stages import pack as stage

NAME = "TFR-facesyn"
SETTINGS = {"tfrecord": ["format.records_per_shard=3"], "webdataset": ["format.records_per_shard=3"],
            "parquet": ["format.shard_bytes=2500"]}


def write_folder(folder: Path) -> Path:
    """Eleven images that need no change, JPEG and PNG, of identities with odd names."""
    for i, (identity, count) in enumerate({"id10": 4, "id9": 2, "deep/er \u00e4": 3, ".": 0, "b": 2}.items()):
        for k in range(count):
            data = encoded(10 * i + k + 1)
            path = folder / identity / f"s.{k}{'.png' if data[:1] == bytes([0x89]) else '.jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("in") / "faces")


@pytest.fixture
def pack(run_cli):
    def run(source: Path, target: str, out: Path, *more: str) -> Path:
        arguments = ("pack", "--in", source, "--to", target, "--out", out, *more, *SETTINGS.get(target, []))
        ran = run_cli(*arguments, f"size={SIZE}", "workers=1")
        assert ran.code == 0, ran.err
        return out

    return run


@pytest.mark.parametrize("target", [*FORMATS, "folder"])
def test_parts_in_any_order_equal_one_run(run_cli, target: str, faces: Path, tmp_path: Path, monkeypatch) -> None:
    """Blocks of two images; the run that writes the set is stopped in between and goes on."""
    source = shutil.copytree(faces, tmp_path / "in")
    (source / "id9" / "s.7.png").write_bytes(b"no image")
    (source / "b" / "wide.png").write_bytes(encode_png(np.zeros((14, 20, 3), np.uint8)))
    monkeypatch.setattr(pack_blocks, "BLOCK_SIZE", 2)
    monkeypatch.setattr(stage, "_COMMIT_EVERY", 3)
    words = ("pack", "--in", source, "--to", target, *SETTINGS.get(target, []), f"size={SIZE}", "--json", "workers=1")
    assert run_cli(*words, "--out", tmp_path / "one").code == 0
    out = tmp_path / "parts"
    for part in ("3/3", "1/3"):
        ran = run_cli(*words, "--out", out, "--shard", part)
        assert ran.code == 0 and ran.json()["part"] == part and "blocks of images of other parts" in ran.err
    plan = run_cli(*words, "--out", out, "--shard", "2/3", "--dry-run").json()["plan"]
    assert plan["counts"]["images"] == 13 and plan["counts"]["images_of_part"] == 4 and plan["state"] == "unfinished"
    write_json = stage.write_json

    def stop(path: Path, value: dict) -> None:
        if value["done"] >= 6:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_json", stop)
        assert run_cli(*words, "--out", out, "--shard", "2/3").code != 0
    with monkeypatch.context() as patch:  # all are encoded, and none is encoded again
        patch.setattr(type(build_format(target)), "fit", None)
        assert run_cli(*words, "--out", out, "--shard", "1/3").code == 0
    assert contents(out) == contents(tmp_path / "one")
    assert read_header(out).count("unreadable") == 1 and read_header(out).extra["cut_to_square"] == 1
    assert not list(out.rglob(".*"))


def test_a_run_without_parts_takes_over(run_cli, faces: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack_blocks, "BLOCK_SIZE", 2)
    words = ("pack", "--in", faces, f"size={SIZE}", "workers=1")
    assert run_cli(*words, "--out", tmp_path / "one").code == 0
    assert run_cli(*words, "--out", tmp_path / "parts", "--shard", "2/3").code == 0
    assert run_cli(*words, "--out", tmp_path / "parts").code == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_a_damaged_block_is_named(run_cli, assert_refused, faces: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack_blocks, "BLOCK_SIZE", 2)
    words = ("pack", "--in", faces, f"size={SIZE}", "--out", tmp_path / "out")
    assert run_cli(*words, "--shard", "1/2").code == 0
    block = sorted((tmp_path / "out").rglob("blocks/*"))[1]
    block.write_bytes(block.read_bytes()[:-1])
    assert_refused(*words, "--shard", "2/2", says=(str(block), "is damaged"))
    block.unlink()
    assert run_cli(*words, "--shard", "1/2").code == 0


def by_key(images: ImageSet) -> dict[str, bytes]:
    return {entry.key: images.read(entry) for entry in images.entries}


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, and the header without paths."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    header = json.loads(files.pop("facesyn.json"))
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {**digests, "counts": str(header["counts"]), "digest": header["digest"]}


@pytest.mark.parametrize("first", PASSTHROUGH)
def test_every_pair_and_back_to_the_same_bytes(pack, faces: Path, tmp_path: Path, first: str):
    """folder -> first -> second -> folder: every byte, every name; and the files of `second` do not depend on first."""
    original = by_key(ImageSet.open(faces))
    packed = pack(faces, first, tmp_path / "first")
    labels = RecordSet.open(packed).labels
    assert labels.tolist() == [0] * 2 + [1] * 3 + [2] * 2 + [3] * 4, "labels in natural order of b, deep/er, id9, id10"
    for second in PASSTHROUGH:
        again = pack(packed, second, tmp_path / second)
        records = RecordSet.open(again)
        assert {f"{i}/{s}": records.read(row) for row, (i, s) in enumerate(records.keys())} == original
        assert records.labels.tolist() == labels.tolist()
    assert by_key(ImageSet.open(pack(tmp_path / "parquet", "folder", tmp_path / "back"))) == original
    direct = pack(faces, "rec", tmp_path / "direct")
    for file in ("train.rec", "train.idx", "train.lst", "property"):
        assert (direct / NAME / file).read_bytes() == (tmp_path / "rec" / NAME / file).read_bytes()


@pytest.mark.parametrize("target", FORMATS)
def test_to_and_from_tfrecord(pack, faces: Path, tmp_path: Path, target: str):
    """tfrecord makes JPEGs of PNGs once; from then on nothing changes."""
    first = pack(faces, "tfrecord", tmp_path / "first")
    second = pack(first, target, tmp_path / "second")
    third = pack(second / NAME, "tfrecord", tmp_path / "third", "--from", target)  # as somebody else's, by content
    for shard in sorted((first / NAME).glob("*.tfrecord")):
        assert (third / NAME / shard.name).read_bytes() == shard.read_bytes()
    lines = [(path / f"{NAME}.txt").read_text() for path in (first, third)]
    assert lines[0] == lines[1], "shard, offset and label of every record"


@pytest.mark.parametrize("target", PASSTHROUGH)
def test_interrupted_anywhere_and_run_again_gives_the_same_files(
    run_cli, pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
):
    faces = write_folder(tmp_path / "faces")
    (faces / "b" / "s.0.jpg").write_bytes(b"no image")
    straight = contents(pack(faces, target, tmp_path / "straight"))
    monkeypatch.setattr(stage, "_COMMIT_EVERY", 2)
    places = [("write_json", after) for after in (1, 2, 4)] + [("write_labels", 0), ("write_bytes", 0)]
    for number, (function, after) in enumerate(places):
        original = getattr(stage, function)

        def stop(path: Path, *values: object, original=original, function=function, after=after) -> None:
            """Die right before the journal says so, or after the format has finished its files."""
            if function != "write_json" or values[0]["done"] >= 2 * after:
                raise KeyboardInterrupt
            original(path, *values)

        out = tmp_path / f"stopped-{number}"
        monkeypatch.setattr(stage, function, stop)
        arguments = ("pack", "--in", faces, "--to", target, "--out", out, *SETTINGS.get(target, []))
        stopped = run_cli(*arguments, f"size={SIZE}", "workers=1")
        assert stopped.code != 0 and not (out / "facesyn.json").exists()
        monkeypatch.setattr(stage, function, original)
        assert contents(pack(faces, target, out)) == straight
        assert not list(out.rglob(".*"))


@pytest.mark.parametrize("target", ["lmdb", "parquet"])
def test_interrupted_while_the_spool_is_converted(
    run_cli, pack, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
):
    from facesyn_cli.data.append_files import Spool

    monkeypatch.setattr("facesyn_cli.data.lmdb_format._PART_BYTES", 2500)
    straight = contents(pack(faces, target, tmp_path / "straight"))
    read = Spool.read
    for stop_at in (0, 1, 2):

        def stop(self: Spool, part: int, stop_at: int = stop_at):
            for number, record in enumerate(read(self, part)):
                if (part, number) == (stop_at, 1):
                    raise KeyboardInterrupt
                yield record

        out = tmp_path / f"stopped-{stop_at}"
        monkeypatch.setattr(Spool, "read", stop)
        arguments = ("pack", "--in", faces, "--to", target, "--out", out, *SETTINGS.get(target, []))
        assert run_cli(*arguments, f"size={SIZE}").code != 0
        monkeypatch.setattr(Spool, "read", read)
        if target == "parquet":
            assert len(list(out.rglob("*.parquet"))) == stop_at, "finished files stay"
        assert contents(pack(faces, target, out)) == straight


@pytest.mark.parametrize("target", PASSTHROUGH)
def test_killed_and_run_again_gives_the_same_files(pack, tmp_path: Path, target: str):
    faces = tmp_path / "faces"
    for i in range(260):
        (faces / str(i)).mkdir(parents=True)
        for k in range(6):
            (faces / str(i) / f"{k}.jpg").write_bytes(encoded(3 * (i % 20) + 1))
    straight = contents(pack(faces, target, tmp_path / "straight"))
    out = tmp_path / "out"
    settings = ["pack", "--in", faces, "--to", target, "--out", out, f"size={SIZE}", "workers=1"]
    settings += SETTINGS.get(target, [])
    process = spawn(*settings)
    limit = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < limit and not (out / ".unfinished/progress.json").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL and not (out / "facesyn.json").exists()
    assert contents(pack(faces, target, out)) == straight


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_train_fr_takes_any_format(run_cli, tmp_path: Path, name: str):
    faces = tiny_fr.write_faces(tmp_path / "faces")
    assert run_cli("pack", "--in", faces, "--to", name, "--out", tmp_path / "set").code == 0
    losses = []
    for number, source in enumerate((faces, tmp_path / "set")):
        ran = run_cli(*tiny_fr.train_arguments(source, tmp_path / f"fr{number}", epochs=1))
        assert ran.code == 0, ran.err
        lines = (tmp_path / f"fr{number}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    assert losses[0] == losses[1] and losses[0]


def test_embed_takes_any_format(run_cli, tmp_path: Path):
    faces = tiny_recognizer.write_faces(tmp_path / "faces", people=2, photos=2)
    weights = tiny_recognizer.write_recognizer(tmp_path / "fr")
    found = []
    for name in ("folder", *PASSTHROUGH):
        assert run_cli("pack", "--in", faces, "--to", name, "--out", tmp_path / name).code == 0
        out = tmp_path / f"{name}-embedded"
        ran = run_cli("embed", "--images", tmp_path / name, "--weights", weights, "--out", out)
        assert ran.code == 0, ran.err
        found.append(EmbeddingSet.open(out))
    assert all(f.keys == found[0].keys == ["p0/0", "p0/1", "p1/0", "p1/1"] for f in found)
    assert all(np.array_equal(f.vectors, found[0].vectors) for f in found)


def test_train_ldm_takes_records(run_cli, tmp_path: Path):
    faces, embeddings = tiny_ldm.write_faces(tmp_path)
    for name in ("folder", "rec"):
        packed = ("pack", "--in", faces, "--to", name, "--out", tmp_path / name, "size=null")
        assert run_cli(*packed).code == 0
        arguments = tiny_ldm.train_arguments(tmp_path, tmp_path / f"ldm-{name}", "--images", tmp_path / name, steps=2)
        ran = run_cli(*arguments)
        assert ran.code == 0, ran.err
    weights = [(tmp_path / f"ldm-{name}/model.safetensors").read_bytes() for name in ("folder", "rec")]
    assert weights[0] == weights[1]


def test_dry_run_names_format_and_counts(run_cli, faces: Path, tmp_path: Path):
    ran = run_cli("pack", "--in", faces, "--to", "webdataset", "--out", tmp_path / "out", "--dry-run", "--json",
                  "format.records_per_shard=4")
    plan = ran.json()
    assert ran.code == 0 and json.dumps(plan).count('"webdataset"') >= 1
    assert '"shards": 3' in json.dumps(plan) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_datasets_loads_a_packed_folder_by_its_name(pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    import datasets
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    for i, identity in enumerate(("test", "p10", "p9")):  # a folder `test` is a split to datasets
        for k in range(7):
            data = encode_png(np.full((SIZE, SIZE, 3), 10 * i + k, np.uint8)) if k == 6 else encoded(10 * i + 3 * k + 1)
            path = tmp_path / "faces" / identity / f"{k}{'.png' if k == 6 else '.jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    out = pack(tmp_path / "faces", name, tmp_path / "out", "name=TFR[1]")
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"] and found["train"].num_rows == 21
    label = "cls" if name == "webdataset" else "label"
    labels = found["train"][label]
    identities = RecordSet.open(out).identities if name != "folder" else found["train"].features["label"].names
    assert sorted(identities[k] for k in labels) == sorted(["test"] * 7 + ["p10"] * 7 + ["p9"] * 7)
    columns = ["jpg", "png"] if name == "webdataset" else ["image"]
    images = [next(row[c] for c in columns if row[c]) for row in found["train"]]
    assert all(image.size == (SIZE, SIZE) for image in images)


def test_a_card_of_the_user_is_left_alone(pack, faces: Path, tmp_path: Path):
    out = pack(faces, "webdataset", tmp_path / "out")
    head = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": [f"{NAME}/*.tar"]}]
    (out / "README.md").write_text("mine")
    (out / "facesyn.json").rename(out / "facesyn.begun.json")  # not finished yet
    pack(faces, "webdataset", out)
    assert (out / "README.md").read_text() == "mine"


def test_images_that_are_not_square_are_cut_and_counted(run_cli, tmp_path: Path):
    for k, shape in enumerate([(16, 16), (16, 20), (30, 16)]):
        path = tmp_path / f"faces/p/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.zeros((*shape, 3), np.uint8)))
    ran = run_cli("pack", "--in", tmp_path / "faces", "--out", tmp_path / "out", "--to", "rec", "size=16")
    assert f"{tmp_path / 'faces'}: 2 of 3 images are not square; their central squares were taken" in ran.err
    assert read_header(tmp_path / "out").extra["cut_to_square"] == 2
    ran = run_cli("pack", "--in", tmp_path / "faces", "--out", tmp_path / "whole", "--to", "rec", "size=null")
    assert "square" not in ran.err and "cut_to_square" not in read_header(tmp_path / "whole").extra


def test_what_an_input_holds_besides_its_images_is_in_the_header(run_cli, tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("p/1.jpg", encoded(1)), ("p/1.npy", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    ran = run_cli("pack", "--in", tmp_path / "a.tar", "--out", tmp_path / "out", "--to", "rec", "size=16")
    assert "left out: 1 .npy files" in ran.err
    assert read_header(tmp_path / "out").extra["left_out"] == {str(tmp_path / "a.tar"): {".npy files": 1}}


def test_a_parquet_row_without_an_image_is_listed_and_the_rest_packed(run_cli, tmp_path: Path):
    import pyarrow as arrow
    import pyarrow.parquet
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    images = arrow.array([{"bytes": encoded(1), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None], kind)
    pyarrow.parquet.write_table(arrow.table({"image": images, "label": [0, 0, 1]}), tmp_path / "x.parquet")
    ran = run_cli("pack", "--in", tmp_path / "x.parquet", "--out", tmp_path / "out", "--to", "rec", "size=16", "--json")
    assert (ran.json()["images"], ran.json()["unreadable"]) == (1, 2)
    assert (tmp_path / "out" / "unreadable.txt").read_text().count("the image has no bytes") == 2


def test_wrong_from_is_refused(assert_refused, pack, faces: Path, tmp_path: Path):
    packed = pack(faces, "rec", tmp_path / "rec")
    assert_refused("pack", "--in", packed / NAME, "--from", "lmdb", "--out", tmp_path / "x", says="data.mdb")
    assert_refused("pack", "--in", faces, "--from", "webdataset", "--out", tmp_path / "x", says="no .tar files")
    assert_refused("pack", "--in", faces, "--from", "rec", "--out", tmp_path / "x", says="one .rec file was expected")
