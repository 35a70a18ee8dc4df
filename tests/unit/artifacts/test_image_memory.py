"""What image sets hold for each image; half a million are a common size."""

from __future__ import annotations

import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.names import natural_key, sort_naturally

COUNT, PER_IDENTITY = 4000, 40
HELD, PEAK = 400, 1000          # bytes an image: three texts and an entry; and while they are named and sorted
DIRECTORY = 700                 # bytes a member of a zip file, as Python's zipfile holds its directory


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for k in range(COUNT):
            archive.writestr(f"id{k // PER_IDENTITY:05d}/{k:07d}.jpg", b"\xff\xd8\xff")
    return tmp_path / "faces.zip"


def test_bytes_an_image(packed: Path) -> None:
    tracemalloc.start()
    try:
        images = ImageSet.open(packed)
        held, peak = (value / COUNT for value in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert len(images.entries) == COUNT
    assert held < HELD and peak < PEAK, f"{held:.0f} bytes an image held, {peak:.0f} at the peak"
    assert images.entries[0].identity is images.entries[PER_IDENTITY - 1].identity


def test_threads_share_the_directory_of_a_zip_file(packed: Path) -> None:
    images = ImageSet.open(packed)
    found: list[bytes] = []
    tracemalloc.start()
    try:
        def read() -> None:
            found.extend(images.read(entry) for entry in images.entries[:200])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = tracemalloc.get_traced_memory()[0] / COUNT
    finally:
        tracemalloc.stop()
    assert found == [b"\xff\xd8\xff"] * 800
    assert held < 2 * DIRECTORY, f"{held:.0f} bytes an image"


def test_natural_keys_keep_their_order() -> None:
    names = ["", "0", "00", "007", "07", "7", "7a", "10", "a", "a-b/1", "a/1", "a/01", "a/2", "a/10", "a10", "a2", "b"]
    old = {name: [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in _parts(name)] for name in names}
    assert sorted(names, key=natural_key) == sorted(names, key=old.get)


def test_a_list_in_order_is_not_sorted_and_any_other_is() -> None:
    names = [f"id{k // PER_IDENTITY}/{k % PER_IDENTITY}" for k in range(COUNT)]
    tracemalloc.start()
    try:
        sort_naturally(names, str)
        peak = tracemalloc.get_traced_memory()[1] / COUNT
    finally:
        tracemalloc.stop()
    assert names[11] == "id0/11" and peak < 20, f"{peak:.0f} bytes an image"
    for shuffled in (names[::-1], names[5:] + names[:5]):
        sort_naturally(shuffled, str)
        assert shuffled == names


def _parts(name: str) -> list[str]:
    parts, last = [], None
    for character in name:
        if character.isdecimal() == last:
            parts[-1] += character
        else:
            parts.append(character)
        last = character.isdecimal()
    return parts
