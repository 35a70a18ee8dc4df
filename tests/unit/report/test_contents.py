"""The parts of `report.json` beside the results."""

from __future__ import annotations

import json

from facesyn_cli.report.contents import read_results


def test_results_of_earlier_releases_have_todays_ids(tmp_path) -> None:
    names = {"privacy.centre_p50": "privacy.center_p50", "privacy.image-to-centre_max": "privacy.image-to-center_max",
             "fairness.diversity.vendi_centres": "fairness.diversity.vendi_centers",
             "identity.nearest_centre": "identity.nearest_center", "identity.eer": "identity.eer"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"rows": [{"id": name, "text": "the centre"} for name in names]}))
    assert [row["id"] for row in read_results(path)["rows"]] == list(names.values())
    assert {row["text"] for row in read_results(path)["rows"]} == {"the centre"}
