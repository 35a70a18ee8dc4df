"""What a folder holds: images by content, links by one rule, and a word about everything else."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.links import link_entry
from facesyn_cli.artifacts.names import check_file_names
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.vector_files import holds_vectors
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.data.pixels import FORMATS, UnreadableImage, decode_image
from facesyn_cli.data.record_images import fit_any, fit_jpeg, suffix_of
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_FOLDER_DEPTH, files_below

PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
WRITABLE = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if "AVIF" in FORMATS else [])]


def encode(image_format: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **options)
    return out.getvalue()


def make(folder: Path, *names: str, data: bytes = b"\xff\xd8\xff\xe0") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def keys(path: Path) -> list[str]:
    return [entry.key for entry in ImageSet.open(path).entries]


@pytest.mark.parametrize("image_format", WRITABLE)
def test_every_format_is_an_image_under_any_name(tmp_path, said, image_format):
    data = encode(image_format)
    suffix = suffix_of_content(data)
    assert suffix == suffix_of(data)
    make(tmp_path, f"p/a{suffix}", "p/b", "p/c.4", "p/d.jpeg_large", data=data)
    images = ImageSet.open(tmp_path)
    assert [e.key for e in images.entries] == ["p/a", "p/b", "p/c.4", "p/d.jpeg_large"] and not said
    for entry in images.entries:
        pixels_u8 = decode_image(images.read(entry))
        assert pixels_u8.shape == (4, 4, 3)
        assert decode_image(fit_jpeg(images.read(entry), 4, 95, "4:4:4")).shape == (4, 4, 3)
        np.testing.assert_array_equal(decode_image(fit_any(images.read(entry), 4)), pixels_u8)


def test_endings_in_use_beside_jpg(tmp_path, said):
    names = [f"p{i}/{i}{suffix}" for i, suffix in enumerate(
        (".jpg", ".jfif", ".jpe", ".tif", ".TIFF", ".gif", ".pgm", ".avif", ".bmp", ".webp"))]
    make(tmp_path, *names)
    assert keys(tmp_path) == [name.rpartition(".")[0] for name in names] and not said


def test_other_files_are_counted_by_kind(tmp_path, said):
    make(tmp_path, "p/1.jpg", "p/2.jpg")
    make(tmp_path, "p/1.txt", "p/2.txt", "p/1.json", "list.csv", ".DS_Store", "p/odd.xyz", "README", data=b"BMW text")
    images = ImageSet.open(tmp_path)
    assert [e.key for e in images.entries] == ["p/1", "p/2"]
    assert images.left_out == {".txt": 2, "hidden": 1, "without a suffix": 1, ".csv": 1, ".json": 1, ".xyz": 1}
    assert said == [
        f"{tmp_path}: 7 files are not images: 2 .txt, 1 hidden, 1 without a suffix, 1 .csv, 1 .json, 1 .xyz"
    ]


def test_images_that_are_not_read_are_said(tmp_path, said):
    make(tmp_path, "p/1.jpg", "p/2.heic", "p/3.HEIC", "p/raw.nef", "q/more.zip", data=b"II*\0 as TIFF begins")
    assert keys(tmp_path) == ["p/1"]
    assert len(said) == 1
    for part in (".heic files are not read: 2, first 'p/2.heic'", ".nef files are not read: 1", ".zip files are not"):
        assert part in said[0]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    make(tmp_path, "p/1.heic", "p/2.txt")
    with pytest.raises(UserError, match=r"1 file is not an image: 1 \.txt; left out: \.heic files are not read: 1"):
        ImageSet.open(tmp_path)


def test_files_of_our_own_sets_are_no_news(tmp_path, said):
    with open_output(tmp_path / "o", "ImageSet", "select", StageConfig(), {}) as output:
        make(tmp_path / "o", "p/1.png", "selection.csv")
        output.finish({"images": 1})
    assert keys(tmp_path / "o") == ["p/1"] and not said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_sockets_are_said_and_never_opened(tmp_path, said, monkeypatch):
    make(tmp_path, "p/1.jpg")
    os.mkfifo(tmp_path / "p" / "2.jpg")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.jpg")
        assert keys(tmp_path) == ["p/1"]
    assert len(said) == 1 and "named pipes instead of files: 1, first 'p/2.jpg'" in said[0]
    assert "sockets instead of files: 1, first 's.jpg'" in said[0]
    with pytest.raises(UserError, match="FIFO"):
        ImageSet.open(tmp_path / "p" / "2.jpg")


def test_folders_that_may_not_be_listed_are_said(tmp_path, said, monkeypatch):
    make(tmp_path, "p/1.jpg", "lost+found/2.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert keys(tmp_path) == ["p/1"]
    assert len(said) == 1 and "folders that this user may not list: 1, first 'lost+found'" in said[0]


def test_a_disk_that_fails_is_no_smaller_set(tmp_path, monkeypatch):
    make(tmp_path, "p/1.jpg", "q/2.jpg")
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("q"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match="cannot list .*q: Input/output error"):
        ImageSet.open(tmp_path)


class Shuffled:
    """`os.scandir` in another order."""

    def __init__(self, path: str, order: int) -> None:
        with SCANDIR(path) as listed:
            self._items = sorted(listed, key=lambda item: item.name, reverse=order % 2 == 1)
        if order > 1:
            np.random.default_rng(order).shuffle(self._items)

    def __enter__(self) -> Shuffled:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __iter__(self):
        return iter(self._items)


SCANDIR = os.scandir


@pytest.mark.parametrize("order", range(6))
def test_which_name_of_a_folder_is_taken_depends_on_no_order(tmp_path, said, monkeypatch, order):
    make(tmp_path, "set/people/m/1.jpg", "outside/x/1.jpg", "outside/x/sub/2.jpg", "outside/y/1.jpg")
    root = tmp_path / "set"
    (root / "a").symlink_to(root / "people" / "m")                 # of a real folder of the set
    (root / "people" / "n10").symlink_to(tmp_path / "outside/y")   # two links to one folder: natural order decides
    (root / "people" / "n9").symlink_to(tmp_path / "outside/y")
    (root / "b").symlink_to(tmp_path / "outside/x")
    (root / "c").symlink_to(tmp_path / "outside/x/sub")            # comes after `b`, which holds it
    (root / "people" / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(os, "scandir", lambda path: Shuffled(path, order))
    assert keys(root) == ["b/1", "b/sub/2", "people/m/1", "people/n9/1"]
    assert len(said) == 1
    assert "folders that are in the set under another name: 4, first 'a'" in said[0]
    assert "links that lead nowhere: 1, first 'gone.jpg'" in said[0]


def test_links_to_images_are_images_and_second_names_are_said(tmp_path, said):
    make(tmp_path, "set/p/1.jpg", "set/p/2.jpg", "outside/x.jpg", "outside/y.jpg")
    (tmp_path / "set/p/3.jpg").symlink_to("1.jpg")
    (tmp_path / "set/p/4.jpg").symlink_to(tmp_path / "outside/x.jpg")
    (tmp_path / "set/p/5.jpg").symlink_to(tmp_path / "outside/x.jpg")
    (tmp_path / "set/p/6.jpg").symlink_to(tmp_path / "outside/y.jpg")
    os.link(tmp_path / "set/p/2.jpg", tmp_path / "set/p/7.jpg")  # as `augment oversample` makes them
    assert keys(tmp_path / "set") == [f"p/{i}" for i in range(1, 8)]
    assert len(said) == 1 and "links to other images of the set: 2" in said[0]


def test_folders_in_folders_without_end(tmp_path):
    place = tmp_path
    for _ in range(MAX_FOLDER_DEPTH + 2):
        place = place / "d"
    make(place, "1.jpg", "1.npy")
    for read in (ImageSet.open, holds_vectors, lambda path: list(files_below(path))):
        with pytest.raises(UserError, match=f"nested more than {MAX_FOLDER_DEPTH} deep"):
            read(tmp_path)


@pytest.mark.parametrize("length", [244, 251, 255])
def test_names_as_long_as_a_file_system_allows(tmp_path, length):
    names = ["p" * length, "é" * (length // 2)]
    for name in names:
        make(tmp_path / "in", f"{name}/{name[:len(name) - len(name.encode()) // len(name) * 4]}.jpg")
    images = ImageSet.open(tmp_path / "in")
    for entry in images.entries:
        link_entry(images, entry, tmp_path / "out")
        write_bytes(tmp_path / "out" / entry.identity / "0.png", b"0")
        write_bytes(tmp_path / "out" / entry.location, b"1")  # over a temporary name
    assert len(ImageSet.open(tmp_path / "out").entries) == 2 * len(names)
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_names_that_no_file_can_have(tmp_path):
    check_file_names([f"{'a' * 255}/{'b' * 255}", "é" * 127], tmp_path)
    for name in (f"{'a' * 256}/1.png", "é" * 128, "/".join(["a" * 200] * 30)):
        with pytest.raises(UserError, match="1 files cannot be written"):
            check_file_names(["short", name], tmp_path)
        with pytest.raises(UserError, match="longer than this file system allows"):
            write_bytes(tmp_path / name, b"")


def test_first_pictures_depths_and_turns_of_the_new_formats():
    other = 255 - PIXELS
    for image_format in ("GIF", "TIFF"):
        both = encode(image_format, save_all=True, append_images=[Image.fromarray(other)])
        np.testing.assert_array_equal(decode_image(both), decode_image(encode(image_format)))
    gray16 = (np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369)
    for image_format in ("TIFF", "PPM", "PNG"):
        np.testing.assert_array_equal(decode_image(encode(image_format, gray16))[..., 0], gray16 // 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    for options in ({}, {"compression": "tiff_lzw"}):
        found = decode_image(encode("TIFF", exif=turned, **options))
        np.testing.assert_array_equal(found, np.rot90(PIXELS, -1))
    for pixels in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32)):
        with pytest.raises(UnreadableImage, match="8 or 16 bits are read"):
            decode_image(encode("TIFF", pixels))
