"""Planted copies of training images are found, strangers are left in peace, and likeness is told from copying."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from made_embeddings import labeled, people, picture, unit
from PIL import Image

from facesyn_cli.evaluation import copies
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.leakage import REFERENCE, privacy_section
from facesyn_cli.evaluation.near_duplicates import thumbnail
from facesyn_cli.evaluation.score_counts import count_scores

ALL = 10**9


def encoded(pixels_u8):
    data = io.BytesIO()
    Image.fromarray(pixels_u8).save(data, "JPEG", quality=70)
    return np.asarray(Image.open(data))


def cropped(pixels_u8):
    return np.asarray(Image.fromarray(pixels_u8[4:100, 10:106]).resize((112, 112)))


CHANGES = [lambda p: p, encoded, lambda p: p[:, ::-1], cropped]


@pytest.fixture(autouse=True)
def _compare_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops of every pair take a while."""
    monkeypatch.setattr(copies, "_MAX_COMPARED", 12)
    monkeypatch.setattr(copies, "_LISTED", 3)


class Faces:
    """A set of made-up people with a picture each row; some rows may be copies of another set's."""

    def __init__(self, name: str, rows: LabeledEmbeddings, first_picture: int) -> None:
        self.name, self.rows = name, replace(rows, name=name)
        self.pictures = {key: picture(first_picture + k) for k, key in enumerate(rows.keys)}

    def seen(self) -> LabeledEmbeddings:
        return replace(self.rows, thumbnails=np.stack([thumbnail(self.pictures[key]) for key in self.rows.keys]))


def report(own: Faces, training: Faces, max_pairs: int = ALL):
    held = {own.name: own, training.name: training}
    return privacy_section(
        own.seen(), training.seen(), count_scores(training.rows, ALL, 0),
        lambda name, key: held[name].pictures[key], max_pairs, 0,
    )


@pytest.fixture
def training() -> Faces:
    return Faces(REFERENCE, people(160, 3, spread=0.6, seed=1, prefix="real"), 10_000)


@pytest.fixture
def own() -> Faces:
    return Faces("set", people(100, 4, spread=0.6, seed=2), 0)


def test_strangers_are_no_fault(own, training):
    section = report(own, training)
    assert section.value("privacy.copies") == 0 and section.value("privacy.image_above_genuine") == 0
    assert section.verdict["level"] == "good" and section.verdict["limits"]
    assert section.value("privacy.image_p50") == pytest.approx(section.value("privacy.real_p50"), abs=0.03)


def plant(own: Faces, training: Faces, count: int, noise: float = 0.0) -> list[str]:
    """Make every hundredth image of the set a copy of a training image, changed in turn in four ways."""
    planted = []
    for k in range(count):
        row, source = 100 * k + 7, 50 * k + 3
        key = own.rows.keys[row]
        shift = noise * np.random.RandomState(k).normal(size=64) / 8
        own.rows.vectors[row] = unit(training.rows.vectors[source] + shift)
        own.pictures[key] = CHANGES[k % 4](training.pictures[training.rows.keys[source]])
        planted.append(key)
    return planted


def test_one_percent_of_copies_is_found(own, training):
    planted = plant(own, training, 4, noise=0.4)
    section = report(own, training)
    assert section.value("privacy.copies") == 4 and section.value("privacy.copied_share") == 0.01
    rows = section.lists["privacy.copies"]
    assert {row.images[0][1] for row in rows} == set(planted)
    assert {row.images[0][1]: row.label for row in rows} == dict(
        zip(planted, ["copy", "copy", "copy, mirrored", "copy, cropped"], strict=True))
    assert all(row.images[1][0] == REFERENCE for row in rows)
    assert section.verdict["level"] == "fault" and section.verdict["text"].startswith("4 images (1.00%")


def test_a_crop_may_be_nearer_to_another_photo_of_the_person(own, training):
    key, source = own.rows.keys[7], training.rows.keys[3]              # the source is photo 0 of real1
    own.rows.vectors[7] = training.rows.vectors[4]                      # but the embedding is that of photo 1
    own.pictures[key] = cropped(training.pictures[source])
    rows = report(own, training).lists["privacy.copies"]
    assert [(row.images[0][1], row.images[1][1], row.label) for row in rows] == [(key, source, "copy, cropped")]


def test_the_same_person_without_a_copy_is_pointed_out(own, training):
    own.rows.vectors[:4] = training.rows.vectors[:1]
    section = report(own, training)
    assert section.value("privacy.copies") == 0
    assert section.value("privacy.image_above_genuine") == 0.01
    assert section.verdict["level"] == "warning" and "4 images are as near" in section.verdict["text"]
    assert section.lists["privacy.top_pairs"][0].label == "" and section.lists["privacy.top_pairs"][0].score > 0.999


