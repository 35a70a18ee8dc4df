"""Writers of verification pairs: an InsightFace `.bin`, or images with a list."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import as_user_error, write_atomically, write_bytes, write_text
from facesyn_cli.console import log
from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_png, fit_square, resize_u8
from facesyn_cli.data.record_images import is_upright
from facesyn_cli.data.squares import is_square, say_cut
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pair_folds import DEFAULT_FOLDS
from facesyn_cli.evaluation.pairs import PairSet

LIST = "pairs.txt"
IMAGES = "images"
_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"))


def write_bin(pairs: PairSet, path: Path, size: int, resize: bool, advance: Callable[[int], None]) -> None:
    """Write a `.bin`: a pickle of (2N encoded images, N answers), as InsightFace and TFace read it.

    The images keep their bytes where they are JPEG or PNG of the right size.

    Args:
        pairs: The pairs. Their number of folds is not stored; the protocol has 10.
        path: The file; it appears whole, by rename.
        size: Side of the images in pixels; published tools never resize.
        resize: Resize images of another size, of others than square ones their central squares.
        advance: Called with the number of images finished since the last call.

    Raises:
        UserError: An image cannot be used, or the file cannot be written.
    """
    if pairs.folds != DEFAULT_FOLDS:
        log.warning(f"{pairs.name} has {pairs.folds} folds; a .bin holds no folds, and is read as {DEFAULT_FOLDS}")
    encoded = _encoded(pairs, size, resize, advance)
    images = [encoded[place] for pair in zip(pairs.first, pairs.second, strict=True) for place in pair]
    answers = [bool(same) for same in pairs.is_same]
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        pickle.dump((images, answers), file, protocol=4)


def write_folder(pairs: PairSet, folder: Path, size: int, resize: bool, advance: Callable[[int], None]) -> None:
    """Write `images/000000.jpg`, ... and, last, `pairs.txt`: counts, then lines `path path 1` or `path path 0`.

    Arguments and errors as `write_bin`.
    """
    encoded = _encoded(pairs, size, resize, advance)
    names = [f"{place:06d}{_suffix(data)}" for place, data in enumerate(encoded)]
    try:
        for name, data in zip(names, encoded, strict=True):
            write_bytes(folder / IMAGES / name, data, durable=False)
    except OSError as error:
        raise as_user_error(error, folder) from error
    lines = [f"{names[a]}\t{names[b]}\t{int(same)}\n"
             for a, b, same in zip(pairs.first, pairs.second, pairs.is_same, strict=True)]
    write_text(folder / LIST, f"{_header(pairs)}\n{''.join(lines)}")


def _header(pairs: PairSet) -> str:
    """Return the first line of a list: the folds, and all pairs where `evaluation/pair_folds.py` needs them."""
    is_plain = len(pairs) % pairs.folds == 0 and len(pairs) > 2 * pairs.folds
    return str(pairs.folds) if is_plain else f"{pairs.folds}\t{len(pairs)}"


def _suffix(data: bytes) -> str:
    """Return `.png` or `.jpg` for the encoded images that a `.bin` holds."""
    return next(suffix for magic, suffix in _SUFFIXES if data.startswith(magic))


def _encoded(pairs: PairSet, size: int, resize: bool, advance: Callable[[int], None]) -> list[bytes]:
    found, num_cut = [], 0
    for place, name in enumerate(pairs.images):
        try:
            data = pairs.read(place)
            found.append(_fit(data, size, resize))
            num_cut += not is_square(data)
        except UnreadableImage as error:
            raise UserError(f"{pairs.name}: {name} cannot be used: {error}") from error
        advance(1)
    say_cut(pairs.name, num_cut, len(found))
    return found


def _fit(data: bytes, size: int, resize: bool) -> bytes:
    pixels_u8 = decode_image(data)
    height, width = pixels_u8.shape[:2]
    if (height, width) == (size, size):
        is_kept = data.startswith(tuple(magic for magic, _ in _SUFFIXES)) and is_upright(data)
        return data if is_kept else encode_png(pixels_u8)
    if not resize:
        raise UnreadableImage(f"{width} x {height} pixels, {size} x {size} were expected; --resize takes any size")
    return encode_png(resize_u8(fit_square(pixels_u8), size))
