"""Record formats: our readers on our files, other people's readers on our files, ours on other people's."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_records import FORMATS, NAME, PASSTHROUGH, encoded, read_all, tiny_images, write_set

from facesyn_cli.artifacts.record_set import RecordSet, build_format
from facesyn_cli.artifacts.record_set_images import RecordSetImages, open_images
from facesyn_cli.data.lmdb_file import encode_datum, read_datum
from facesyn_cli.data.pixels import UnreadableImage, decode_image
from facesyn_cli.data.recordio import HEADER, frame_record
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

IMAGES = tiny_images()
LABELS = [0, 0, 0, 1, 2, 2, 2, 2]
IN_ORDER = list(IMAGES.values())


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(tmp_path: Path, name: str):
    folder = write_set(name, tmp_path, IMAGES)
    records = RecordSet.open(folder)
    assert [(label, image) for label, _, image in read_all(records)] == list(zip(LABELS, IN_ORDER, strict=True))
    # Foreign names: the label, or what the format keeps; tfrecord of TFace keeps none.
    assert [sample for _, sample, _ in read_all(records)] == [sample for _, sample in IMAGES]
    assert sum(build_format(other).recognizes(folder) for other in (*FORMATS, "folder")) == 1
    named = [p for p in folder.parent.rglob("*") if p.is_file() and build_format(name).recognizes(p)]
    assert RecordSet.open(named[0]).read(5) == IN_ORDER[5], "the file itself is an input, too"


@pytest.mark.parametrize("name", FORMATS)
def test_random_access_pickling_and_forking(tmp_path: Path, name: str):
    records = RecordSet.open(write_set(name, tmp_path, IMAGES))
    order = [7, 0, 3, 3, 6, 1]
    assert [records.read(i) for i in order] == [IN_ORDER[i] for i in order]
    again = pickle.loads(pickle.dumps(records))
    assert [again.read(i) for i in order] == [IN_ORDER[i] for i in order]
    child = os.fork()
    if child == 0:
        os._exit(0 if [records.read(i) for i in order] == [IN_ORDER[i] for i in order] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", FORMATS)
def test_digest_follows_the_content(tmp_path: Path, name: str):
    same = [RecordSet.open(write_set(name, tmp_path / str(i), IMAGES)).digest for i in range(2)]
    fewer = RecordSet.open(write_set(name, tmp_path / "fewer", tiny_images((3, 1, 3)))).digest
    assert same[0] == same[1] != fewer


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_set_is_an_image_set(tmp_path: Path, name: str):
    images = pickle.loads(pickle.dumps(open_images(write_set(name, tmp_path, IMAGES))))
    assert isinstance(images, RecordSetImages)
    assert [e.key.removeprefix("id") for e in images.entries] == [
        f"{label}/{sample}" for label, (_, sample) in zip(LABELS, IMAGES, strict=True)
    ]
    assert [images.read(e) for e in images.entries] == IN_ORDER
    assert images.parent().digest == images.digest


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_fit_keeps_bytes_and_resizes_only_what_must_be(name: str):
    data = encoded(1)
    assert build_format(name).fit(data, 16) is data and build_format(name).fit(data, None) is data
    png = build_format(name).fit(data, 8)
    assert png.startswith(b"\x89PNG") and decode_image(png).shape == (8, 8, 3)
    jpeg = registry.build("record_format", registry.configure("record_format", {"name": name, "quality": 100}))
    assert jpeg.fit(data, 16) is data and jpeg.fit(data, 8).startswith(b"\xff\xd8")
    np.testing.assert_allclose(decode_image(jpeg.fit(data, 8)).mean(), decode_image(png).mean(), atol=3)


@pytest.mark.parametrize(("name", "package"), [("lmdb", "lmdb"), ("parquet", "pyarrow.parquet")])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    assert not build_format(name).recognizes(tmp_path)
    with pytest.raises(UserError, match=r'pip install "facesyn\[formats\]"'):
        build_format(name).writer(tmp_path, NAME, tmp_path / "scratch", {})


# --- other people's readers on our files


@pytest.mark.filterwarnings("ignore")  # webdataset leaves its files open
def test_webdataset_reads_our_shards(tmp_path: Path):
    import webdataset
    folder = write_set("webdataset", tmp_path, IMAGES)
    dataset = webdataset.WebDataset(str(folder / f"{NAME}-000000.tar"), shardshuffle=False)
    raw = list(dataset.to_tuple("__key__", "jpg;png", "cls"))
    assert [(key, data) for key, data, _ in raw] == [(f"{i}/{s}", data) for (i, s), data in IMAGES.items()]
    dataset = webdataset.WebDataset(str(folder / f"{NAME}-000000.tar"), shardshuffle=False)
    decoded = list(dataset.decode("rgb8").to_tuple("jpg;png", "cls"))
    assert [label for _, label in decoded] == LABELS
    assert all(np.array_equal(pixels, decode_image(data)) for (pixels, _), data in zip(decoded, IN_ORDER, strict=True))


def test_lmdb_reads_our_database(tmp_path: Path):
    import lmdb
    folder = write_set("lmdb", tmp_path, IMAGES)
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        items = list(transaction.cursor())
    assert [key.decode() for key, _ in items][:2] == ["00000000_id0/0.jpg", "00000001_id0/1.jpg"]
    for (_, value), label, data in zip(items, LABELS, IN_ORDER, strict=True):
        assert value == encode_datum(data, label)


def test_datum_as_protocol_buffers_decode_it():
    """The message type built from Caffe's field numbers, by the protobuf library."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = [("channels", 1, kinds.TYPE_INT32), ("data", 4, kinds.TYPE_BYTES), ("label", 5, kinds.TYPE_INT32),
              ("encoded", 7, kinds.TYPE_BOOL)]
    for name, number, kind in fields:
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    datum_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))
    for label in (0, 127, 128, 2**31 - 1):
        image = bytes(range(256)) * 3
        datum = datum_class.FromString(encode_datum(image, label))
        assert (datum.data, datum.label, datum.encoded) == (image, label, True)
        data = datum_class(channels=3, data=image, label=label, encoded=True).SerializeToString()
        found, (start, end) = read_datum(data)
        assert (data[start:end], found) == (image, label)