def test_a_set_near_its_training_people_is_a_warning(own, training):
    owner = training.rows.owner[np.arange(len(own.rows.keys)) % len(training.rows.keys)]
    near = unit(own.rows.vectors + 0.5 * training.rows.centers[owner]).astype(np.float32)
    close = Faces("set", LabeledEmbeddings(own.rows.keys, own.rows.identities, near, own.rows.starts), 0)
    section = report(close, training)
    assert section.verdict["level"] == "warning" and "nearer to the training people" in section.verdict["text"]


def test_figures_by_hand():
    vectors = np.eye(8)
    real = labeled(vectors[[0, 0, 1, 1, 2, 2]], "aabbcc")
    ours = labeled(np.stack([vectors[0] + vectors[5], vectors[6], vectors[7]]), "xxy")
    pictures = {(name, key): picture(k) for k, (name, key) in enumerate(
        [("set", key) for key in ours.keys] + [(REFERENCE, key) for key in real.keys])}

    def seen(name, rows):
        return replace(rows, name=name, thumbnails=np.stack([thumbnail(pictures[name, key]) for key in rows.keys]))

    section = privacy_section(seen("set", ours), seen(REFERENCE, real), count_scores(real, ALL, 0),
                              lambda *place: pictures[place], ALL, 0)
    assert section.value("privacy.image_max") == pytest.approx(np.sqrt(0.5))
    assert section.value("privacy.image_above_030") == pytest.approx(1 / 3)
    assert section.value("privacy.center_max") == pytest.approx(0.5)   # the center of 45 degrees off and orthogonal
    assert section.value("privacy.image-to-center_max") == pytest.approx(np.sqrt(0.5))
    assert section.value("privacy.center-to-image_max") == pytest.approx(0.5)
    assert section.value("privacy.real-to-center_max") == section.value("privacy.real-center_max") == 0
    assert section.value("privacy.real_max") == 0, "strangers only: no one is compared with himself"
    assert section.value("privacy.image_above_fmr1e-4") is None and section.verdict["level"] == "note"
    swapped = privacy_section(
        replace(seen(REFERENCE, real), name="set"), replace(seen("set", ours), name=REFERENCE),
        count_scores(ours, ALL, 0), lambda name, key: None, ALL, 0)
    assert swapped.value("privacy.image_above_030") == pytest.approx(2 / 6)


def test_nearest_images_and_nearest_identities_are_told_apart():
    """A center lies between two photos of a person; what is near it need not be near either of them."""
    axes = np.eye(6)
    real = labeled(axes[[0, 1, 2, 3]], "aabb")
    ours = labeled(np.stack([axes[0] + axes[1], axes[0], axes[4], axes[5]]), "xyzz")
    blank = np.zeros((4, 16, 16), np.uint8)
    section = privacy_section(replace(ours, thumbnails=blank), replace(real, name=REFERENCE, thumbnails=blank),
                              count_scores(real, ALL, 0), lambda *_: None, ALL, 0)
    half = np.sqrt(0.5)
    assert section.value("privacy.image_max") == pytest.approx(1)              # axes[0], the photo itself
    assert section.value("privacy.image_above_040") == 0.5
    assert section.value("privacy.image-to-center_max") == pytest.approx(1)    # between the two photos of a
    assert section.value("privacy.image-to-center_p50") == pytest.approx(half / 2)
    assert section.value("privacy.center-to-image_max") == pytest.approx(1)
    assert section.value("privacy.center_p50") == pytest.approx(half)


def test_a_sample_says_so(own, training):
    plant(own, training, 4)
    section = report(own, training, max_pairs=48_000)
    figures = {figure.id: figure for figure in section.figures}
    assert figures["privacy.image_p50"].n == 100 and not figures["privacy.image_p50"].exact
    assert figures["privacy.image_above_030"].error > 0
    assert not figures["privacy.copies"].exact
    full = {figure.id: figure.value for figure in report(own, training).figures}
    assert abs(figures["privacy.image_p50"].value - full["privacy.image_p50"]) < 0.05


def test_unreadable_pictures_do_not_stop_it(own, training):
    section = privacy_section(own.seen(), training.seen(), count_scores(training.rows, ALL, 0), lambda *_: None, ALL, 0)
    assert section.lists["privacy.top_pairs"][0].likeness is None
