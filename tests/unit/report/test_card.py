"""The dataset card: a valid head, the way the set was made, licenses with `unknown` said aloud, privacy findings."""

from __future__ import annotations

import re

import pytest
import yaml
from made_report import report

from facesyn_cli.report.card import render_card, write_card
from facesyn_cli.report.provenance import inputs_of, license_of, stages_of


@pytest.fixture
def card() -> str:
    data = report()
    return render_card(data, data["sets"][0]["name"])


def test_head_is_yaml_with_what_hubs_read(card: str) -> None:
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "other" and head["size_categories"] == ["n<1K"]
    assert "synthetic" in head["tags"]


def test_says_how_it_was_made(card: str) -> None:
    assert "`scheduler.steps=50`" in card and "`seed=7`" in card
    assert card.index("`facesyn train-ldm`") < card.index("`facesyn sample`")


def test_license_of_every_input_and_unknown_aloud(card: str) -> None:
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert any("CASIA-WebFace" in row and "research only" in row for row in rows)
    assert any("FFHQ" in row and "non-commercial" in row for row in rows)
    assert any(row.startswith("| contexts | sample") and row.endswith("unknown | unknown |") for row in rows)


def test_what_a_stage_of_the_run_made_is_no_input() -> None:
    one = report()["sets"][0]
    assert [found.role for found in inputs_of(one)] == ["images", "autoencoder", "contexts"]
    assert [stage["command"] for stage in stages_of(one)] == ["train-ldm", "sample"]


def test_privacy_findings_and_limits_are_there_and_their_lack_is_said(card: str) -> None:
    assert "**Fault**" in card and "Limits: One judge." in card
    data = report(1)
    data["reference"] = None
    assert "Unknown: the set was not compared" in render_card(data, data["sets"][0]["name"])


def test_networks_that_are_no_judges_are_named(card: str) -> None:
    assert "### Diversity, by lpips-alex" in card and "- lpips-alex, `sha256:33`" in card
    assert any("LPIPS within an identity" in row and "0.200" in row for row in card.splitlines())


def test_a_set_of_unknown_making_says_so() -> None:
    data = report(1)
    data["sets"][0] |= {"header": None, "chain": [], "origins": {"unknown": 41}}
    card = render_card(data, data["sets"][0]["name"])
    assert "License: unknown.\n" in card and "may show real people" in card
    assert "synthetic" not in card.split("---\n")[1]


@pytest.mark.parametrize(("origins", "says", "people"), [
    ({"generated": 41}, "Origin of the 41 images: generated: 41.", "No image is meant to show a real person"),
    ({"generated": 36, "photo": 5}, "generated: 36; photos of real people: 5.", "It shows real people"),
    ({"generated": None, "unknown": None}, "generated: some; of unknown origin (real people or not): some.",
     "may show real people"),
])
def test_the_origin_of_the_images_is_said_with_counts(origins, says, people) -> None:
    data = report(1)
    data["sets"][0]["origins"] = origins
    card = render_card(data, data["sets"][0]["name"])
    assert says in card and people in card
    is_generated = list(origins) == ["generated"]
    assert ("synthetic" in card.split("---\n")[1]) == ("Generated face images" in card) == is_generated


def test_a_known_set_of_unknown_making_has_its_own_license() -> None:
    data = report(1)
    data["sets"][0] |= {"header": None, "chain": [], "path": "/data/celeba112.zip",
                        "origins": {"unknown": 41}}
    card = render_card(data, data["sets"][0]["name"])
    assert "seems to be CelebA: non-commercial research only." in card


def test_names_of_strangers_stay_text_and_paths_private(card: str) -> None:
    body = card.split("---\n", 2)[2]  # the head is data for a YAML reader
    assert "script" in body and not re.search(r"(?<!\\)(<|\]\()", body)  # neither a tag nor a link opens
    assert "\u202e" not in card
    assert card.encode("utf-8") and "private" not in card
    widths = {line.count(" | ") for line in card.splitlines() if line.startswith("| contexts")}
    assert widths == {5}


def test_card_of_an_unknown_set_is_an_error_and_of_a_known_one_written(tmp_path, card: str) -> None:
    data = report()
    with pytest.raises(KeyError):
        render_card(data, "no such set")
    path = write_card(tmp_path / "cards" / "x", data, data["sets"][0]["name"])
    assert path.name == "README.md" and path.read_text(encoding="utf-8") == card


@pytest.mark.parametrize(("path", "license"), [
    ("data/CASIA-112", "research only"),
    ("mobilefacenet_w600k.onnx", "non-commercial research only"),
    ("/home/dcface-fan/projects/x/weights.pt", "unknown"),   # folders far above say nothing
    ("portraits.zip", "unknown"),
    ("site-packages/facesyn_cli/starter/ldm", "research use only, see its own card"),
])
def test_licenses_are_told_from_names_not_guessed(path: str, license: str) -> None:
    assert license_of(path)[1] == license

