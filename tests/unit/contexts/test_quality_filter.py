"""The filter `quality`: what the LDM draws of a candidate decides, however candidates are cut into calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.contexts.source import Resources
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry

CPU = torch.device("cpu")
SIZE = 4  # numbers of a context that are not 0


class _Denoiser(torch.nn.Module):
    """Predicts x_0 = the first three numbers of the context, over the whole image."""

    def forward(self, x, t, context):
        seen = torch.zeros(len(x), 3) if context is None else context[:, :3]
        return seen[:, :, None, None].expand_as(x)


class _Autoencoder(torch.nn.Module):
    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=4.0)


def features(faces_u8: np.ndarray) -> np.ndarray:
    """The mean color again, ten times as long where the face is reddish; never more than 8 faces come."""
    assert len(faces_u8) == 8
    color = faces_u8.mean(axis=(1, 2)) / 127.5 - 1
    rows = np.pad(color, ((0, 0), (0, 509)))
    return rows * np.where(color[:, :1] > 0.5, 10.0, 1.0)


def quality(denoiser: torch.nn.Module | None = None, facts: dict | None = None, **settings):
    made = registry.build("context_filter", registry.configure("context_filter", {"name": "quality", **settings}))
    facts = {"latent_size": 28, "image_size": 112, "prediction": "x0", **(facts or {})}
    ldm = LoadedLdm(denoiser or _Denoiser(), LdmSettings(denoiser={"name": "idiff-unet"}, **facts), "sha256:ldm")
    made.open(Resources(
        seed=3, batch_size=8, ldm=ldm, autoencoder=_Autoencoder(), features=features, embedder="sha256:abc"
    ))
    return made


def candidates(count: int = 11) -> np.ndarray:
    rows = np.random.RandomState(0).standard_normal((count, SIZE))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.pad(rows, ((0, 0), (0, 512 - SIZE))).astype(np.float32)


STEPS = {"scheduler": {"name": "ddim", "steps": 2}, "guidance": 1.0}


def test_faces_unlike_the_candidate_drop_it():
    vectors = candidates()
    kept = quality(images=2, lowest_cosine=0.8, **STEPS).select(vectors)
    shown = np.linalg.norm(vectors[:, :3], axis=1)  # cosine of what the LDM can show of a candidate to all of it
    assert np.array_equal(kept, shown >= 0.8) and 0 < kept.sum() < len(kept)


def test_short_embeddings_drop_it():
    vectors = candidates()
    kept = quality(images=2, lowest_cosine=-1, lowest_length=2.0, **STEPS).select(vectors)
    assert np.array_equal(kept, vectors[:, 0] > 0.5) and 0 < kept.sum() < len(kept)


def test_guidance_counts():
    vectors = candidates()
    away = quality(images=2, lowest_cosine=-1, lowest_length=2.0, scheduler={"steps": 2}, guidance=2.0).select(vectors)
    assert np.array_equal(away, np.clip(2 * vectors[:, 0], -1, 1) > 0.5)  # out = 0 + 2 (context - 0)


def test_guidance_is_a_scale_or_a_plugin():
    vectors = candidates()
    settings = {"images": 2, "lowest_cosine": -1, "lowest_length": 2.0, "scheduler": {"steps": 2}}
    kept = quality(guidance=2, **settings).select(vectors)
    assert np.array_equal(quality(guidance={"name": "cfg", "scale": 2}, **settings).select(vectors), kept)
    assert np.array_equal(quality(guidance="none", **settings).select(vectors),
                          quality(guidance=1, **settings).select(vectors))
    for given in ({"name": "negfacediff"}, "scoremix"):
        with pytest.raises(UserError, match="mixes with contexts of others"):
            quality(guidance=given)
    with pytest.raises(ValidationError, match="scale"):
        quality(guidance=-1)
    with pytest.raises(ValidationError, match="unknown guidance 'none of these'"):
        quality(guidance="none of these")


@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_calls_of_any_size_say_the_same(images):
    vectors = candidates()
    settings = {"images": images, "lowest_cosine": 0.8, **STEPS}
    whole = quality(**settings).select(vectors)
    made = quality(**settings)
    assert np.array_equal(np.concatenate([made.select(vectors[k : k + 3]) for k in range(0, 11, 3)]), whole)


def test_evaluations_are_counted_and_the_first_candidates_told(monkeypatch):
    told = []
    monkeypatch.setattr("facesyn_cli.contexts.quality.log.info", told.append)
    made = quality(images=4, scheduler={"steps": 5}, guidance=1.5)
    assert made.evaluations == {"denoiser": 40, "decoder": 4, "recognizer": 4}
    assert not made.remembers
    made.select(candidates(2))
    made.select(candidates(2))
    assert len(told) == 1 and told[0].startswith("quality: the first 2 candidates have lengths 10.1 to 13.3")


def test_an_ldm_that_shows_no_candidate_is_refused():
    unconditional = _Denoiser()
    unconditional.is_conditional = False
    with pytest.raises(UserError, match="filter quality: the LDM is unconditional"):
        quality(unconditional)
    with pytest.raises(UserError, match="takes contexts of 16 numbers, candidates have 512"):
        quality(facts={"embedding_size": 16})
