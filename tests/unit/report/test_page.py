"""The page: self-contained, well formed, every definition at hand, and no text of strangers that acts as markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from made_report import HOSTILE, MadePictures, figure, report

from facesyn_cli.report.blocks import Box, Cell, Details, Heading, Paragraph, Row, Span, Table
from facesyn_cli.report.charts import with_marks
from facesyn_cli.report.contents import definitions_of
from facesyn_cli.report.page import render_page, write_page
from facesyn_cli.report.pictures import Pictures
from facesyn_cli.report.rendering import TEMPLATES, render_html

VOID = {"br", "circle", "img", "input", "meta", "path", "rect"}


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that what opens is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(re.sub(r"\s*\n\s*", " ", data))  # templates break lines between elements

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(report(), MadePictures())


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    reader = Reader(page)
    assert all(value.startswith("data:image/jpeg;base64,") for value in reader.values("src"))
    assert all(value.startswith("#") for value in reader.values("href"))
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})
    assert not re.search(r"url\(|@import|https?://", page)
    assert any(policy.startswith("default-src 'none'; img-src data:;") for policy in reader.values("content"))


def test_ids_are_unique_and_every_reference_has_one(page: str) -> None:
    reader = Reader(page)
    counts = Counter(reader.values("id"))
    assert max(counts.values()) == 1
    targets = reader.values("popovertarget")
    assert targets and set(targets) <= set(counts)
    assert {value[1:] for value in reader.values("href")} <= set(counts)


def test_every_figure_shown_has_its_definition_at_hand(page: str) -> None:
    reader = Reader(page)
    boxes = {attributes["id"] for _, attributes in reader.tags if "popover" in attributes}
    assert boxes == set(reader.values("popovertarget"))
    assert "definition-identity-eer" in boxes and "definition-fairness-identity-eer" in boxes
    text = "".join(reader.text)
    assert "(FMR(t) + FNMR(t)) / 2 at the t with the least |FMR(t) - FNMR(t)|" in text


def test_names_of_strangers_stay_text(page: str) -> None:
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert "</script><script>alert(1)" in "".join(reader.text)  # readable, as text
    assert "\u202e" not in page and page.encode("utf-8")


def test_policy_admits_the_script_that_is_there_and_no_other(page: str) -> None:
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert any(policy.endswith(f"script-src 'sha256-{digest}'") for policy in Reader(page).values("content"))


def test_every_section_is_there_and_one_without_content_is_not(page: str) -> None:
    wanted = {"summary", "numbers", "compare", "faces", "identity", "diversity", "quality", "privacy", "fairness",
              "training", "benchmark", "origin"}
    assert {a["id"] for tag, a in Reader(page).tags if tag == "section"} == wanted
    data = report(1)
    data["benchmark"], data["training"] = None, {"ldm": None, "fr": None}
    for result in data["results"]:
        result["sections"]["privacy"]["figures"] = []
    lean = Reader(render_page(data, MadePictures()))
    left = {a["id"] for tag, a in lean.tags if tag == "section"}
    assert left == wanted - {"compare", "privacy", "benchmark", "training"}


def test_identities_of_every_set_are_shown() -> None:
    data = report(3)
    for number, one in enumerate(data["sets"]):
        one["strips"] = [{"identity": f"person {number}-{k}", "keys": [f"{k}/0"],
                          "context_face": number == 1 and k == 0} for k in range(12)]
    reader = Reader(render_page(data, MadePictures()))
    shown = [label.removeprefix("images of ") for label in reader.values("aria-label") if "person" in label]
    assert shown == [f"person {number}-{k}" for number, step in ((0, 1), (1, 2), (2, 2)) for k in range(0, 12, step)]
    assert reader.values("class").count("source") == 1


def test_a_network_that_is_no_judge_has_its_figures_compared_and_explained(page: str) -> None:
    reader = Reader(page)
    text = " ".join(reader.text)
    assert "lpips-alex" in text and "At 112 px." in text and "Network note on" in text
    assert "0.200" in text and "0.300" in text          # of both sets, in the table and side by side
    assert {"definition-diversity-lpips", "definition-fairness-benchmark-accuracy"} <= set(reader.values("id"))


def test_groups_of_a_benchmark_stand_with_mean_deviation_and_spread() -> None:
    data = report(1, "african")
    for result in data["results"]:
        result["sections"]["fairness"] = {**result["sections"]["fairness"], "figures": []}
    text = " ".join(Reader(render_page(data, MadePictures())).text)
    table = text[text.index("RFW: the recognizer") :]
    assert re.search(r"African\s+Other\s+Mean\s+Deviation\s+Spread.*80\.0 %.*70 %.*75 %.*7\.07 %.*10 %", table)
    assert "Measured on a benchmark" in text[: text.index("In numbers")]


def test_benchmark_table_has_what_is_there_and_no_empty_columns(page: str) -> None:
    text = " ".join(Reader(page).text)
    table = text[text.index("Recognizer trained on the images") :]
    assert re.search(r"TAR at FAR 0\.10\s%\s+EER\s+AUC\s+Rank 5.*70 %\s+10 %\s+95 %\s+66 %", table)
    assert "0.01 %" not in table[: table.index("Provenance and measurement")]
    assert re.search(r"rfw, mean and deviation over groups.*75\.0 %.*7\.1 %", table)


def test_intervals_of_a_benchmark_stand_below_its_figures() -> None:
    data = report(1, "x")
    data["benchmark"]["rows"][0]["interval"] = {"eer": [0.08, 0.125], "rank 5": [0.6, 0.7]}
    text = " ".join(Reader(render_page(data, MadePictures())).text)
    table = text[text.index("Recognizer trained on the images") :]
    assert re.search(r"70 %\s+10 %\s+8 % to 12\.5 %\s+95 %\s+66 %\s+60 % to 70 %", table)


def test_marks_of_a_histogram_are_in_the_picture() -> None:
    data = report(1, "x")
    found = data["results"][0]["sections"]["identity"]["histograms"][0]
    found["marks"] = [{"x": -0.95, "label": "far away"}, {"x": 7.0, "label": "off the scale"}]
    first, last = with_marks(found["edges"], 8, 18, [-0.95, 7.0, 0.999])
    assert (first, last) == (0, 19)
    assert "far away" in render_page(data, MadePictures())


def test_judges_of_a_verdict_are_named_where_there_are_several(page: str) -> None:
    assert page.split('id="compare"')[0].count("by judge") >= 2
    data = report(1, "x")
    data["networks"] = []
    assert "by judge" not in render_page(data, MadePictures()).split('id="faces"')[0]


def test_groups_have_charts_and_the_rest_behind_a_click() -> None:
    data = report(1, "bright")
    for one in data["results"]:
        one["sections"]["fairness"]["figures"] += [
            figure(name, value, "share", error=0.01, group=f"sex={group}")
            for name in ("fairness.fnmr", "fairness.identity.fmr100")
            for group, value in (("bright", 0.1), ("other", 0.2))
        ]
    data["definitions"] = definitions_of(data)
    reader = Reader(render_page(data, MadePictures()))
    text = " ".join(reader.text)
    assert "1 more figure by sex" in text
    assert any("False non-match rate" in label for label in reader.values("aria-label"))


def test_values_stand_with_their_errors_and_differences_in_words(page: str) -> None:
    text = " ".join(Reader(page).text)
    assert "1.00 %" in text and "0.40 %" in text        # the error rate of the first set and its standard error
    assert "worse" in text                              # an error rate that is clearly higher
    assert "0.1677" in text and "0.0027" in text


def test_paths_of_the_maker_are_not_told(page: str) -> None:
    assert "private/" not in page


def test_missing_and_damaged_pictures_are_said_not_fatal() -> None:
    page = render_page(report(), MadePictures(missing=(f"{HOSTILE}/0",), torn=("Ann/2",)))
    assert page.count(">unreadable</div>") >= 2


def test_same_data_give_the_same_page_and_it_is_written(tmp_path, page: str) -> None:
    path = write_page(tmp_path, report(), MadePictures())
    assert path.read_text(encoding="utf-8") == page


def test_pictures_stop_at_the_size_of_a_page() -> None:
    pictures = Pictures(MadePictures(), most_bytes=50_000)
    made = [pictures.image("a", str(number)) for number in range(20)]
    shown = [one.uri for one in made if one.uri]
    assert 0 < len(shown) < 20 and sum(map(len, shown)) <= 50_000
    assert "left out" in made[-1].missing


def test_a_report_without_reference_or_several_judges_is_a_page() -> None:
    data = report(1)
    data["reference"] = None
    second = {**data["results"][0], "judge": "second"}
    data["judges"].append({**data["judges"][0], "name": "second"})
    data["results"].append(second)
    text = " ".join(Reader(render_page(data, MadePictures())).text)
    assert "The same charts by second" in text


def _shown(*blocks) -> str:
    return render_html(
        "page.html.j2", title="t", version="1", lead="", gallery=None, faces=[], definitions=[], style="", script="",
        script_digest="", sections=[{"anchor": "a", "name": "n", "heading": "h", "blocks": blocks}],
    )


def test_templates_escape_text_and_attributes() -> None:
    made = _shown(Paragraph(["<b>", Span("a & b", "x\" y", tip="'<"), "\u202e\udcff\x00"]),
                  Table(["<i>"], [Row("<u>", [Cell("<s>", "<small>")])], "<caption>"))
    assert '<p>&lt;b&gt;<span class="x&#34; y" data-tip="&#39;&lt;">a &amp; b</span>\ufffd\ufffd\ufffd</p>' in made
    for word in ("i", "u", "s", "small", "caption"):
        assert f"&lt;{word}&gt;" in made
    assert {tag for tag, _ in Reader(made).tags}.isdisjoint({"b", "i", "u", "s"})


def test_blocks_nest_and_every_color_of_a_chart_is_in_the_style_sheet(page: str) -> None:
    made = _shown(Details("more", [Box([Heading("inner")], "two")], is_open=True))
    assert re.search(r'<details open><summary>more</summary>\s*<div class="two"><h3>inner</h3>\s*</div>', made)
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:stroke|fill)-(?:blue|orange|green|purple|gray)", page))
    assert used and all(f".{name} " in style for name in used)
