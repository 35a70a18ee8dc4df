"""Any folder or zip of images, with the same keys in any order on disk."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from facesyn_cli.artifacts.image_set import ImageSet, natural_key
from facesyn_cli.errors import UserError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def keys(path: Path) -> list[str]:
    return [entry.key for entry in ImageSet.open(path).entries]


def test_identity_folders_in_natural_order(tmp_path: Path) -> None:
    make(tmp_path, "p10/1.jpg", "p2/10.PNG", "p2/9.webp", "p2/notes.txt", ".hidden/a.jpg", "p2/.x.jpg")
    assert keys(tmp_path) == ["p2/9", "p2/10", "p10/1"]


def test_flat_folders_and_mixed_depth(tmp_path: Path) -> None:
    make(tmp_path, "x.jpg", "y z.bmp", "a/b/c.jpg", "a/d.jpg")
    entries = {e.key: e.identity for e in ImageSet.open(tmp_path).entries}
    assert entries == {"x/0": "x", "y z/0": "y z", "a/b/c": "a/b", "a/d": "a"}


def test_one_top_folder_is_no_identity(tmp_path: Path) -> None:
    make(tmp_path, "lfw/A/1.jpg", "lfw/B/1.jpg")
    assert keys(tmp_path) == ["A/1", "B/1"]
    make(tmp_path, "other.jpg")
    assert keys(tmp_path) == ["lfw/A/1", "lfw/B/1", "other/0"]


def test_same_name_with_two_suffixes(tmp_path: Path) -> None:
    make(tmp_path, "p/1.jpg", "p/1.png", "p/2.png")
    assert keys(tmp_path) == ["p/1.jpg", "p/1.png", "p/2"]


def test_zip_equals_folder_in_any_order(tmp_path: Path) -> None:
    folder = make(tmp_path / "f", "b/2.jpg", "a/1.jpg", "a/10.jpg")
    names = ["a/10.jpg", "b/2.jpg", "a/1.jpg"]
    for number, order in enumerate((names, names[::-1])):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name in order:
                archive.write(folder / name, name)
    sets = [ImageSet.open(p) for p in (folder, tmp_path / "0.zip", tmp_path / "1.zip")]
    assert [e.key for e in sets[0].entries] == ["a/1", "a/10", "b/2"]
    assert sets[0].entries == sets[1].entries == sets[2].entries
    assert sets[0].digest == sets[1].digest == sets[2].digest
    again = pickle.loads(pickle.dumps(sets[1]))
    assert again.read(again.entries[1]) == b"a/10.jpg"


def test_digest_sees_changes(tmp_path: Path) -> None:
    before = ImageSet.open(make(tmp_path, "a/1.jpg")).digest
    make(tmp_path, "a/2.jpg")
    assert ImageSet.open(tmp_path).digest != before


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "torn zip"])
def test_what_is_no_image_set_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(b"hello")
    elif kind == "torn zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.jpg", b"1" * 1000)
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=str(path)):
        ImageSet.open(path)


def test_a_damaged_member_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.jpg", b"1" * 1000)
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    images = ImageSet.open(path)
    with pytest.raises(UserError, match="a/1.jpg"):
        images.read(images.entries[0])


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert keys(tmp_path) == ["a/1"]


def test_natural_order_is_total() -> None:
    texts = ["a01", "a1", "a10", "a2", "b", "", "10", "9", "a1b", "a" + "7" * 5000, "a" + "7" * 5001]
    ordered = sorted(texts, key=natural_key)
    assert ordered == sorted(texts[::-1], key=natural_key)
    assert ordered.index("9") < ordered.index("10") and ordered.index("a2") < ordered.index("a10")


def test_the_top_folder_of_our_own_sets_is_part_of_the_identity(tmp_path: Path) -> None:
    """Two identities `a/b` and `a/c` written by facesyn must not come back as `b` and `c`."""
    from facesyn_cli.artifacts.output import open_output
    from facesyn_cli.config.fields import (
    StageConfig,
)

    with open_output(tmp_path / "o", "ImageSet", "augment", StageConfig(), {}) as output:
        make(tmp_path / "o", "a/b/1.png", "a/c/1.png")
        output.finish({"images": 2})
    assert keys(tmp_path / "o") == ["a/b/1", "a/c/1"]