def test_hugging_face_datasets_reads_our_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets
    folder = write_set("parquet", tmp_path, IMAGES)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    train = loaded["train"]
    assert isinstance(train.features["image"], datasets.Image)
    assert train.features["label"].names == ["id0", "id1", "id2"]
    assert train["label"] == LABELS
    assert np.array_equal(np.asarray(train[0]["image"].convert("RGB")), decode_image(IN_ORDER[0]))
    raw = train.cast_column("image", datasets.Image(decode=False))
    assert [row["bytes"] for row in raw["image"]] == IN_ORDER
    assert [row["path"] for row in raw["image"]][:3] == ["0.jpg", "1.jpg", "2.png"]


def test_a_tfrecord_reader_reads_our_shards(tmp_path: Path):
    from tfrecord import reader
    folder = write_set("tfrecord", tmp_path, IMAGES)
    rows = reader.tfrecord_loader(str(folder / f"{NAME}-00000.tfrecord"), None, {"image": "byte"})
    assert [bytes(row["image"]) for row in rows] == IN_ORDER


def test_python_unpacks_our_tar_into_folders(tmp_path: Path):
    folder = write_set("webdataset", tmp_path, {("../..", "/etc/x"): IN_ORDER[0], (".a/b.c", "d.e"): IN_ORDER[1]})
    with tarfile.open(folder / f"{NAME}-000000.tar") as archive:
        names = archive.getnames()
        contents = [archive.extractfile(name).read() for name in names]
    assert names[0] == "%002e./%002e./%002fetc%002fx.jpg" and names[2] == "%002ea/b.c/d%002ee.jpg"
    assert contents[::2] == IN_ORDER[:2] and [int(c) for c in contents[1::2]] == [0, 1]


# --- our readers on other people's files


