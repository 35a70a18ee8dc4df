"""Readers stream: what they hold does not grow with the images of a set, whatever the format."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from tiny_records import FORMATS, encoded, write_set

from facesyn_cli.artifacts.record_set import RecordSet

IMAGE_BYTES = 8_000
ROOM = 1_000_000          # bytes: names, labels and offsets of the records there are more


def held_while_reading(folder: Path) -> int:
    """Return the largest number of bytes that Python held while a set was opened and read to its end."""
    tracemalloc.start()
    try:
        records = RecordSet.open(folder)
        for row in range(len(records)):
            assert len(records.read(row)) == IMAGE_BYTES
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_three_times_the_images_take_no_more_memory(tmp_path: Path, name: str):
    image = encoded(1).ljust(IMAGE_BYTES, b"\0")
    held = []
    for count in (900, 2700):          # Parquet keeps 800 images
        images = {(f"id{i % 30:02d}", f"{i}"): image for i in range(count)}
        held.append(held_while_reading(write_set(name, tmp_path / str(count), images)))
    assert held[1] - held[0] < ROOM, f"{held} bytes for {900 * IMAGE_BYTES} and {2700 * IMAGE_BYTES} bytes of images"
