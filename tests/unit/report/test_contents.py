"""The parts of `report.json` beside the results."""

from __future__ import annotations

import json

from facesyn_cli.report import contents
from facesyn_cli.report.contents import read_results


def test_results_of_earlier_releases_have_todays_ids(tmp_path) -> None:
    names = {"privacy.centre_p50": "privacy.center_p50", "privacy.image-to-centre_max": "privacy.image-to-center_max",
             "fairness.diversity.vendi_centres": "fairness.diversity.vendi_centers",
             "identity.nearest_centre": "identity.nearest_center", "identity.eer": "identity.eer"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"rows": [{"id": name, "text": "the centre"} for name in names]}))
    assert [row["id"] for row in read_results(path)["rows"]] == list(names.values())
    assert {row["text"] for row in read_results(path)["rows"]} == {"the centre"}


def _result(name: str, judge: str, **values: float) -> dict:
    figures = [{"id": key.replace("_", ".", 1), "value": value, "unit": "share", "group": None}
               for key, value in values.items()]
    return {"set": name, "judge": judge, "sections": {"identity": {"figures": figures}}}


def test_the_text_is_a_table_of_figures_with_a_column_for_each_set_and_judge() -> None:
    titles = {"identity.eer": ("Equal error rate", "lower"), "identity.unique_share": ("Unique identities", "higher")}
    data = {
        "headline": list(titles), "networks": [],
        "definitions": {name: {"title": title, "better": better} for name, (title, better) in titles.items()},
        "results": [
            _result("a", "j", identity_eer=0.05, identity_unique_share=0.5), _result("b", "j", identity_eer=0.1)
        ],
        "summary": [{"level": "note", "set": "b", "text": text} for text in ("few images", "b is b")],
    }
    about, table, findings = contents.blocks(data)
    assert about == "measured by judge j" and findings == "note: b: few images\nnote: b is b"
    assert [column.title for column in table.columns] == ["figure", "a", "b", "better"]
    assert table.rows == [["Equal error rate", "5 %", "10 %", "lower"], ["Unique identities", "50 %", "", "higher"]]
    data["results"].append(_result("a", "k", identity_eer=0.2))
    table = contents.blocks(data)[0]
    assert [column.title for column in table.columns] == ["figure", "a, by judge j", "b, by judge j", "a, by judge k",
                                                          "better"]
    assert contents.headline_of(data)["a, by judge k"] == {"identity.eer": 0.2}
