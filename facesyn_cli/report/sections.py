"""The sections around those of the judges; each returns its content, or None when there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facesyn_cli.report import galleries, provenance
from facesyn_cli.report.axes import number, percent
from facesyn_cli.report.figures import error_text, scrolling, tiles, value_text
from facesyn_cli.report.judged_sections import SHEET_LISTS, list_of
from facesyn_cli.report.markup import Markup, element, join
from facesyn_cli.report.plots import draw_intervals, draw_training
from facesyn_cli.report.view import LEVELS, Report

JUDGED = {"identity": "Identity", "diversity": "Diversity", "quality": "Quality", "privacy": "Privacy",
          "fairness": "Fairness"}
_NO_PASS_MARK = {"quality": "compare sets by them", "fairness": "read how far the groups lie apart"}
_NOT_CURVES = {"step", "epoch", "val_loss", "images_per_s"}
_BANNER, _OTHER_SHEET = 13, 24  # images
_OTHER_STRIPS = 6               # identities


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
    counts = {level: sum(finding["level"] == level for finding in findings) for level in LEVELS}
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
            verdict = section["verdict"]
            cards.append(_card(verdict["level"], title, verdict["text"], name, verdict["limits"],
                               _by(report, report.judge)))
        elif name == "fairness" and not section["figures"] and _has_groups(report.data["benchmark"]):
            text = f"Measured on a benchmark with groups. These figures have no pass mark: {_NO_PASS_MARK[name]}."
            cards.append(_card("note", title, text, name))
        elif name in _NO_PASS_MARK and section["figures"]:
            text = f"Measured. These figures have no pass mark: {_NO_PASS_MARK[name]}."
            cards.append(_card("note", title, text, name))
        elif section["figures"]:
            text = "None of the faults that are looked for was found."
            cards.append(_card("good", title, text, name, by=_by(report, report.judge)))
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
            charts.append(draw_intervals(report.glossary, name, figures))
    head = element("tr", [element("th", word, scope="col") for word in ("Figure", "Sets", "Values", "Difference", "")])
    shown = {report.judge, *(network["name"] for network in report.data["networks"])}
    clear = [row for row in rows if row["clear"] and row["judge"] in shown]
    others = [row for row in rows if not row["clear"] and row["judge"] in shown]
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
    """Return a contact sheet and strips of every set, smaller ones after the first, and its best and worst images."""
    one, *others = report.data["sets"]
    of = f": {one['name']}" if others else ""
    made = [element("h3", f"At random{of}"), galleries.sheet(report.thumbnails, one["name"], one["random"])]
    made += _strips(report, one, f"By identity{of}", len(one["strips"]))
    section = report.of_judge(report.judge, "identity").get(one["name"])
    sheets = [list_of(report, found) for found in (section["lists"] if section else []) if found["id"] in SHEET_LISTS]
    made.append(element("div", sheets, class_="two"))
    for other in others:
        keys = other["random"][:: max(1, len(other["random"]) // _OTHER_SHEET)][:_OTHER_SHEET]
        made += [element("h3", f"At random: {other['name']}"), galleries.sheet(report.thumbnails, other["name"], keys)]
        made += _strips(report, other, f"By identity: {other['name']}", _OTHER_STRIPS)
    return join(made)


def _strips(report: Report, one: dict[str, Any], heading: str, count: int) -> list[Markup]:
    """Return `count` identities of a set, one row each, spread over those that the report names."""
    wanted = one["strips"][:: max(1, -(-len(one["strips"]) // max(count, 1)))][:count]
    if not wanted:
        return []
    has_source = any(strip["context_face"] for strip in wanted)
    told = ["One row is one identity. ", element("span", class_="tag") if has_source else None,
            " Outlined: the face that its context came from." if has_source else None]
    return [element("h3", heading), element("p", told, class_="quiet"),
            galleries.strips(report.thumbnails, one["name"], wanted)]


def training(report: Report) -> Markup | None:
    """Return the training curves of the work folder."""
    made = []
    for part, title in (("ldm", "Diffusion model"), ("fr", "Recognizer")):
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
    tars = [tar for row in content["rows"] for tar in row["tar"].items()]
    rates = list(dict.fromkeys(rate for rate, value in tars if value is not None))
    ranks = list(dict.fromkeys(rank for row in content["rows"] for rank in row["rank"]))
    words = ["Benchmark", "Pairs", "Accuracy", *(f"TAR at FAR {_together(percent(float(rate)))}" for rate in rates),
             "EER", "AUC", *(f"Rank {rank}" for rank in ranks)]
    body = []
    for row in content["rows"]:
        accuracy = {"value": row["accuracy"], "unit": "share", "error": row["accuracy_std"]}
        cells = [number(row["pairs"]), [value_text(accuracy), element("small", error_text(accuracy))]]
        values = [row["tar"].get(rate) for rate in rates] + [row["eer"], row["auc"]]
        values += [row["rank"].get(rank) for rank in ranks]
        cells += [value_text({"value": value, "unit": "share"}) for value in values]
        if row["problem"]:
            cells = [element("span", row["problem"], class_="quiet")] + [""] * (len(words) - 2)
        body.append(element("tr", element("th", row["benchmark"], scope="row"),
                            [element("td", cell) for cell in cells]))
    for name, group in content["groups"].items():
        accuracy = {"value": group["accuracy"], "unit": "share", "error": group["accuracy_std"]}
        body.append(element("tr", element("th", f"{name}, mean and deviation over groups", scope="row"), element("td"),
                            element("td", value_text(accuracy), element("small", error_text(accuracy))),
                            [element("td") for _ in words[3:]]))
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
        facts.append(("Origin", provenance.origins_text(one)))
        if one["conditioned_on"]:
            facts.append(("Made from embeddings of", _digest(one["conditioned_on"])))
        made += [element("h3", one["name"]), _facts(facts)]
        made += [_stage(stage) for stage in provenance.stages_of(one)]
    judges = [(judge["name"], [f"{judge['backbone']}, {judge['input_size']} pixels, "
                               f"{'with' if judge['flip'] else 'without'} flip, ", _digest(judge["digest"])])
              for judge in report.data["judges"]]
    return join([made, element("h3", "Judges"), _facts(judges),
                 _facts([("Seed", str(report.data["seed"])), ("facesyn", report.data["facesyn"])])])


def _together(text: str) -> str:
    """Return a text that does not break at its spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _has_groups(benchmark: dict[str, Any] | None) -> bool:
    return bool(benchmark and benchmark["fairness"])


