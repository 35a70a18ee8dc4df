"""The report as one HTML file that needs nothing but itself: it opens from disk and loads nothing.

What it shows is `report.json` (the dict that the stage `report` makes) and pictures. A content security policy
forbids every load but the pictures inside; text of strangers is escaped by `markup`.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.report import fairness_section, judged_sections, sections
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.thumbnails import Pictures
from facesyn_cli.report.view import Report

FILE = "report.html"

# Anchor, name in the bar, heading, what it is about, and who writes it.
_SECTIONS = (
    ("summary", "Summary", "What was found", sections.summary),
    ("compare", "Compare", "Side by side", sections.comparison),
    ("faces", "Faces", "Look at them", sections.faces),
    ("identity", "Identity", "Is every label one person, and every person one label?", judged_sections.identity),
    ("diversity", "Diversity", "How varied are the images?", judged_sections.diversity),
    ("quality", "Quality", "How close to real images?", judged_sections.quality),
    ("privacy", "Privacy", "Does anybody real come back?", judged_sections.privacy),
    ("fairness", "Fairness", "Does it treat groups alike?", fairness_section.fairness),
    ("training", "Training", "How the training went", sections.training),
    ("benchmark", "Benchmark", "What a recognizer learned from it", sections.benchmark),
    ("origin", "Origin", "How it was made and measured", sections.origin),
)


def write_page(folder: Path, data: dict[str, Any], pictures: Pictures) -> Path:
    """Write `report.html` into a folder.

    Args:
        folder: The report's folder.
        data: Content of `report.json`.
        pictures: Where the images come from.

    Returns:
        Path of the page.
    """
    path = folder / FILE
    update_text(path, render_page(data, pictures))
    return path


def render_page(data: dict[str, Any], pictures: Pictures) -> str:
    """Return the page as text; the same data and pictures give the same page."""
    report = Report(data, pictures)
    made = [(anchor, short, heading, write(report)) for anchor, short, heading, write in _SECTIONS]
    made = [part for part in made if part[3] is not None]
    head = sections.head(report)
    style, script = _template("page.css"), _template("page.js")
    body = element(
        "body",
        element("a", "Skip to the summary", href="#summary", class_="skip"),
        head,
        _bar([(anchor, short) for anchor, short, *_ in made]),
        element("main", [
            element("section", element("h2", heading), content, id=anchor) for anchor, _, heading, content in made
        ]),
        element("footer", _footer(report)),
        element("div", report.glossary.render(), id="definitions"),
        element("div", id="tip", hidden=True),
        element("script", Markup(script)),
    )
    return "<!doctype html>\n" + element("html", _head(data, style, script), body, lang="en") + "\n"


def _head(data: dict[str, Any], style: str, script: str) -> Markup:
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{_sha256(script)}'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"facesyn {data['facesyn']}"),
        element("title", f"{data['title']}: facesyn report"),
        element("style", Markup(style)),
    )


def _bar(entries: list[tuple[str, str]]) -> Markup:
    links = [element("a", name, href=f"#{anchor}") for anchor, name in entries]
    themes = [
        element("label", element("input", type="radio", name="theme", id=f"theme-{theme}", checked=theme == "auto"),
                name)
        for theme, name in (("auto", "Auto"), ("light", "Light"), ("dark", "Dark"))
    ]
    switch = element("fieldset", element("legend", "Theme"), themes, class_="theme")
    return element("div", element("div", element("nav", links, aria_label="Sections"), switch), class_="bar")


def _footer(report: Report) -> Markup:
    return join([
        f"Made by facesyn {report.data['facesyn']}. The same figures for programs: ", element("code", "report.json"),
        ". Names with a dotted line show their definition.",
    ])


def _template(name: str) -> str:
    return (resources.files("facesyn_cli.report") / "template" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
