"""The page on paper: a run of ordinary size takes few pages, and nothing is cut at the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import ask, needs_browser, num_pages, print_to_pdf
from made_report import MadePictures, figure, report

from facesyn_cli.evaluation.all_metrics import declared
from facesyn_cli.report.contents import definitions_of
from facesyn_cli.report.page import render_page

pytestmark = needs_browser

_SHAPES = {"A4": 718, "letter": 740}  # CSS pixels between the margins


def ordinary() -> dict[str, Any]:
    """Return a report with every figure that there is, and as many pictures as a report shows."""
    data = report(1, "person with a name of ordinary length")
    (one,), (result,) = data["sets"], data["results"]
    name = one["name"]
    one["random"] = [f"a/{k}" for k in range(64)]
    one["strips"] = [{"identity": f"n{k:07d}", "keys": [f"{k}/{j}" for j in range(10)], "context_face": k == 0}
                     for k in range(12)]
    for section, content in result["sections"].items():
        content["figures"] = [
            figure(each.id, 0.1234, each.unit, error=0.0123, threshold=0.31, n=123_456, of="genuine and impostor pairs")
            for each in declared() if each.id.startswith(f"{section}.") and each.better
        ]
        content["lists"] = [
            {"id": each, "rows": [_row(name, k, images) for k in range(24)]} for each, images in {
                "identity": {"identity.best": 1, "identity.worst": 1, "identity.wrong_labels": 2},
                "diversity": {"diversity.least_varied": 8, "diversity.near_duplicates": 2},
                "privacy": {"privacy.top_pairs": 2},
            }.get(section, {}).items()
        ]
    result["sections"]["fairness"]["figures"] = [
        figure(f"fairness.identity.{what}", 0.1, "share", group=f"region={group}", error=0.01)
        for what in ("eer", "consistency") for group in "ABCDEFGHIJKL"
    ]
    (row,) = data["benchmark"]["rows"]
    row["tar"], row["rank"] = {f"1e-0{k}": 0.5 for k in range(1, 7)}, {"1": 0.6, "5": 0.7, "10": 0.8}
    data["benchmark"]["rows"] = [{**row, "benchmark": f"benchmark-{k}"} for k in range(6)]
    data["definitions"] = definitions_of(data)
    return data


def _row(name: str, number: int, images: int) -> dict[str, Any]:
    return {"images": [{"set": name, "key": f"person/{number}-{k}"} for k in range(images)],
            "identities": [f"n{number:07d}"], "score": 0.5, "likeness": 0.9,
            "label": "0.45 to the other, 0.40 to its own"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(ordinary(), MadePictures()), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", _SHAPES)
def test_a_run_of_ordinary_size_takes_eight_pages(page: Path, shape: str) -> None:
    text = page.read_text(encoding="utf-8")
    path = page.with_name(f"{shape}.html")
    path.write_text(text.replace("</style>", f"@page {{ size: {shape}; }}</style>", 1), encoding="utf-8")
    assert 3 <= num_pages(print_to_pdf(path)) <= 8


@pytest.mark.parametrize("shape", _SHAPES)
def test_nothing_is_wider_than_the_paper(page: Path, shape: str) -> None:
    text = page.read_text(encoding="utf-8")
    path = page.with_name(f"width-{shape}.html")
    assert "@media print {" in text
    path.write_text(text.replace("@media print {", "@media all {"), encoding="utf-8")
    width = _SHAPES[shape]
    found = ask(path, """
        const wide = [...document.querySelectorAll("body *:not(.spoken)")].filter((one) => {
          const box = one.getBoundingClientRect();
          return box.width && (box.right > innerWidth + 0.5 || box.left < 0 || one.scrollWidth > one.clientWidth + 1
            && one.clientWidth && getComputedStyle(one).overflowX != "visible");
        }).map((one) => one.outerHTML.slice(0, 200));
        const shown = (name) => [...document.querySelectorAll(name)].some((one) => one.checkVisibility());
        return {wide, bar: shown(".bar"), definitions: shown(".definition"), window: innerWidth,
                ink: getComputedStyle(document.body).color};
    """, width)
    assert found["wide"] == []
    assert found["definitions"] and not found["bar"]
    assert found["ink"] == "rgb(0, 0, 0)"
