"""`facesyn select`: identities whose centers collide are dropped or merged."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_ldm import write_embedding_set
from tiny_tars import read_tars, write_tar_set

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.data.pixels import encode_png

# Directions in the plane, in degrees; 25 collides with 0, and 45 with nothing that is kept, as 25 is not.
ANGLES = {"0": 0, "1": 25, "2": 45, "10": 90, "11": 93}
R = math.cos(math.radians(30))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    keys, vectors = [], []
    for name, degrees in ANGLES.items():
        for k, spread in enumerate((-2, 2)):  # the center lies between the two images
            path = tmp_path / "work" / "4-samples" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.full((8, 8, 3), degrees + k, np.uint8)))
            keys.append(f"{name}/{k}")
            vectors.append([math.cos(math.radians(degrees + spread)), math.sin(math.radians(degrees + spread))])
    write_embedding_set(tmp_path / "judged", keys[::-1], np.array(vectors[::-1]))  # joined by key
    return tmp_path / "work"


@pytest.fixture
def select(run_cli, work):
    def run(*arguments):
        return run_cli("select", "--work", work, "--embeddings", work.parent / "judged", "--r", R, "--json", *arguments)

    return run


def fates(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "selection.csv").read_text().splitlines()))


def test_colliding_identities_are_dropped_in_order(select, work):
    assert select("--dry-run").json()["plan"]["counts"]["images"] == 6
    ran = select()
    assert ran.code == 0, ran.err
    assert {k: ran.json()[k] for k in ("images", "identities", "dropped")} == {
        "images": 6, "identities": 3, "dropped": 2
    }
    images = ImageSet.open(work / "selected")
    assert [entry.key for entry in images.entries] == ["0/0", "0/1", "2/0", "2/1", "10/0", "10/1"]
    assert (work / "selected" / "2" / "1.png").stat().st_ino == (work / "4-samples" / "2" / "1.png").stat().st_ino
    assert [(row["identity"], row["fate"], row["collides_with"]) for row in fates(work / "selected")] == [
        ("0", "kept", ""), ("1", "dropped", "0"), ("2", "kept", ""), ("10", "kept", ""), ("11", "dropped", "10")
    ]
    assert float(fates(work / "selected")[1]["cosine"]) == pytest.approx(math.cos(math.radians(25)), abs=1e-6)
    assert select().code == 0  # finished: nothing to do


def test_merged_images_go_to_the_nearest_identity_that_is_kept(select, work):
    """11 collides with 10 alone; with a smaller r, 25 degrees lie nearer to 0 than 45, which is not kept either."""
    ran = select("--collisions", "merge")
    assert ran.json()["merged"] == 2
    keys = [entry.key for entry in ImageSet.open(work / "selected").entries]
    assert keys == ["0/0", "0/1", "0/1-0", "0/1-1", "2/0", "2/1", "10/0", "10/1", "10/11-0", "10/11-1"]
    wide = select("--collisions", "merge", "--r", math.cos(math.radians(50)), "--out", work / "wide")
    assert wide.json()["identities"] == 2
    assert [row["collides_with"] for row in fates(work / "wide")] == ["", "0", "0", "", "10"]


def test_a_killed_run_goes_on(select, work):
    select()
    folder = work / "selected"
    (folder / "facesyn.json").rename(folder / "facesyn.begun.json")
    shutil.rmtree(folder / "10")
    (folder / "selection.csv").unlink()
    assert select().code == 0
    assert len(ImageSet.open(folder).entries) == 6 and len(fates(folder)) == 5


def test_mistakes_are_one_line(assert_refused, select, work):
    assert_refused("select", "--work", work, says="facesyn embed --images")
    assert_refused("select", "--work", work, "--embeddings", work, says="EmbeddingSet")
    assert_refused("select", "--work", work, "--embeddings", work.parent / "judged", "--r", 2, says="r:")
    (work / "4-samples" / "0" / "9.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert_refused("select", "--work", work, "--embeddings", work.parent / "judged", says="no embedding for 1 of 11")


# tar shards


@pytest.fixture
def tars(work: Path) -> Path:
    names = [f"{name}/{k}.png" for name in ANGLES for k in (0, 1)]
    images = {name: (work / "4-samples" / name).read_bytes() for name in names}
    return write_tar_set(work.parent / "tars", images, per_shard=2)  # a shard an identity


def test_shards_without_a_dropped_identity_are_linked(select, work, tars):
    ran = select("--in", tars)
    assert (ran.code, ran.json()["images"]) == (0, 6), ran.err
    out = work / "selected"
    assert list(read_tars(out)) == ["images-000000.tar", "images-000002.tar", "images-000003.tar"]
    for path in (out / "images").iterdir():
        assert path.stat().st_ino == (tars / "images" / path.name).stat().st_ino
    assert select("--out", work / "folder").code == 0
    _same_images(work / "folder", out)
    assert select("--in", tars).code == 0  # finished: nothing to do


def test_shards_in_which_something_changes_are_written_anew(select, work):
    names = [f"{name}/{k}.png" for k in (0, 1) for name in ANGLES]
    images = {name: (work / "4-samples" / name).read_bytes() for name in names}
    tars = write_tar_set(work.parent / "tars", images, per_shard=4)
    before = read_tars(tars)
    for collisions in ("drop", "merge"):
        assert select("--in", tars, "--collisions", collisions, "--out", work / collisions).code == 0
        assert select("--collisions", collisions, "--out", work / f"{collisions}-folder").code == 0
        _same_images(work / f"{collisions}-folder", work / collisions)
    assert list(read_tars(work / "merge")["images-000000.tar"]) == ["0/0.png", "0/1-0.png", "2/0.png", "10/0.png"]
    assert list(read_tars(work / "drop")["images-000000.tar"]) == ["0/0.png", "2/0.png", "10/0.png"]
    assert read_tars(tars) == before


def _same_images(folder: Path, tars: Path) -> None:
    plain, packed = ImageSet.open(folder), open_images(tars)
    assert {e.key: plain.read(e) for e in plain.entries} == {e.key: packed.read(e) for e in packed.entries}
    assert (folder / "selection.csv").read_bytes() == (tars / "selection.csv").read_bytes()


# images that look like somebody else


@pytest.fixture
def scattered(work: Path) -> Path:
    """Add images of other directions to identity 0, and an identity whose images are all apart."""
    keys, angles = [], []
    for name, degrees in {"0": (-1, 0, 1, 60, 130), "1": (178, 182), "2": (200, 260, 320)}.items():
        shutil.rmtree(work / "4-samples" / name)
        for k, angle in enumerate(degrees):
            path = work / "4-samples" / name / f"{k}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_png(np.full((8, 8, 3), k, np.uint8)))
            keys.append(f"{name}/{k}")
            angles.append(angle)
    for name in ("10", "11"):
        keys += [f"{name}/0", f"{name}/1"]
        angles += [ANGLES[name] - 2, ANGLES[name] + 2]
    radians = np.radians(angles)
    shutil.rmtree(work.parent / "judged")
    write_embedding_set(work.parent / "judged", keys, np.stack([np.cos(radians), np.sin(radians)], axis=1))
    return work


def test_images_outside_the_largest_cluster_are_left_out(select, scattered):
    more = ("--largest-cluster", "cluster.distance=0.1", "cluster.rounds=0")
    ran = select(*more)
    assert ran.code == 0, ran.err
    keys = [entry.key for entry in ImageSet.open(scattered / "selected").entries]
    assert keys == ["0/0", "0/1", "0/2", "1/0", "1/1", "10/0", "10/1"]
    counts = {"images": 7, "identities": 3, "dropped": 1, "few_images": 1, "outside_cluster": 5}
    assert {name: ran.json()[name] for name in counts} == counts
    found = [(row["identity"], row["fate"], row["collides_with"], row["images_outside"])
             for row in fates(scattered / "selected")]
    assert found == [("0", "kept", "", "2"), ("1", "kept", "", "0"), ("2", "few images", "", "3"),
                     ("10", "kept", "", "0"), ("11", "dropped", "10", "0")]
    few = select(*more, "min_images=3", "--out", scattered / "few")
    assert [entry.key for entry in ImageSet.open(scattered / "few").entries] == ["0/0", "0/1", "0/2"]
    assert few.json()["few_images"] == 4
    plan = select(*more, "--dry-run", "--out", scattered / "dry").json()["plan"]["counts"]
    assert (plan["images"], plan["images_left_out"]) == (7, 7)


def test_an_identity_that_is_left_with_nothing_is_said(scattered, assert_refused):
    assert_refused("select", "--work", scattered, "--embeddings", scattered.parent / "judged", "--largest-cluster",
                   "cluster.distance=0.1", "cluster.rounds=0", "min_images=4",
                   says="no identity has 4 images left; the largest cluster has 3")
    assert_refused("select", "--work", scattered, "--embeddings", scattered.parent / "judged", "--largest-cluster",
                   "cluster.lowest=0.9", says="lowest (0.9) must not be above highest (0.8)")
