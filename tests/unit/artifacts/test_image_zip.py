"""Zip files as other systems make them: every member is used, refused or reported."""

from __future__ import annotations

import pickle
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"
PEOPLE = [f"p{i // 3}/{i % 3}.jpg" for i in range(12)]


def write(path: Path, *names: str, data: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), JPEG + b"%d" % number if data is None else data)
    return path


def rename(path: Path, old: bytes, new: bytes) -> Path:
    """Change a name of the same length in all headers, as another system would write it."""
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_backslashes_of_windows(tmp_path, said):
    path = write(tmp_path / "w.zip", *(name.replace("/", "|") for name in PEOPLE), "p4|")
    path.write_bytes(path.read_bytes().replace(b"|", b"\\"))
    same = ImageSet.open(write(tmp_path / "u.zip", *PEOPLE))
    images = ImageSet.open(path)
    assert images.entries == same.entries and images.digest == same.digest and len(images.by_identity()) == 4
    images = pickle.loads(pickle.dumps(images))
    assert images.read(images.entries[4]) == JPEG + b"4" and not said


@pytest.mark.parametrize("prefix", ["/", "./", "C:/", ".//"])
def test_roots_and_drives_are_dropped(tmp_path, said, prefix):
    images = ImageSet.open(write(tmp_path / "x.zip", *(prefix + name for name in PEOPLE)))
    assert [e.location for e in images.entries] == PEOPLE and not said
    assert images.read(images.entries[0]) == JPEG + b"0"


@pytest.mark.parametrize("name", ["../a/1.jpg", "a/../../1.jpg", "..\\1.jpg"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads out of the archive"):
        ImageSet.open(write(tmp_path / "x.zip", "b/1.jpg", name))


@pytest.mark.parametrize("names", [("a/1.jpg", "a|1.jpg"), ("a/1.jpg", "./a/1.jpg"), ("a/1.jpg", "/a/1.jpg")])
def test_two_members_with_one_name(tmp_path, said, names):
    path = write(tmp_path / "x.zip", *names)
    path.write_bytes(path.read_bytes().replace(b"|", b"\\"))
    with pytest.raises(UserError, match="two different images named 'a/1.jpg'"):
        ImageSet.open(path)
    path = write(tmp_path / "y.zip", *names, data=JPEG)
    path.write_bytes(path.read_bytes().replace(b"|", b"\\"))
    assert len(ImageSet.open(path).entries) == 1
    assert len(said) == 1 and "images that are in the archive twice: 1, first 'a/1.jpg'" in said[0]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_was_added_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"old")
        archive.writestr("a/1.jpg", b"new")
    with pytest.raises(UserError, match="two different images named 'a/1.jpg'"):
        ImageSet.open(tmp_path / "x.zip")


def test_encrypted_members_are_refused(tmp_path):
    path = write(tmp_path / "x.zip", "a/1.jpg")
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    for place in (6, start + 8):  # general purpose flags of the local and the central header
        data[place] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        ImageSet.open(path)


def test_compression_that_is_not_read_is_refused(tmp_path):
    path = write(tmp_path / "x.zip", "a/1.jpg")
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    for place in (8, start + 10):
        data[place : place + 2] = struct.pack("<H", 9)  # Deflate64, of Windows for large files
    path.write_bytes(data)
    with pytest.raises(UserError, match="zip the folder again"):
        ImageSet.open(path)


@pytest.mark.parametrize(("stored", "name"), [
    ("José".encode(), "José"), ("José".encode("cp437"), "José"), ("Jose\u0301".encode(), "José"),
])
def test_names_that_are_not_marked_as_unicode(tmp_path, stored, name):
    place = "x" * len(stored)
    path = rename(write(tmp_path / "x.zip", f"{place}/1.jpg"), place.encode(), stored)
    images = ImageSet.open(path)
    assert [e.key for e in images.entries] == [f"{name}/1"]
    assert images.read(images.entries[0]).startswith(JPEG)


def test_links_pipes_hidden_members_and_archives_are_said(tmp_path, said):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in (("a/1.jpg", stat.S_IFREG), ("a/2.jpg", stat.S_IFLNK), ("a/3.jpg", stat.S_IFIFO)):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (mode | 0o644) << 16
            archive.writestr(info, JPEG)
        for name in ("__MACOSX/a/._1.jpg", ".thumbs/a/1.jpg", "a/more.zip", "a/4.heic", "notes.txt"):
            archive.writestr(name, JPEG)
        archive.writestr("a/5", JPEG)
    assert [e.key for e in ImageSet.open(path).entries] == ["a/1", "a/5"]
    assert said[0] == f"{path}: 3 files are not images: 2 hidden, 1 .txt"
    for part in ("links in the archive instead of files: 1", "named pipes instead of files: 1",
                 ".zip files are not read: 1", ".heic files are not read: 1"):
        assert part in said[1]
