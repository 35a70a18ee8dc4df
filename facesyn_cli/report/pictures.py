"""Pictures of the page as small data URIs; contact sheets, strips and pairs of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_jpeg, resize_u8
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.report.blocks import Pair, Pairs, Picture, Sheet, Strip, Strips

SIZE = 112               # side in pixels
QUALITY = 82             # of JPEG; about 4 kB a face
MOST_BYTES = 6_500_000   # of all pictures of a page together, as written; the rest of a page is below 1 MB
_MOST_PER_ROW = 10

Row = dict[str, Any]


class PictureSource(Protocol):
    """Reads the encoded images of the sets."""

    def encoded(self, set_name: str, key: str) -> bytes | None:
        """Return the encoded image of a set or of `reference`; None when it cannot be read."""

    def context_face(self, set_name: str, identity: str) -> bytes | None:
        """Return the encoded source face of the context of an identity; None when there is none."""


class Pictures:
    """Turns images of the sets into pictures of the page.

    Args:
        source: Reads them.
        most_bytes: Size of all pictures of the page; further ones are replaced by a text.
    """

    def __init__(self, source: PictureSource, most_bytes: int = MOST_BYTES) -> None:
        self._source = source
        self._left = most_bytes
        self._known: dict[tuple[str, str], str | None] = {}

    def image(self, set_name: str, key: str, label: str | None = None) -> Picture:
        """Return one image of a set; its label, shown on hover and read out, is its key by default."""
        if (set_name, key) not in self._known:
            self._known[set_name, key] = data_uri(self._source.encoded(set_name, key))
        return self._place(self._known[set_name, key], label or key)

    def sheet(self, set_name: str, keys: Sequence[str]) -> Sheet:
        """Return a contact sheet of single images."""
        return Sheet([self.image(set_name, key) for key in keys])

    def scored_sheet(self, rows: Sequence[Row]) -> Sheet:
        """Return a contact sheet of a list whose rows hold one image each, with the score underneath."""
        firsts = [(row, row["images"][0]) for row in rows]
        return Sheet([replace(self.image(one["set"], one["key"], _joined(one["key"], row["label"], _score(row))),
                              caption=_score(row)) for row, one in firsts])

    def strips(self, set_name: str, strips: Sequence[Row]) -> Strips:
        """Return one row of images per identity, the source face of its context first where there is one."""
        return Strips([
            Strip(one["identity"], source=self._context_face(set_name, one),
                  pictures=[self.image(set_name, key) for key in one["keys"]]) for one in strips
        ])

    def identities(self, rows: Sequence[Row]) -> Strips:
        """Return one strip per row of a list: the images of one or two identities."""
        return Strips([
            Strip(" and ".join(row["identities"]), note=_joined(row["label"], _score(row)),
                  pictures=[self.image(one["set"], one["key"]) for one in row["images"][:_MOST_PER_ROW]])
            for row in rows
        ])

    def pairs(self, rows: Sequence[Row]) -> Pairs:
        """Return two images of each row side by side, each with its origin, and their similarity."""
        return Pairs([
            Pair([(self.image(one["set"], one["key"]), _origin(one["set"]), one["key"]) for one in row["images"][:2]],
                 row["label"], _joined(_score(row), _likeness(row))) for row in rows
        ])

    def _context_face(self, set_name: str, strip: Row) -> Picture | None:
        identity = strip["identity"]
        uri = data_uri(self._source.context_face(set_name, identity)) if strip["context_face"] else None
        return self._place(uri, f"source face of the context of {identity}") if uri else None

    def _place(self, uri: str | None, label: str) -> Picture:
        if uri is None:
            return Picture(None, label, "unreadable")
        if len(uri) > self._left:
            return Picture(None, label, "left out, the page has its maximum size")
        self._left -= len(uri)
        return Picture(uri, label)


def data_uri(data: bytes | None) -> str | None:
    """Return an image, square and small, as a data URI; it is re-encoded, so that only pixels enter the page."""
    if data is None:
        return None
    try:
        pixels_u8 = decode_image(data)
    except UnreadableImage:
        return None
    jpeg = encode_jpeg(resize_u8(pixels_u8, SIZE), QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _origin(set_name: str) -> str:
    return "training face" if set_name == REFERENCE else f"in {set_name}"


def _score(row: Row) -> str:
    return f"score {row['score']:.3f}" if row["score"] is not None else ""


def _likeness(row: Row) -> str:
    return f"pixels alike {row['likeness']:.2f}" if row["likeness"] is not None else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
