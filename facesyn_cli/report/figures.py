"""Figures as people read them: large numbers, tables, and the definition of each behind its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from facesyn_cli.report.axes import MISSING, number, percent
from facesyn_cli.report.markup import Markup, element, identifier

Figure = dict[str, Any]
_ARROWS = {"higher": "higher is better", "lower": "lower is better", None: "neither way is better by itself"}
_TINY = 1e-5  # errors below are written with an exponent
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


class Glossary:
    """Definitions of what a page shows. Names link to them; in the end the page holds those that were used.

    Args:
        definitions: id -> title, text, formula, source, better; as in `report.json`.
    """

    def __init__(self, definitions: dict[str, dict[str, Any]]) -> None:
        self._definitions = definitions
        self._used: dict[str, None] = {}

    def title(self, name: str) -> str:
        """Return the name of a figure for people; its id when nobody defined it."""
        return self._definitions.get(name, {}).get("title") or name

    def text(self, name: str) -> str:
        """Return the explanation of a figure, or nothing."""
        return self._definitions.get(name, {}).get("text") or ""

    def link(self, name: str, label: str | None = None) -> Markup:
        """Return the name of a figure, or `label`, as a button that shows its definition."""
        if name not in self._definitions:
            return element("span", label or name)
        self._used[name] = None
        return element("button", label or self.title(name), type="button", class_="what", popovertarget=_anchor(name))

    def better(self, name: str) -> str | None:
        """Return `higher`, `lower` or None."""
        return self._definitions.get(name, {}).get("better")

    def render(self) -> list[Markup]:
        """Return every definition that was linked to, in order of first use."""
        return [self._box(name) for name in self._used]

    def _box(self, name: str) -> Markup:
        known = self._definitions[name]
        formula, source = known.get("formula"), known.get("source")
        return element(
            "div",
            element("h4", known["title"]),
            element("p", known["text"]),
            element("code", formula) if formula else None,
            element("p", _ARROWS[known.get("better")] if formula or known.get("better") else None,
                    f"{' - ' if formula else ''}{source}" if source else None, class_="from"),
            id=_anchor(name), popover=True, class_="definition",
        )


def value_text(figure: Figure | None) -> str:
    """Return the value of a figure with its unit, to the digit that its standard error supports."""
    if figure is None or figure["value"] is None:
        return MISSING
    value, unit, error = figure["value"], figure["unit"], figure.get("error")
    if error and math.isfinite(error):
        return _fixed(value, unit, error)
    if unit == "share":
        return percent(value)
    if unit == "cosine":
        return f"{value:.3f}"
    return number(round(value) if unit == "count" else value)


def error_text(figure: Figure | None) -> str:
    """Return the standard error of a figure, with the sign, or nothing."""
    if figure is None or figure["value"] is None or not figure.get("error"):
        return ""
    return f"{_PLUS_MINUS} {_fixed(figure['error'], figure['unit'], figure['error'])}"


def tiles(glossary: Glossary, figures: Sequence[Figure]) -> Markup:
    """Return a few large numbers."""
    made = [
        element(
            "div",
            element("dt", glossary.link(figure["id"])),
            element("dd", value_text(figure), element("small", error_text(figure) or None)),
            class_="number",
        )
        for figure in figures
    ]
    return element("dl", made, class_="numbers")


def table(glossary: Glossary, columns: Sequence[tuple[str, dict[str, Figure]]], names: Sequence[str]) -> Markup | None:
    """Return a table with one row per figure and one column per set and judge.

    Args:
        glossary: Definitions.
        columns: (heading, figures by id).
        names: Ids of the rows.
    """
    if not names:
        return None
    single = len(columns) == 1
    head = [element("th", "Figure", scope="col")]
    head += [element("th", "Value" if single else heading, scope="col") for heading, _ in columns]
    head += [element("th", "Counted over", scope="col"), element("th", "Better", scope="col")]
    rows = []
    for name in names:
        found = [figures.get(name) for _, figures in columns]
        rows.append(element(
            "tr",
            element("th", glossary.link(name), scope="row"),
            [element("td", value_text(figure), _small(figure)) for figure in found],
            element("td", _counted(found), class_="quiet counted"),
            element("td", glossary.better(name) or MISSING, class_="quiet"),
        ))
    return scrolling(element("table", element("thead", element("tr", head)), element("tbody", rows)))


def matrix(
    glossary: Glossary, caption: str, columns: Sequence[str], rows: Sequence[tuple[str | Markup, list[Figure | None]]]
) -> Markup:
    """Return a table of figures whose columns are given by name; a cell's definition is behind the row's name."""
    head = [element("th", element("span", "Figure", class_="spoken"), scope="col")]
    head += [element("th", name, scope="col") for name in columns]
    body = [
        element("tr", element("th", name, scope="row"),
                [element("td", value_text(figure), _small(figure)) for figure in figures])
        for name, figures in rows
    ]
    return scrolling(element("table", element("caption", caption), element("thead", element("tr", head)),
                             element("tbody", body)))


def scrolling(made: Markup) -> Markup:
    """Return a wide thing in a box that scrolls sideways on a small screen."""
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label="table")


def _small(figure: Figure | None) -> Markup | None:
    if figure is None or figure["value"] is None:
        return None
    said = [error_text(figure)] if error_text(figure) else []
    if figure.get("threshold") is not None:
        said.append(f"at score {figure['threshold']:.3f}")
    return element("small", ", ".join(said)) if said else None


def _counted(figures: Sequence[Figure | None]) -> str:
    """Say what a row of figures was counted over; sets of different sizes as from the least to the most."""
    known = [figure for figure in figures if figure and figure.get("n") is not None]
    if not known:
        return MISSING
    low, high = (choose(figure["n"] for figure in known) for choose in (min, max))
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    sampled = "" if all(figure.get("exact", True) for figure in known) else " (sampled)"
    return f"{count} {known[0].get('of') or ''}{sampled}".strip()


def _fixed(value: float, unit: str, error: float) -> str:
    """Return a value with as many decimals as show two digits of its error."""
    scale = 100 if unit == "share" else 1
    if abs(error) * scale < _TINY:
        return f"{number(value * scale)}{' %' if unit == 'share' else ''}"
    decimals = min(max(1 - math.floor(math.log10(abs(error) * scale)), 0), 6)
    return f"{value * scale:,.{decimals}f}{' %' if unit == 'share' else ''}"


def _anchor(name: str) -> str:
    return identifier("definition", name)
