"""`facesyn sample layout=tar`: the images of a folder in WebDataset shards, resumed shard by shard."""

from __future__ import annotations

import hashlib
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn
from fill import fill_state

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.sampling.tar_shards import TarShards, shard_tasks

DENOISER = {"name": "idiff-unet", "channels": 32, "multipliers": [1, 1], "attention": [False, True], "num_blocks": 1,
            "context_size": 8, "context_width": 32}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("inputs")
    unet = fill_state(ConditionalUNet(UnetConfig(**DENOISER)))
    settings = LdmSettings(
        denoiser=DENOISER, latent_size=4, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=16, output_size=16,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((5, 8)).astype(np.float32))
    return ("sample", "--ldm", folder / "ldm", "--contexts", folder / "contexts.npy", "--device", "cpu", "--steps", 2,
            "--assume-embedder", "any", "--json", "--per-id", 4, "--batch-size", 3)


TAR = ("layout=tar", "images_per_shard=7")  # batches of 3 straddle shards of 7; 20 images: 7, 7, 6


def shards(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "images").glob("*.tar"))}


def test_shards_hold_the_images_of_the_folder(run_cli, inputs, tmp_path):
    assert run_cli(*inputs, "--out", tmp_path / "folder").code == 0
    ran = run_cli(*inputs, *TAR, "--out", tmp_path / "tar")
    assert ran.code == 0, ran.err
    assert ran.json()["images"] == ran.json()["made_now"] == 20
    assert list(shards(tmp_path / "tar")) == [f"images-00000{k}.tar" for k in range(3)]
    names = []
    for path in sorted((tmp_path / "tar" / "images").glob("*.tar")):
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert names == [f"{i}/{k}.png" for i in range(5) for k in range(4)], "in order, across shards"
    plain, packed = open_images(tmp_path / "folder"), open_images(tmp_path / "tar")
    assert [e.key for e in packed.entries] == [e.key for e in plain.entries]
    for one, two in zip(plain.entries, packed.entries, strict=True):
        assert plain.read(one) == packed.read(two), one.key
    assert (tmp_path / "tar.strip.png").read_bytes() == (tmp_path / "folder.strip.png").read_bytes()
    again = run_cli(*inputs, *TAR, "--out", tmp_path / "tar")
    assert (again.code, again.json()["made_now"]) == (0, 0)


def test_datasets_loads_the_shards_by_the_name_of_their_folder(run_cli, inputs, tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    run_cli(*inputs, *TAR, "--out", tmp_path / "tar", "--ids", 2)
    assert run_cli(*inputs, *TAR, "--out", tmp_path / "tar").code == 0
    rows = datasets.load_dataset(str(tmp_path / "tar"), cache_dir=str(tmp_path / "cache"))["train"]
    assert list(rows["__key__"]) == [f"{i}/{k}" for i in range(5) for k in range(4)] and rows[0]["png"].size == (16, 16)
    assert "20 face images of 5 identities" in (tmp_path / "tar" / "README.md").read_text(), "the card grows too"


def test_a_lost_shard_alone_is_made_again(run_cli, inputs, tmp_path):
    out = tmp_path / "tar"
    run_cli(*inputs, *TAR, "--out", out)
    before = shards(out)
    (out / "facesyn.json").rename(out / "facesyn.begun.json")
    torn = out / "images" / "images-000001.tar"
    torn.write_bytes(torn.read_bytes()[:700])
    kept = [(out / "images" / f"images-00000{k}.tar").stat().st_mtime_ns for k in (0, 2)]
    ran = run_cli(*inputs, *TAR, "--out", out)
    assert (ran.code, ran.json()["made_now"]) == (0, 7), ran.err
    assert shards(out) == before
    assert kept == [(out / "images" / f"images-00000{k}.tar").stat().st_mtime_ns for k in (0, 2)]


def test_killed_runs_lose_the_current_shard_only(run_cli, inputs, tmp_path):
    out, slow = tmp_path / "killed", ("--steps", 60)
    process = spawn(*inputs, *TAR, *slow, "--out", out)
    deadline = time.monotonic() + 200
    while not (out / ".shards" / "000000.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    finish(process)
    assert not (out / "facesyn.json").exists()
    first = shards(out)["images-000000.tar"]
    ran = run_cli(*inputs, *TAR, *slow, "--out", out)
    assert ran.code == 0 and ran.json()["made_now"] in (13, 6), ran.err
    assert shards(out)["images-000000.tar"] == first
    run_cli(*inputs, *TAR, *slow, "--out", tmp_path / "whole")
    assert shards(out) == shards(tmp_path / "whole")
    assert not list(out.rglob(".tmp-*"))


def test_parts_and_workers_make_the_same_shards(run_cli, inputs, tmp_path):
    run_cli(*inputs, *TAR, "--out", tmp_path / "one", "workers=1")
    for part in ("2/2", "1/2"):
        assert run_cli(*inputs, *TAR, "--out", tmp_path / "parts", "--shard", part, "workers=3").code == 0
    assert shards(tmp_path / "parts") == shards(tmp_path / "one")
    assert (tmp_path / "parts" / "facesyn.json").is_file()


def test_more_identities_extend_the_last_shard(run_cli, inputs, tmp_path):
    run_cli(*inputs, *TAR, "--ids", 3, "--out", tmp_path / "grown")
    ran = run_cli(*inputs, *TAR, "--ids", 5, "--out", tmp_path / "grown")
    assert ran.json()["made_now"] == 13, "the short second shard and the third"
    run_cli(*inputs, *TAR, "--out", tmp_path / "fresh")
    assert shards(tmp_path / "grown") == shards(tmp_path / "fresh")


def test_pack_reads_what_sample_wrote(run_cli, inputs, tmp_path):
    run_cli(*inputs, *TAR, "--out", tmp_path / "tar")
    ran = run_cli("pack", "--in", tmp_path / "tar", "--to", "tfrecord", "size=null", "--out", tmp_path / "records",
                  "--json")
    assert ran.code == 0, ran.err
    assert (ran.json()["images"], ran.json()["identities"]) == (20, 5)


def test_what_does_not_go_together_is_one_line(assert_refused, inputs, tmp_path):
    def refused(*words, says):
        assert_refused(*inputs, "--out", tmp_path / "out", *words, says=says)

    refused("images_per_shard=5", says="images_per_shard belongs to layout tar")
    refused("layout=zip", says="layout")


def test_neighboring_shards_compute_what_they_share_once():
    shards = [range(0, 7), range(7, 14), range(21, 23)]
    tasks = list(shard_tasks(shards, fixed_batches(23, 3)))
    assert [index for wanted, _ in tasks for index in wanted] == [*range(14), 21, 22]
    assert [batch.start for _, batch in tasks] == [0, 3, 6, 9, 12, 21]
    assert all(wanted[0] in batch and wanted[-1] in batch for wanted, batch in tasks)
    layout = TarShards(Path("set"), ["a"], 23, ".png", 7)
    parts = [layout.share(shards, index, 2) for index in range(2)]
    assert parts == [shards[:1], shards[1:]]