def _finding(report: Report, finding: dict[str, Any], several: bool) -> Markup:
    title = JUDGED.get(finding["section"], "Pixels")
    title = f"{title}: {finding['set']}" if several else title
    section = next((one["sections"].get(finding["section"]) for one in report.data["results"]
                    if (one["set"], one["judge"]) == (finding["set"], finding["judge"])), None)
    verdict = section["verdict"] if section else None
    limits = verdict["limits"] if verdict and verdict["text"] == finding["text"] else None
    anchor = finding["section"] if finding["section"] in JUDGED else "diversity"
    return _card(finding["level"], title, finding["text"], anchor, limits, _by(report, finding["judge"]))


def _by(report: Report, network: str | None) -> str | None:
    """Name the judge or other network of a finding, where there are several."""
    several = len(report.data["judges"]) + len(report.data["networks"]) > 1
    return f"judged by {network}" if several and network else None


def _card(
    level: str, title: str, text: str, anchor: str | None = None, limits: str | None = None, by: str | None = None
) -> Markup:
    tone, word = LEVELS[level]
    about = element("details", element("summary", "What this cannot tell"), element("p", limits), class_="limits")
    link = element("a", "Figures and pictures", href=f"#{anchor}")
    head = element("h3", title, element("span", word, class_=f"status {tone}"))
    return element("li", head, element("p", by, class_="by") if by else None, element("p", text),
                   about if limits else None, element("p", link, class_="more") if anchor else None,
                   class_=f"verdict {tone}")


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


def _size(one: dict[str, Any]) -> str:
    return f"{one['images']:,} images of {one['identities']:,} identities"


def _per_identity(one: dict[str, Any]) -> str:
    per = one["per_identity"]
    return f"{per['min']} to {per['max']}, median {number(per['median'])}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
