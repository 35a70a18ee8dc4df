"""The yaw of heads on its way: measured by `embed`, learned by `train-ldm`, asked for by `sample`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_detector import landmarks, photo, write_detector
from tiny_ldm import EMBEDDING_SIZE, SIZE, train_arguments, write_embedding_set
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import decode_image, encode_png
from facesyn_cli.data.pose import yaw_degrees
from facesyn_cli.models.loading import load_denoiser

NETWORKS = {
    "dit": f"denoiser={{name: dit, in_channels: 3, width: 32, depth: 2, heads: 2, context_size: {EMBEDDING_SIZE}, "
           "context_width: 16, pose: true}",
    "idiff-unet": "denoiser.pose=true",
}


def write_heads(folder: Path) -> Path:
    """Write images that are bright where the head looks, with a yaw of -40 or 40 degrees, and some of unknown yaw."""
    random = np.random.default_rng(0)
    keys, vectors, yaws = [], [], []
    for person in range(4):
        direction = random.standard_normal(EMBEDDING_SIZE)
        for sample in range(6):
            side = sample % 2
            pixels_u8 = np.full((SIZE, SIZE, 3), 60, np.uint8)
            pixels_u8[:, SIZE // 2 * side : SIZE // 2 * (side + 1)] = 190
            path = folder / "faces" / f"p{person}" / f"{sample}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(pixels_u8))
            keys.append(f"p{person}/{sample}")
            vectors.append(direction)
            yaws.append(math.nan if sample == 5 else (-40.0, 40.0)[side])
    write_embedding_set(folder / "embeddings", keys, np.array(vectors))
    np.save(folder / "embeddings" / "yaw.npy", np.array(yaws, np.float32))
    np.save(folder / "contexts.npy", np.array(vectors[::6], np.float32))
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"))


def arguments(heads: Path, out: Path, name: str, *more: object, steps: int = 60) -> list[str]:
    words = [word for word in train_arguments(heads, out, steps=steps)
             if name == "idiff-unet" or not word.startswith("denoiser")]
    return [*words, NETWORKS[name], "prediction=v", "optimizer.lr=0.004", "ema.maximum=0.9", "context_dropout=0.1",
            "validate_every=1000", "log_every=20", *map(str, more)]


def sides(folder: Path) -> np.ndarray:
    """Return by how much the right half of each image is brighter than the left one."""
    images = ImageSet.open(folder)
    pixels = np.stack([decode_image(images.read(entry)) for entry in images.entries]).astype(float)
    return pixels[:, :, SIZE // 2 :].mean(axis=(1, 2, 3)) - pixels[:, :, : SIZE // 2].mean(axis=(1, 2, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_turn_as_they_are_asked_to(heads: Path, name: str, run_cli, tmp_path: Path) -> None:
    ran = run_cli(*arguments(heads, tmp_path / "ldm", name))
    assert ran.code == 0, ran.err
    assert load_denoiser(tmp_path / "ldm").config.embedding_size == EMBEDDING_SIZE

    def sample(out: str, *more: str) -> np.ndarray:
        ran = run_cli("sample", "--ldm", tmp_path / "ldm", "--contexts", heads / "contexts.npy", "--per-id", 4,
                      "--steps", 8, "--out", tmp_path / out, "--device", "cpu", "--assume-embedder", "any",
                      "scheduler.name=ddim", *more)
        assert ran.code == 0, ran.err
        return sides(tmp_path / out)

    left = sample("left", "pose.lowest=-40", "pose.highest=-40")
    right = sample("right", "pose.lowest=40", "pose.highest=40")
    assert left.mean() < -40 and right.mean() > 40
    any_way = sample("any", "pose.lowest=-40", "pose.highest=40", "guidance={name: negfacediff, negative: far}")
    rows = list(csv.DictReader((tmp_path / "any" / "poses.csv").read_text().splitlines()))
    yaw = np.array([float(row["yaw"]) for row in rows])
    assert [row["key"] for row in rows[:5]] == ["0/0", "0/1", "0/2", "0/3", "1/0"] and np.abs(yaw).max() <= 40
    assert np.corrcoef(yaw, any_way)[0, 1] > 0.5
    some = tmp_path / "some"
    sample("some", "pose.share=0.5")
    unknown = sum(row["yaw"] == "" for row in csv.DictReader((some / "poses.csv").read_text().splitlines()))
    assert 2 <= unknown <= 14
    assert not (tmp_path / "plain").exists() and not np.isnan(sample("plain")).any()
    assert not (tmp_path / "plain" / "poses.csv").exists()


def test_a_training_goes_on_from_a_network_without_poses(heads: Path, run_cli, tmp_path: Path) -> None:
    first = arguments(heads, tmp_path / "first", "dit", steps=4)
    first = [word.replace("pose: true", "pose: false") for word in first]
    assert run_cli(*first).code == 0
    ran = run_cli(*arguments(heads, tmp_path / "second", "dit", f"initial_denoiser={tmp_path / 'first'}", steps=4))
    assert ran.code == 0, ran.err


def test_what_lacks_the_yaw_is_refused(heads: Path, run_cli, assert_refused, tmp_path: Path) -> None:
    without = tmp_path / "without"
    write_heads(without)
    (without / "embeddings" / "yaw.npy").unlink()
    assert_refused(*arguments(without, tmp_path / "ldm", "dit"), says=("does not say how far", "pose_detector=YUNET"))
    np.save(without / "embeddings" / "yaw.npy", np.zeros(3, np.float32))
    assert_refused(*arguments(without, tmp_path / "ldm", "dit"), says="one of float32 was expected for each of 24 keys")
    np.save(without / "embeddings" / "yaw.npy", np.full(24, np.nan, np.float32))
    assert_refused(*arguments(without, tmp_path / "ldm", "dit"), says="knows the yaw of no image")
    plain = [word.replace("pose: true", "pose: false") for word in arguments(heads, tmp_path / "ldm", "dit", steps=1)]
    assert run_cli(*plain).code == 0
    sample = ("sample", "--ldm", tmp_path / "ldm", "--contexts", heads / "contexts.npy", "--out", tmp_path / "out",
              "--assume-embedder", "any")
    assert_refused(*sample, "pose.lowest=-20", says=("this LDM did not learn", "denoiser.pose=true"))
    assert_refused(*sample, "pose.lowest=20", "pose.highest=10", says="must not be above highest")
    published = ("export_published=true", "latent_statistics=identity", "prediction=epsilon")
    assert_refused(*arguments(heads, tmp_path / "new", "idiff-unet", *published), says="needs denoiser.pose=false")


def test_embed_measures_the_yaw(run_cli, assert_refused, tmp_path: Path) -> None:
    """The detector finds red squares, with the landmarks of a face that looks ahead."""
    detector, weights = write_detector(tmp_path / "red.onnx"), write_recognizer(tmp_path / "recognizer")
    for name, pixels_u8 in {"a/0": photo((10, 12)), "a/1": photo(), "b/0": photo((4, 5))}.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / f"{name}.png").write_bytes(encode_png(pixels_u8))
    (tmp_path / "faces" / "b" / "1.png").write_bytes(b"no image")
    words = ("embed", "--images", tmp_path / "faces", "--weights", weights, "--device", "cpu", "part_size=2",
             f"pose_detector={detector}")
    ran = run_cli(*words, "--out", tmp_path / "emb", "--json")
    assert ran.code == 0 and ran.json()["faces_found"] == 2, ran.err
    found = EmbeddingSet.open(tmp_path / "emb")
    expected = yaw_degrees(landmarks((10, 12)))
    assert found.yaw == pytest.approx([expected, math.nan, expected], nan_ok=True, abs=1e-3)
    assert found.join_yaw(["b/0"]).shape == (1,)
    assert "pose_detector" in json.loads((tmp_path / "emb" / "facesyn.json").read_text())["parents"]
    for part in ("1/2", "2/2"):
        assert run_cli(*words, "--out", tmp_path / "parts", "--shard", part).code == 0
    assert np.array_equal(EmbeddingSet.open(tmp_path / "parts").yaw, found.yaw, equal_nan=True)
    assert_refused(*words, "--out", tmp_path / "photos", f"align.detector={detector}",
                   says=("pose_detector is for aligned faces", "run facesyn align first"))
    assert run_cli(*words[:-1], "--out", tmp_path / "plain").code == 0
    assert EmbeddingSet.open(tmp_path / "plain").yaw is None
