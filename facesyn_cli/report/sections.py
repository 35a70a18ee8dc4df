"""What each section of the page shows; every function returns the content, or None when there is nothing to show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from facesyn_cli.report import galleries, provenance
from facesyn_cli.report.axes import number, spanning
from facesyn_cli.report.charts import SET_COLOURS, Frame, Interval, intervals
from facesyn_cli.report.figures import Figure, Glossary, error_text, matrix, scrolling, table, tiles, value_text
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.plots import draw_curve, draw_histogram, draw_training, merge_curves
from facesyn_cli.report.thumbnails import Pictures, Thumbnails

Section = dict[str, Any]

JUDGED = {"identity": "Identity", "diversity": "Diversity", "quality": "Quality", "privacy": "Privacy",
          "fairness": "Fairness"}
LEVELS = {"fault": ("bad", "Fault"), "warning": ("caution", "Look at this"), "note": ("unknown", "Note"),
          "good": ("good", "Fine")}
_ORDER = list(LEVELS)
_PAIR_LISTS = {"privacy.copies", "privacy.top_pairs", "diversity.near_duplicates", "identity.wrong_labels"}
_SHEET_LISTS = {"identity.best", "identity.worst"}
_NO_PASS_MARK = {"quality": "compare sets by them", "fairness": "read how far the groups lie apart"}
_NOT_CURVES = {"step", "epoch", "val_loss", "images_per_s"}
_BANNER, _MOST_PAIRS, _MOST_SHEET, _MOST_GROUPS, _OTHER_SHEET = 13, 12, 24, 8, 24
_NEAREST = re.compile(r"privacy\.(image|centre|real)_(.+)")
_NEAREST_ROWS = {
    "p50": "Median", "p95": "95 % are below", "p99": "99 % are below", "p999": "99.9 % are below", "max": "Closest",
    "above_030": "Share above 0.30", "above_040": "Share above 0.40", "above_fmr1e-4": "Share above FMR 0.01 %",
    "above_fmr1e-5": "Share above FMR 0.001 %", "above_genuine": "Share like two photos of one person",
}


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
            made.append((heading, _by_id(one["sections"][name])))
        return made

    def figure(self, set_name: str, judge: str, name: str) -> Figure | None:
        """Return one ungrouped figure, wherever it is."""
        for one in self.data["results"]:
            if (one["set"], one["judge"]) == (set_name, judge):
                for section in one["sections"].values():
                    if name in _by_id(section):
                        return _by_id(section)[name]
        return None


def head(report: Report) -> Markup:
    """Return the head of the page: what was looked at, and a row of faces."""
    one = report.data["sets"][0]
    judges = ", ".join(judge["name"] for judge in report.data["judges"])
    reference = report.data["reference"]
    lead = [f"{_size(one)}. Judged by {judges}." if judges else f"{_size(one)}."]
    if reference:
        lead.append(f" Reference: {_size(reference)}.")
    if len(report.set_names) > 1:
        lead.append(f" Compared with {', '.join(report.set_names[1:])}.")
    keys = one["random"]
    picked = keys[:: max(1, len(keys) // _BANNER)][:_BANNER]
    return element("header", element("h1", report.data["title"]), element("p", lead, class_="lead"),
                   galleries.banner(report.thumbnails, one["name"], picked), class_="hero")


def summary(report: Report) -> Markup:
    """Return the verdicts in words and the most important numbers."""
    findings = report.data["summary"]
    counts = {level: sum(finding["level"] == level for finding in findings) for level in _ORDER}
    said = [f"{counts[level]} {_plural(level, counts[level])}" for level in ("fault", "warning") if counts[level]]
    lead = f"{' and '.join(said)}." if said else "No fault was found by what was measured."
    several = len(report.set_names) > 1
    cards = [_finding(report, finding, several) for finding in findings]
    found = {(finding["set"], finding["section"]) for finding in findings}
    for name, title in JUDGED.items():
        sections = report.of_judge(report.judge, name)
        section = sections.get(report.first)
        if section is None or (report.first, name) in found:
            continue
        title = f"{title}: {report.first}" if several else title
        if section["verdict"]:
            cards.append(_card(section["verdict"]["level"], title, section["verdict"]["text"], name,
                               section["verdict"]["limits"]))
        elif name in _NO_PASS_MARK and section["figures"]:
            cards.append(_card("note", title, f"Measured. These figures have no pass mark: {_NO_PASS_MARK[name]}.", name))
        elif section["figures"]:
            cards.append(_card("good", title, "None of the faults that are looked for was found.", name))
        else:
            cards.append(_card("note", title, " ".join(section["notes"]) or "Not measured."))
    figures = [report.figure(report.first, report.judge, name) for name in report.data["headline"]]
    return join([
        element("p", lead, class_="intro"),
        element("ul", cards, class_="verdicts"),
        element("h3", f"{report.first} in numbers") if several else element("h3", "In numbers"),
        tiles(report.glossary, [figure for figure in figures if figure and figure["value"] is not None]),
    ])


def comparison(report: Report) -> Markup | None:
    """Return several sets side by side, with how sure the differences are."""
    rows = report.data["comparison"]
    if not rows:
        return None
    charts = []
    for name in report.data["headline"]:
        figures = [(one, report.figure(one, report.judge, name)) for one in report.set_names]
        if all(figure and figure["value"] is not None for _, figure in figures) and any(
            figure["error"] for _, figure in figures
        ):
            charts.append(_interval_chart(report, name, figures))
    head = element("tr", [element("th", word, scope="col") for word in ("Figure", "Sets", "Values", "Difference", "")])
    clear = [row for row in rows if row["clear"] and row["judge"] == report.judge]
    others = [row for row in rows if not row["clear"] and row["judge"] == report.judge]
    made = [
        element("p", f"Bars are two standard errors to each side. A difference is called clear when it is larger than "
                     f"two of its standard errors: {len(clear)} of {len(clear) + len(others)} are.", class_="intro"),
        element("div", charts, class_="charts"),
    ]
    for title, some, is_open in (("Clear differences", clear, True), ("Differences within the error", others, False)):
        if some:
            body = element("tbody", [_difference(report, row) for row in some])
            inner = scrolling(element("table", element("thead", head), body))
            made.append(element("details", element("summary", f"{title} ({len(some)})"), inner, open=is_open))
    return join(made)


def faces(report: Report) -> Markup:
    """Return contact sheets and strips of the first set, and a smaller sheet of each other one."""
    one = report.data["sets"][0]
    name = one["name"]
    made = [element("h3", "At random"), galleries.sheet(report.thumbnails, name, one["random"])]
    if one["strips"]:
        has_source = any(strip["context_face"] for strip in one["strips"])
        told = ["One row is one identity. ", element("span", class_="tag") if has_source else None,
                " Outlined: the face that its context came from." if has_source else None]
        made += [element("h3", "By identity"), element("p", told, class_="quiet"),
                 galleries.strips(report.thumbnails, name, one["strips"])]
    section = report.of_judge(report.judge, "identity").get(name)
    sheets = [_list(report, one) for one in (section["lists"] if section else []) if one["id"] in _SHEET_LISTS]
    made.append(element("div", sheets, class_="two"))
    for other in report.data["sets"][1:]:
        keys = other["random"][:: max(1, len(other["random"]) // _OTHER_SHEET)][:_OTHER_SHEET]
        made += [element("h3", f"{other['name']}, at random"), galleries.sheet(report.thumbnails, other["name"], keys)]
    return join(made)


def identity(report: Report) -> Markup | None:
    """Return scores, errors, uniqueness and doubtful labels."""
    return _judged(report, "identity")


def diversity(report: Report) -> Markup | None:
    """Return variety, near-duplicates, and brightness, contrast and pose."""
    made = _judged(report, "diversity")
    names = _ids(report.data["pixels"].values())
    columns = [(name, _by_id(section)) for name, section in report.data["pixels"].items()]
    charts = [
        draw_histogram(report.glossary, one, name if len(columns) > 1 else "")
        for name, section in report.data["pixels"].items() for one in section["histograms"]
    ]
    notes = list(dict.fromkeys(note for section in report.data["pixels"].values() for note in section["notes"]))
    if not names and not any(charts):
        return made
    return join([made, element("h3", "Light, contrast and pose"), element("div", charts, class_="charts"),
                 table(report.glossary, columns, names), _notes(notes)])


def quality(report: Report) -> Markup | None:
    """Return distances to the reference."""
    return _judged(report, "quality")


def privacy(report: Report) -> Markup | None:
    """Return how near the set comes to real training faces, with the nearest pairs."""
    return _judged(report, "privacy")


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
    notes = _notes(_all_notes(report, "fairness"))
    return join([made, notes]) if made else None


def training(report: Report) -> Markup | None:
    """Return the training curves of the work folder."""
    made = []
    for part, title in (("ldm", "Diffusion model"), ("fr", "Recogniser")):
        found = report.data["training"][part]
        if not found:
            continue
        keys = {key for line in found["lines"] for key in line}
        charts = [
            draw_training(f"{title}: {key.replace('_', ' ')}", found["lines"], key,
                          "val_loss" if key == "loss" and "val_loss" in keys else None)
            for key in sorted(keys - _NOT_CURVES, key=lambda key: (key != "loss", key))
        ]
        if any(charts):
            made += [element("h3", f"{title} ({found['path']})"), element("div", charts, class_="charts")]
    return join(made) if made else None


def benchmark(report: Report) -> Markup | None:
    """Return the benchmark table of the work folder."""
    content = report.data["benchmark"]
    if not content:
        return None
    rates = list(dict.fromkeys(rate for row in content["rows"] for rate in row["tar"]))
    words = ["Benchmark", "Pairs", "Accuracy", *(f"TAR at FAR {rate}" for rate in rates), "EER", "AUC"]
    body = []
    for row in content["rows"]:
        accuracy = {"value": row["accuracy"], "unit": "share", "error": row["accuracy_std"]}
        cells = [number(row["pairs"]), [value_text(accuracy), element("small", error_text(accuracy))]]
        cells += [value_text({"value": row["tar"].get(rate), "unit": "share"}) for rate in rates]
        cells += [value_text({"value": row[key], "unit": "share"}) for key in ("eer", "auc")]
        if row["problem"]:
            cells = [element("span", row["problem"], class_="quiet")] + [""] * (len(words) - 2)
        body.append(element("tr", element("th", row["benchmark"], scope="row"),
                            [element("td", cell) for cell in cells]))
    if content["average_accuracy"] is not None and len(content["rows"]) > 1:
        average = value_text({"value": content["average_accuracy"], "unit": "share"})
        body.append(element("tr", element("th", "Average", scope="row"), element("td"), element("td", average),
                            [element("td") for _ in words[3:]], class_="strong"))
    headings = element("tr", [element("th", word, scope="col") for word in words])
    told = (f"{content['backbone']}, weights {provenance.short(content['weights'])}; accuracy with its standard "
            "deviation over the folds.")
    return join([element("p", told, class_="intro"),
                 scrolling(element("table", element("thead", headings), element("tbody", body)))])


def origin(report: Report) -> Markup:
    """Return where the sets came from, how they were made, and with what they were measured."""
    made = []
    for one in [*report.data["sets"], *([report.data["reference"]] if report.data["reference"] else [])]:
        facts = [("From", provenance.last_part(one["path"])), ("Digest", _digest(one["digest"])), ("Size", _size(one)),
                 ("Images of a person", _per_identity(one))]
        if one["unreadable"]:
            facts.append(("Left out", f"{one['unreadable']:,} images that could not be read"))
        if one["conditioned_on"]:
            facts.append(("Made from embeddings of", _digest(one["conditioned_on"])))
        made += [element("h3", one["name"]), _facts(facts)]
        made += [_stage(stage) for stage in provenance.stages_of(one)]
    judges = [(judge["name"], [f"{judge['backbone']}, {judge['input_size']} pixels, "
                               f"{'with' if judge['flip'] else 'without'} flip, ", _digest(judge["digest"])])
              for judge in report.data["judges"]]
    return join([made, element("h3", "Judges"), _facts(judges),
                 _facts([("Seed", str(report.data["seed"])), ("facesyn", report.data["facesyn"])])])


def _judged(report: Report, name: str) -> Markup | None:
    """Return verdicts, charts, lists, tables and notes of a section, the first judge first."""
    parts = report.of_judge(report.judge, name)
    if not any(section["figures"] for section in parts.values()):
        return None
    several = len(parts) > 1
    made = [_verdicts(parts, several), element("div", _charts(report, parts), class_="charts")]
    for set_name, section in parts.items():
        for one in section["lists"]:
            if one["rows"] and one["id"] not in _SHEET_LISTS:
                made.append(_list(report, one, set_name if several else ""))
    made.append(element("h3", "Figures"))
    if name == "privacy":
        made.append(_nearest(report))
    names = [one for one in _ids([one["sections"][name] for one in report.data["results"]]) if not _NEAREST.match(one)]
    made += [table(report.glossary, report.columns(name), names), _notes(_all_notes(report, name))]
    for judge in report.data["judges"][1:]:
        charts = _charts(report, report.of_judge(judge["name"], name))
        if any(charts):
            made.append(element("details", element("summary", f"The same charts by {judge['name']}"),
                                element("div", charts, class_="charts")))
    return join(made)


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


def _list(report: Report, one: dict[str, Any], of: str = "") -> Markup | None:
    rows = one["rows"]
    if not rows:
        return None
    if one["id"] in _SHEET_LISTS:
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
    """Return the table of nearest training faces: images, identities, and the yardstick of real people."""
    made = []
    for heading, figures in report.columns("privacy"):
        found = {_NEAREST.match(name).groups(): figure for name, figure in figures.items() if _NEAREST.match(name)}
        kinds = list(dict.fromkeys(kind for _, kind in found))
        if not kinds:
            continue
        rows = [
            (report.glossary.link(f"privacy.image_{kind}",
                                  _with_limit(_NEAREST_ROWS.get(kind, kind), found.get(("image", kind)))),
             [_without_limit(found.get((who, kind))) for who in ("image", "centre", "real")])
            for kind in kinds
        ]
        headings = ["Images", "Identities", "Real strangers, to compare"]
        made.append(matrix(report.glossary, f"Score of the nearest training face: {heading}", headings, rows))
    return made


def _with_limit(word: str, figure: Figure | None) -> str:
    limit = figure.get("threshold") if figure else None
    return f"{word} ({limit:.3f})" if limit is not None and "0." not in word.replace("FMR 0.", "") else word


def _without_limit(figure: Figure | None) -> Figure | None:
    return {**figure, "threshold": None} if figure else None


def _finding(report: Report, finding: dict[str, Any], several: bool) -> Markup:
    title = JUDGED.get(finding["section"], "Pixels")
    title = f"{title}: {finding['set']}" if several else title
    section = next((one["sections"].get(finding["section"]) for one in report.data["results"]
                    if (one["set"], one["judge"]) == (finding["set"], finding["judge"])), None)
    verdict = section["verdict"] if section else None
    limits = verdict["limits"] if verdict and verdict["text"] == finding["text"] else None
    anchor = finding["section"] if finding["section"] in JUDGED else "diversity"
    return _card(finding["level"], title, finding["text"], anchor, limits)


def _card(level: str, title: str, text: str, anchor: str | None = None, limits: str | None = None) -> Markup:
    tone, word = LEVELS[level]
    about = element("details", element("summary", "What this cannot tell"), element("p", limits), class_="limits")
    link = element("a", "Figures and pictures", href=f"#{anchor}")
    return element("li", element("h3", title, element("span", word, class_=f"status {tone}")), element("p", text),
                   about if limits else None, element("p", link, class_="more") if anchor else None,
                   class_=f"verdict {tone}")


def _verdicts(parts: dict[str, Section], several: bool) -> list[Markup]:
    return [
        element("p", element("span", LEVELS[section["verdict"]["level"]][1],
                             class_=f"status {LEVELS[section['verdict']['level']][0]}"),
                f" {name}: " if several else " ", section["verdict"]["text"])
        for name, section in parts.items() if section["verdict"]
    ]


def _interval_chart(report: Report, name: str, figures: Sequence[tuple[str, Figure]]) -> Markup:
    rows = []
    for index, (one, figure) in enumerate(figures):
        error = 2 * figure["error"] if figure["error"] else None
        low, high = (figure["value"] - error, figure["value"] + error) if error else (None, None)
        if figure["unit"] == "share" and error:
            low, high = max(low, 0.0), min(high, 1.0)
        rows.append(Interval(one, figure["value"], low, high, SET_COLOURS[index % len(SET_COLOURS)]))
    values = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    better = report.glossary.better(name)
    label = f"{better} is better" if better else "neither way is better by itself"
    axis = spanning(label, values, is_share=figures[0][1]["unit"] == "share")
    return intervals(Frame(report.glossary.link(name)), axis, rows)


def _difference(report: Report, row: dict[str, Any]) -> Markup:
    known = report.figure(row["first"], row["judge"], row["id"])
    unit = known["unit"] if known else ""
    values = [value_text({"value": value, "unit": unit}) for value in row["values"]]
    change = {"value": row["difference"], "unit": unit, "error": row["error"]}
    better = report.glossary.better(row["id"])
    word = ""
    if row["clear"] and better and row["difference"] is not None:
        word = "better" if (row["difference"] > 0) == (better == "higher") else "worse"
    return element(
        "tr", element("th", report.glossary.link(row["id"]), scope="row"),
        element("td", f"{row['first']} \N{RIGHTWARDS ARROW} {row['other']}"),
        element("td", f"{values[0]} \N{RIGHTWARDS ARROW} {values[1]}"),
        element("td", ("+" if (row["difference"] or 0) > 0 else "") + value_text(change),
                element("small", error_text(change) or None)),
        element("td", element("span", word, class_=f"status {'good' if word == 'better' else 'bad'}") if word else ""),
    )


def _stage(stage: dict[str, Any]) -> Markup:
    settings = [(name, str(value)) for name, value in provenance.settings_of(stage).items()]
    inputs = [(role, [provenance.last_part(parent["path"]), " ", _digest(parent["digest"])])
              for role, parent in stage["parents"].items()]
    title = f"facesyn {stage['command']}" + (f", into {stage['folder']}" if stage.get("folder") else "")
    return element("details", element("summary", title),
                   _facts([("Version", stage["package_version"]), *inputs, *settings]))


def _facts(pairs: Sequence[tuple[str, Any]]) -> Markup:
    return element("dl", [[element("dt", name), element("dd", value)] for name, value in pairs], class_="facts")


def _digest(digest: str | None) -> Markup:
    return element("code", provenance.short(digest), class_="digest", data_tip=digest)


def _notes(notes: Sequence[str]) -> Markup | None:
    return element("ul", [element("li", note) for note in notes], class_="quiet") if notes else None


def _all_notes(report: Report, name: str) -> list[str]:
    return list(dict.fromkeys(note for one in report.data["results"] for note in one["sections"][name]["notes"]))


def _ids(parts: Sequence[Section]) -> list[str]:
    return list(dict.fromkeys(f["id"] for section in parts for f in section["figures"] if f["group"] is None))


def _by_id(section: Section) -> dict[str, Figure]:
    return {figure["id"]: figure for figure in section["figures"] if figure["group"] is None}


def _size(one: dict[str, Any]) -> str:
    return f"{one['images']:,} images of {one['identities']:,} identities"


def _per_identity(one: dict[str, Any]) -> str:
    per = one["per_identity"]
    return f"{per['min']} to {per['max']}, median {number(per['median'])}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
