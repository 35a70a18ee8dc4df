"""Tar shards as the webdataset package groups them: every member is used or reported, and no label is another's."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_records import encoded

from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.errors import UserError

A, B, C = encoded(1), encoded(2), encoded(4)  # JPEGs


def shard(path: Path, members: Sequence[tuple[str, bytes | None]], **options: object) -> Path:
    """Write an archive; None instead of content is a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data or b""))
    return path


def rows(path: Path) -> list[tuple[str, str, bytes]]:
    """Return identity, sample and bytes of every record."""
    records = RecordSet.open(path)
    return [(identity, sample, records.read(row)) for row, (identity, sample) in enumerate(records.keys())]


def test_names_with_dots_are_images_of_their_own(tmp_path: Path):
    path = shard(tmp_path / "a.tar", [(f"m.0{p}/{k}.{n}.jpg", A) for p in "ab" for k in range(2) for n in range(3)])
    assert [(identity, sample) for identity, sample, _ in rows(path)] == [
        (f"m.0{p}", f"{k}.{n}") for p in "ab" for k in range(2) for n in range(3)
    ]


def test_a_label_belongs_to_the_image_of_its_name_else_to_all_of_its_sample(tmp_path: Path):
    members = [("1.2.jpg", A), ("1.2.cls", b"7"), ("1.3.jpg", B), ("1.cls", b"5"), ("2.jpg", C), ("2.png", A),
               ("2.cls", b"5")]
    assert rows(shard(tmp_path / "a.tar", members)) == [("7", "1.2", A), ("5", "1.3", B), ("5", "2", C), ("5", "2", A)]
    assert [e.key for e in open_images(tmp_path / "a.tar").entries] == ["5/1.3", "5/2", "5/2-2", "7/1.2"]


def test_one_field_twice_is_an_error_as_in_webdataset(tmp_path: Path):
    from webdataset.tariterators import group_by_keys
    members = [("p0/1.jpg", A), ("p0/1.JPG", B), ("p0/1.cls", b"0")]
    path = shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match="duplicate file name"):
        list(group_by_keys([{"fname": name, "data": data, "__url__": ""} for name, data in members]))
    with pytest.raises(UserError, match="two files .jpg.*first dot"):
        RecordSet.open(path)


def test_labels_after_all_images_are_never_taken_for_the_folder(tmp_path: Path):
    images = [(f"p{k % 2}/{k}.jpg", A) for k in range(4)]
    late = [(f"p{k % 2}/{k}.cls", b"3") for k in range(4)]
    with pytest.raises(UserError, match="4 labels have no image beside them"):
        RecordSet.open(shard(tmp_path / "a.tar", images + late))
    with pytest.raises(UserError, match="some images have no label and others a .cls"):
        RecordSet.open(shard(tmp_path / "b.tar", images + late[3:]))
    with pytest.raises(UserError, match="1 labels have no image beside them"):
        RecordSet.open(shard(tmp_path / "c.tar", [*images, ("q.json", b'{"label": 3}')]))


def test_a_label_of_no_image_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = [("0.jpg", A), ("0.cls", b"1"), ("1.cls", b"2"), ("2.jpg", B), ("2.cls", b"3")]
    with caplog.at_level(logging.WARNING, "facesyn"):
        found = RecordSet.open(shard(tmp_path / "a.tar", members))
    assert found.identities == ["1", "3"]
    assert "2 images are read; left out: 1 labels of no image beside them (first '1.cls')" in caplog.text


