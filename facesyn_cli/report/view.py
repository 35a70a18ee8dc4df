"""The content of `report.json`, with look-ups, linked terms and pictures for the sections of the page."""

from __future__ import annotations

import re
from typing import Any

from facesyn_cli.evaluation.all_metrics import Metric, metric
from facesyn_cli.report.blocks import Term
from facesyn_cli.report.figure_text import Figure
from facesyn_cli.report.pictures import Pictures, PictureSource

Section = dict[str, Any]

LEVELS = {"fault": ("bad", "Fault"), "warning": ("caution", "Warning"), "note": ("unknown", "Note"),
          "good": ("good", "No fault")}  # -> tone of the page, word


class ReportView:
    """The content of `report.json` for the sections of the page.

    Args:
        data: Content of `report.json`.
        source: Reads the images.
        gallery: Address of the gallery, relative to the page; None: there is none.

    Attributes:
        first: Name of the set that the page is mainly about.
        judge: Name of the judge whose figures come first.
        definitions: Anchor and metric of every term that was linked to, in order of first use.
    """

    def __init__(self, data: dict[str, Any], source: PictureSource, gallery: str | None = None) -> None:
        self.data = data
        self.gallery = gallery
        self.pictures = Pictures(source)
        self.set_names = [one["name"] for one in data["sets"]]
        self.first = self.set_names[0]
        self.judge = data["results"][0]["judge"] if data["results"] else ""
        self.definitions: dict[str, Metric] = {}

    def term(self, name: str, label: str | None = None) -> Term:
        """Return the name of a metric, or `label`, as a button that shows its definition."""
        found = metric(name)
        anchor = re.sub(r"[^a-z0-9]+", "-", f"definition-{name}".lower()).strip("-")
        self.definitions.setdefault(anchor, found)
        return Term(label or found.title, anchor)

    def of_judge(self, judge: str, name: str) -> dict[str, Section]:
        """Return the section called `name` of every set, by one judge."""
        return {one["set"]: one["sections"][name] for one in self.data["results"] if one["judge"] == judge}

    def columns(self, name: str) -> list[tuple[str, dict[str, Figure]]]:
        """Return (heading, ungrouped figures by id) of a section for every set and judge."""
        several = len(self.data["judges"]) > 1
        return [(f"{one['set']}, by {one['judge']}" if several else one["set"], by_id(one["sections"][name]))
                for one in self.data["results"]]

    def figure(self, set_name: str, judge: str, name: str) -> Figure | None:
        """Return one ungrouped figure of a set by a judge, or by a network that is no judge, in any section."""
        sections = [section for one in self.data["results"] if (one["set"], one["judge"]) == (set_name, judge)
                    for section in one["sections"].values()]
        sections += [one["sets"][set_name] for one in self.data["networks"] if set_name in one["sets"]]
        return next((by_id(section)[name] for section in sections if name in by_id(section)), None)


def by_id(section: Section) -> dict[str, Figure]:
    """Return the figures of a section that are not of one group, by id."""
    return {figure["id"]: figure for figure in section["figures"] if figure["group"] is None}


def size_text(one: dict[str, Any]) -> str:
    """Return how many images of how many identities a set has."""
    return f"{one['images']:,} images of {one['identities']:,} identities"
