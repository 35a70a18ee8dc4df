"""The sections of the page with metrics: identity, diversity, quality, privacy, fairness.

Every function returns the blocks of its section, none when nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from facesyn_cli.evaluation.all_metrics import declared, metric
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.report.blocks import Block, Box, Cell, Chart, Details, Heading, Notes, Paragraph, Row, Span, Table
from facesyn_cli.report.charts import draw_curve, draw_histogram, draw_intervals, merge_curves
from facesyn_cli.report.figure_text import MISSING, Figure, error_text, value_text
from facesyn_cli.report.view import LEVELS, ReportView, Section, by_id

_MOST_PAIRS, _MOST_SHEET, _MOST_STRIPS = 12, 24, 8
_ABOUT_GROUPS = (
    "Scores of a group are those of pairs inside it. False matches and false non-matches are counted at one "
    "threshold for all groups: the score that 0.1 % of all pairs of different people in the set reach. "
    "Spread is the largest value minus the smallest."
)


def judge_section(view: ReportView, name: str) -> list[Block]:
    """Return verdicts, charts, lists, tables and notes of a section, the first judge first, then other networks."""
    parts = view.of_judge(view.judge, name)
    if not any(section["figures"] for section in parts.values()):
        return []
    several = len(parts) > 1
    blocks: list[Block] = [
        Paragraph([_status(section["verdict"]["level"]), f" {owner}: " if several else " ", section["verdict"]["text"]])
        for owner, section in parts.items() if section["verdict"]
    ]
    blocks += _in_columns(_charts(view, parts))
    for owner, section in parts.items():
        for one in section["lists"]:
            if metric(one["id"]).show != "sheet":
                blocks += image_list(view, one, owner if several else "")
    blocks.append(Heading("Figures"))
    columns = view.columns(name)
    for heading, figures in columns:
        blocks += _matrices(view, heading, figures)
    names = _ids(one["sections"][name] for one in view.data["results"])
    blocks += _table(view, columns, [one for one in names if metric(one).cell is None])
    blocks += _notes(one["sections"][name] for one in view.data["results"])
    for judge in view.data["judges"][1:]:
        charts = _charts(view, view.of_judge(judge["name"], name))
        if charts:
            blocks.append(Details(f"The same charts by {judge['name']}", _in_columns(charts)))
    for network in view.data["networks"]:
        if network["section"] == name:
            blocks += _of_network(view, network)
    return blocks


def diversity(view: ReportView) -> list[Block]:
    """Return variety and near-duplicates, then light, contrast and pose, which need no judge."""
    pixels = view.data["pixels"]
    charts = [
        draw_histogram(_titled(view, one["id"], name if len(pixels) > 1 else ""), one)
        for name, section in pixels.items() for one in section["histograms"]
    ]
    blocks = judge_section(view, "diversity")
    if _ids(pixels.values()) or any(charts):
        blocks.append(Heading("Light, contrast and pose"))
        blocks += _in_columns([chart for chart in charts if chart])
        blocks += _table(view, [(name, by_id(one)) for name, one in pixels.items()], _ids(pixels.values()))
        blocks += _notes(pixels.values())
    return blocks


def fairness(view: ReportView) -> list[Block]:
    """Return the figures by group of every attribute, the first set and judge first, and the groups of a benchmark."""
    blocks: list[Block] = []
    for one in view.data["results"]:
        figures = one["sections"]["fairness"]["figures"]
        parts = [block for name in _attributes(figures) for block in _attribute(view, one, name, figures)]
        if parts and blocks:
            blocks.append(Details(f"The same figures of {one['set']}, by judge {one['judge']}", parts))
        elif parts:
            blocks = [Paragraph(_ABOUT_GROUPS, "intro"), *parts]
    if blocks:
        blocks += _notes(one["sections"]["fairness"] for one in view.data["results"])
    return blocks + _benchmark_groups(view)


def image_list(view: ReportView, one: dict[str, Any], of: str = "") -> list[Block]:
    """Return the pictures of a list with its heading; nothing when it is empty."""
    rows, found = one["rows"], metric(one["id"])
    if not rows:
        return []
    if found.show == "sheet":
        shown, draw = rows[:_MOST_SHEET], view.pictures.scored_sheet
    elif _is_of_pairs(one):
        shown, draw = rows[:_MOST_PAIRS], view.pictures.pairs
    else:
        shown, draw = rows[:_MOST_STRIPS], view.pictures.identities
    left = f" Shown are the first {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ""
    return [Box([Heading(found.title + (f": {of}" if of else "")), Paragraph(found.text + left, "quiet"), draw(shown)])]


def _is_of_pairs(one: dict[str, Any]) -> bool:
    """Return whether a list is shown as pairs of images."""
    return metric(one["id"]).show == "pairs" or all(len(row["images"]) == 2 for row in one["rows"])


def reference_images(data: dict[str, Any]) -> list[str]:
    """Return the keys of the images of the reference that the page shows: those in pairs, by the first judge."""
    judge = data["results"][0]["judge"] if data["results"] else None
    lists = [one for result in data["results"] if result["judge"] == judge
             for section in result["sections"].values() for one in section["lists"]]
    rows = [row for one in lists if _is_of_pairs(one) for row in one["rows"][:_MOST_PAIRS]]
    shown = [image for row in rows for image in row["images"]]
    return list(dict.fromkeys(image["key"] for image in shown if image["set"] == REFERENCE))


def _of_network(view: ReportView, network: dict[str, Any]) -> list[Block]:
    """Return the charts, lists, figures and notes of a network that is no judge."""
    parts = network["sets"]
    heading = {"quality": "In the features of", "diversity": "Perceptual distance by"}[network["section"]]
    blocks: list[Block] = [Heading(f"{heading} {network['name']}"), Paragraph(network["about"], "quiet")]
    blocks += _in_columns(_charts(view, parts))
    for owner, section in parts.items():
        for one in section["lists"]:
            blocks += image_list(view, one, owner if len(parts) > 1 else "")
    blocks += _table(view, [(owner, by_id(section)) for owner, section in parts.items()], _ids(parts.values()))
    return blocks + _notes(parts.values())


def _charts(view: ReportView, parts: dict[str, Section]) -> list[Chart]:
    several = len(parts) > 1
    charts: list[Chart | None] = []
    for kind, draw in (("histograms", draw_histogram), ("curves", draw_curve)):
        for name in dict.fromkeys(one["id"] for section in parts.values() for one in section[kind]):
            named = [(owner, one) for owner, section in parts.items() for one in section[kind] if one["id"] == name]
            merged = merge_curves(named) if several and kind == "curves" else None
            if merged:
                charts.append(draw_curve([view.term(name)], merged))
            else:
                charts += [draw(_titled(view, name, owner if several else ""), one) for owner, one in named]
    return [chart for chart in charts if chart]


def _titled(view: ReportView, name: str, of: str) -> list[Any]:
    return [view.term(name), f": {of}" if of else ""]


def _in_columns(charts: Sequence[Chart]) -> list[Block]:
    return [Box(charts, "charts")] if charts else []


def _table(view: ReportView, columns: Sequence[tuple[str, dict[str, Figure]]], names: Sequence[str]) -> list[Block]:
    """Return a table with one row per figure and one column per set and judge."""
    if not names:
        return []
    single = len(columns) == 1
    rows = []
    for name in names:
        found = [figures.get(name) for _, figures in columns]
        rows.append(Row(view.term(name), [
            *(_cell(figure) for figure in found), Cell(_counted(found), css="quiet counted"),
            Cell(metric(name).better or MISSING, css="quiet"),
        ]))
    headings = ["Value" if single else heading for heading, _ in columns]
    return [Table(["Figure", *headings, "Counted over", "Better"], rows)]


def _matrices(view: ReportView, heading: str, figures: dict[str, Figure]) -> list[Block]:
    """Return the tables of the figures with a `cell`; the name of a row links to the definition."""
    captions: dict[str, dict[str, dict[str, Figure]]] = {}
    for one in declared():
        if one.cell and one.id in figures:
            caption, row, column = one.cell
            captions.setdefault(caption, {}).setdefault(row, {})[column] = figures[one.id]
    blocks: list[Block] = []
    for caption, rows in captions.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        made = []
        for word, row in rows.items():
            first = row[columns[0]] if columns[0] in row else next(iter(row.values()))
            limit = first.get("threshold")
            label = f"{word} ({limit:.3f})" if limit is not None and "above 0." not in word else word
            cells = [_cell({**row[column], "threshold": None} if column in row else None) for column in columns]
            made.append((view.term(first["id"], label), cells))
        blocks.append(_matrix(f"{caption}: {heading}", columns, made))
    return blocks


def _matrix(caption: str, columns: Sequence[str], rows: Iterable[tuple[Any, Sequence[Cell]]]) -> Table:
    return Table([Span("Figure", "spoken"), *columns], [Row(header, cells) for header, cells in rows], caption)


def _cell(figure: Figure | None) -> Cell:
    if figure is None or figure["value"] is None:
        return Cell(value_text(figure))
    at = f"at score {figure['threshold']:.3f}" if figure.get("threshold") is not None else ""
    return Cell(value_text(figure), ", ".join(part for part in (error_text(figure), at) if part))


def _counted(figures: Sequence[Figure | None]) -> str:
    """Return what a row of figures was counted over; of sets of different sizes the least and the most."""
    known = [figure for figure in figures if figure and figure.get("n") is not None]
    if not known:
        return MISSING
    low, high = (choose(figure["n"] for figure in known) for choose in (min, max))
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    sampled = "" if all(figure.get("exact", True) for figure in known) else " (sampled)"
    return f"{count} {known[0].get('of') or ''}{sampled}".strip()


def _status(level: str) -> Span:
    tone, word = LEVELS[level]
    return Span(word, f"status {tone}")


def _notes(sections: Iterable[Section]) -> list[Block]:
    """Return the notes of several sections, each once."""
    notes = list(dict.fromkeys(note for section in sections for note in section["notes"]))
    return [Notes(notes)] if notes else []


def _ids(sections: Iterable[Section]) -> list[str]:
    return list(dict.fromkeys(f["id"] for section in sections for f in section["figures"] if f["group"] is None))


def _attributes(figures: Sequence[Figure]) -> list[str]:
    return list(dict.fromkeys(figure["group"].split("=")[0] for figure in figures if figure["group"]))


def _groups(figures: Sequence[Figure], attribute: str) -> tuple[dict[tuple[str, str], Figure], list[str], list[str]]:
    """Return the figures of one attribute by (id, group), its groups, and the ids that have a value in any group."""
    found = {(f["id"], f["group"]): f for f in figures if f["group"] and f["group"].split("=")[0] == attribute}
    groups = list(dict.fromkeys(group for _, group in found if "=" in group))
    names = [name for name in dict.fromkeys(name for name, group in found if "=" in group)
             if any(found.get((name, group), {"value": None})["value"] is not None for group in groups)]
    return found, groups, names


def _attribute(view: ReportView, one: dict[str, Any], attribute: str, figures: Sequence[Figure]) -> list[Block]:
    """Return charts and tables of the groups of one attribute."""
    found, groups, names = _groups(figures, attribute)
    words = [group.split("=", 1)[1] for group in groups]
    charts = []
    for name in (name for name in names if metric(name).by_group == "chart"):
        named = [(word, found[name, group]) for word, group in zip(words, groups, strict=True)
                 if (name, group) in found]
        charts.append(draw_intervals(view.term(name), name, named))

    def matrix(chosen: list[str]) -> Table:
        rows = [(view.term(name), [*(_cell(found.get((name, group))) for group in groups),
                                   _cell(found.get((f"{name}_spread", attribute)))]) for name in chosen]
        return _matrix(f"{one['set']} by {attribute}, by judge {one['judge']}", [*words, "Spread"], rows)

    rest = [name for name in names if not metric(name).by_group]
    more = matrix(rest) if rest else None
    summary = f"{len(rest)} more {'figure' if len(rest) == 1 else 'figures'} by {attribute}"
    return [
        Heading(f"By {attribute}"), Box([chart for chart in charts if chart], "charts"),
        matrix([name for name in names if metric(name).by_group]), *([Details(summary, [more])] if more else []),
    ]


def _benchmark_groups(view: ReportView) -> list[Block]:
    """Return the accuracy of the run's recognizer on each group of a benchmark that has groups."""
    content = view.data["benchmark"]
    section = content["fairness"] if content else None
    if not section:
        return []
    blocks: list[Block] = []
    for attribute in _attributes(section["figures"]):
        found, groups, names = _groups(section["figures"], attribute)
        words = [group.split("=", 1)[1].capitalize() for group in groups]
        over = [found.get((f"fairness.benchmark_{what}", attribute)) for what in ("mean", "std")]
        accuracy = "fairness.benchmark_accuracy"
        rows = [
            (view.term(name), [_cell(one) for one in (
                *(found.get((name, group)) for group in groups), *(over if name == accuracy else (None, None)),
                found.get((f"{name}_spread", attribute)),
            )]) for name in names
        ]
        accuracies = [(word, found[accuracy, group]) for word, group in zip(words, groups, strict=True)]
        chart = draw_intervals(view.term(accuracy), accuracy, accuracies)
        blocks += [
            Heading(f"A recognizer on the groups of {attribute.upper()}"), *_in_columns([chart] if chart else []),
            _matrix(f"{attribute.upper()}: the recognizer {content['backbone']}, by group",
                    [*words, "Mean", "Deviation", "Spread"], rows),
        ]
    return blocks + _notes([section])
