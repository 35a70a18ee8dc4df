"""The sections of the page that are not about one group of metrics; each function returns its blocks, if any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facesyn_cli.evaluation.all_metrics import metric
from facesyn_cli.report import provenance
from facesyn_cli.report.advice import advice_on, appraise, measure_more
from facesyn_cli.report.blocks import (
    Block,
    Box,
    Cell,
    Details,
    Facts,
    Heading,
    Numbers,
    Paragraph,
    Row,
    Span,
    Table,
    Text,
    Verdict,
    Verdicts,
)
from facesyn_cli.report.charts import draw_intervals, draw_training
from facesyn_cli.report.figure_text import error_text, number, percent, value_text
from facesyn_cli.report.metric_sections import image_list
from facesyn_cli.report.view import LEVELS, ReportView, size_text

TITLES = {"identity": "Identity", "diversity": "Diversity", "quality": "Quality", "privacy": "Privacy",
          "fairness": "Fairness"}
_NO_PASS_MARK = {"quality": "use them to compare sets", "fairness": "the spread over the groups is what counts"}
_NOT_CURVES = {"step", "epoch", "val_loss", "images_per_s"}
_OTHER_SHEET, _OTHER_STRIPS = 24, 6  # images, identities of sets after the first
_ARROW = " \N{RIGHTWARDS ARROW} "


def summary(view: ReportView) -> list[Block]:
    """Return the findings."""
    findings = view.data["summary"]
    counts = {level: sum(finding["level"] == level for finding in findings) for level in ("fault", "warning")}
    found = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    cards = [_finding(view, finding) for finding in findings]
    has_finding = {(finding["set"], finding["section"]) for finding in findings}
    for name in TITLES:
        section = view.of_judge(view.judge, name).get(view.first)
        if section is not None and (view.first, name) not in has_finding:
            cards.append(_state(view, name, section))
    return [
        Paragraph(f"{' and '.join(found)}." if found else "No fault was found.", "intro"), Verdicts(cards),
        Paragraph("Commands name files and folders without the folders above them; words in capitals are yours to "
                  "fill in.", "quiet"),
    ]


def numbers(view: ReportView) -> list[Block]:
    """Return the most important figures of the first set with a verdict each."""
    figures = [view.figure(view.first, view.judge, name) for name in view.data["headline"]]
    rows = [(view.term(figure["id"]), value_text(figure), error_text(figure), appraise(view, figure))
            for figure in figures if figure and figure["value"] is not None]
    about = [Paragraph(f"Of {view.first}.", "quiet")] if len(view.set_names) > 1 else []
    return [*about, Numbers(rows)] if rows else []


def comparison(view: ReportView) -> list[Block]:
    """Return the comparison of several sets, with the errors of the differences."""
    if not view.data["comparison"]:
        return []
    charts = []
    for name in view.data["headline"]:
        figures = [(one, view.figure(one, view.judge, name)) for one in view.set_names]
        known = [figure for _, figure in figures if figure and figure["value"] is not None]
        if len(known) == len(figures) and any(figure["error"] for figure in known):
            charts.append(draw_intervals(view.term(name), name, figures))
    shown = {view.judge, *(network["name"] for network in view.data["networks"])}
    rows = [row for row in view.data["comparison"] if row["judge"] in shown]
    clear, others = ([row for row in rows if bool(row["clear"]) is is_clear] for is_clear in (True, False))
    blocks: list[Block] = [
        Paragraph(f"Bars are two standard errors to each side. A difference is clear when it is larger than two "
                  f"of its standard errors: {len(clear)} of {len(rows)} are.", "intro"),
        Box([chart for chart in charts if chart], "charts"),
    ]
    head = ["Figure", "Sets", "Values", "Difference", ""]
    for title, some in (("Clear differences", clear), ("Differences within the error", others)):
        if some:
            table = Table(head, [_difference(view, row) for row in some])
            blocks.append(Details(f"{title} ({len(some)})", [table], some is clear))
    return blocks


def faces(view: ReportView) -> list[Block]:
    """Return a contact sheet and strips of every set, smaller ones after the first, and its best and worst images."""
    one, *others = view.data["sets"]
    of = f": {one['name']}" if others else ""
    blocks: list[Block] = [Heading(f"At random{of}"), view.pictures.sheet(one["name"], one["random"])]
    blocks += _strips(view, one, f"By identity{of}", len(one["strips"]))
    section = view.of_judge(view.judge, "identity").get(one["name"])
    lists = [found for found in (section["lists"] if section else []) if metric(found["id"]).show == "sheet"]
    blocks.append(Box([block for found in lists for block in image_list(view, found)], "two"))
    for other in others:
        keys = other["random"][:: max(1, len(other["random"]) // _OTHER_SHEET)][:_OTHER_SHEET]
        blocks += [Heading(f"At random: {other['name']}"), view.pictures.sheet(other["name"], keys)]
        blocks += _strips(view, other, f"By identity: {other['name']}", _OTHER_STRIPS)
    return blocks


def training(view: ReportView) -> list[Block]:
    """Return the training curves of the work folder."""
    blocks: list[Block] = []
    for part, title in (("ldm", "Diffusion model"), ("fr", "Recognizer")):
        found = view.data["training"][part]
        if not found:
            continue
        keys = {key for line in found["lines"] for key in line}
        charts = [
            draw_training(f"{title}: {key.replace('_', ' ')}", found["lines"], key,
                          "val_loss" if key == "loss" and "val_loss" in keys else None)
            for key in sorted(keys - _NOT_CURVES, key=lambda key: (key != "loss", key))
        ]
        if any(charts):
            blocks += [Heading(f"{title} ({found['path']})"), Box([chart for chart in charts if chart], "charts")]
    return blocks


def benchmark(view: ReportView) -> list[Block]:
    """Return the benchmark table of the work folder."""
    content = view.data["benchmark"]
    if not content:
        return []
    rates = list(dict.fromkeys(rate for row in content["rows"] for rate, tar in row["tar"].items() if tar is not None))
    ranks = list(dict.fromkeys(rank for row in content["rows"] for rank in row["rank"]))
    tars = [f"TAR at FAR {percent(float(rate))}".replace(" %", "\N{NBSP}%") for rate in rates]
    words: list[Text] = [
        "Benchmark", "Pairs", view.term("benchmark.accuracy"), *(view.term("benchmark.tar", word) for word in tars),
        view.term("benchmark.eer", "EER"), view.term("benchmark.auc", "AUC"), *(f"Rank {rank}" for rank in ranks),
    ]
    rows = []
    for row in content["rows"]:
        figures = {**{f"tar {rate}": row["tar"].get(rate) for rate in rates}, "eer": row["eer"], "auc": row["auc"],
                   **{f"rank {rank}": row["rank"].get(rank) for rank in ranks}}
        cells = [Cell(number(row["pairs"])), _accuracy(row),
                 *(_with_interval(value, row["interval"].get(name)) for name, value in figures.items())]
        if row["problem"]:
            cells = [Cell(Span(row["problem"], "quiet")), *[Cell()] * (len(words) - 2)]
        rows.append(Row(row["benchmark"], cells))
    rest = [Cell()] * (len(words) - 3)
    rows += [Row(f"{name}, mean and deviation over groups", [Cell(), _accuracy(group), *rest])
             for name, group in content["groups"].items()]
    if content["average_accuracy"] is not None and len(content["rows"]) > 1:
        rows.append(Row("Average", [Cell(), _share(content["average_accuracy"]), *rest], "strong"))
    about = (f"{content['backbone']}, weights {provenance.short(content['weights'])}; accuracy with its standard "
             "deviation over the folds, figures of all pairs with their 95 % interval over people.")
    return [Paragraph(about, "intro"), Table(words, rows)]


def origin(view: ReportView) -> list[Block]:
    """Return the origin of the sets, the stages that made them, and the judges."""
    blocks: list[Block] = []
    for one in [*view.data["sets"], *([view.data["reference"]] if view.data["reference"] else [])]:
        per = one["per_identity"]
        facts: list[tuple[str, Text]] = [
            ("From", provenance.last_part(one["path"])), ("Digest", _digest(one["digest"])), ("Size", size_text(one)),
            ("Images of a person", f"{per['min']} to {per['max']}, median {number(per['median'])}"),
        ]
        if one["unreadable"]:
            facts.append(("Left out", f"{one['unreadable']:,} images that could not be read"))
        facts.append(("Origin", provenance.origins_text(one)))
        if one["conditioned_on"]:
            facts.append(("Made from embeddings of", _digest(one["conditioned_on"])))
        blocks += [Heading(one["name"]), Facts(facts), *map(_stage, provenance.stages_of(one))]
    judges: list[tuple[str, Text]] = [
        (judge["name"], [f"{judge['backbone']}, {judge['input_size']} pixels, {'with' if judge['flip'] else 'without'} "
                         "flip, ", _digest(judge["digest"])]) for judge in view.data["judges"]
    ]
    return [*blocks, Heading("Judges"), Facts(judges),
            Facts([("Seed", str(view.data["seed"])), ("facesyn", view.data["facesyn"])])]


def _finding(view: ReportView, finding: dict[str, Any]) -> Verdict:
    """Return the card of a finding."""
    section = next((one["sections"].get(finding["section"]) for one in view.data["results"]
                    if (one["set"], one["judge"]) == (finding["set"], finding["judge"])), None)
    verdict = section["verdict"] if section else None
    limits = verdict["limits"] if verdict and verdict["text"] == finding["text"] else None
    anchor = finding["section"] if finding["section"] in TITLES else "diversity"
    title = _title(view, TITLES.get(finding["section"], "Pixels"), finding["set"])
    return Verdict(*LEVELS[finding["level"]], title, finding["text"], anchor, limits, _by(view, finding["judge"]),
                   advice_on(view, finding))


def _state(view: ReportView, name: str, section: dict[str, Any]) -> Verdict:
    """Return the card of a section of the first set without a finding."""
    title, limits, by = _title(view, TITLES[name], view.first), None, None
    benchmark = view.data["benchmark"]
    level, text, anchor = "note", " ".join(section["notes"]) or "Not measured.", None
    if section["verdict"]:
        verdict = section["verdict"]
        level, text, limits, anchor, by = verdict["level"], verdict["text"], verdict["limits"], name, view.judge
    elif name == "fairness" and not section["figures"] and benchmark and benchmark["fairness"]:
        text = f"Measured on a benchmark with groups. There is no pass mark for these figures: {_NO_PASS_MARK[name]}."
        anchor = name
    elif section["figures"] and name in _NO_PASS_MARK:
        text, anchor = f"Measured. There is no pass mark for these figures: {_NO_PASS_MARK[name]}.", name
    elif section["figures"]:
        level, text, anchor, by = "good", "No fault was found.", name, view.judge
    more = None if section["figures"] or anchor else measure_more(view, name)
    return Verdict(*LEVELS[level], title, text, anchor, limits, _by(view, by), more)


def _title(view: ReportView, title: str, set_name: str) -> str:
    return f"{title}: {set_name}" if len(view.set_names) > 1 else title


def _by(view: ReportView, network: str | None) -> str | None:
    """Return the judge or other network of a finding, where the report has several."""
    several = len(view.data["judges"]) + len(view.data["networks"]) > 1
    return f"by {network}" if several and network else None


def _difference(view: ReportView, row: dict[str, Any]) -> Row:
    found, change = metric(row["id"]), row["difference"]
    values = [value_text({"value": value, "unit": found.unit}) for value in row["values"]]
    figure = {"value": change, "unit": found.unit, "error": row["error"]}
    word: Text = ""
    if row["clear"] and found.better and change is not None:
        is_better = (change > 0) == (found.better == "higher")
        word = Span("better" if is_better else "worse", f"status {'good' if is_better else 'bad'}")
    return Row(view.term(row["id"]), [
        Cell(_ARROW.join((row["first"], row["other"]))), Cell(_ARROW.join(values)),
        Cell(("+" if (change or 0) > 0 else "") + value_text(figure), error_text(figure)), Cell(word),
    ])


def _strips(view: ReportView, one: dict[str, Any], heading: str, count: int) -> list[Block]:
    """Return `count` identities of a set, one row each, spread over those that the report names."""
    strips = one["strips"][:: max(1, -(-len(one["strips"]) // max(count, 1)))][:count]
    if not strips:
        return []
    has_source = any(strip["context_face"] for strip in strips)
    about = [Span("", "tag"), " Outlined: the source face of its context."] if has_source else []
    return [Heading(heading), Paragraph(["One row is one identity. ", *about], "quiet"),
            view.pictures.strips(one["name"], strips)]


def _stage(stage: dict[str, Any]) -> Block:
    inputs = [(role, [provenance.last_part(parent["path"]), " ", _digest(parent["digest"])])
              for role, parent in stage["parents"].items()]
    settings = [(name, str(value)) for name, value in provenance.settings_of(stage).items()]
    title = f"facesyn {stage['command']}" + (f", into {stage['folder']}" if stage.get("folder") else "")
    return Details(title, [Facts([("Version", stage["package_version"]), *inputs, *settings])])


def _accuracy(row: dict[str, Any]) -> Cell:
    figure = {"value": row["accuracy"], "unit": "share", "error": row["accuracy_std"]}
    return Cell(value_text(figure), error_text(figure))


def _with_interval(value: float | None, interval: Sequence[float] | None) -> Cell:
    """Return a share and, where it is known, its 95 % interval below it."""
    below = "" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"
    return Cell(value_text({"value": value, "unit": "share"}), below)


def _share(value: float | None) -> Cell:
    return Cell(value_text({"value": value, "unit": "share"}))


def _digest(digest: str | None) -> Span:
    return Span(provenance.short(digest), "digest", "code", digest)
