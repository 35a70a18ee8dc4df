"""How lists of pairs are cut into folds: the first lines in circulation, told apart by the pairs that follow."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.console import log
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pair_folds import cut_into_folds
from facesyn_cli.evaluation.pairs import PairSet, read_bin, read_pairs
from facesyn_cli.evaluation.verification import verify_folds

LIST = Path("pairs.txt")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("faces")
    for person in ("Ann", "Bo"):
        (folder / person).mkdir()
        for number in (1, 2):
            image = encode_png(np.full((2, 2, 3), number, np.uint8))
            (folder / person / f"{person}_{number:04d}.png").write_bytes(image)
    return ImageSet.open(folder)


SAME, OTHER = "Ann\t1\t2\n", "Ann\t1\tBo\t2\n"


def read(folder: Path, text: str, images: ImageSet) -> PairSet:
    (folder / "pairs.txt").write_text(text)
    return read_pairs(folder / "pairs.txt", images, "x")


@pytest.mark.parametrize("header", ["200\n", ""], ids=["as LFW has it", "without its first line"])
def test_lfw_view_1_is_cut_into_folds_of_both_classes(tmp_path: Path, images: ImageSet, said, header: str) -> None:
    """`200` is the number of pairs of each class. As folds it gave 200 folds of 2 pairs of one class."""
    pairs = read(tmp_path, header + SAME * 200 + OTHER * 200, images)
    assert (len(pairs), pairs.folds, int(pairs.is_same.sum())) == (400, 10, 200)
    assert {int(fold.sum()) for fold in np.array_split(pairs.is_same, 10)} == {20}
    assert [r.getMessage().split(": ", 1)[1] for r in said.records] == [
        "200 pairs of each class and no folds, as in LFW View 1; cut into 10 folds of both classes"]
    distance = np.where(pairs.is_same, 0.5, 1.5)
    assert verify_folds(distance, pairs.is_same, pairs.folds).accuracy.min() == 1


FOLD = (SAME * 3 + OTHER * 3) * 10


@pytest.mark.parametrize(("header", "folds"), [
    ("10\t3\n", 10), ("10 6\n", 10), ("10\t60\n", 10), ("10\n", 10), ("60\n", 10), ("", 10), ("5\n", 5)])
def test_first_lines_of_a_list_in_folds(tmp_path: Path, images: ImageSet, said, header: str, folds: int) -> None:
    pairs = read(tmp_path, header + FOLD, images)
    assert pairs.folds == folds and pairs.is_same.tolist() == ([True] * 3 + [False] * 3) * 10
    assert ("names no folds" in said.text) == (header in ("60\n", ""))
    assert "hold genuine or impostor pairs only" not in said.text


def test_answers_may_stand_first(tmp_path: Path, images: ImageSet) -> None:
    """As the `*_ann.txt` lists have them."""
    lines = "1 Ann/Ann_0001.png Ann/Ann_0002.png\n0 Ann/Ann_0001.png Bo/Bo_0001.png\n" * 10
    pairs = read(tmp_path, lines, images)
    assert pairs.is_same.tolist() == [True, False] * 10 and pairs.folds == 10
    assert pairs.images[pairs.second[1]] == "Bo/Bo_0001.png"


@pytest.mark.parametrize(("header", "is_same", "says"), [
    ([200], [True] * 200 + [False] * 199, "has 399 pairs; its first line says 200, which is neither"),
    ([7], [True, False] * 10, "for 7 unequal folds: '7 20'"),
    ([4], [True, True, True, False, True, False, False, False], "the pairs of each class or the folds of 2 pairs"),
    ([0], [True, False], "says 0"),
    ([10, 300], [True, False], "announces 10 folds of 300 pairs"),
])
def test_counts_that_do_not_fit_are_refused(header: list[int], is_same: list[bool], says: str) -> None:
    with pytest.raises(UserError, match=says):
        cut_into_folds(LIST, header, np.array(is_same))


def test_two_pairs_a_fold_are_folds_where_each_has_both_classes() -> None:
    folds, order = cut_into_folds(LIST, [10], np.array([True, False] * 10))
    assert folds == 10 and order.tolist() == list(range(20))


def test_unequal_folds_are_said_in_full() -> None:
    assert cut_into_folds(LIST, [7, 20], np.array([True, False] * 10))[0] == 7


def test_folds_of_one_class_are_warned_of_in_every_form(tmp_path: Path, images: ImageSet, said) -> None:
    warning = "10 of 10 folds hold genuine or impostor pairs only"
    read(tmp_path, "10\t40\n" + SAME * 20 + OTHER * 20, images)
    assert warning in said.text
    said.clear()
    encoded = [encode_png(np.full((2, 2, 3), k, np.uint8)) for k in range(2)]
    (tmp_path / "x.bin").write_bytes(pickle.dumps((encoded * 40, [True] * 20 + [False] * 20), 4))
    read_bin(tmp_path / "x.bin", "x")
    assert warning in said.text
    said.clear()
    two_line = "name flag\n" + "Ann/Ann_0001 1\nAnn/Ann_0002 1\n" * 20 + "Ann/Ann_0001 0\nBo/Bo_0002 0\n" * 20
    read(tmp_path, two_line, images)
    assert warning in said.text


def test_short_view_1_lists_have_both_classes_in_every_fold(said) -> None:
    """4 pairs of each class were cut into 8 folds of one pair, said to be "of both classes"."""
    is_same = np.array([True] * 4 + [False] * 4)
    folds, order = cut_into_folds(LIST, [4], is_same)
    assert folds == 4
    assert [fold.sum() for fold in np.array_split(is_same[order], folds)] == [1] * 4
    assert "cut into 4 folds of both classes" in said.text
