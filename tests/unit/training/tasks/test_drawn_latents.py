"""Latents that an LDM draws for the training of a decoder: which they are, and that they are drawn once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_of_several import one_of
from torch import nn

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.training.tasks.drawn_latents import DrawingInputs, DrawnLatents, DrawnSettings, drawn_latents

KEYS = ["a/0", "b/0", "c/1", "d/2", "e/0"]


class KnowsTheFace(nn.Module):
    """A denoiser of v whose clean latent is the context, seen twice as strongly with it as without."""

    is_conditional = True
    broken = False

    def forward(self, x, t, context=None):
        clean = torch.zeros_like(x) if context is None else context[:, :, None, None]
        # at alpha_bar -> x0 = sqrt(ab) x - sqrt(1 - ab) v; with one step from pure noise (ab = 0) x0 = -v
        return -clean if not self.broken else torch.full_like(x, torch.nan)


def inputs(**settings) -> DrawingInputs:
    config = LdmSettings(
        denoiser={"name": "residual-mlp"}, prediction="v", beta_schedule="cosine", zero_terminal_snr=True,
        latent_channels=4, latent_size=1, embedding_size=4, **settings,
    )
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    embeddings = EmbeddingSet(KEYS, vectors, None, Path("e"), "sha256:0")
    return DrawingInputs(LoadedLdm(KnowsTheFace(), config, "sha256:1"), embeddings)


def draw(folder: Path, found: DrawingInputs, seed: int = 0, **settings) -> DrawnLatents:
    return drawn_latents(found, DrawnSettings(**settings), seed, folder, processes("cpu"))


def test_latents_are_those_of_guided_sampling_in_units_of_the_autoencoder(tmp_path):
    found = inputs(latent_mean=[1.0, 2.0, 3.0, 4.0], latent_std=[2.0, 2.0, 2.0, 2.0])
    drawn = draw(tmp_path, found, steps=1, guidance=3.0)
    clean = 3.0 * torch.from_numpy(found.embeddings.vectors)  # empty + 3 (context - empty)
    expected = clean * 2 + torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.allclose(drawn.latents[:, :, 0, 0], expected, atol=5e-3)  # unipc keeps a trace of the noise
    assert torch.equal(drawn.contexts, torch.from_numpy(found.embeddings.vectors))


def test_noise_depends_on_seed_and_key_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("facesyn_cli.sampling.pipeline.sample_latents",
                        lambda denoiser, scheduler, guidance, contexts, noise, *_, **__: seen.append(noise) or noise)
    draw(tmp_path / "a", inputs(), seed=5, count=2)
    assert torch.equal(seen[0], torch.stack([image_noise(5, key, 0, (4, 1, 1)) for key in ("a/0", "c/1")]))
    monkeypatch.setattr("facesyn_cli.training.tasks.drawn_latents._BATCH", 2)
    whole = draw(tmp_path / "b", inputs(), seed=5, count=99)
    assert len(whole.latents) == len(KEYS) and torch.equal(whole.latents[[0, 2]], seen[0])


def test_processes_draw_a_share_each(tmp_path, monkeypatch):
    monkeypatch.setattr("facesyn_cli.training.tasks.drawn_latents._BATCH", 2)
    whole = draw(tmp_path / "whole", inputs(), steps=2).latents
    shares = [drawn_latents(inputs(), DrawnSettings(steps=2), 0, tmp_path / f"{rank}", one_of(2, rank)).latents
              for rank in (0, 1)]
    assert not shares[0][2:4].any() and not shares[1][[0, 1, 4]].any() and torch.equal(sum(shares), whole)


def test_they_are_drawn_once_and_read_again(tmp_path, monkeypatch):
    first = draw(tmp_path, inputs(), steps=2)
    monkeypatch.setattr("facesyn_cli.training.tasks.drawn_latents._draw", None)
    assert torch.equal(draw(tmp_path, inputs(), steps=2).latents, first.latents)


def test_every_latent_comes_in_turn_and_places_share_a_batch():
    latents = torch.arange(6.0).view(6, 1, 1, 1)
    drawn = DrawnLatents(latents, latents[:, :, 0, 0])
    epoch = [drawn.read(1, step, 3, range(3))[0].flatten().tolist() for step in range(2)]
    assert sorted(sum(epoch, [])) == [0, 1, 2, 3, 4, 5]
    parts = [drawn.read(1, 1, 3, places) for places in (range(0, 2), range(2, 3))]
    assert sum((part.flatten().tolist() for part, _ in parts), []) == epoch[1]
    assert all(torch.equal(part.flatten(), contexts.flatten()) for part, contexts in parts)


def test_what_is_not_finite_is_refused_and_not_kept(tmp_path):
    found = inputs()
    found.ldm.module.broken = True
    with pytest.raises(UserError, match="not finite"):
        draw(tmp_path, found, steps=1)
    assert not list(tmp_path.iterdir())
