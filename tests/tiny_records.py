"""A few encoded images and the packed sets of them, written by the formats' own writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.record_set import RecordSet, build_format, natural_labels
from facesyn_cli.data.pixels import encode_jpeg, encode_png
from facesyn_cli.plugins.builtin import BUILTIN

SIZE = 16
NAME = "TFR-set"
FORMATS = tuple(name for name in BUILTIN["record_format"] if name != "folder")  # folder: no files of many records
PASSTHROUGH = tuple(name for name in FORMATS if name != "tfrecord")              # keep the bytes of any image


def encoded(seed: int, side: int = SIZE) -> bytes:
    """Return a JPEG, or a PNG for every third seed."""
    pixels_u8 = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return encode_png(pixels_u8) if seed % 3 == 0 else encode_jpeg(pixels_u8, 90)


def tiny_images(counts: tuple[int, ...] = (3, 1, 4), side: int = SIZE) -> dict[tuple[str, str], bytes]:
    """Return (identity, sample) -> encoded image; identities in natural order."""
    return {
        (f"id{i}", f"{k}"): encoded(100 * i + k + 1, side) for i, count in enumerate(counts) for k in range(count)
    }


def write_set(name: str, folder: Path, images: dict[tuple[str, str], bytes]) -> Path:
    """Write a set without the header of `pack`, as somebody else's; return the folder that holds its files."""
    names = list(dict.fromkeys(identity for identity, _ in images))
    label_of = dict(zip(names, natural_labels(names)[1], strict=True))
    writer = build_format(name).writer(folder, NAME, folder / "scratch", {})
    try:
        for (identity, sample), data in images.items():
            writer.append(identity, sample, data)
        writer.commit()
        writer.finish(np.array([label_of[identity] for identity, _ in images], np.int32), (s for _, s in images))
    finally:
        writer.close()
    return folder / NAME


def read_all(records: RecordSet) -> list[tuple[int, str, bytes]]:
    """Return label, sample name and image of every record."""
    return [
        (int(label), sample, records.read(row))
        for row, (label, (_, sample)) in enumerate(zip(records.labels, records.keys(), strict=True))
    ]
