"""Value ranges, rounding, colors and hostile images."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from facesyn_cli.data.pixels import (
    UnreadableImage,
    decode_image,
    encode_jpeg,
    encode_png,
    fit_square,
    resize_pixels,
    to_pixels,
    to_u8,
)
from facesyn_cli.data.record_images import fit_jpeg


def test_every_gray_level_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels = to_pixels(levels)
    assert pixels.shape == (3, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert torch.equal(to_u8(pixels), torch.from_numpy(levels))
    assert torch.equal(to_u8(torch.tensor([-9.0, 9.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten(), torch.tensor(
        [0, 0, 0, 255, 255, 255], dtype=torch.uint8))


def test_red_stays_red() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert np.array_equal(decode_image(encode_png(red)), red)
    shifted = decode_image(encode_jpeg(red)).astype(int)
    assert shifted[..., 0].min() > 240 and shifted[..., 1:].max() < 15


def test_modes_and_orientation() -> None:
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        out = io.BytesIO()
        Image.new(mode, (5, 4)).save(out, "JPEG" if mode == "CMYK" else "PNG")
        assert decode_image(out.getvalue()).shape == (4, 5, 3), mode
    deep = Image.fromarray(np.array([[0, 65535], [32768, 257]], np.uint16))
    out = io.BytesIO()
    deep.save(out, "PNG")
    assert decode_image(out.getvalue())[:, :, 0].tolist() == [[0, 255], [128, 1]]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    out = io.BytesIO()
    Image.new("RGB", (8, 4)).save(out, "JPEG", exif=exif)
    assert decode_image(out.getvalue()).shape == (8, 4, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    pixels_u8 = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels_u8).save(out, "PNG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(out)))
    np.testing.assert_array_equal(decode_image(out.getvalue()), expected)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    """Pillow writes the whole block anew to turn an image, and stops where a number (here the width) is text."""
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    wide = struct.pack("<HHI4s", 0x0100, 2, 2, b"8")
    block = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + turned + wide + bytes(4)
    for exif, shape in ((block, (8, 4, 3)), (block[:10], (4, 8, 3)), (b"Exif\0\0" + bytes(range(64)), (4, 8, 3))):
        out = io.BytesIO()
        Image.new("RGB", (8, 4)).save(out, "JPEG", exif=exif)
        assert decode_image(out.getvalue()).shape == shape
        assert decode_image(fit_jpeg(out.getvalue(), None, 95, "4:2:0")).shape == shape


def _png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", _png_of_claimed_size(60000, 60000), _png_of_claimed_size(100, 100), b"GIF89a" + b"\0" * 100],
    ids=["empty", "text", "bomb", "no pixels", "gif"],
)
def test_hostile_bytes_are_one_short_reason(data: bytes) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value) and 0 < len(str(caught.value)) < 200


def test_truncated_and_flipped_files_never_escape() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
    for whole in (encode_png(noise), encode_jpeg(noise)):
        for cut in range(0, len(whole) - 40, len(whole) // 17):  # a missing trailer alone is harmless
            with pytest.raises(UnreadableImage):
                decode_image(whole[:cut])
        for _ in range(150):
            broken = bytearray(whole)
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
            try:
                assert decode_image(bytes(broken)).ndim == 3
            except UnreadableImage:
                pass


def test_published_resize(golden) -> None:
    """128 -> 112 is plain bilinear: output pixel k samples the input at (k + 0.5) * 128 / 112 - 0.5."""
    ramp = torch.arange(128, dtype=torch.float32).expand(1, 3, 128, 128)
    got = resize_pixels(ramp, 112, antialias=False)[0, 0, 5]
    want = ((torch.arange(112) + 0.5) * 128 / 112 - 0.5).clamp(0, 127)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_half_precision_is_resized_in_fp32():
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for dtype in (torch.bfloat16, torch.float16):
        half = pixels.to(dtype).requires_grad_()
        resized = resize_pixels(half, 12, antialias=True)
        assert resized.dtype == dtype
        torch.testing.assert_close(resized, resize_pixels(half.float(), 12, antialias=True).to(dtype), rtol=0, atol=0)
        resized.sum().backward()
        assert half.grad is not None and half.grad.dtype == dtype


def test_square_from_the_middle() -> None:
    wide = np.arange(6, dtype=np.uint8).reshape(1, 6, 1).repeat(2, axis=0).repeat(3, axis=2)
    assert fit_square(wide)[0, :, 0].tolist() == [2, 3]


def test_memory_of_16_bit_images_is_a_few_bytes_a_pixel() -> None:
    side = 1500
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), 40_000, np.uint16)).save(out, "PNG")
    tracemalloc.start()
    pixels_u8 = decode_image(out.getvalue())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pixels_u8 == 156).all() and peak < 12 * side * side, f"{peak / side / side:.1f} bytes a pixel"


def test_every_16_bit_level() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    expected = np.clip(levels / 257.0 + 0.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(out.getvalue()), expected[:, :, None].repeat(3, axis=2))


def test_jpeg_of_many_scans_is_refused_before_decoding() -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (16, 16, 3), np.uint8)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    assert decode_image(whole).shape == (16, 16, 3)
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImage, match="100 scans"):
        decode_image(whole[:last] + whole[last:-2] * 150 + whole[-2:])


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_in_a_png_does_not_unpack_without_end(kind: bytes) -> None:
    """Pillow stops at 1 MiB a chunk and 64 MiB in all; this test notices when it no longer does."""
    bomb = zlib.compress(bytes(2**25), 1)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    body = head + bomb
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    png = encode_png(np.zeros((4, 4, 3), np.uint8))
    tracemalloc.start()
    try:
        decode_image(png[:33] + chunk + png[33:])
    except UnreadableImage:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
