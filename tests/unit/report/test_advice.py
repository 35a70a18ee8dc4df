"""The verdicts on figures follow a definition or the reference, and every command that a card shows exists."""

from __future__ import annotations

from typing import Any

import pytest
from command_lines import check, in_lines
from made_report import MadePictures, figure, report

from facesyn_cli.report.advice import _ADVICE, advise, appraise, measure_more
from facesyn_cli.report.glossary import glossary
from facesyn_cli.report.page import render_page
from facesyn_cli.report.view import ReportView


def view_of(kind: str) -> ReportView:
    """Return a report on the images of a run, on those of a run with the starter's networks, or on a folder."""
    data = report(1, "x")
    (one,) = data["sets"]
    one["path"] = "somewhere/my faces.zip" if kind == "folder" else "somewhere/my run/4-samples"
    data["judges"][0]["path"] = "weights/other judge.onnx"
    sampled = {**one["header"], "folder": "4-samples"}
    sampled["config"] = {"identity": {"guidance": {"name": "cfg", "scale": 1.5}}}
    if kind == "starter":
        sampled["parents"] = {"ldm": {"path": "/lib/facesyn_cli/starter/ldm", "digest": "sha256:aa"}}
        one["chain"] = []
    one["chain"] = [] if kind == "folder" else [*one["chain"], sampled]
    return ReportView(data, MadePictures())


@pytest.mark.parametrize("kind", ["run", "starter", "folder"])
def test_every_command_exists_with_its_options_and_settings(kind: str) -> None:
    view = view_of(kind)
    found = [advise(view, name) for name in _ADVICE] + [measure_more(view, name) for name in ("quality", "fairness")]
    lines = [line for one in found if one for line in one.commands]
    assert len(lines) > 5 and len(in_lines(lines)) == len(lines)
    for words in in_lines(lines):
        check(words)
    sampled = [line for line in lines if line.startswith("facesyn sample")]
    assert bool(sampled) == (kind != "folder")
    assert all("--work 'my run'" in line for line in sampled)
    assert all(("--starter packaged" in line) == (kind == "starter") for line in sampled)
    assert not any("somewhere" in line for line in lines)


def test_guidance_is_raised_from_where_it_was() -> None:
    found = advise(view_of("run"), "identity.eer")
    assert found and "it was 1.5" in found.text and "guidance.scale=2.5" in found.commands[0]


@pytest.mark.parametrize(("value", "real", "word"), [
    (0.10, 0.04, "Look at this"),  # 0.06 above, with an error of 0.014
    (0.06, 0.04, "Good"),
    (0.02, 0.04, "Good"),
    (0.10, None, "No threshold"),
])
def test_an_error_rate_is_compared_with_that_of_the_reference(value: float, real: float | None, word: str) -> None:
    view = view_of("run")
    figures = view.data["results"][0]["sections"]["identity"]["figures"]
    figures[:] = [figure("identity.eer", value, "share", error=0.01), figure("identity.real_eer", real, error=0.01)]
    found = appraise(view, figures[0])
    assert found.word == word and (found.advice is None) == (word == "Good")


def test_a_higher_ratio_is_better() -> None:
    view = view_of("folder")
    figures = view.data["results"][0]["sections"]["identity"]["figures"]
    figures[:] = [figure("identity.fdr", 3.0, error=0.1), figure("identity.real_fdr", 9.0, error=0.1)]
    assert appraise(view, figures[0]).word == "Look at this"
    figures[0]["value"] = 12.0
    assert appraise(view, figures[0]).word == "Good"


@pytest.mark.parametrize(("copies", "tone"), [(0.0, "good"), (1.0, "bad")])
def test_a_copy_is_a_problem_by_definition(copies: float, tone: str) -> None:
    assert appraise(view_of("run"), figure("privacy.copies", copies, "count")).tone == tone


def test_a_distance_has_no_threshold_but_the_value_of_real_to_real() -> None:
    view = view_of("run")
    quality: list[dict[str, Any]] = view.data["results"][0]["sections"]["quality"]["figures"]
    quality.append(figure("quality.frechet_floor", 0.0123))
    found = appraise(view, quality[0])
    assert found.word == "No threshold" and "0.0123" in found.text


def test_words_are_explained_before_the_numbers_if_the_page_uses_them() -> None:
    page = render_page(report(1, "x"), MadePictures())
    numbers = page[page.index('<section id="numbers">') : page.index('<section id="faces">')]
    words, figures = numbers.split('<dl class="numbers">')
    assert 'popovertarget="definition-identity-eer">Equal error rate (EER)</button></dt><dd>Share of wrong' in words
    assert "FMR and FNMR" in words and "Leakage" in words and ">AUC</button>" in words
    assert "definition-identity-eer" in figures
    bare = report(1, "x")
    bare["benchmark"] = None
    for result in bare["results"]:
        result["sections"]["privacy"].update(figures=[], lists=[], verdict=None)
    text = render_page(bare, MadePictures())
    assert "What the words mean" in text and ">AUC</button>" not in text and ">Leakage</button>" not in text


def test_a_page_without_figures_has_no_words() -> None:
    assert glossary(ReportView(report(1, "x"), MadePictures())) == []
