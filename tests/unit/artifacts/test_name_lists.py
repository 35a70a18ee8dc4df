"""Lists of image names: the published forms, what they are joined with, and damage of every kind."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.name_lists import keys_of, order_file, read_name_list
from facesyn_cli.console import log
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError

NAMES = ["0000045/001.jpg", "0000045/002.jpg", "0000099/001.jpg"]


def write_images(folder: Path, names: list[str] = NAMES) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(np.full((4, 4, 3), i, np.uint8)))
    return folder


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda names: [name.encode() for name in names]])
def test_pickled_sequences_of_names(tmp_path, protocol, kind):
    (tmp_path / "image_names.pkl").write_bytes(pickle.dumps(kind(NAMES), protocol))
    found = read_name_list(tmp_path / "image_names.pkl")
    assert found.names == NAMES and found.labels is None
    assert order_file(tmp_path / "elastic_embed.npy") == tmp_path / "image_names.pkl"


def test_casia_namelist(tmp_path):
    lines = [f"CASIA web/{name} {i // 2}\n" for i, name in enumerate(NAMES)]
    (tmp_path / "CASIA_namelist.txt").write_text("".join(lines))
    found = read_name_list(tmp_path / "CASIA_namelist.txt")
    assert found.names == [f"CASIA web/{name}" for name in NAMES] and found.labels == ["0", "0", "1"]


def test_a_number_is_a_label_only_after_an_image(tmp_path):
    (tmp_path / "names.txt").write_text("person 3\nperson 4\n\n")
    assert read_name_list(tmp_path / "names.txt").names == ["person 3", "person 4"]
    (tmp_path / "names.txt").write_text("a\\b.jpg\t3\r\n./c//d.jpg\t4\r\n")
    found = read_name_list(tmp_path / "names.txt")
    assert found.names == ["a/b.jpg", "c/d.jpg"] and found.labels == ["3", "4"]


def test_keys_are_those_of_the_images(tmp_path):
    names = [*NAMES, "alone.jpg"]
    images = ImageSet.open(write_images(tmp_path, names))
    assert sorted(keys_of(names, tmp_path)) == sorted(e.key for e in images.entries)
    assert keys_of([f"CASIA-WebFace/{name}" for name in NAMES], tmp_path) == keys_of(NAMES, tmp_path)
    assert keys_of(["00017", "x.1"], tmp_path) == ["00017/0", "x.1/0"]
    with pytest.raises(UserError, match="'a/b' twice"):
        keys_of(["a/b.jpg", "a/b.png"], tmp_path)


@pytest.mark.parametrize(("below", "prefix"), [("images", "web/"), ("", "web/"), ("web", "web/")])
def test_a_list_is_an_image_set(tmp_path, below, prefix):
    write_images(tmp_path / below, [*NAMES, "0000099/unlisted.jpg"])
    lines = [f"{prefix}{name} {i // 2}\n" for i, name in enumerate(NAMES)]
    (tmp_path / "list.txt").write_text("".join(reversed(lines)))
    images = ImageSet.open(tmp_path / "list.txt")
    tail = [e.key.split("/")[-2:] for e in images.entries]
    assert tail == [["0000045", "001"], ["0000045", "002"], ["0000099", "001"]]
    assert [images.read(e) for e in images.entries] == [(tmp_path / below / name).read_bytes() for name in NAMES]
    assert images.parent().path == str(tmp_path / "list.txt")


def test_listed_images_that_are_gone_are_counted(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(log, "warning", said.append)
    write_images(tmp_path / "images")
    (tmp_path / "list.txt").write_text("".join(f"w/{name} 0\n" for name in [*NAMES[:2], "0000045/gone.jpg"]))
    images = ImageSet.open(tmp_path / "list.txt")
    assert len(images.entries) == 2 and len(said) == 1
    assert f"images that are not in {tmp_path / 'images'}: 1, first" in said[0] and "gone.jpg" in said[0]


@pytest.mark.parametrize(("text", "says"), [
    ("", "is empty"), ("\n\n", "is empty"), ("a/b.jpg 1\nc/d.jpg\n", "1 of 2 lines have no label, first line 2"),
    ("../../x.jpg 0\n", "line 1: the name of an image"), ("a/\0.jpg 0\n", "line 1: a NUL byte"),
    ("a/" + "b" * 5000 + ".jpg 0\n", "line 1: a line of more than"), ("\xff\xfe", "not UTF-8 text"),
])
def test_wrong_texts_are_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=says) as caught:
        read_name_list(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(("value", "says"), [
    ([1, 2], "row 0: the name of an image was expected, found a int"), ({"a": 1}, "holds a dict"), ([], "is empty"),
    (["a/b.jpg", "../x"], "row 1"), (b"abc", "holds a bytes"), (Path("x"), "safe to read"),
])
def test_wrong_pickles_are_refused_in_one_line(tmp_path, value, says):
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(value, 4))
    with pytest.raises(UserError, match=says) as caught:
        read_name_list(tmp_path / "n.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lines", "says"), [
    ("w/a/1.jpg 0\nw/a/2.jpg 1\nw/b/2.jpg 1\n", "folder 'a' and label 1"),
    ("w/a/1.jpg 0\nw/b/2.jpg 0\n", "folder 'b' and label 0"),
    ("w/z/1.jpg 0\n", "none is in"), ("w/a/b.txt 0\n", "none is in"),
])
def test_lists_that_do_not_fit_their_images(tmp_path, lines, says):
    write_images(tmp_path / "images", ["a/1.jpg", "a/2.jpg", "b/2.jpg"])
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=says):
        ImageSet.open(tmp_path / "list.txt")
