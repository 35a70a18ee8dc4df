"""Pictures to look at: contact sheets, one strip per identity, and pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facesyn_cli.report.markup import Markup, element
from facesyn_cli.report.thumbnails import Thumbnails

Row = dict[str, Any]
REFERENCE = "reference"
_MOST_PER_ROW = 10


def banner(thumbnails: Thumbnails, set_name: str, keys: Sequence[str]) -> Markup:
    """Return a row of faces for the head of the page."""
    return element("div", [thumbnails.image(set_name, key) for key in keys], class_="faces")


def sheet(thumbnails: Thumbnails, set_name: str, keys: Sequence[str]) -> Markup:
    """Return a contact sheet of single images."""
    return element("ul", [element("li", thumbnails.image(set_name, key)) for key in keys], class_="sheet")


def scored_sheet(thumbnails: Thumbnails, rows: Sequence[Row]) -> Markup:
    """Return a contact sheet of a list whose rows hold one image each, with the score underneath."""
    items = []
    for row in rows:
        first = row["images"][0]
        items.append(element("li", thumbnails.image(first["set"], first["key"], _told(row)), _score(row)))
    return element("ul", items, class_="sheet")


def strips(thumbnails: Thumbnails, set_name: str, wanted: Sequence[dict[str, Any]]) -> Markup:
    """Return one row of images per identity, with the face its context came from in front where there is one."""
    made = []
    for strip in wanted:
        source = thumbnails.context_face(set_name, strip["identity"]) if strip["context_face"] else None
        items = [element("li", source, class_="source")] if source else []
        items += [element("li", thumbnails.image(set_name, key)) for key in strip["keys"]]
        made.append(_strip(strip["identity"], None, items))
    return element("div", made)


def groups(thumbnails: Thumbnails, rows: Sequence[Row]) -> Markup:
    """Return one strip per row of a list: the images of one or two identities."""
    made = []
    for row in rows:
        items = [element("li", thumbnails.image(one["set"], one["key"])) for one in row["images"][:_MOST_PER_ROW]]
        made.append(_strip(" and ".join(row["identities"]), _told(row, with_keys=False), items))
    return element("div", made)


def pairs(thumbnails: Thumbnails, rows: Sequence[Row]) -> Markup:
    """Return two images of each row side by side, each with where it is from, and how alike they are."""
    made = []
    for row in rows:
        faces = [
            element("figure", thumbnails.image(one["set"], one["key"]),
                    element("figcaption", element("strong", _origin(one["set"])), element("br"), one["key"]))
            for one in row["images"][:2]
        ]
        made.append(element("li", element("div", faces), element("p", _likeness(row)), class_="pair"))
    return element("ul", made, class_="pairs")


def _strip(name: str, note: str | None, items: list[Markup]) -> Markup:
    label = element("div", name, element("small", note) if note else None, class_="name")
    return element("div", label, element("ol", items, tabindex=0, aria_label=f"images of {name}"), class_="strip")


def _origin(set_name: str) -> str:
    return "training face" if set_name == REFERENCE else f"in {set_name}"


def _likeness(row: Row) -> list[Markup | str | None]:
    label = element("strong", row["label"], element("br")) if row["label"] else None
    alike = f"pixels alike {row['likeness']:.2f}" if row["likeness"] is not None else ""
    return [label, ", ".join(part for part in (_score(row), alike) if part)]


def _told(row: Row, with_keys: bool = True) -> str:
    keys = ", ".join(one["key"] for one in row["images"]) if with_keys else ""
    return ", ".join(part for part in (keys, row["label"], _score(row)) if part)


def _score(row: Row) -> str:
    return f"score {row['score']:.3f}" if row["score"] is not None else ""