def rec_file(path: Path, payloads: list[bytes], keys: list[int] | None = None) -> Path:
    """Write .rec and .idx."""
    records = [frame_record(payload) for payload in payloads]
    offsets = np.cumsum([0, *map(len, records)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(records))
    lines = [f"{key}\t{offset}\n" for key, offset in zip(keys or range(len(records)), offsets, strict=False)]
    path.with_suffix(".idx").write_text("".join(lines))
    return path


def image_payload(key: int, label: float, data: bytes) -> bytes:
    return HEADER.pack(0, label, key, 0) + data


def several_labels(key: int, *labels: float) -> bytes:
    return HEADER.pack(len(labels), 0, key, 0) + struct.pack(f"<{len(labels)}f", *labels)


INSIGHTFACE = [
    several_labels(0, 4, 6), image_payload(1, 7, IN_ORDER[0]), image_payload(2, 7, IN_ORDER[1]),
    several_labels(3, 30, 0) + IN_ORDER[2], several_labels(4, 1, 3), several_labels(5, 3, 4),
]


@pytest.mark.parametrize("has_idx", [True, False])
def test_insightface_layout(tmp_path: Path, has_idx: bool):
    path = rec_file(tmp_path / "train.rec", INSIGHTFACE)
    if not has_idx:
        path.with_suffix(".idx").unlink()
    records = RecordSet.open(tmp_path)
    assert records.identities == ["7", "30"] and records.labels.tolist() == [0, 0, 1]
    assert [records.read(i) for i in range(3)] == IN_ORDER[:3]
    assert list(records.keys()) == [("7", "1"), ("7", "2"), ("30", "3")]


def test_our_rec_is_insightface_layout(tmp_path: Path):
    """Read as arcface_torch does: record 0 says where the images end; every one has its label."""
    folder = write_set("rec", tmp_path, IMAGES)
    data = (folder / "train.rec").read_bytes()
    offsets = dict(map(int, line.split("\t")) for line in (folder / "train.idx").read_text().splitlines())

    def payload(key: int) -> bytes:
        magic, length = struct.unpack_from("<II", data, offsets[key])
        assert magic == 0xCED7230A and length < 2**29
        return data[offsets[key] + 8 : offsets[key] + 8 + length]

    assert payload(0)[:4] == b"\2\0\0\0" and struct.unpack("<2f", payload(0)[24:]) == (9.0, 12.0)
    for key, (label, image) in enumerate(zip(LABELS, IN_ORDER, strict=True), 1):
        assert struct.unpack("<IfQQ", payload(key)[:24]) == (0, label, key, 0) and payload(key)[24:] == image
    assert [struct.unpack("<2f", payload(key)[24:]) for key in (9, 10, 11)] == [(1, 4), (4, 5), (5, 9)]
    assert (folder / "property").read_text() == "3,16,16\n"
    assert (folder / "train.lst").read_text().splitlines()[3] == "4\t1\tid1/0.jpg"


def test_shuffled_rec_has_no_identity_records(tmp_path: Path):
    shuffled = dict(sorted(IMAGES.items(), key=lambda item: item[0][1]))
    folder = write_set("rec", tmp_path, shuffled)
    assert struct.unpack("<2f", (folder / "train.rec").read_bytes()[32:40]) == (9.0, 9.0)
    assert [image for _, _, image in read_all(RecordSet.open(folder))] == list(shuffled.values())


def test_dcface_layout_takes_identities_from_its_list(tmp_path: Path):
    rec_file(tmp_path / "file.rec", [image_payload(i, 0, data) for i, data in enumerate(IN_ORDER[:4])])
    (tmp_path / "list.txt").write_text("2\t10/0.jpg\n0\t9/3.jpg\n1\t9/4.jpg\n3\t10/7.jpg\n")
    records = RecordSet.open(tmp_path)
    assert records.identities == ["9", "10"] and records.labels.tolist() == [0, 0, 1, 1]
    assert list(records.keys()) == [("9", "3"), ("9", "4"), ("10", "0"), ("10", "7")]
    (tmp_path / "list.txt").write_text("2\t10/0.jpg\n0\t9/3.jpg\n1\t9/4.jpg\n")
    with pytest.raises(UserError, match="list.txt has no line for record 3"):
        RecordSet.open(tmp_path)


def test_dcface_without_its_list_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rec_file(tmp_path / "file.rec", [image_payload(i, 0, data) for i, data in enumerate(IN_ORDER[:4])])
    with caplog.at_level("WARNING", logger="facesyn"):
        assert RecordSet.open(tmp_path).num_classes == 1
    assert "all 4 images have the label 0" in caplog.text and "list.txt" in caplog.text


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan"), float("inf"), 3e9])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path, label: float):
    rec_file(tmp_path / "t.rec", [image_payload(0, 0, b"a"), image_payload(1, label, b"b")])
    with pytest.raises(UserError, match="record 1: a whole number was expected as label"):
        RecordSet.open(tmp_path)


@pytest.mark.parametrize(("idx", "says"), [
    ("", "empty"), ("0\n", "line 1"), ("0\tx\n", "line 1"), ("0\t0\n0\t0\n", "record 0 twice"), ("5\t4\n", "byte 4"),
    (f"0\t{2**70}\n", "line 1"), ("0\t0\n1\t40\n", "announces images up to record 3"),
])
def test_wrong_idx(tmp_path: Path, idx: str, says: str):
    path = rec_file(tmp_path / "t.rec", INSIGHTFACE)
    path.with_suffix(".idx").write_text(idx)
    with pytest.raises(UserError, match=says):
        RecordSet.open(tmp_path)


def test_more_images_than_float_labels_count_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("facesyn_cli.data.rec_format.MAX_RECORDS", 6)
    with pytest.raises(UserError, match="at most 4 images, because its labels are 32-bit floats"):
        write_set("rec", tmp_path, IMAGES)


def tar_file(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_of_webdataset_and_python(tmp_path: Path, kind: int):
    long = "a" * 60 + "/" + "b" * 60
    members = [("x.jpg", IN_ORDER[0]), ("x.cls", b"12\n"), ("x.json", b"{}"), ("__meta__/1.jpg", b""),
               (f"{long}.extra.PNG", IN_ORDER[2]), (f"{long}.cls", b"3")]
    tar_file(tmp_path / "a-0.tar", members, kind)
    tar_file(tmp_path / "a-1.tar", [("y.cls", b"12"), ("y.webp", IN_ORDER[1]), ("z.cls", b"0")], kind)
    records = RecordSet.open(tmp_path)
    assert records.identities == ["3", "12"] and records.labels.tolist() == [1, 0, 1]
    assert [records.read(i) for i in range(3)] == [IN_ORDER[0], IN_ORDER[2], IN_ORDER[1]]
    assert [sample for _, sample in records.keys()] == ["x", "b" * 60, "y"]


def test_shards_written_by_webdataset(tmp_path: Path):
    import webdataset
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=3, verbose=0) as sink:
        for k, (label, data) in enumerate(zip(LABELS, IN_ORDER, strict=True)):
            sink.write({"__key__": f"sample{k:04d}", "jpg": data, "cls": label})
    records = RecordSet.open(tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert [(label, image) for label, _, image in read_all(records)] == list(zip(LABELS, IN_ORDER, strict=True))


def test_shards_without_labels_take_the_folder(tmp_path: Path):
    tar_file(tmp_path / "a.tar", [("./p10/1.jpg", b"a"), ("./p9/1.jpg", b"b"), ("./p10/2.jpg", b"c")])
    assert list(RecordSet.open(tmp_path / "a.tar").keys()) == [("p10", "1"), ("p9", "1"), ("p10", "2")]
    assert RecordSet.open(tmp_path).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("members", "says"), [
    ([("1.jpg", b"a")], "neither a .cls nor a folder"),
    ([("a/1.jpg", b"a"), ("a/2.jpg", b"b"), ("a/2.cls", b"1")], "some images have no label and others a .cls"),
    ([("a/1.jpg", b"a"), ("a/1.cls", b"x")], "a whole number"),
    ([("a/1.jpg", b"a"), ("a/1.cls", b"-1")], "a whole number"),
    ([("a/1.jpg", b"a"), ("a/1.cls", b"1" * 5000)], "a whole number"),
    ([("a/1.txt", b"a")], "no images"),
])
def test_shards_that_say_nothing_of_use(tmp_path: Path, members: list, says: str):
    tar_file(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=says):
        RecordSet.open(tmp_path)


def test_compressed_shards_are_refused_by_name(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    assert build_format("webdataset").recognizes(tmp_path)
    with pytest.raises(UserError, match="without compression"):
        RecordSet.open(tmp_path)


def test_links_in_archives_are_not_followed(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("p/1.jpg", tarfile.SYMTYPE), ("p/2.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.jpg"
            archive.addfile(info)
        info = tarfile.TarInfo("../../p/3.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    records = RecordSet.open(tmp_path / "a.tar")
    assert [records.read(i) for i in range(len(records))] == [b"x"]


def test_a_folder_of_images_with_an_archive_is_a_folder_of_images(tmp_path: Path):
    (tmp_path / "p0").mkdir()
    (tmp_path / "p0/0.jpg").write_bytes(IN_ORDER[0])
    tar_file(tmp_path / "backup.tar", [("p/1.jpg", b"a")])
    assert not RecordSet.recognizes(tmp_path)


@pytest.mark.parametrize("group", [2, 100])
def test_parquet_written_by_datasets(tmp_path: Path, group: int):
    import datasets
    features = datasets.Features({"label": datasets.ClassLabel(names=["zoe", "amy", "unused", "bob"]),
                                  "face": datasets.Image(), "other": datasets.Value("string")})
    rows = {"label": LABELS[:7] + [3], "face": [{"bytes": d, "path": None} for d in IN_ORDER], "other": ["x"] * 8}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(str(tmp_path / "data/train-00000-of-00001.parquet"), batch_size=group)
    dataset.select([0]).to_parquet(str(tmp_path / "data/test-00000-of-00001.parquet"))
    records = RecordSet.open(tmp_path)
    assert records.identities == ["amy", "bob", "unused", "zoe"]
    assert [records.identities[label] for label in records.labels] == ["zoe"] * 3 + ["amy"] + ["unused"] * 3 + ["bob"]
    assert [records.read(i) for i in (7, 0, 3, 1)] == [IN_ORDER[i] for i in (7, 0, 3, 1)]
    assert list(records.keys())[1] == ("zoe", "1")


@pytest.mark.parametrize(("columns", "says"), [
    ({"image": [b"a"], "label": ["anna"]}, None),
    ({"image": [{"bytes": b"a"}], "label": [5]}, None),
    ({"image": [{"bytes": b"a"}], "label": [-1]}, "label -1 of row 0"),
    ({"image": [{"bytes": b"a"}], "label": [None]}, "label None of row 0"),
    ({"image": [{"bytes": b"a"}], "label": [0.5]}, "label 0.5 of row 0"),
    ({"image": ["x.jpg"], "label": [0]}, "is string; `struct<bytes: binary"),
    ({"picture": [b"a"], "label": [0]}, "one column of images"),
    ({"image": [b"a"]}, "one column of images"),
])
def test_parquet_of_other_tools(tmp_path: Path, columns: dict, says: str | None):
    import pyarrow as arrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    if says is None:
        records = RecordSet.open(tmp_path)
        assert records.identities == [str(columns["label"][0])] and records.read(0) == b"a"
    else:
        with pytest.raises(UserError, match=says):
            RecordSet.open(tmp_path)


def test_parquet_with_paths_only_is_unreadable(tmp_path: Path):
    import pyarrow as arrow
    import pyarrow.parquet

    image = arrow.array([{"bytes": None, "path": "/etc/passwd"}],
                        arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))
    metadata = {"huggingface": json.dumps({"info": {"features": "nonsense"}})}
    table = arrow.table({"image": image, "label": [0]}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UnreadableImage, match="the image has no bytes"):
        RecordSet.open(tmp_path).read(0)


def test_parquet_with_large_row_groups_in_any_order(tmp_path: Path):
    import pyarrow as arrow
    import pyarrow.parquet

    images = [b"%d" % i for i in range(2500)]
    pyarrow.parquet.write_table(arrow.table({"image": images, "label": [i // 50 for i in range(2500)]}),
                                tmp_path / "x.parquet")
    records = RecordSet.open(tmp_path)
    order = [0, 1, 99, 100, 98, 1200, 1100, 2499, 5, *np.random.RandomState(0).permutation(2500)[:30].tolist()]
    assert [records.read(i) for i in order] == [images[i] for i in order]


def test_lmdb_of_caffe_and_of_pickles(tmp_path: Path):
    import lmdb

    def database(folder: str, items: dict[bytes, bytes]) -> Path:
        with lmdb.open(str(tmp_path / folder), map_size=2**22) as environment, environment.begin(write=True) as t:
            for key, value in items.items():
                t.put(key, value)
        return tmp_path / folder

    sizes = b"\x08\x03\x10\x10\x18\x10"
    items = {b"%08d_n0%d/x.y.JPEG" % (k, k): sizes + encode_datum(d, 5 + k % 2) for k, d in enumerate(IN_ORDER)}
    records = RecordSet.open(database("caffe", items))
    assert records.identities == ["5", "6"] and [records.read(i) for i in range(8)] == IN_ORDER
    assert list(records.keys())[1] == ("6", "x.y")
    with pytest.raises(UserError, match="no Datum of an encoded image"):
        RecordSet.open(database("pickles", {b"0": pickle.dumps((IN_ORDER[0], 1)), b"__len__": pickle.dumps(1)}))
    with pytest.raises(UserError, match="raw pixels"):
        RecordSet.open(database("raw", {b"0": encode_datum(bytes(48), 1)[:-1] + b"\0"}))
    with pytest.raises(UserError, match="is empty"):
        RecordSet.open(database("empty", {}))


def test_an_lmdb_file_that_ends_the_library_ends_only_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_set("lmdb", tmp_path, IMAGES)
    monkeypatch.setattr("facesyn_cli.data.lmdb_file._CHILD", "import os; os.kill(os.getpid(), 7)")
    with pytest.raises(UserError, match=r"data\.mdb is no sound LMDB file: the lmdb library fails to read it$"):
        RecordSet.open(folder)


def test_an_lmdb_file_is_not_read_after_a_change(tmp_path: Path):
    folder = write_set("lmdb", tmp_path, IMAGES)
    records, second = RecordSet.open(folder), RecordSet.open(folder / ".." / folder.name)
    assert records.read(0) == second.read(0) == IN_ORDER[0], "one file, opened twice"
    data = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(data[:8192])
    with pytest.raises(UserError, match="data.mdb has changed since it was opened"):
        records.read(0)
    (folder / "data.mdb").write_bytes(data)
    assert RecordSet.open(folder).read(1) == IN_ORDER[1]


def test_long_keys_keep_the_sample(tmp_path: Path):
    images = {("x" * 600, "\u00e4.b"): IN_ORDER[0], ("y", "z" * 250): IN_ORDER[1]}
    records = RecordSet.open(write_set("lmdb", tmp_path, images))
    assert [sample for _, sample, _ in read_all(records)] == ["\u00e4.b", "z" * 250]


@pytest.mark.parametrize("name", ["a.jpg", "deep/er/x" * 8, "y" * 99, "y" * 100, "y" * 101, "\u00e4.cls", "z" * 300])
@pytest.mark.parametrize("size", [0, 10, 8**11 - 1, 8**11])
def test_tar_headers_are_those_of_python(name: str, size: int):
    from facesyn_cli.data.tar_archive import tar_header

    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert tar_header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@pytest.mark.parametrize("name", ["tfrecord", "rec"])
def test_a_jpeg_is_kept_only_if_it_decodes_to_its_end(name: str):
    """The quick look at a JPEG finds every truncation that the full decoder finds."""
    record_format, data = build_format(name), encoded(1)
    assert record_format.fit(data, 16) is data
    for size in range(len(data)):
        with pytest.raises(UnreadableImage):
            record_format.fit(data[:size], 16)
        with pytest.raises(UnreadableImage):
            decode_image(data[:size])
