"""HTML and SVG from nested calls, in which every text is escaped unless it is already markup.

    element("p", "score < ", element("b", "0.3"), class_="note")   ->   <p class="note">score &lt; <b>0.3</b></p>

Names of folders, files and identities come from strangers. They can reach the page only as children or
attributes of `element`, so nothing has to remember to escape them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

VOID = frozenset({"br", "circle", "hr", "img", "input", "line", "link", "meta", "path", "rect"})

# Characters that no encoding carries (lone surrogates of undecodable file names), that XML forbids, or
# that turn the reading direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAKS = re.compile(r"[\r\n\t\u2028\u2029]+")

Child = "str | float | None | Iterable[Child]"


class Markup(str):
    """Text that is HTML already and goes into the page as it is; made by `element` and `join` alone."""

    __slots__ = ()


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return one element.

    Args:
        tag: Name of the element.
        children: Text (escaped), markup (as it is), numbers, None (left out), or nested lists of these.
        attributes: `class_` stands for `class`, `data_tip` for `data-tip`. None and False leave the
            attribute out, True writes it without a value.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in VOID:
        if children:
            raise ValueError(f"<{tag}> has no children")
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Child) -> Markup:
    """Return nested children as one piece of markup; text in it is escaped."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(html.escape(printable(children)))
    if isinstance(children, Iterable):
        return Markup("".join(join(child) for child in children))
    return Markup(html.escape(str(children)))


def printable(text: str) -> str:
    """Return a text on one line with every character that could not be shown, or would reorder others, replaced."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _LINE_BREAKS.sub(" ", text))


def identifier(*parts: str) -> str:
    """Return an HTML id made of the given words: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(printable(str(value)))}"'
