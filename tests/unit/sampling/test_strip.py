"""The running strip: what it shows, when it is written, and that nobody takes it for an image of the set."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.preview_pictures import strip_name
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.sampling import strip as module
from facesyn_cli.sampling.strip import Strip

STEP = 66  # 64 pixels and a gap of 2


def _flat(value: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


def _cells(path: Path) -> np.ndarray:
    """Return the gray value in the middle of each cell; 255 is empty."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    rows, columns = (pixels.shape[0] + 2) // STEP, (pixels.shape[1] + 2) // STEP
    assert pixels.shape == (rows * STEP - 2, columns * STEP - 2)
    return pixels[32::STEP, 32::STEP][:rows, :columns]


def test_the_latest_people_have_a_row_each_with_their_latest_images(tmp_path: Path):
    with Strip(tmp_path / "strip.png", 20, [None] * 12, every=1000) as strip:
        for row in (11, *range(9), 3):  # 11 and 0 are too long ago
            for sample in (2, 0, 1):
                strip.show(20 * row + sample, _flat(10 * row + sample))
        for sample in range(3, 12):
            strip.show(20 * 3 + sample, _flat(30 + sample))
    cells = _cells(tmp_path / "strip.png")
    assert cells.shape == (8, 8)
    assert [row[0] for row in cells] == [10, 20, 34, 40, 50, 60, 70, 80]
    assert cells[2].tolist() == list(range(34, 42)) and cells[0].tolist() == [10, 11, 12] + [255] * 5


def test_faces_of_contexts_come_first_where_they_are_known(tmp_path: Path):
    (tmp_path / "face.png").write_bytes(encode_png(_flat(200, 50)))
    (tmp_path / "broken.png").write_bytes(b"no image")
    faces = [tmp_path / "face.png", None, tmp_path / "broken.png", tmp_path / "gone.png"]
    with Strip(tmp_path / "strip.png", 2, faces, every=1000) as strip:
        for image in range(8):
            strip.show(image, _flat(image))
    assert _cells(tmp_path / "strip.png").tolist() == [[200, 0, 1], [255, 2, 3], [255, 4, 5], [255, 6, 7]]


def test_it_is_written_again_after_a_while_and_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, path = [100.0], tmp_path / "strip.png"
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Strip(path, 100, [None], every=30) as strip:
        for image in range(7):
            strip.show(image, _flat(1))
        assert not path.exists()  # too few to be worth a look
        strip.show(7, _flat(1))
        first = path.read_bytes()
        now[0] += 29
        strip.show(8, _flat(2))
        assert path.read_bytes() == first
        now[0] += 1
        strip.show(9, _flat(3))
        assert _cells(path)[0, -2:].tolist() == [2, 3]
        strip.show(10, _flat(4))
    assert _cells(path)[0, -2:].tolist() == [3, 4]


def test_a_strip_that_cannot_be_written_ends_nothing(tmp_path: Path):
    (tmp_path / "strip.png").mkdir()
    with Strip(tmp_path / "strip.png", 2, [None], every=0) as strip:
        for image in range(10):
            strip.show(image % 2, _flat(0))
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("part", [None, (2, 3)])
def test_readers_of_the_folder_do_not_count_it(tmp_path: Path, part: tuple[int, int] | None):
    folder, name = tmp_path / "set", strip_name(part)
    for person in ("a", "b"):
        (folder / person).mkdir(parents=True)
        (folder / person / "0.png").write_bytes(encode_png(_flat(5)))
    before = ImageSet.open(folder)
    with Strip(folder / name, 1, [None, None], every=0) as strip:
        strip.show(0, _flat(0))
    found = ImageSet.open(folder)
    assert [entry.key for entry in found.entries] == ["a/0", "b/0"] and found.digest == before.digest
    assert [entry.key for entry in ImageSet.open(tmp_path).entries] == ["a/0", "b/0"]  # from the folder above
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    assert [entry.key for entry in ImageSet.open(tmp_path / "set.zip").entries] == ["a/0", "b/0"]

    (folder / name).write_bytes(encode_png(_flat(7)))  # somebody's own photo of that name
    assert len(ImageSet.open(folder).entries) == 3
    os.remove(folder / name)
