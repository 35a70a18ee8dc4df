"""Weights of plugins that were removed: every command that loads them says so in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ldm import SIZE, write_faces

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.plugins import registry

FACE_PCA = {"name": "face-pca", "image_size": 16, "patch": 4, "latent_channels": 6, "part": "both"}
DIT = {"name": "dit", "in_channels": 6, "patch": 1, "width": 8, "depth": 1, "heads": 1}


def _write_networks(folder: Path) -> None:
    """Write `face-pca`, `residual-mlp` and `ldm`, whose autoencoder is of the first kind."""
    tensors = {"transform.mean": torch.zeros(6)}
    write_weights(folder / "face-pca", tensors, {"kind": "autoencoder", "autoencoder": FACE_PCA, "image_size": 16})
    settings = {name: value for name, value in FACE_PCA.items() if name not in ("name", "part")}
    autoencoder = {"name": "face-pca", "settings": settings, "path": str(folder / "face-pca"), "digest": None}
    dit = registry.build("denoiser", registry.configure("denoiser", DIT)).state_dict()
    for name, denoiser, state in (
        ("residual-mlp", {"name": "residual-mlp", "grid": 1}, tensors), ("ldm", DIT, dit)
    ):
        description = LdmSettings(denoiser=denoiser, autoencoder=autoencoder, latent_channels=6, latent_size=1)
        write_weights(folder / name, state, description.model_dump(mode="json"))


@pytest.mark.parametrize(("words", "says"), [
    (("models", "verify", "face-pca"), "face-pca: autoencoder 'face-pca' was removed"),
    (("models", "convert", "residual-mlp", "--out", "out"), "residual-mlp: denoiser 'residual-mlp' was removed"),
    (("sample", "--ldm", "residual-mlp", "--contexts", "contexts.npy"), "denoiser 'residual-mlp' was removed"),
    (("sample", "--ldm", "ldm", "--contexts", "contexts.npy"), "'face-pca' was removed"),
    (("train-autoencoder", "--images", "faces", f"image_size={SIZE}", "initial=face-pca"), "'face-pca' was removed"),
    (("train-ldm", "--images", "faces", "--embeddings", "embeddings", "--autoencoder", "face-pca"),
     "face-pca: autoencoder 'face-pca' was removed: train face-kl, or use the packaged taesd3"),
])
def test_they_are_refused_in_one_line(words, says: str, tmp_path: Path, monkeypatch, assert_refused) -> None:
    monkeypatch.chdir(tmp_path)
    _write_networks(tmp_path)
    write_faces(tmp_path)
    np.save("contexts.npy", np.eye(512, dtype=np.float32)[:2])
    common = () if words[0] == "models" else ("--out", "out", "device=cpu")
    assert_refused(*words, *common, says=says)
    assert not Path("out").exists()
