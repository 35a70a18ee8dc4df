"""TAESD3 by its name in the commands that take an autoencoder: train-ldm, sample and models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ldm import NUM_IDENTITIES, PER_IDENTITY, train_arguments, write_faces

from facesyn_cli import api as facesyn
from facesyn_cli.artifacts.image_set import ImageSet

SIZE = 24  # latents of 3 x 3
WORDS = ("--autoencoder", "taesd3", "autoencoder_model=null", "denoiser.in_channels=16", f"image_size={SIZE}")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-ldm")
    write_faces(folder)
    return folder


def test_an_ldm_is_trained_on_its_latents_and_sampled_with_it(
    faces: Path, tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = train_arguments(faces, tmp_path / "ldm", *WORDS, steps=4)
    planned = run_cli(*command, "image_size=112", "--dry-run", "--json")
    assert planned.code == 0, planned.err
    num_images, chosen = NUM_IDENTITIES * PER_IDENTITY, planned.json()["plan"]["chosen"]
    assert chosen["latent"] == "16x14x14" and chosen["latents"] == "cache"
    assert chosen["latent_cache_mib"] == round(num_images * 2 * 16 * 14 * 14 * 4 / 2**20, 1) == 0.5
    assert run_cli(*command).code == 0
    parts = np.concatenate([np.load(path) for path in (tmp_path / "ldm" / "latents").glob("*/part-*.npy")])
    assert parts.shape == (num_images, 2, 16, 3, 3)  # each image and its mirror image, encoded once
    settings = json.loads((tmp_path / "ldm" / "config.json").read_text())
    assert settings["autoencoder"]["path"] == "taesd3"  # no folder of this machine
    mean, std = torch.tensor(settings["latent_mean"]), torch.tensor(settings["latent_std"])
    assert mean.shape == std.shape == (16,) and mean.abs().max() > 1
    scaled = (torch.from_numpy(parts[:, 0]) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 0.5 and 0.5 < scaled.std() < 1.5
    contexts = tmp_path / "contexts.npy"
    np.save(contexts, np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32))
    sample = ("sample", "--ldm", tmp_path / "ldm", "--contexts", contexts, "--per-id", 1, "--steps", 2,
              "--device", "cpu", "scheduler.name=ddim")
    ran = run_cli(*sample, "--out", "a")
    assert ran.code == 0, ran.err
    ran = run_cli(*sample, "--out", "b", "--autoencoder", "taesd3")
    assert ran.code == 0, ran.err
    first, second = ImageSet.open(Path("a")), ImageSet.open(Path("b"))
    assert len(first.entries) == 2
    for one, other in zip(first.entries, second.entries, strict=True):
        assert np.array_equal(first.read(one), second.read(other))


def test_a_folder_of_its_name_is_refused(faces: Path, tmp_path: Path, assert_refused, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taesd3").mkdir()
    said = "taesd3 is a network of the package and also a file or folder here"
    assert_refused(*train_arguments(faces, tmp_path / "ldm", *WORDS), says=said)
    assert_refused("models", "verify", "taesd3", says=said)
    assert not (tmp_path / "ldm").exists()


def test_a_notebook_opens_it() -> None:
    network = facesyn.open("taesd3")
    assert isinstance(network, facesyn.Network) and network.load().latent_channels == 16


def test_models_knows_it(run_cli, assert_refused, tmp_path: Path) -> None:
    listed = run_cli("models", "list", "taesd3", "--json").json()
    assert listed["kind"] == "autoencoder" and listed["license"] == "MIT" and Path(listed["where"]).is_dir()
    found = run_cli("models", "inspect", "taesd3", "--json").json()
    assert found["architecture"] == "AutoencoderTiny" and found["values"] == 2_458_899
    assert run_cli("models", "verify", "taesd3", "--json").json()["loads"] == "strictly"
    assert_refused("models", "convert", "taesd3", "--out", tmp_path / "out",
                   says="autoencoder diffusers cannot be written as safetensors")
    assert_refused("models", "pull", "taesd3", says="taesd3 comes with facesyn")
