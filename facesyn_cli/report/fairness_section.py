"""The section on groups of people: what a judge finds in each, and how a recogniser does on each group of a benchmark.

It returns None when nothing was measured.
"""

from __future__ import annotations

from facesyn_cli.report.figures import matrix
from facesyn_cli.report.judged_sections import all_notes, notes_of
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.view import Report


def fairness(report: Report) -> Markup | None:
    """Return every figure by group, one table per attribute, set and judge."""
    made = []
    for one in report.data["results"]:
        figures = [figure for figure in one["sections"]["fairness"]["figures"] if figure["group"]]
        attributes = dict.fromkeys(figure["group"].split("=")[0] for figure in figures)
        for attribute in attributes:
            mine = {(f["id"], f["group"]): f for f in figures if f["group"].split("=")[0] == attribute}
            groups = list(dict.fromkeys(group for _, group in mine if "=" in group))
            names = dict.fromkeys(name for name, group in mine if "=" in group)
            rows = [
                (report.glossary.link(name),
                 [mine.get((name, group)) for group in groups] + [mine.get((f"{name}_spread", attribute))])
                for name in names
            ]
            caption = f"{one['set']} by {attribute}, judged by {one['judge']}"
            headings = [*(group.split("=", 1)[1] for group in groups), "Spread"]
            made.append(matrix(report.glossary, caption, headings, rows))
    benchmark = _benchmark_groups(report)
    notes = notes_of(all_notes(report, "fairness"))
    return join([made, notes if made else None, benchmark]) if made or benchmark else None


def _benchmark_groups(report: Report) -> list[Markup]:
    """Return the accuracy of the run's recogniser on each group of a benchmark that has groups."""
    content = report.data["benchmark"]
    section = content["fairness"] if content else None
    made = []
    for name in dict.fromkeys(f["group"].split("=")[0] for f in section["figures"]) if section else ():
        found = {(f["id"], f["group"]): f for f in section["figures"] if f["group"].split("=")[0] == name}
        groups = list(dict.fromkeys(group for _, group in found if "=" in group))
        over = [found.get((f"fairness.benchmark_{what}", name)) for what in ("mean", "std")]
        rows = [
            (report.glossary.link(figure), [*(found.get((figure, group)) for group in groups), *more,
                                            found.get((f"{figure}_spread", name))])
            for figure, more in (("fairness.benchmark_accuracy", over), ("fairness.benchmark_eer", [None, None]))
        ]
        headings = [*(group.split("=", 1)[1].capitalize() for group in groups), "Mean", "Deviation", "Spread"]
        caption = f"{name.upper()}: the recogniser {content['backbone']}, by group"
        made += [element("h3", f"A recogniser on the groups of {name.upper()}"),
                 matrix(report.glossary, caption, headings, rows)]
    return [*made, notes_of(section["notes"])] if section else []
