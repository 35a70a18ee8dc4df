"""Record sets: published folders of every layout are read, wrong ones refused with the place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.names import escape_name
from facesyn_cli.artifacts.record_set import RecordSet, natural_labels
from facesyn_cli.data.record_labels import read_labels, write_labels
from facesyn_cli.data.tfrecord import find_index
from facesyn_cli.data.tfrecord_framing import encode_example, frame
from facesyn_cli.errors import UserError


def write_shards(folder: Path, name: str, shards: list[list[bytes]]) -> list[tuple[int, int]]:
    """Write shards of images; return (shard, offset) of every record."""
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for shard, images in enumerate(shards):
        data = b""
        for image in images:
            places.append((shard, len(data)))
            data += frame(encode_example(image))
        (folder / f"{name}-{shard:05d}.tfrecord").write_bytes(data)
    return places


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A set as ADMIS writes it, `Syn` in one folder with a 3-column index; labels with gaps, odd order."""
    places = write_shards(tmp_path, "Syn", [[b"i0", b"i1"], [b"i2"], [b"i3", b"i4"]])
    paths = ["s/10/2.jpg", "s/10/1.png", "s/2/0.jpg", "s/007/a b.c.jpg", "s/2/1.jpg"]
    lines = [f"{path}\t{shard}\t{offset}\n" for path, (shard, offset) in zip(paths, places, strict=True)]
    (tmp_path / "Syn.index").write_text("".join(lines))
    return tmp_path


def test_published_three_columns(published: Path):
    records = RecordSet.open(published)
    assert [records.read(i) for i in range(5)] == [b"i0", b"i1", b"i2", b"i3", b"i4"]
    assert records.identities == ["2", "007", "10"]          # natural order, no gaps: no class is empty
    assert records.labels.tolist() == [2, 2, 0, 1, 0]
    assert records.num_classes == 3 and len(records) == 5
    assert list(records.keys()) == [("10", "2"), ("10", "1"), ("2", "0"), ("007", "a b.c"), ("2", "1")]
    assert RecordSet.open(published / "Syn.index").labels.tolist() == [2, 2, 0, 1, 0]


def test_published_four_columns_of_several_sets(tmp_path: Path):
    first = write_shards(tmp_path / "TFR-a", "TFR-a", [[b"a0", b"a1"]])
    second = write_shards(tmp_path / "TFR-b", "TFR-b", [[b"b0"]])
    rows = [("TFR-a", *first[0], 5), ("TFR-b", *second[0], 0), ("TFR-a", *first[1], 5)]
    (tmp_path / "both.txt").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    records = RecordSet.open(tmp_path)
    assert [records.read(i) for i in range(3)] == [b"a0", b"b0", b"a1"]
    assert (records.labels.tolist(), records.identities) == ([1, 0, 1], ["0", "5"])
    assert list(records.keys()) == [("5", "0"), ("0", "0"), ("5", "1")]


def test_rec2tfrecord_layout_has_the_index_beside_the_records(tmp_path: Path):
    (shard, offset), = write_shards(tmp_path / "N", "N", [[b"x"]])
    (tmp_path / "N" / "N.index").write_text(f"N\t{shard}\t{offset}\t3\n")
    assert RecordSet.open(tmp_path / "N").read(0) == b"x"


def test_digest_follows_content(published: Path):
    before = RecordSet.open(published).digest
    assert RecordSet.open(published).digest == before
    with open(published / "Syn-00002.tfrecord", "ab") as file:
        file.write(b"more")
    assert RecordSet.open(published).digest != before


def test_labels_take_little_memory(published: Path):
    records = RecordSet.open(published)
    per_record = records.reader.file_of.itemsize + records.reader.offsets.itemsize + records.labels.itemsize
    assert per_record == 16


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t0\n", "line 2: .* was expected"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t0\tx\n", "line 2"),
        ("s/0/a.jpg\t0\t0\nb.jpg\t0\t0\n", "line 2"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t-1\t0\n", "line 2"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t0\t99999999999999999999999\n", "line 2"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t99999999999999999999999\t0\n", "does not exist"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t7\t0\n", r"Syn-00007.tfrecord, which does not exist"),
        ("s/0/a.jpg\t0\t0\ns/0/b.jpg\t0\t5000\n", "Syn-00000.tfrecord has .* bytes but .* record at byte 5000"),
        ("Syn\t0\t0\tzero\n", "line 1"),
    ],
)
def test_wrong_indexes_name_the_place(tmp_path: Path, index: str, says: str):
    write_shards(tmp_path, "Syn", [[b"x"]])
    (tmp_path / "Syn.index").write_text(index)
    with pytest.raises(UserError, match=says):
        RecordSet.open(tmp_path / "Syn.index", "tfrecord")


def test_a_set_name_cannot_leave_the_folder(tmp_path: Path):
    write_shards(tmp_path, "x", [[b"x"]])
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.txt").write_text("../x\t0\t0\t0\n")
    with pytest.raises(UserError, match="does not exist"):
        RecordSet.open(inside)


def test_what_is_no_record_set(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist; a set of records was expected"):
        RecordSet.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello\n")
    assert not RecordSet.recognizes(tmp_path)
    with pytest.raises(UserError, match="holds no records"):
        RecordSet.open(tmp_path)
    write_shards(tmp_path, "Syn", [[b"x"]])
    (tmp_path / "Syn.index").write_text("s/0/a.jpg\t0\t0\n")
    (tmp_path / "Tyn.index").write_text("s/0/a.jpg\t0\t0\n")
    assert RecordSet.recognizes(tmp_path)
    with pytest.raises(UserError, match="one index file was expected, found Syn.index, Tyn.index"):
        RecordSet.open(tmp_path)


def test_of_two_indexes_with_one_stem_the_explicit_labels_win(tmp_path: Path):
    (tmp_path / "N.index").write_text("s/0/a.jpg\t0\t0\n")
    (tmp_path / "N.txt").write_text("N\t0\t0\t0\n")
    assert find_index(tmp_path) == [tmp_path / "N.txt"]


def test_names_that_are_one_in_unicode_are_one_identity() -> None:
    names, labels = natural_labels(["Jose\u0301 2", "Jose\u0301 10", "Jos\u00e9 2"])
    assert names == ["Jos\u00e9 2", "Jos\u00e9 10"] and labels.tolist() == [0, 1, 0]


def test_labels_are_ranks_in_natural_order():
    names, labels = natural_labels(["id10", "id2", "10", "9", "b", "id1"])
    assert names == ["9", "10", "b", "id1", "id2", "id10"]
    assert labels.tolist() == [5, 4, 1, 0, 2, 3]


def test_labels_file_keeps_any_name(tmp_path: Path):
    names = ["plain", "a/b", "tab\there", "line\nbreak", "100%", "sep\u2028x", "\u00e4\u4e2d"]
    write_labels(tmp_path / "labels.txt", names, np.arange(len(names)))
    assert len((tmp_path / "labels.txt").read_text().splitlines()) == len(names)
    assert read_labels(tmp_path / "labels.txt") == names


@pytest.mark.parametrize("text", ["1\ta\t3\n", "0\ta\n", "x\ta\t3\n", "0\ta\t3\n2\tb\t1\n"])
def test_wrong_labels_files(tmp_path: Path, text: str):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UserError, match="cannot read .*labels.txt"):
        read_labels(tmp_path / "labels.txt")


def test_escaped_names_are_one_path_component():
    assert escape_name("a/b\t%") == "a%002fb%0009%0025"
    assert escape_name("a/b", keep="/") == "a/b"
