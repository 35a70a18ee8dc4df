"""The recognizer of latents: its shapes, its normalization, and who refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.errors import UserError
from facesyn_cli.models.latent_ir import LatentIrConfig
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.training.initial_weights import build_backbone

SMALL = {"name": "latent-ir", "in_channels": 4, "latent_size": 5, "widths": [8, 12], "blocks": [1, 2],
         "embedding_size": 16}


def small(**settings):
    torch.manual_seed(0)
    return registry.build("backbone", registry.configure("backbone", {**SMALL, **settings})).eval()


def test_it_maps_latents_to_embeddings():
    assert small()(torch.zeros(2, 4, 5, 5)).shape == (2, 16)
    assert small(latent_size=14)(torch.zeros(1, 4, 14, 14)).shape == (1, 16)
    with pytest.raises(ValueError, match=r"expected latents \(B, 4, 5, 5\), got \(2, 3, 5, 5\)"):
        small()(torch.zeros(2, 3, 5, 5))


def test_latents_are_normalized_by_the_statistics_in_the_weights():
    plain, scaled = small(), small()
    mean, std = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([2.0, 0.5, 1.0, 4.0])
    scaled.normalize_by(mean, std)
    latents = torch.randn(3, 4, 5, 5)
    expected = plain(latents)
    found = scaled(latents * std.view(4, 1, 1) + mean.view(4, 1, 1))
    assert torch.allclose(found, expected, atol=1e-5)
    assert {"mean", "std"} <= scaled.state_dict().keys()


def test_the_size_that_its_settings_promise():
    network = registry.build("backbone", registry.configure("backbone", {"name": "latent-ir"}))
    assert 2.8e6 < sum(p.numel() for p in network.parameters()) < 3.0e6


@pytest.mark.parametrize("settings", [{"widths": [8, 8]}, {"blocks": [1]}, {"widths": [], "blocks": []}])
def test_stages_that_make_no_network_are_refused(settings):
    with pytest.raises(ValueError, match="widths"):
        LatentIrConfig(**{**SMALL, **settings})


def test_it_is_loaded_only_by_those_who_read_latents(tmp_path: Path):
    cfg = registry.configure("backbone", SMALL)
    config = {"kind": "backbone", "backbone": cfg.model_dump(mode="json"), "input_size": 5, "embedding_size": 16}
    write_weights(tmp_path / "latent", small().state_dict(), config)
    assert load_backbone(tmp_path / "latent", reads="latents").input_size == 5
    assert load_backbone(tmp_path / "latent", reads=None).name == "latent-ir"
    with pytest.raises(UserError, match=r"reads latents \(backbone latent-ir\); one that reads photos was expected"):
        load_backbone(tmp_path / "latent")
    with pytest.raises(UserError, match="backbone latent-ir reads latents, photos are given"):
        build_backbone(cfg)
    with pytest.raises(UserError, match="backbone ir-tiny reads photos, latents are given: take latent-ir"):
        build_backbone(registry.configure("backbone", {"name": "ir-tiny"}), "latents")