@pytest.mark.parametrize(("files", "identities"), [
    (lambda k: [("json", b'{"label": %d, "age": 30}' % (9 + k % 2))], ["9", "10"]),
    (lambda k: [("json", b'{"label": "p%d"}' % (9 + k % 2))], ["p9", "p10"]),
    (lambda k: [("json", b"%d" % (9 + k % 2)), ("txt", b" %d\n" % (9 + k % 2))], ["9", "10"]),
    (lambda k: [("txt", b"%d" % (9 + k % 2)), ("json", b'{"age": 3}')], ["9", "10"]),
    (lambda k: [("cls", b"%d" % (k % 2)), ("json", b'{"label": 5}'), ("txt", b"8")], ["0", "1"]),
])
def test_labels_in_json_and_txt(tmp_path: Path, files, identities: list[str]):
    members = [m for k in range(4) for m in [(f"{k}.jpg", A), *((f"{k}.{field}", data) for field, data in files(k))]]
    records = RecordSet.open(shard(tmp_path / "a.tar", members))
    assert records.identities == identities and records.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("members", "says"), [
    ([("1.jpg", A), ("1.json", b'{"label": 1}'), ("1.txt", b"2")], "disagree about its label"),
    ([("1.jpg", A), ("1.json", b'{"label": 1, "cls": 2}')], "holds the label 1 and the class 2"),
    ([("1.jpg", A), ("1.json", b'{"label": 1.5}')], "holds the label 1.5"),
    ([("1.jpg", A), ("1.json", b'{"label": true}')], "holds the label True"),
    ([("1.jpg", A), ("1.json", b'{"label": -1}')], "holds the label -1"),
    ([("1.jpg", A), ("1.json", b"[" * 100_000)], "neither a .cls nor a folder.*left out: .json files"),
    ([("1.jpg", A), ("1.json", b"1"), ("2.jpg", A), ("2.json", b'"b"')], "have a .json and others no label"),
    ([("1.jpg", A), ("1.json", b'{"cls": 1}'), ("2.jpg", A), ("2.json", b'{"cls": "b"}')], "numbers and others names"),
    ([("1.jpg", A), ("1.json", b"1"), ("2.jpg", A), ("2.cls", b"1")], "some images have a .json and others a .cls"),
    ([("p0/1.jpg", A), ("p0/1.txt", b"0"), ("p1/2.jpg", A), ("p1/2.txt", b"0")], "which are the identities"),
    ([("x/p0\\1.jpg", A), ("x/p1\\1.jpg", A)], "has a backslash"),
    ([("./1.jpg", A), ("./2.jpg", A)], "neither a .cls nor a folder"),
])
def test_what_cannot_be_told_apart_is_refused(tmp_path: Path, members: list, says: str):
    with pytest.raises(UserError, match=says):
        RecordSet.open(shard(tmp_path / "a.tar", members))


def test_captions_and_attributes_leave_the_folder_as_identity(tmp_path: Path):
    members = [("p0/1.jpg", A), ("p0/1.txt", b"a face"), ("p1/2.jpg", A), ("p1/2.json", b'{"age": 3}')]
    assert [row[:2] for row in rows(shard(tmp_path / "a.tar", members))] == [("p0", "1"), ("p1", "2")]


