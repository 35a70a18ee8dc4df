"""What a packed set stores of an image: its bytes where they fit, else an upright central square."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_records import FORMATS

from facesyn_cli.artifacts.record_set import build_format
from facesyn_cli.contexts.faces import read_face
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.plugins import registry

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


def encoded(kind: str, orientation: int = 1, side: int = 16, **options: object) -> bytes:
    """Return an image that is bright at the top as it lies."""
    pixels_u8 = np.zeros((side, side, 3), np.uint8)
    pixels_u8[: side // 2] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels_u8).save(out, kind, exif=exif, **options)
    return out.getvalue()


def as_it_lies(data: bytes) -> np.ndarray:
    """Return the pixels as a reader sees them that ignores EXIF."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", [*FORMATS, "folder"])
@pytest.mark.parametrize("size", [None, 16, 8])
@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_format_stores_turned_images_upright(name: str, size: int | None, orientation: int, kind: str):
    data = encoded(kind, orientation, lossless=True) if kind == "WEBP" else encoded(kind, orientation)
    stored = build_format(name).fit(data, size)
    assert stored is not data
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if size == 8:
        upright = upright[::2, ::2]
    # Gray levels that JPEG at quality 95 may cost in flat areas: half a step of its coarsest quantizer, twice encoded.
    assert np.abs(as_it_lies(stored).astype(int) - upright)[[0, -1]][:, [0, -1]].max() <= 4
    assert np.array_equal(as_it_lies(stored), decode_image(stored)), "nothing is left to turn"


@pytest.mark.parametrize("name", [*FORMATS, "folder"])
def test_upright_images_keep_their_bytes(name: str):
    for data in (encoded("JPEG"), encoded("JPEG", 0)):  # 0: a value that means nothing
        assert build_format(name).fit(data, 16) is data
    if name != "tfrecord":
        for kind in ("PNG", "WEBP", "BMP"):
            data = encoded(kind)
            assert build_format(name).fit(data, None) is data


def test_xmp_says_how_an_image_is_turned_too():
    plain = io.BytesIO()
    Image.fromarray(as_it_lies(encoded("PNG"))).save(plain, "JPEG", quality=95)  # without an EXIF block
    block = b"http://ns.adobe.com/xap/1.0/\0" + XMP  # APP1, right after the start of the image
    data = b"\xff\xd8\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + plain.getvalue()[2:]
    stored = build_format("rec").fit(data, 16)
    assert stored is not data and build_format("rec").fit(plain.getvalue(), 16) == plain.getvalue()
    upright = np.rot90(as_it_lies(data), -1).astype(int)  # 6: the top of the face is at its right
    # Gray levels that JPEG at quality 95 may cost in flat areas: half a step of its coarsest quantizer, twice encoded.
    assert np.abs(as_it_lies(stored).astype(int) - upright)[[0, -1]][:, [0, -1]].max() <= 4


def test_a_turned_image_takes_the_quality_that_was_asked_for():
    plugin = registry.build("record_format", registry.configure("record_format", {"name": "rec", "quality": 95}))
    assert plugin.fit(encoded("JPEG", 6), 16).startswith(b"\xff\xd8\xff")


def test_faces_of_contexts_are_stored_upright():
    data = encoded("JPEG", 6, side=112)
    pixels_u8, stored = read_face(data)
    assert stored != data and np.array_equal(as_it_lies(stored), pixels_u8)
    assert read_face(encoded("JPEG", side=112))[1] == encoded("JPEG", side=112)
