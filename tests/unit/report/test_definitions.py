"""Every figure has one definition, complete and in plain words."""

from __future__ import annotations

import pytest

from facesyn_cli.report.definitions import DEFINITIONS, define, definition


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_are_complete_sentences(name: str) -> None:
    found = DEFINITIONS[name]
    assert found.title and found.title[0] == found.title[0].upper() or found.title.startswith("d-")
    assert found.text[0].isupper() and found.text.endswith(".")
    assert not found.formula.endswith(".")
    assert found.better in ("higher", "lower", None)
    assert found.title.isascii() and found.text.isascii() and found.formula.isascii()


def test_titles_within_a_section_differ() -> None:
    titles = [(name.split(".")[0], found.title) for name, found in DEFINITIONS.items()]
    families = [f"privacy.{who}_{what}" for who in ("image", "center", "real")
                for what in ("p50", "p99", "p999", "max", "above_030", "above_fmr1e-4", "above_fmr1e-5")]
    titles += [("privacy", definition(name).title) for name in families]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(("name", "part"), [
    ("privacy.image_p999", "99.9 %"),
    ("privacy.real_p50", "50 %"),
    ("privacy.center_max", "highest"),
    ("privacy.image_above_040", "0.40"),
    ("privacy.real_above_fmr1e-5", "FMR 0.001 %"),
    ("fairness.identity.eer", "group"),
    ("fairness.identity.eer_spread", "apart"),
    ("fairness.fmr_spread", "apart"),
    ("fairness.benchmark_accuracy_spread", "apart"),
    ("features.frechet", "features of Inception-v3. Comparable only between sets measured with the same network"),
    ("features.coverage", "Inception"),
])
def test_families_of_names_say_which_member_they_are(name: str, part: str) -> None:
    assert part in definition(name).text


def test_direction_follows_the_member_of_the_family() -> None:
    assert definition("privacy.image_above_030").better == "lower"
    assert definition("privacy.real_above_030").better is None  # a yardstick, not a result
    assert definition("fairness.identity.dprime").better == "higher"
    assert definition("fairness.identity.dprime_spread").better == "lower"


def test_spread_over_images_is_not_taken_for_a_spread_over_groups() -> None:
    assert "over images" in definition("pixels.brightness_spread").formula


@pytest.mark.parametrize("name", ["identity.err", "privacy.image_p", "privacy.images_p50", "fairness.err", "eer",
                                  "features.eer"])
def test_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        define([name])
