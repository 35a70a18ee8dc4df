"""The section on groups of people: what a judge finds in each, and how a recognizer does on each group of a benchmark.

It returns None when nothing was measured.
"""

from __future__ import annotations

from typing import Any

from facesyn_cli.report.figures import Figure, matrix
from facesyn_cli.report.judged_sections import all_notes, notes_of
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.plots import draw_intervals
from facesyn_cli.report.view import Report

_CHARTS = ("fairness.fmr", "fairness.fnmr", "fairness.identity.consistency", "fairness.diversity.vendi_within")
_FIRST = ("fairness.images", "fairness.identities", *_CHARTS[:2], "fairness.identity.eer",
          "fairness.identity.unique_share", *_CHARTS[2:], "fairness.quality.frechet",
          "fairness.privacy.image_above_fmr1e-4")  # the others stand behind a click
_ABOUT = ("Scores of a group are those of pairs inside it. False matches and false non-matches are counted at one "
          "threshold for all groups: the score that 0.1 % of all pairs of different people in the set reach. "
          "Spread is the largest value minus the smallest.")


def fairness(report: Report) -> Markup | None:
    """Return the figures by group of every attribute, the first set and judge first, and the groups of a benchmark."""
    made: list[Markup | None] = []
    for one in report.data["results"]:
        figures = [figure for figure in one["sections"]["fairness"]["figures"] if figure["group"]]
        parts = [_attribute(report, one, name, figures) for name in _attributes(figures)]
        if not parts:
            continue
        title = f"{one['set']}, judged by {one['judge']}"
        made.append(element("details", element("summary", f"The same of {title}"), parts) if made else join(parts))
    notes = notes_of(all_notes(report, "fairness"))
    by_group = [element("p", _ABOUT, class_="intro"), made, notes] if made else []
    benchmark = _benchmark_groups(report)
    return join([by_group, benchmark]) if by_group or benchmark else None


def _attributes(figures: list[Figure]) -> list[str]:
    return list(dict.fromkeys(figure["group"].split("=")[0] for figure in figures))


def _attribute(report: Report, one: dict[str, Any], attribute: str, figures: list[Figure]) -> list[Markup | None]:
    """Return charts and tables of the groups of one attribute."""
    found = {(f["id"], f["group"]): f for f in figures if f["group"].split("=")[0] == attribute}
    groups = list(dict.fromkeys(group for _, group in found if "=" in group))
    words = [group.split("=", 1)[1] for group in groups]
    names = [name for name in dict.fromkeys(name for name, group in found if "=" in group)
             if any(found.get((name, group), {"value": None})["value"] is not None for group in groups)]
    charts = []
    for name in (name for name in _CHARTS if name in names):
        named = [(word, found.get((name, group))) for word, group in zip(words, groups, strict=True)]
        charts.append(draw_intervals(report.glossary, name, [(word, figure) for word, figure in named if figure]))

    def rows(chosen: list[str]) -> list[tuple[Markup, list[Figure | None]]]:
        return [(report.glossary.link(name), [*(found.get((name, group)) for group in groups),
                                              found.get((f"{name}_spread", attribute))]) for name in chosen]

    headings = [*words, "Spread"]
    caption = f"{one['set']} by {attribute}, judged by {one['judge']}"
    rest = [name for name in names if name not in _FIRST]
    word = "figure" if len(rest) == 1 else "figures"
    more = element("details", element("summary", f"{len(rest)} more {word} by {attribute}"),
                   matrix(report.glossary, caption, headings, rows(rest)))
    return [element("h3", f"By {attribute}"), element("div", charts, class_="charts"),
            matrix(report.glossary, caption, headings, rows([name for name in _FIRST if name in names])),
            more if rest else None]


def _benchmark_groups(report: Report) -> list[Markup | None]:
    """Return the accuracy of the run's recognizer on each group of a benchmark that has groups."""
    content = report.data["benchmark"]
    section = content["fairness"] if content else None
    if not section:
        return []
    made: list[Markup | None] = []
    for name in _attributes(section["figures"]):
        found = {(f["id"], f["group"]): f for f in section["figures"] if f["group"].split("=")[0] == name}
        groups = list(dict.fromkeys(group for _, group in found if "=" in group))
        words = [group.split("=", 1)[1].capitalize() for group in groups]
        over = [found.get((f"fairness.benchmark_{what}", name)) for what in ("mean", "std")]
        rows = [
            (report.glossary.link(figure), [*(found.get((figure, group)) for group in groups), *more,
                                            found.get((f"{figure}_spread", name))])
            for figure, more in (("fairness.benchmark_accuracy", over), ("fairness.benchmark_eer", [None, None]))
            if any(found.get((figure, group), {"value": None})["value"] is not None for group in groups)
        ]
        accuracies = [(word, found["fairness.benchmark_accuracy", group])
                      for word, group in zip(words, groups, strict=True)]
        chart = draw_intervals(report.glossary, "fairness.benchmark_accuracy", accuracies)
        made += [
            element("h3", f"A recognizer on the groups of {name.upper()}"),
            element("div", chart, class_="charts") if chart else None,
            matrix(report.glossary, f"{name.upper()}: the recognizer {content['backbone']}, by group",
                   [*words, "Mean", "Deviation", "Spread"], rows),
        ]
    return [*made, notes_of(section["notes"])]
