"""`facesyn eval` with groups, templates and identification, end to end on made-up faces."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_recognizer import face, write_recognizer

from facesyn_cli.data.pixels import encode_png, to_pixels
from facesyn_cli.models.loading import load_backbone

GROUPS = ("African", "Asian", "Caucasian", "Indian")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recognizer(tmp_path_factory.mktemp("net") / "fr")


def embed(network: Path, photos: list[tuple[int, int]], flip: bool) -> np.ndarray:
    module = load_backbone(network).module
    images = np.stack([face(*photo) for photo in photos])
    vectors = module(to_pixels(images)).detach().numpy().astype(np.float64)
    if flip:
        vectors = vectors + module(to_pixels(np.ascontiguousarray(images[:, :, ::-1]))).detach().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def save(folder: Path, photos: dict[str, tuple[int, int]]) -> None:
    for name, photo in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(face(*photo)))


def test_rfw(run_cli, assert_refused, network, tmp_path) -> None:
    random = np.random.RandomState(0)
    for shift, group in enumerate(GROUPS):
        images, answers = [], []
        for _ in range(20):
            same = bool(random.randint(2))
            a, b = random.choice(6, 2, replace=False) + 10 * shift
            images += [encode_png(face(a, 0)), encode_png(face(a if same else b, 1))]
            answers.append(same != (random.rand() < 0.2))  # some wrong answers, so that the groups differ
        (tmp_path / f"{group}_test.bin").write_bytes(pickle.dumps((images, answers), 4))
    arguments = ("eval", "--weights", network, "--benchmarks", "rfw", "--data", tmp_path)
    ran = run_cli(*arguments, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    table = ran.json()
    assert [row["benchmark"] for row in table["rows"]] == [f"rfw-{group.lower()}" for group in GROUPS]
    accuracies = [row["accuracy"] for row in table["rows"]]
    assert len(set(accuracies)) > 1
    assert table["groups"]["rfw"] == {
        "accuracy": pytest.approx(np.mean(accuracies)), "accuracy_std": pytest.approx(np.std(accuracies, ddof=1))}
    (tmp_path / "Indian_test.bin").unlink()
    assert_refused(*arguments, "--out", tmp_path / "b", says=("Indian_test.bin does not exist", "four groups"))


def test_ijb(run_cli, network, tmp_path) -> None:
    """One photo and a video of two frames per template, no flip, dot product."""
    names, tid_mid, photos = {}, [], []
    for t in range(8):
        for k, medium in enumerate((1, 2, 2)):
            name = f"{3 * t + k + 1}.jpg"
            photos.append((t % 4, 10 * t + k))
            names[name.replace("jpg", "png")] = photos[-1]
            tid_mid.append(f"{name} {100 + t} {1000 * t + medium}\n")
    save(tmp_path / "crops", names)
    pairs = [(a, b) for a in range(8) for b in range(a)]
    (tmp_path / "ijbc_face_tid_mid.txt").write_text("".join(tid_mid))
    (tmp_path / "ijbc_template_pair_label.txt").write_text(
        "".join(f"{100 + a} {100 + b} {int(a % 4 == b % 4)}\n" for a, b in pairs))
    ran = run_cli("eval", "--weights", network, "--benchmarks", "ijb-c", "--data", tmp_path, "--images",
                  tmp_path / "crops", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    unit = embed(network, photos, flip=False).reshape(8, 3, -1)
    templates = unit[:, 0] + unit[:, 1:].mean(1)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    with np.load(tmp_path / "out" / "scores" / "ijb-c.npz") as scores:
        np.testing.assert_allclose(scores["score"], [templates[a] @ templates[b] for a, b in pairs], atol=1e-6)
        assert scores["is_same"].tolist() == [a % 4 == b % 4 for a, b in pairs]
    (row,) = ran.json()["rows"]
    assert row["pairs"] == 28 and row["tar"]["1e-06"] is not None and row["accuracy"] is None
    ran = run_cli("eval", "--weights", network, "--benchmarks", "ijb-c", "--data", tmp_path, "--images",
                  tmp_path / "crops", "--out", tmp_path / "c", "--json", "--dry-run", "--batch-size", "8")
    plan = ran.json()["plan"]
    assert plan["chosen"]["benchmarks"] == {"ijb-c": "28 pairs of 24 images"}
    assert plan["network_evaluations"] == {"recognizer": 24}


def test_tinyface(run_cli, network, tmp_path) -> None:
    gallery = {f"gallery/p{k}/0.png": (k, 0) for k in range(6)}
    others = {f"distractors/{k}.png": (50 + k, 0) for k in range(20)}
    probes = {f"probe/p{k}/{n}.png": (k, n) for k in range(6) for n in (1, 2)}
    save(tmp_path / "tinyface", {**gallery, **others, **probes})
    ran = run_cli("eval", "--weights", network, "--benchmarks", "tinyface", "--data", tmp_path, "--out",
                  tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    known = embed(network, [*gallery.values(), *others.values()], flip=True)
    cosine = embed(network, list(probes.values()), flip=True) @ known.T
    ranks = np.array([1 + np.sum(row > row[photo[0]]) for row, photo in zip(cosine, probes.values(), strict=True)])
    (row,) = ran.json()["rows"]
    assert row["rank"] == {str(k): pytest.approx(np.mean(ranks <= k)) for k in (1, 5, 20)}
    assert "rank-20 %" in (tmp_path / "out" / "table.md").read_text()
