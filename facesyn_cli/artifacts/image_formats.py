"""Recognition of image formats by the first bytes of an encoded image."""

from __future__ import annotations

import re

HEAD_BYTES = 32  # enough for `suffix_of_content`

_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), ".bmp"),
    (re.compile(rb"GIF8[79]a"), ".gif"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), ".tif"),
    (re.compile(rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4})*?avif)", re.DOTALL), ".avif"),
    (re.compile(rb"P[14]\s+[\d#]"), ".pbm"),
    (re.compile(rb"P[25]\s+[\d#]"), ".pgm"),
    (re.compile(rb"P[36]\s+[\d#]"), ".ppm"),
)


def suffix_of_content(head: bytes) -> str | None:
    """Return the file suffix of an image format by the first `HEAD_BYTES` bytes or more; None if not supported."""
    return next((suffix for signature, suffix in _SIGNATURES if signature.match(head[:HEAD_BYTES])), None)
