"""What the sections of the page share while it is written."""

from __future__ import annotations

from typing import Any

from facesyn_cli.report.figures import Figure, Glossary
from facesyn_cli.report.thumbnails import Pictures, Thumbnails

Section = dict[str, Any]

LEVELS = {"fault": ("bad", "Fault"), "warning": ("caution", "Look at this"), "note": ("unknown", "Note"),
          "good": ("good", "Fine")}  # -> tone of the page, word


class Report:
    """The content of `report.json` and what the sections share while the page is written.

    Args:
        data: Content of `report.json`.
        pictures: Where images come from.

    Attributes:
        first: Name of the set that the page is mainly about.
        judge: Name of the judge whose figures come first.
    """

    def __init__(self, data: dict[str, Any], pictures: Pictures) -> None:
        self.data = data
        self.glossary = Glossary(data["definitions"])
        self.thumbnails = Thumbnails(pictures)
        self.set_names = [one["name"] for one in data["sets"]]
        self.first = self.set_names[0]
        self.judge = data["results"][0]["judge"] if data["results"] else ""

    def of_judge(self, judge: str, name: str) -> dict[str, Section]:
        """Return the section called `name` of every set, by one judge."""
        return {one["set"]: one["sections"][name] for one in self.data["results"] if one["judge"] == judge}

    def columns(self, name: str) -> list[tuple[str, dict[str, Figure]]]:
        """Return (heading, ungrouped figures by id) of a section for every set and judge."""
        judges = len(self.data["judges"]) > 1
        made = []
        for one in self.data["results"]:
            heading = f"{one['set']}, by {one['judge']}" if judges else one["set"]
            made.append((heading, by_id(one["sections"][name])))
        return made

    def figure(self, set_name: str, judge: str, name: str) -> Figure | None:
        """Return one ungrouped figure of a set by a judge, or by a network that is no judge, wherever it is."""
        sections = [section for one in self.data["results"] if (one["set"], one["judge"]) == (set_name, judge)
                    for section in one["sections"].values()]
        sections += [one["sets"][set_name] for one in self.data["networks"] if set_name in one["sets"]]
        return next((by_id(section)[name] for section in sections if name in by_id(section)), None)

    def networks(self, name: str) -> list[dict[str, Any]]:
        """Return the networks that are no judges and whose figures belong to the section called `name`."""
        return [network for network in self.data["networks"] if network["section"] == name]


def by_id(section: Section) -> dict[str, Figure]:
    """Return the figures of a section that are not of one group, by id."""
    return {figure["id"]: figure for figure in section["figures"] if figure["group"] is None}
