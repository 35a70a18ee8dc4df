"""The template protocol against its definition written out with loops."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.benchmarks import TemplateConfig, build_templates
from facesyn_cli.evaluation.templates import RATES, TemplateSet, nearest_tar, read_templates, template_vectors
from facesyn_cli.evaluation.verification import tar_at_far, unit_rows


def by_definition(unit: np.ndarray, template: np.ndarray, medium: np.ndarray) -> dict[int, np.ndarray]:
    """Mean per medium, sum per template, length 1."""
    found = {}
    for t in sorted(set(template.tolist())):
        total = np.zeros(unit.shape[1])
        for m in sorted(set(medium[template == t].tolist())):
            total = total + unit[(template == t) & (medium == m)].mean(0)
        found[t] = total / np.sqrt((total**2).sum())
    return found


def test_templates_are_means_of_media_summed() -> None:
    random = np.random.RandomState(0)
    unit = unit_rows(random.normal(size=(60, 16)))
    template, medium = random.permutation(np.arange(60) % 7), random.randint(0, 4, 60)  # media recur across templates
    expected = by_definition(unit, template, medium)
    found = template_vectors(unit, np.arange(60), template, medium)
    np.testing.assert_allclose(found, list(expected.values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows_at_once", [1, 7, 59])
def test_templates_a_part_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    random = np.random.RandomState(0)
    vectors, image = random.normal(size=(50, 16)), random.randint(0, 50, 60)
    template, medium = random.permutation(np.arange(60) % 7), random.randint(0, 4, 60)
    whole = template_vectors(vectors, image, template, medium)
    monkeypatch.setattr("facesyn_cli.evaluation.templates._ROWS_AT_ONCE", rows_at_once)
    assert np.array_equal(template_vectors(vectors, image, template, medium), whole)


def test_frames_of_one_video_count_once() -> None:
    """Two photos and a video of 98 frames weigh as three media, not as a hundred images."""
    x, y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    unit = np.array([x, x] + [y] * 98)
    medium = np.array([1, 2] + [3] * 98)
    (found,) = template_vectors(unit, np.arange(100), np.zeros(100, int), medium)
    np.testing.assert_allclose(found, np.array([2, 1]) / np.sqrt(5), atol=1e-12)


def nearest_by_definition(distance: np.ndarray, is_same: np.ndarray, far: float) -> float:
    """Every threshold below, between and above the distances; nearest FAR, then the most lenient."""
    thresholds = np.append(np.unique(distance), np.inf)
    points = [(np.mean(distance[~is_same] < t), np.mean(distance[is_same] < t)) for t in thresholds]
    least = min(abs(f - far) for f, _ in points)
    return max(tar for f, tar in points if abs(f - far) <= least + 1e-12)


@pytest.mark.parametrize("steps", [None, 5, 40])
def test_nearest_tar(steps: int | None) -> None:
    """With and without ties."""
    random = np.random.RandomState(1)
    is_same = random.rand(400) < 0.3
    distance = random.normal(size=400) + np.where(is_same, -1.2, 0)
    if steps:
        distance = np.round(distance * steps) / steps
    for far in (*RATES, 0.0, 0.013, 0.5, 0.998, 1.0):
        assert nearest_tar(distance, is_same, far) == pytest.approx(nearest_by_definition(distance, is_same, far)), far


def test_nearest_is_no_bound_and_exact_is() -> None:
    """3 of 10 impostors: nearest to 0.28 is 0.3, which is more; exact stays at 0.2 (and wants enough impostors)."""
    impostor, genuine = np.arange(10.0), np.arange(10.0) + 0.5
    distance, is_same = np.concatenate([genuine, impostor]), np.arange(20) < 10
    assert nearest_tar(distance, is_same, 0.28) == 0.3
    assert tar_at_far(distance, is_same, 0.28) is None
    many, same = np.tile(distance, 10), np.tile(is_same, 10)
    assert tar_at_far(many, same, 0.28) == 0.2
    assert nearest_tar(distance, np.ones(20, bool), 0.1) is None


def made(random: np.random.RandomState, num_templates: int = 40) -> TemplateSet:
    people = np.arange(num_templates) % 10
    template = np.repeat(np.arange(num_templates), 4)
    first, second = np.triu_indices(num_templates, 1)
    return TemplateSet(
        "ijb-c", [f"{k}.jpg" for k in range(len(template))], lambda k: b"", random.permutation(len(template)), template,
        random.randint(0, 3, len(template)), first, second, people[first] == people[second],
    )


def test_figures_are_those_of_the_definition() -> None:
    random = np.random.RandomState(2)
    protocol = made(random)
    vectors = random.normal(size=(160, 12)) * random.uniform(0.5, 20, (160, 1))  # lengths must not matter
    centers = random.normal(size=(10, 12)) * 2
    vectors[protocol.row_image] += centers[protocol.row_template % 10] * np.linalg.norm(
        vectors[protocol.row_image], axis=1, keepdims=True) / 4
    row, scores = protocol.evaluate(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    t = by_definition(unit[protocol.row_image], protocol.row_template, protocol.row_medium)
    expected = np.array([t[a] @ t[b] for a, b in zip(protocol.first, protocol.second, strict=True)])
    np.testing.assert_allclose(scores["score"], expected, rtol=0, atol=1e-12)
    assert (row.pairs, row.genuine, row.accuracy) == (780, 60, None)
    assert list(row.tar) == ["1e-06", "1e-05", "1e-04", "1e-03", "1e-02", "1e-01"]
    for rate, name in zip(RATES, row.tar, strict=True):
        assert row.tar[name] == pytest.approx(nearest_by_definition(-expected, protocol.is_same, rate))
    genuine, impostor = expected[protocol.is_same], expected[~protocol.is_same]
    assert row.auc == pytest.approx((genuine[:, None] > impostor[None]).mean())
    assert 0.5 < row.auc < 1, "genuine pairs score higher, and the task is not trivial"


def write_meta(folder: Path, tid_mid: str, pairs: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ijbb_face_tid_mid.txt").write_text(tid_mid)
    (folder / "ijbb_template_pair_label.txt").write_text(pairs)
    return folder


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(1, count + 1):
        (folder / f"{k}.png").write_bytes(encode_png(np.full((4, 4, 3), k, np.uint8)))
    return folder


def test_meta_files(tmp_path: Path) -> None:
    """Template numbers have gaps; images are joined by name, `2.jpg` is `2.png`; one image is in two templates."""
    meta = write_meta(tmp_path / "meta", "2.jpg 70 9\n10.jpg 70 9\n1.jpg 3 4\n2.jpg 11 8\n", "70 3 0\n11 70 1\n")
    crops = write_images(tmp_path / "crops", 10)
    (part,) = build_templates(TemplateConfig(name="ijb-b")).parts(meta, crops)
    found = part.load()
    assert [found.images[i] for i in found.row_image] == ["2.png", "10.png", "1.png", "2.png"]
    assert found.row_template.tolist() == [2, 2, 0, 1] and found.row_medium.tolist() == [9, 9, 4, 8]
    assert found.first.tolist() == [2, 1] and found.second.tolist() == [0, 2]
    assert found.is_same.tolist() == [False, True]
    assert found.read(found.row_image[1]) == (crops / "10.png").read_bytes()
    assert found.flip is False and len(part.parents) == 2


@pytest.mark.parametrize(("tid_mid", "pairs", "says"), [
    ("1.jpg 1 1\n2.jpg 2\n", "1 2 1\n", "ijbb_face_tid_mid.txt line 2"),
    ("1.jpg 1 x\n", "1 1 1\n", "line 1: whole numbers"),
    ("9.jpg 1 1\n", "1 1 1\n", "1 images of .* are not in"),
    ("1.jpg 1 1\n", "1 5 1\n", "names 1 templates that .* lacks, one is 5"),
    ("1.jpg 1 1\n", "1 1 2\n", "labels must be 0 or 1"),
    ("1.jpg 1 1\n", "1 1 1\n\n1 1\n", "label.txt line 3: '1 1'"),
    ("1.jpg 1 1\n", "1 1\n", "label.txt line 1: '1 1'"),
    ("1.jpg 1 1\n", "1 1 1\n1 1.0 1\n", "label.txt line 2: whole numbers"),
    ("1.jpg 1 1\n", "\n", "label.txt is empty"),
    ("", "1 1 1\n", "is empty"),
])
def test_broken_meta_files(tmp_path: Path, tid_mid: str, pairs: str, says: str) -> None:
    meta = write_meta(tmp_path / "meta", tid_mid, pairs)
    images = ImageSet.open(write_images(tmp_path / "crops", 2))
    with pytest.raises(UserError, match=says):
        read_templates(
            meta / "ijbb_face_tid_mid.txt", meta / "ijbb_template_pair_label.txt", images, "x", False, "exact"
        )


def test_pairs_take_few_bytes(tmp_path: Path) -> None:
    """IJB-C has 15.7 million pairs: as Python objects they took 8 GB, at 30 bytes a pair they take 0.5."""
    num_pairs = 50_000
    meta = write_meta(tmp_path / "meta", "1.jpg 7 1\n2.jpg 9 2\n", "7 9 0\n9 9 1\n" * (num_pairs // 2))
    images = ImageSet.open(write_images(tmp_path / "crops", 2))
    tracemalloc.start()
    try:
        found = read_templates(
            meta / "ijbb_face_tid_mid.txt", meta / "ijbb_template_pair_label.txt", images, "x", False, "nearest"
        )
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.first[:2].tolist() == [0, 1] and found.is_same[:2].tolist() == [False, True]
    assert kept < 12 * num_pairs and peak < 30 * num_pairs + 2**22


def test_missing_meta_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ijbc_face_tid_mid.txt does not exist"):
        build_templates(TemplateConfig(name="ijb-c")).parts(tmp_path, None)


def test_diverged_network_is_named() -> None:
    protocol = made(np.random.RandomState(0))
    with pytest.raises(UserError, match="not finite"):
        protocol.evaluate(np.full((160, 4), np.nan))
