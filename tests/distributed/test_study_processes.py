"""Two launched processes share the rows of a study and write the table of one."""

from __future__ import annotations

import json
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
    denoiser = {"name": "idiff-unet", "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
                "context_size": 8, "context_width": 32}
    unet = fill_state(ConditionalUNet(UnetConfig(**denoiser)))
    settings = LdmSettings(
        denoiser=denoiser, latent_size=4, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=16, output_size=16,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(tmp_path / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(tmp_path / "contexts.npy", np.random.RandomState(0).standard_normal((4, 8)).astype(np.float32))
    write_recognizer(tmp_path / "judge")

    def arguments(out):
        return ("study", "--ldm", tmp_path / "ldm", "--contexts", tmp_path / "contexts.npy", "--judge",
                tmp_path / "judge", "--out", tmp_path / out, "--device", "cpu", "--ids", 3, "--per-id", 3, "--seeds", 2,
                "--steps", "1,2", "--schedulers", "ddim", "--methods", "idperturb", "--batch-size", 4, "--json",
                "assume_embedder=any", "reference_steps=3", "method_steps=1")

    one = run_cli(*arguments("one"))
    assert one.code == 0, one.err
    two = finish(spawn(*arguments("two"), processes=2))
    assert two.code == 0 and "2 processes" in two.err, two.err
    rows = _rows(tmp_path / "one")
    assert len(rows) == 4 and _rows(tmp_path / "two") == rows
    assert len(two.json()["rows"]) == 4


def _rows(folder: Path) -> list[dict]:
    return json.loads((folder / "study.json").read_text())["rows"]