def test_everything_in_an_archive_is_used_or_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = [("p0/1.jpg", A), ("p0/2.jpg", None), ("p0/._1.jpg", b"x"), ("p0/readme", b"x"), ("__meta__/1.jpg", A),
               ("p0/3.npy", b"x"), ("p0/4.photo", B), ("p1/5.jpg", C)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set/loose.jpg").write_bytes(A)
    with caplog.at_level(logging.WARNING, "facesyn"):
        shard(tmp_path / "set/a.TAR", members)
        records = RecordSet.open(tmp_path / "set")
    assert len(records) == 3, "an image is known by its content"
    assert len(records) + sum(records.left_out.values()) == len(members) + 1
    assert caplog.text.count("left out") == 1 and "1 links (first 'p0/2.jpg')" in caplog.text
    assert "1 images beside the shards" in caplog.text and "hidden" in caplog.text and ".npy" in caplog.text


@pytest.mark.parametrize(("name", "mode", "says"), [
    ("b.tar.gz", "w:gz", "without compression"),
    ("b.tgz", "w:gz", "without compression"),
    ("b.TAR.XZ", "w:xz", "without compression"),
    ("b.tar.part", "w", "does not end in .tar"),
])
def test_a_shard_beside_others_is_never_left_out_for_its_name(tmp_path: Path, name: str, mode: str, says: str):
    shard(tmp_path / "a.tar", [("p/1.jpg", A)])
    with tarfile.open(tmp_path / name, mode) as archive:
        archive.addfile(tarfile.TarInfo("p/2.jpg"))
    with pytest.raises(UserError, match=says):
        open_images(tmp_path)


def test_files_beside_shards_are_counted(tmp_path: Path, caplog):
    shard(tmp_path / "a.tar", [("p/1.jpg", A)])
    (tmp_path / "loose.jpg").write_bytes(A)
    (tmp_path / "README.txt").write_text("x")
    with caplog.at_level("WARNING", logger="facesyn"):
        assert len(open_images(tmp_path).entries) == 1
    assert "1 images beside the shards (first 'loose.jpg')" in caplog.text
    assert "1 other files beside the shards (first 'README.txt')" in caplog.text


def test_a_folder_of_images_with_a_compressed_archive_is_a_folder_of_images(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(A)
    with tarfile.open(tmp_path / "backup.tar.gz", "w:gz"):
        pass
    assert [entry.key for entry in open_images(tmp_path).entries] == ["1/0"]


def test_archives_joined_by_cat_are_read_to_their_end(tmp_path: Path):
    parts = [shard(tmp_path / f"{k}/a.tar", [(f"p{k}/1.jpg", A)]) for k in range(2)]
    (tmp_path / "joined.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert [row[:2] for row in rows(tmp_path / "joined.tar")] == [("p0", "1"), ("p1", "1")]


def test_sparse_files_and_damaged_pax_headers_are_refused(tmp_path: Path):
    path = shard(tmp_path / "a.tar", [("p/1.jpg", A)], format=tarfile.PAX_FORMAT, pax_headers=None)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("GNUSparseFile.0/1.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "p/1.jpg"}
        archive.addfile(info)
    with pytest.raises(UserError, match="sparse"):
        RecordSet.open(path)
    data = bytearray(path.read_bytes())
    data[512:514] = b"0 "
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="PAX header at byte 0 is damaged"):
        RecordSet.open(path)


def test_long_link_targets_and_comments_do_not_cost_a_long_name(tmp_path: Path):
    long = "p/" + "a" * 120 + ".jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT):
        info = tarfile.TarInfo(long)
        info.size = len(A)
        named = info.tobuf(tarfile.GNU_FORMAT)  # `L`, its content, and the file's own header
        target = tarfile.TarInfo("q")
        target.type, target.linkname = tarfile.SYMTYPE, "b" * 120
        link = target.tobuf(tarfile.GNU_FORMAT)[:1024]  # `K` and its content
    (tmp_path / "a.tar").write_bytes(named[:1024] + link + named[1024:] + A.ljust(-(-len(A) // 512) * 512, b"\0")
                                     + bytes(1024))
    assert [row[:2] for row in rows(tmp_path / "a.tar")] == [("p", "a" * 120)]


def test_names_that_are_no_text_stay_apart(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("Jos\xe9/1.jpg", "Jos\xe8/1.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    assert RecordSet.open(tmp_path / "a.tar").identities == ["Jos%dce8", "Jos%dce9"]


def test_one_person_spelled_in_two_ways_is_one_identity(tmp_path: Path):
    members = [("Jos\u00e9/1.jpg", A), ("Jose\u0301/1.jpg", B), ("Jose\u0301/2.jpg", C)]
    path = shard(tmp_path / "a.tar", members)
    assert RecordSet.open(path).identities == ["Jos\u00e9"]
    assert [entry.sample for entry in open_images(path).entries] == ["1", "1-2", "2"]


def test_a_set_that_has_lost_a_shard_is_refused(run_cli, tmp_path: Path):
    shard(tmp_path / "a.tar", [(f"p{k}/1.jpg", A) for k in range(4)])
    run_cli("pack", "--in", tmp_path / "a.tar", "--out", tmp_path / "out", "--to", "webdataset", "size=16",
            "name=set", "format.records_per_shard=2")
    next((tmp_path / "out/set").glob("*1.tar")).unlink()
    with pytest.raises(UserError, match="written with 4 images and holds 2"):
        RecordSet.open(tmp_path / "out")
