"""Two launched processes make the files of one, with every kind of identity method at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn
from fill import fill_state
from tiny_recognizer import write_recognizer

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
    np.save(tmp_path / "contexts.npy", np.random.RandomState(0).standard_normal((9, 8)).astype(np.float32))
    write_recognizer(tmp_path / "judge")

    def arguments(out):
        return ("sample", "--ldm", tmp_path / "ldm", "--contexts", tmp_path / "contexts.npy", "--out", tmp_path / out,
                "--device", "cpu", "--assume-embedder", "any", "--per-id", 4, "--steps", 2, "--batch-size", 2,
                "guidance.name=negfacediff", "guidance.negative=random", "variation=idperturb",
                "filter.name=consistency", f"filter.judge={tmp_path / 'judge'}", "filter.center_images=3",
                "filter.lowest=0.9", "filter.attempts=2", "--json")

    one = run_cli(*arguments("one"))
    assert one.code == 0, one.err
    two = finish(spawn(*arguments("two"), processes=2))
    assert two.code == 0 and "2 processes" in two.err, two.err
    assert two.json() == {**one.json(), "folder": str(tmp_path / "two")}
    assert one.json()["replaced"] > 0  # the filter had work to do
    digests = _digests(tmp_path / "one")
    assert {"judged.csv", "image-contexts/embeddings.npy"} < set(digests) and len(digests) == 36 + 3
    assert _digests(tmp_path / "two") == digests


def _digests(folder: Path) -> dict[str, str]:
    named = [p for p in folder.rglob("*") if p.parent != folder or p.suffix != ".png"]
    files = [p for p in named if p.suffix in (".png", ".npy", ".csv", ".txt")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
