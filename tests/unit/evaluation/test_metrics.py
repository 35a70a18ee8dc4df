"""Every figure has one definition, complete and in plain words."""

from __future__ import annotations

import pytest

from facesyn_cli.evaluation.all_metrics import declared, define, headline, metric
from facesyn_cli.evaluation.metrics import Metric, declare

METRICS = {one.id: one for one in declared()}


@pytest.mark.parametrize("name", METRICS)
def test_definitions_are_complete_sentences(name: str) -> None:
    found = METRICS[name]
    assert found.title and found.title[0] == found.title[0].upper() or found.title.startswith("d-")
    assert found.text[0].isupper() and found.text.endswith(".")
    assert not found.formula.endswith(".")
    assert found.better in ("higher", "lower", None)
    assert found.title.isascii() and found.text.isascii() and found.formula.isascii()


def test_titles_within_a_section_differ() -> None:
    titles = [(name.split(".")[0], found.title) for name, found in METRICS.items()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(("name", "part"), [
    ("privacy.image_p999", "99.9 %"),
    ("privacy.real_p50", "50 %"),
    ("privacy.center_max", "highest"),
    ("privacy.image_above_040", "0.40"),
    ("privacy.real_above_fmr1e-5", "FMR 0.001 %"),
    ("fairness.identity.eer", "group"),
    ("fairness.identity.eer_spread", "range over the groups"),
    ("fairness.fmr_spread", "range over the groups"),
    ("fairness.benchmark_accuracy_spread", "range over the groups"),
    ("features.frechet", "features of Inception-v3. Comparable only between sets measured with the same network"),
    ("features.coverage", "Inception"),
])
def test_families_of_names_say_which_member_they_are(name: str, part: str) -> None:
    assert part in metric(name).text


def test_direction_follows_the_member_of_the_family() -> None:
    assert metric("privacy.image_above_030").better == "lower"
    assert metric("privacy.real_above_030").better is None  # a yardstick, not a result
    assert metric("fairness.identity.dprime").better == "higher"
    assert metric("fairness.identity.dprime_spread").better == "lower"


def test_spread_over_images_is_not_taken_for_a_spread_over_groups() -> None:
    assert "over images" in metric("pixels.brightness_spread").formula


@pytest.mark.parametrize("name", ["identity.err", "privacy.image_p", "privacy.images_p50", "fairness.err", "eer",
                                  "features.eer"])
def test_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        define([name])


def test_an_id_is_declared_once() -> None:
    with pytest.raises(ValueError, match="identity.eer"):
        declare(Metric("identity.eer", "Again", "Again."))


def test_headline_follows_the_order_of_the_sections() -> None:
    names = headline()
    assert names[0] == "identity.eer" and names[-1] == "privacy.image_above_fmr1e-4" and len(names) == 12
    ranks = [METRICS[name].headline for name in names]
    assert ranks == sorted(set(ranks))


def test_figures_of_a_matrix_fill_every_cell_once() -> None:
    cells = [found.cell for found in METRICS.values() if found.cell]
    assert len(cells) == len(set(cells))
