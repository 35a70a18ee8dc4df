"""`facesyn compare`: the score by hand, thresholds of tables, and wrong inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_recognizer import embedding_rounding, face, write_faces, write_recognizer

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.stages.compare import UNCALIBRATED


@pytest.fixture
def weights(tmp_path):
    return write_recognizer(tmp_path / "weights")


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / "faces", 2, 3)


def embedding(weights, pixels_u8: np.ndarray, flip: bool = True) -> np.ndarray:
    """The unit embedding in float64, written down again."""
    network = load_backbone(weights).module
    x = torch.from_numpy(pixels_u8.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        vector = network(x).double() + (network(x.flip(-1)).double() if flip else 0)
    return (vector / vector.norm()).numpy()[0]


def write_table(folder, weights, rows: dict[str, float | None], flip: bool = True, digest: str | None = None):
    folder.mkdir()
    table = BenchmarkTable(
        backbone="ir-tiny", weights=digest or load_backbone(weights).digest, flip=flip,
        rows=[BenchmarkRow(benchmark=name, threshold_cosine=value) for name, value in rows.items()],
    )
    table.write(folder)
    return folder


@pytest.mark.parametrize("flip", [True, False])
def test_two_photos(run_cli, weights, faces, flip):
    photos = faces / "p0" / "0.png", faces / "p1" / "2.png"
    words = [] if flip else ["--no-flip"]
    seen = run_cli("compare", *photos, "--weights", weights, "--device", "cpu", *words, "--json")
    expected = float(embedding(weights, face(0, 0), flip) @ embedding(weights, face(1, 2), flip))
    assert seen.json()["score"] == pytest.approx(expected, abs=2 * embedding_rounding(weights))
    assert seen.json()["threshold"] == UNCALIBRATED and not seen.json()["calibrated"]
    assert "not calibrated" in seen.err


def test_a_folder_is_its_mean(run_cli, weights, faces):
    seen = run_cli("compare", faces / "p0", faces / "p1" / "1.png", "--weights", weights, "--json").json()
    mean = sum(embedding(weights, face(0, photo)) for photo in range(3))
    expected = float(mean / np.linalg.norm(mean) @ embedding(weights, face(1, 1)))
    assert seen["score"] == pytest.approx(expected, abs=2 * embedding_rounding(weights)) and seen["photos"] == [3, 1]


def test_a_photo_is_the_same_as_itself(run_cli, weights, faces):
    ran = run_cli("compare", faces / "p0" / "0.png", faces / "p0" / "0.png", "--weights", weights)
    assert ran.code == 0 and "score: 1.0000" in ran.out and "same person" in ran.out


def test_the_table_decides(run_cli, tmp_path, weights, faces):
    photos = faces / "p0" / "0.png", faces / "p1" / "2.png"
    score = run_cli("compare", *photos, "--weights", weights, "--json").json()["score"]
    rows = {"lfw": score - 0.1, "cfp-fp": score + 0.3, "broken": None}
    table = write_table(tmp_path / "table", weights, rows)
    same = run_cli("compare", *photos, "--weights", weights, "--table", table, "--benchmark", "lfw", "--json")
    assert same.json()["same"] and same.json()["calibrated"] and "calibrated" not in same.err
    mean = run_cli("compare", *photos, "--weights", weights, "--table", table / "table.json")
    assert f"threshold: {score + 0.1:.4f}" in mean.out and "different people" in mean.out


def test_a_table_of_something_else_is_refused(assert_refused, tmp_path, weights, faces):
    photo = faces / "p0" / "0.png"
    words = ("compare", photo, photo, "--weights", weights)
    other = write_table(tmp_path / "other", weights, {"lfw": 0.2}, digest="sha256:" + "1" * 64)
    assert_refused(*words, "--table", other, says="other weights")
    plain = write_table(tmp_path / "plain", weights, {"lfw": 0.2}, flip=False)
    assert_refused(*words, "--table", plain, says="without the flip test")
    good = write_table(tmp_path / "good", weights, {"lfw": 0.2})
    assert_refused(*words, "--table", good, "--benchmark", "calfw", says="it has lfw")
    assert_refused(*words, "--benchmark", "lfw", says="--table")
    assert_refused(*words, "--table", photo, says="table.json")
    empty = write_table(tmp_path / "empty", weights, {"lfw": None})
    assert_refused(*words, "--table", empty, says="no benchmark with a threshold")


def test_photos_that_are_no_aligned_faces(assert_refused, run_cli, tmp_path, weights, faces):
    photo = faces / "p0" / "0.png"
    (tmp_path / "big.png").write_bytes(encode_png(face(0, 0, 250)))
    assert_refused("compare", photo, tmp_path / "big.png", "--weights", weights, says=("250 x 250", "facesyn align"))
    assert run_cli("compare", photo, tmp_path / "big.png", "--weights", weights, "--resize").code == 0
    (faces / "p1" / "bad.png").write_bytes(b"no image")
    assert_refused("compare", photo, faces / "p1", "--weights", weights, says="bad.png")
    assert_refused("compare", photo, tmp_path / "none.png", "--weights", weights, says="none.png")
    assert_refused("compare", photo, photo, "--weights", tmp_path / "none.pth", says="none.pth")
    assert_refused("compare", photo, "--weights", weights, says="")
