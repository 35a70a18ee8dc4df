"""Variety: sets whose Vendi score, recall and repeated pictures are known."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from made_embeddings import labeled, people, picture
from PIL import Image

from facesyn_cli.evaluation.diversity import (
    spread_section,
    vendi_score,
    vendi_section,
)
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.near_duplicates import (
    COPY,
    NEAR_DUPLICATE,
    descriptors,
    duplicates_section,
    likeness,
    thumbnail,
)
from facesyn_cli.evaluation.pixel_statistics import pixel_section


def values(section) -> dict[str, float | None]:
    return {figure.id.split(".")[1]: figure.value for figure in section.figures}


def test_vendi_score_counts_what_is_different():
    axes = np.eye(6)
    assert vendi_score(axes[:1].repeat(5, 0)) == pytest.approx(1)
    assert vendi_score(axes[:4]) == pytest.approx(4)
    assert vendi_score(axes[[0, 0, 0, 1, 1, 1]]) == pytest.approx(2)
    shares = np.array([3, 1]) / 4
    assert vendi_score(axes[[0, 0, 0, 1]]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    many = np.random.default_rng(0).integers(0, 3, 500)          # more rows than columns: the small matrix
    shares = np.bincount(many) / 500
    assert vendi_score(np.eye(3)[many]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_vendi_score_and_its_error_do_not_depend_on_how_they_are_computed():
    """With more numbers than rows the rows' own matrix is used; zeros behind each row change nothing else."""
    rows = people(30, 3, size=64)
    wide = LabeledEmbeddings(rows.keys, rows.identities, np.pad(rows.vectors, ((0, 0), (0, 64))), rows.starts)
    one, other = (vendi_section(part, 0).figures for part in (rows, wide))
    for a, b in zip(one[:2], other[:2], strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5) and a.error == pytest.approx(b.error, rel=1e-3)
        assert a.error > 0


def test_vendi_section():
    rows = labeled(np.eye(4).repeat(3, 0), [f"p{i}" for i in range(4) for _ in range(3)])
    assert values(vendi_section(rows, 0)) == pytest.approx(
        {"vendi": 4, "vendi_centers": 4, "vendi_within": 1})
    mixed = labeled(np.eye(4)[[0, 1, 2, 2, 3, 3]], "aabbcc")
    section = vendi_section(mixed, 0)
    assert values(section)["vendi_within"] == pytest.approx((2 + 1 + 1) / 3)
    assert section.lists["diversity.least_varied"][0].identities == ["b"]
    big = vendi_section(people(50, 3), 0).figures[0]
    assert big.error > 0 and big.error < big.value / 5


def test_d_intra_is_recall_of_the_real_variation():
    real = people(40, 8, spread=0.8, size=8, seed=1)
    same = people(10, 60, spread=0.8, size=8, seed=2)
    alike = people(10, 60, spread=0.05, size=8, seed=3)
    found = [values(spread_section(rows, real, 0)) for rows in (same, alike)]
    assert found[0]["d_intra"] > 0.6 and found[1]["d_intra"] < 0.1
    assert found[0]["within_spread"] > 5 * found[1]["within_spread"]
    swapped = values(spread_section(real, alike, 0))
    assert swapped["d_intra"] > 0.9, "the real variation covers the narrow set, not the other way round"
    assert "d_intra" not in values(spread_section(same, None, 0))


def thumbnails_of(pictures) -> np.ndarray:
    return np.stack([thumbnail(p) for p in pictures])


def encoded(pixels_u8: np.ndarray) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(pixels_u8).save(data, "JPEG", quality=60)
    return np.asarray(Image.open(data))


def faces(pictures: list[np.ndarray], names: Sequence[str]) -> LabeledEmbeddings:
    keys = [f"{name}/{k}" for k, name in enumerate(names)]
    return LabeledEmbeddings.of(keys, names, np.empty((len(keys), 0)), thumbnails=thumbnails_of(pictures))


def test_repeated_pictures_are_found_within_and_between_identities():
    pictures = [picture(k) for k in range(100)]
    noise = np.random.RandomState(0).randint(-15, 16, (112, 112, 3))
    for number in range(5):                                       # 5 % near-duplicates of the first image
        first = pictures[5 * number]
        pictures[5 * number + 3] = np.clip(first + noise, 0, 255).astype(np.uint8) if number % 2 else encoded(first)
    pictures[91] = pictures[2][:, ::-1]                           # mirrored, of another person
    names = [f"p{i // 5}" for i in range(100)]
    section = duplicates_section(faces(pictures, names), 10**9, 0)
    assert values(section) == {"near_duplicates_within": 0.05, "near_duplicates_between": 0.02}
    listed = {tuple(sorted(key for _, key in row.images)) for row in section.lists["diversity.near_duplicates"]}
    assert ("p0/2", "p18/91") in listed and ("p3/15", "p3/18") in listed and len(listed) == 6
    assert [finding.level for finding in section.findings] == ["fault", "fault"]
    few = duplicates_section(faces([picture(k % 199) for k in range(200)], [f"p{k}" for k in range(200)]), 10**9, 0)
    assert [finding.level for finding in few.findings] == ["note"] and "2 of 200 images" in few.findings[0].text
    clean = duplicates_section(faces([picture(k) for k in range(100)], names), 10**9, 0)
    assert set(values(clean).values()) == {0} and not clean.findings
    sampled = duplicates_section(faces(pictures, names), 10_000, 0)
    assert [f.exact for f in sampled.figures] == [True, False] and sampled.figures[1].n == 50


def test_pictures_of_one_color_are_like_nothing():
    section = duplicates_section(faces([np.full((16, 16, 3), 7, dtype=np.uint8)] * 3, "aab"), 10**9, 0)
    assert set(values(section).values()) == {0}


def test_brightness_and_contrast():
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:8] = 200
    section = pixel_section(np.stack([half, np.full((16, 16), 50, np.uint8)]), np.array([0, 1]))
    assert values(section) == pytest.approx(
        {name: value / 255 for name, value in
         {"brightness": 75, "brightness_spread": 25, "contrast": 50, "contrast_spread": 50}.items()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p, ""),
        (encoded, ""),
        (lambda p: p[:, ::-1], "mirrored"),
        (lambda p: np.asarray(Image.fromarray(p[9:97, 14:102]).resize((112, 112))), "cropped"),
        (lambda p: np.asarray(Image.fromarray(p[3:103, 8:108, :][:, ::-1]).resize((112, 112))), "mirrored, cropped"),
    ],
)
def test_copies_are_recognized_by_their_pixels(change, says):
    original = picture(5)
    for pair in ((change(original), original), (original, change(original))):
        value, what = likeness(*pair)
        assert value >= COPY and what == says
    assert likeness(change(original), picture(6))[0] < 0.9


def test_thumbnails_correlate_like_pictures():
    rows = descriptors(thumbnails_of([picture(1), encoded(picture(1)), picture(2), 255 - picture(1)]))
    product = rows @ rows.T
    np.testing.assert_allclose(np.diag(product), 1, atol=1e-5)
    assert product[0, 1] > NEAR_DUPLICATE > 0.7 > product[0, 2] and product[0, 3] < -0.99
