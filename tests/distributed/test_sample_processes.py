"""Two launched processes make the files of one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn
from fill import fill_state

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

pytestmark = pytest.mark.dist


def test_two_processes_equal_one(tmp_path, run_cli):
    denoiser = {"name": "idiff-unet", "channels": 32, "multipliers": [1, 1], "attention": [False, True],
                "num_blocks": 1, "context_size": 8, "context_width": 32}
    unet = fill_state(ConditionalUNet(UnetConfig(**denoiser)))
    settings = LdmSettings(
        denoiser=denoiser, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=24,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(tmp_path / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(tmp_path / "contexts.npy", np.random.RandomState(0).standard_normal((4, 8)).astype(np.float32))

    def arguments(out, *more):
        return ("sample", "--ldm", tmp_path / "ldm", "--contexts", tmp_path / "contexts.npy", "--out", tmp_path / out,
                "--device", "cpu", "--assume-embedder", "any", "--per-id", 5, "--steps", 3, "--batch-size", 3,
                "--scheduler", "ddpm", "--json", *more)

    one = run_cli(*arguments("one"))
    assert one.code == 0, one.err
    two = finish(spawn(*arguments("two"), processes=2))
    assert two.code == 0 and "2 processes" in two.err, two.err
    assert two.json()["made_now"] == 20  # one document on stdout, and both processes counted
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    assert len(_digests(tmp_path / "two")) == 20
    assert (tmp_path / "two" / "facesyn.json").is_file()
    # A user's mistake is one line on stderr, however many processes make it.
    wrong = finish(spawn(*arguments("wrong", "--ids", 9), processes=2))
    assert wrong.code != 0
    assert wrong.err.count("ids is 9, but") == 1


def _digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*/*.png")}
