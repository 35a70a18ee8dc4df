"""The report as one HTML file that loads nothing and opens from disk.

It shows `report.json` (the dict that the stage `report` makes) and pictures. A content security policy forbids every
load but the pictures inside; the templates escape all text.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.report import metric_sections, sections
from facesyn_cli.report.blocks import Section
from facesyn_cli.report.glossary import glossary
from facesyn_cli.report.pictures import PictureSource
from facesyn_cli.report.rendering import TEMPLATES, render_html
from facesyn_cli.report.view import ReportView, size_text

FILE = "report.html"
_BANNER = 13  # images
_WORDS_BEFORE = "numbers"  # the section that explains the words of all sections

# Anchor, name in the bar, heading, and the function that returns the blocks.
_SECTIONS = (
    ("summary", "Summary", "Findings", sections.summary),
    ("numbers", "Numbers", "In numbers", sections.numbers),
    ("compare", "Compare", "Comparison of the sets", sections.comparison),
    ("faces", "Faces", "Images", sections.faces),
    ("identity", "Identity", "Identities and labels",
     partial(metric_sections.judge_section, name="identity")),
    ("diversity", "Diversity", "Diversity of the images", metric_sections.diversity),
    ("quality", "Quality", "Distance to real images", partial(metric_sections.judge_section, name="quality")),
    ("privacy", "Privacy", "Leakage of training identities", partial(metric_sections.judge_section, name="privacy")),
    ("fairness", "Fairness", "Groups of people", metric_sections.fairness),
    ("training", "Training", "Training curves", sections.training),
    ("benchmark", "Benchmark", "Recognizer trained on the images", sections.benchmark),
    ("origin", "Origin", "Provenance and measurement", sections.origin),
)


def write_page(folder: Path, data: dict[str, Any], pictures: PictureSource, gallery: str | None = None) -> Path:
    """Write `report.html` into a folder.

    Args:
        folder: The report's folder.
        data: Content of `report.json`.
        pictures: Where the images come from.
        gallery: Address of the gallery, relative to the page; None: there is none.

    Returns:
        Path of the page.
    """
    path = folder / FILE
    update_text(path, render_page(data, pictures, gallery))
    return path


def render_page(data: dict[str, Any], pictures: PictureSource, gallery: str | None = None) -> str:
    """Return the page as text; the same data and pictures give the same page."""
    view = ReportView(data, pictures, gallery)
    made = [Section(anchor, name, heading, write(view)) for anchor, name, heading, write in _SECTIONS]
    made = [replace(section, blocks=[*glossary(view), *section.blocks]) if section.anchor == _WORDS_BEFORE else section
            for section in made]
    first = data["sets"][0]
    keys = first["random"][:: max(1, len(first["random"]) // _BANNER)][:_BANNER]
    style, paper, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "print.css", "page.js")
    )
    return render_html(
        "page.html.j2", title=data["title"], version=data["facesyn"], lead=_lead(view), gallery=gallery,
        faces=[view.pictures.image(first["name"], key) for key in keys],
        sections=[section for section in made if section.blocks], definitions=view.definitions.items(),
        style=Markup(style + paper), script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _lead(view: ReportView) -> str:
    """Return what was measured, by which judges and against what."""
    judges = ", ".join(judge["name"] for judge in view.data["judges"])
    reference = view.data["reference"]
    return " ".join([
        f"{size_text(view.data['sets'][0])}.", *([f"Judges: {judges}."] if judges else []),
        *([f"Reference: {size_text(reference)}."] if reference else []),
        *([f"Compared with {', '.join(view.set_names[1:])}."] if len(view.set_names) > 1 else []),
    ])
