"""Perceptual distances inside a set: every pair by hand, what a sample leaves out, and what they say of copies."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_embeddings import people, picture

from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.distributed import processes
from facesyn_cli.evaluation import perceptual
from facesyn_cli.evaluation.all_metrics import define
from facesyn_cli.evaluation.perceptual import PerceptualSpace, perceptual_section
from facesyn_cli.models.feature_maps import perceptual_distance

SIDE = 8


def maps(pixels: torch.Tensor) -> list[torch.Tensor]:
    """The pixels themselves, and coarser: a distance that can be followed by hand."""
    return [pixels, torch.nn.functional.avg_pool2d(pixels, 2)]


def space(read, max_images=1000, weights=None, prefix="diversity.perceptual") -> PerceptualSpace:
    return PerceptualSpace(prefix, maps, weights, SIDE, torch.device("cpu"), read, max_images, 0)


def unlike(set_name: str, key: str) -> np.ndarray:
    """Pictures that differ from one another, all of them."""
    return picture(_number(set_name, key), SIDE)


def _number(set_name: str, key: str) -> int:
    person, photo = key.split("/")
    return 1000 * int(person.lstrip("pr")) + int(photo) + (500_000 if set_name == "reference" else 0)


def copies(set_name: str, key: str) -> np.ndarray:
    """The images of a person are one picture."""
    return picture(_number(set_name, key) // 1000, SIDE)


def measured(rows, reference, one: PerceptualSpace):
    """Measure the sets with one process, and return the section."""
    for part in (rows, reference) if reference is not None else (rows,):
        one.measure(part.name, lambda part=part: part, processes("cpu"))
    return perceptual_section(rows, reference, one)


def values(section) -> dict:
    return {figure.id.split(".")[1]: figure for figure in section.figures}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(perceptual_distance(*(maps(to_pixels(x.copy())[None]) for x in (a, b))))


def test_every_pair_of_an_identity_counts():
    rows = people(5, 3)
    section = measured(rows, None, space(unlike))
    own = [np.mean([distance(unlike("set", f"p{c}/{a}"), unlike("set", f"p{c}/{b}"))
                    for a, b in itertools.combinations(range(3), 2)]) for c in range(5)]
    found = values(section)
    assert found["perceptual"].value == pytest.approx(np.mean(own), rel=1e-6) and found["perceptual"].exact
    assert found["perceptual"].error == pytest.approx(np.std(own, ddof=1) / np.sqrt(5), rel=1e-5)
    assert found["perceptual"].n == 5 and found["perceptual"].of == "identities, 15 pairs"
    least = section.lists["diversity.perceptual_least"]
    assert [row.identities[0] for row in least] == [f"p{c}" for c in np.argsort(own)]
    assert [key for _, key in least[0].images] == [f"p{np.argmin(own)}/{k}" for k in range(3)]
    assert sum(section.histograms[0].series["identities"]) == 5


def test_copies_are_at_zero_and_other_people_are_not():
    found = values(measured(people(20, 4), None, space(copies)))
    assert found["perceptual"].value == 0 and found["perceptual_between"].value > 0.1
    assert found["perceptual_between"].n == 20 - 3  # neighbors in each of three batches of 8 identities


def test_weights_count():
    weights = [torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)]
    plain, weighted = (values(measured(people(3, 2), None, space(unlike, weights=w)))["perceptual"]
                       for w in (None, weights))
    assert 0 < weighted.value < plain.value


def test_a_sample_is_near_the_whole_and_says_so():
    rows = people(60, 8)
    whole = values(measured(rows, None, space(unlike)))["perceptual"]
    part = values(measured(rows, None, space(unlike, max_images=80)))["perceptual"]
    assert whole.exact and not part.exact and part.n == 20 and part.of == "identities, 120 pairs"
    assert abs(part.value - whole.value) < 4 * part.error


def test_little_variety_is_called_out_against_real_photos():
    real = replace(people(12, 3, prefix="r"), name="reference")
    alike = measured(people(20, 4), real, space(copies_of_set))
    assert values(alike)["perceptual_real"].n == 12
    assert [finding.level for finding in alike.findings] == ["warning"] and "look alike" in alike.findings[0].text
    assert set(alike.histograms[0].series) == {"identities", "real people"}
    varied = measured(people(20, 4), real, space(unlike))
    assert not varied.findings


def copies_of_set(set_name: str, key: str) -> np.ndarray:
    return (copies if set_name == "set" else unlike)(set_name, key)


def test_a_set_is_looked_at_once_and_images_that_cannot_be_read_are_left_out(monkeypatch):
    asked = []

    def read(set_name: str, key: str) -> np.ndarray | None:
        asked.append(key)
        return None if key == "p0/0" else unlike(set_name, key)

    one = space(read)
    rows = people(4, 2)
    first, second = (values(measured(rows, None, one)) for _ in range(2))
    assert len(asked) == 8 and first == second and first["perceptual"].n == 3
    monkeypatch.setattr(perceptual, "_PAIRS", 1)
    assert values(measured(people(4, 4), None, space(unlike)))["perceptual"].n == 4


def test_single_images_have_no_distance_and_everything_is_defined():
    assert measured(people(5, 1), None, space(unlike)).notes
    for prefix in ("diversity.perceptual", "diversity.lpips"):
        found = measured(people(4, 3), replace(people(4, 3, prefix="r"), name="reference"),
                                   space(unlike, prefix=prefix)).to_json()
        names = {item["id"] for kind in ("figures", "histograms", "lists") for item in found[kind]}
        assert len(names) == 5 and set(define(names)) == names
