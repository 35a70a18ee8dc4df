"""Small pictures inside the page: data URIs, so that the page needs nothing but itself."""

from __future__ import annotations

import base64
from typing import Protocol

from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_jpeg, resize_u8
from facesyn_cli.report.markup import Markup, element

SIZE = 112               # side in pixels
QUALITY = 82             # of JPEG; about 4 kB a face
MOST_BYTES = 6_500_000   # of all pictures of a page together, as written; the rest of a page is below 1 MB


class Pictures(Protocol):
    """Where the encoded images of the sets come from; made by the stage."""

    def encoded(self, set_name: str, key: str) -> bytes | None:
        """Return the encoded image of a set or of `reference`; None when it cannot be read."""

    def context_face(self, set_name: str, identity: str) -> bytes | None:
        """Return the encoded face that the context of an identity came from; None when there is none."""


class Thumbnails:
    """Turns images of the sets into `<img>`.

    Args:
        pictures: Where they come from.
        most_bytes: When the pictures of the page have grown to this size, the following ones are left out, and
            the page says so in their place.
    """

    def __init__(self, pictures: Pictures, most_bytes: int = MOST_BYTES) -> None:
        self._pictures = pictures
        self._left = most_bytes
        self._known: dict[tuple[str, str], str | None] = {}

    def image(self, set_name: str, key: str, tip: str | None = None) -> Markup:
        """Return one image of a set; what a pointer or screen reader is told is its key, or `tip`."""
        if (set_name, key) not in self._known:
            self._known[set_name, key] = _data_uri(self._pictures.encoded(set_name, key))
        return self._place(self._known[set_name, key], tip or key)

    def context_face(self, set_name: str, identity: str) -> Markup | None:
        """Return the face that the context of an identity came from, or None when there is none."""
        uri = _data_uri(self._pictures.context_face(set_name, identity))
        return self._place(uri, f"the face that the context of {identity} came from") if uri else None

    def _place(self, uri: str | None, told: str) -> Markup:
        if uri is None:
            return _missing("unreadable", told)
        if len(uri) > self._left:
            return _missing("left out, the page is full", told)
        self._left -= len(uri)
        return element("img", src=uri, alt=told, data_tip=told, width=SIZE, height=SIZE, loading="lazy")


def _data_uri(data: bytes | None) -> str | None:
    """Return an image, square and small, as a data URI; decoded and encoded anew, so only pixels can enter the page."""
    if data is None:
        return None
    try:
        pixels_u8 = decode_image(data)
    except UnreadableImage:
        return None
    jpeg = encode_jpeg(resize_u8(pixels_u8, SIZE), QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _missing(why: str, told: str) -> Markup:
    return element("div", why, class_="missing", role="img", aria_label=f"{told}: {why}", data_tip=told)
