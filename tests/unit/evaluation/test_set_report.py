"""All sections of a set together: every figure is defined, JSON is plain, and the comparison adds up."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from made_embeddings import people, picture

from facesyn_cli.contexts.unique import Unique
from facesyn_cli.evaluation.all_metrics import define
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.evaluation.near_duplicates import thumbnail
from facesyn_cli.evaluation.score_counts import count_scores
from facesyn_cli.evaluation.set_report import SECTIONS, Analysis, analyze, compare


def faces(name: str, rows, first: int) -> LabeledEmbeddings:
    thumbnails = np.stack([thumbnail(picture(first + k, 32)) for k in range(len(rows.keys))])
    return replace(rows, name=name, thumbnails=thumbnails)


@pytest.fixture(scope="module")
def sections() -> dict:
    own, training = faces("set", people(40, 5), 0), faces(REFERENCE, people(100, 4, seed=1, prefix="r"), 5000)
    groups = ("identity", {"half": {f"p{i}": "first" if i < 20 else "second" for i in range(40)}})
    how = Analysis(0.3, 10**9, 0, lambda r: Unique(r).select, lambda name, key: None, groups)
    return analyze(own, training, count_scores(training, 10**9, 0), how)


def items(sections) -> list[dict]:
    found = [section.to_json() for section in sections.values()]
    kinds = ("figures", "histograms", "curves", "lists")
    return [item for section in found for kind in kinds for item in section[kind]]


def test_everything_has_a_definition(sections):
    assert tuple(sections) == SECTIONS
    names = {item["id"] for item in items(sections)}
    assert len(define(names)) == len(names) > 60


def test_json_is_plain_and_complete(sections):
    text = json.dumps([section.to_json() for section in sections.values()], allow_nan=False)
    assert len(text) > 10_000
    for figure in (f for s in sections.values() for f in s.to_json()["figures"]):
        assert figure["n"] >= 0 and figure["of"] and figure["unit"] in ("share", "cosine", "count", "")
        assert figure["unit"] != "share" or figure["value"] is None or 0 <= figure["value"] <= 1
        assert (figure["error"] is None) == (figure["error_from"] is None)


def test_what_published_thresholds_mean_to_the_judge_is_said(sections):
    training = people(100, 4, seed=1, prefix="r")
    scores = training.vectors @ training.vectors.T
    impostor = scores[training.owner[:, None] != training.owner[None]]
    note = next(note for note in sections["identity"].notes if "DCFace" in note)
    said = [float(rate) for rate in re.findall(r"([\d.e-]+) %", note)]
    assert said == pytest.approx([100 * (impostor >= t).mean() for t in (0.3, 0.4)], rel=0.02) and said[0] > said[1]
    assert "the reference" in note


def test_groups_have_the_figures_of_the_whole_set(sections):
    whole = {f.id for name in ("identity", "diversity", "quality", "privacy") for f in sections[name].figures}
    group = {f.id.removeprefix("fairness.") for f in sections["fairness"].figures if f.group == "half=first"}
    faults = {"wrong_label_share", "mixed_identities", "split_identities", "near_duplicates_within",
              "near_duplicates_between"}
    yardsticks = {name for name in whole if name.startswith(("privacy.real", "identity.real"))}
    assert yardsticks and whole - group == yardsticks | {name for name in whole if name.split(".")[1] in faults}


def test_without_a_reference_the_notes_say_what_is_missing():
    how = Analysis(0.3, 10**9, 0, lambda r: Unique(r).select, lambda name, key: None)
    found = analyze(faces("set", people(20, 3), 0), None, None, how)
    for name in ("quality", "privacy", "fairness"):
        assert not found[name].figures and found[name].notes
    assert found["identity"].figures and found["diversity"].value("diversity.vendi") > 1


def test_comparison():
    def result(name: str, value: float, error: float | None) -> dict:
        figure = {"id": "identity.eer", "value": value, "error": error, "group": None}
        return {"set": name, "judge": "j", "sections": {"identity": {"figures": [figure]}}}

    rows = compare([result("a", 0.1, 0.03), result("b", 0.3, 0.04), result("c", 0.12, None)], ["a", "b", "c"])
    assert rows[0]["difference"] == pytest.approx(0.2) and rows[0]["error"] == pytest.approx(0.05)
    assert rows[0]["clear"] and rows[0]["values"] == [0.1, 0.3]
    assert rows[1]["error"] is None and rows[1]["clear"] is None
    assert compare([result("a", 0.1, 0.03)], ["a"]) == []
