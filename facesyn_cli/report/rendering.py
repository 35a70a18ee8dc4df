"""Templates of the page and of the cards; what is put into one is escaped by its environment, never by hand.

Names of folders, files and identities come from strangers. Text is plain `str` everywhere; an HTML template escapes it
for HTML, a Markdown template for Markdown and HTML.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"

# Characters that no encoding carries (lone surrogates of undecodable file names), that XML forbids, or
# that turn the reading direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAKS = re.compile(r"[\r\n\t\u2028\u2029]+")
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


class Markdown(str):
    """Text that is Markdown already; a template takes it as it is."""


def render_html(template: str, **values: Any) -> str:
    """Return a template (`NAME.html.j2`) filled with values; text is escaped."""
    return _HTML.get_template(template).render(values)


def render_markdown(template: str, **values: Any) -> str:
    """Return a template (`NAME.md.j2`) filled with values; text that is not `Markdown` is escaped."""
    return _MARKDOWN_TEMPLATES.get_template(template).render(values)


def printable(text: str) -> str:
    """Return a text on one line with every character that could not be shown, or would reorder others, replaced."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _LINE_BREAKS.sub(" ", text))


def code(value: Any) -> Markdown:
    """Return a value as a code span of Markdown."""
    return Markdown(f"`{printable(str(value)).replace('`', chr(39)).replace('|', '/')}`")


def _for_html(value: Any) -> Any:
    if value is None:
        return ""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _for_markdown(value: Any) -> Any:
    is_text = isinstance(value, str) and not isinstance(value, Markdown)
    return printable(value).translate(_MARKDOWN) if is_text else value


def _environment(**more: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **more,
    )


_HTML = _environment(autoescape=True, finalize=_for_html)
_MARKDOWN_TEMPLATES = _environment(autoescape=False, finalize=_for_markdown)
_MARKDOWN_TEMPLATES.filters |= {"code": code, "markdown": Markdown}
