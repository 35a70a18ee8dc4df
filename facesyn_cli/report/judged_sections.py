"""The sections that judges speak in: identity, diversity, quality, privacy.

Every function returns the content of its section, or None when nothing was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from facesyn_cli.report import galleries
from facesyn_cli.report.figures import Figure, matrix, table
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.plots import draw_curve, draw_histogram, merge_curves
from facesyn_cli.report.view import LEVELS, Report, Section, by_id

SHEET_LISTS = {"identity.best", "identity.worst"}
_PAIR_LISTS = {"privacy.copies", "privacy.top_pairs", "diversity.near_duplicates", "identity.wrong_labels"}
_MOST_PAIRS, _MOST_SHEET, _MOST_GROUPS = 12, 24, 8
_NEAREST_TABLES = {  # nearest what: headings -> who
    "image": {"Images": "image", "Identities": "center-to-image", "Real strangers, to compare": "real"},
    "identity": {"Images": "image-to-center", "Identities": "center", "Real strangers, images": "real-to-center",
                 "Real strangers, identities": "real-center"},
}
_WHO = "|".join(who for columns in _NEAREST_TABLES.values() for who in columns.values())
_NEAREST = re.compile(rf"privacy\.({_WHO})_(.+)")
_NEAREST_ROWS = {
    "p50": "Median", "p95": "95 % are below", "p99": "99 % are below", "p999": "99.9 % are below", "max": "Closest",
    "above_030": "Share above 0.30", "above_040": "Share above 0.40", "above_fmr1e-4": "Share above FMR 0.01 %",
    "above_fmr1e-5": "Share above FMR 0.001 %", "above_genuine": "Share like two photos of one person",
}


def identity(report: Report) -> Markup | None:
    """Return scores, errors, uniqueness and doubtful labels."""
    return _judged(report, "identity")


def diversity(report: Report) -> Markup | None:
    """Return variety, near-duplicates, and brightness, contrast and pose."""
    made = _judged(report, "diversity")
    names = _ids(report.data["pixels"].values())
    columns = [(name, by_id(section)) for name, section in report.data["pixels"].items()]
    charts = [
        draw_histogram(report.glossary, one, name if len(columns) > 1 else "")
        for name, section in report.data["pixels"].items() for one in section["histograms"]
    ]
    notes = list(dict.fromkeys(note for section in report.data["pixels"].values() for note in section["notes"]))
    if not names and not any(charts):
        return made
    return join([made, element("h3", "Light, contrast and pose"), element("div", charts, class_="charts"),
                 table(report.glossary, columns, names), notes_of(notes)])


def quality(report: Report) -> Markup | None:
    """Return distances to the reference."""
    return _judged(report, "quality")


def privacy(report: Report) -> Markup | None:
    """Return how near the set comes to real training faces, with the nearest pairs."""
    return _judged(report, "privacy")


def _judged(report: Report, name: str) -> Markup | None:
    """Return verdicts, charts, lists, tables and notes of a section, the first judge first."""
    parts = report.of_judge(report.judge, name)
    if not any(section["figures"] for section in parts.values()):
        return None
    several = len(parts) > 1
    made = [_verdicts(parts, several), _in_columns(_charts(report, parts))]
    for set_name, section in parts.items():
        for one in section["lists"]:
            if one["rows"] and one["id"] not in SHEET_LISTS:
                made.append(list_of(report, one, set_name if several else ""))
    made.append(element("h3", "Figures"))
    if name == "privacy":
        made.append(_nearest(report))
    names = [one for one in _ids([one["sections"][name] for one in report.data["results"]]) if not _NEAREST.match(one)]
    made += [table(report.glossary, report.columns(name), names), notes_of(all_notes(report, name))]
    for judge in report.data["judges"][1:]:
        charts = _charts(report, report.of_judge(judge["name"], name))
        if any(charts):
            made.append(element("details", element("summary", f"The same charts by {judge['name']}"),
                                element("div", charts, class_="charts")))
    return join([*made, *(_of_network(report, network) for network in report.networks(name))])


def _of_network(report: Report, network: dict[str, Any]) -> Markup:
    """Return what a network that is no judge found: charts, lists, figures and notes."""
    parts = network["sets"]
    several = len(parts) > 1
    columns = [(set_name, by_id(section)) for set_name, section in parts.items()]
    heading = {"quality": "In the features of", "diversity": "Perceptual distance by"}[network["section"]]
    made: list[Markup | None] = [
        element("h3", f"{heading} {network['name']}"), element("p", network["about"], class_="quiet"),
        _in_columns(_charts(report, parts)),
    ]
    for set_name, section in parts.items():
        made += [list_of(report, one, set_name if several else "") for one in section["lists"]]
    notes = list(dict.fromkeys(note for section in parts.values() for note in section["notes"]))
    return join([*made, table(report.glossary, columns, _ids(parts.values())), notes_of(notes)])


def _in_columns(charts: list[Markup | None]) -> Markup | None:
    return element("div", charts, class_="charts") if any(charts) else None


def _charts(report: Report, parts: dict[str, Section]) -> list[Markup | None]:
    several = len(parts) > 1
    charts = []
    for kind, draw in (("histograms", draw_histogram), ("curves", draw_curve)):
        for name in dict.fromkeys(one["id"] for section in parts.values() for one in section[kind]):
            named = [(owner, one) for owner, section in parts.items() for one in section[kind] if one["id"] == name]
            merged = merge_curves(named) if several and kind == "curves" else None
            if merged:
                charts.append(draw_curve(report.glossary, merged))
            else:
                charts += [draw(report.glossary, one, owner if several else "") for owner, one in named]
    return charts


def list_of(report: Report, one: dict[str, Any], of: str = "") -> Markup | None:
    """Return the pictures of a list with its heading, or None when it is empty."""
    rows = one["rows"]
    if not rows:
        return None
    if one["id"] in SHEET_LISTS:
        shown = rows[:_MOST_SHEET]
        content = galleries.scored_sheet(report.thumbnails, shown)
    elif one["id"] in _PAIR_LISTS or all(len(row["images"]) == 2 for row in rows):
        shown = rows[:_MOST_PAIRS]
        content = galleries.pairs(report.thumbnails, shown)
    else:
        shown = rows[:_MOST_GROUPS]
        content = galleries.groups(report.thumbnails, shown)
    left = f" Shown are the first {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ""
    title = [report.glossary.title(one["id"]), f": {of}" if of else None]
    return element("div", element("h3", title),
                   element("p", report.glossary.text(one["id"]), left, class_="quiet"), content)


def _nearest(report: Report) -> list[Markup]:
    """Return the tables of nearest training images and identities, each with the yardstick of real people."""
    made = []
    for heading, figures in report.columns("privacy"):
        found = {_NEAREST.match(name).groups(): figure for name, figure in figures.items() if _NEAREST.match(name)}
        kinds = list(dict.fromkeys(kind for _, kind in found))
        if not kinds:
            continue
        for what, columns in _NEAREST_TABLES.items():
            first = next(iter(columns.values()))
            rows = [
                (report.glossary.link(f"privacy.{first}_{kind}",
                                      _with_limit(_NEAREST_ROWS.get(kind, kind), found.get((first, kind)))),
                 [_without_limit(found.get((who, kind))) for who in columns.values()])
                for kind in kinds
            ]
            caption = f"Score of the nearest training {what}: {heading}"
            made.append(matrix(report.glossary, caption, list(columns), rows))
    return made


def _with_limit(word: str, figure: Figure | None) -> str:
    limit = figure.get("threshold") if figure else None
    return f"{word} ({limit:.3f})" if limit is not None and "0." not in word.replace("FMR 0.", "") else word


def _without_limit(figure: Figure | None) -> Figure | None:
    return {**figure, "threshold": None} if figure else None


def _verdicts(parts: dict[str, Section], several: bool) -> list[Markup]:
    return [
        element("p", element("span", LEVELS[section["verdict"]["level"]][1],
                             class_=f"status {LEVELS[section['verdict']['level']][0]}"),
                f" {name}: " if several else " ", section["verdict"]["text"])
        for name, section in parts.items() if section["verdict"]
    ]


def notes_of(notes: Sequence[str]) -> Markup | None:
    """Return notes as a list, or None when there are none."""
    return element("ul", [element("li", note) for note in notes], class_="quiet") if notes else None


def all_notes(report: Report, name: str) -> list[str]:
    """Return the notes of a section by all judges, each once."""
    return list(dict.fromkeys(note for one in report.data["results"] for note in one["sections"][name]["notes"]))


def _ids(parts: Sequence[Section]) -> list[str]:
    return list(dict.fromkeys(f["id"] for section in parts for f in section["figures"] if f["group"] is None))
