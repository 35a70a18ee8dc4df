"""The terms of an autoencoder's loss by hand, the discriminator's hinge, and Eq. 7 of Esser et al."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fill import fill_state, golden_normal, golden_uniform
from tolerance import products_of, rounding

from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import feature_maps, perceptual_distance
from facesyn_cli.plugins import registry
from facesyn_cli.training.tasks.autoencoder_step import AutoencoderLoss, LossWeights
from facesyn_cli.training.tasks.discriminator import (
    PatchDiscriminator,
    adaptive_factor,
    discriminator_loss,
    generator_loss,
    smallest_side,
)
from facesyn_cli.training.tasks.feature_distance import FeatureDistance

NOTHING = LossWeights(l1=0, mse=0, feature=0, identity=0, kl=0, codebook=0, commitment=0)


def weights(**wanted: float) -> LossWeights:
    return dataclasses.replace(NOTHING, **wanted)


def recognizer(**settings):
    cfg = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 8, **settings}
    return fill_state(registry.build("backbone", registry.configure("backbone", cfg)))


def test_pixel_terms_by_hand():
    real = torch.zeros(2, 3, 2, 2)
    made = torch.stack([torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), -2.0)])
    terms = AutoencoderLoss(weights(l1=2.0, mse=10.0))(made, real, {})
    assert terms.reconstruction.tolist() == [2 * 0.5 + 10 * 0.25, 2 * 2.0 + 10 * 4.0]
    assert {name: term.tolist() for name, term in terms.each.items()} == {"l1": [0.5, 2.0], "mse": [0.25, 4.0]}
    assert terms.penalty.tolist() == [0, 0]


def test_penalties_are_weighted_by_their_names_and_left_out_at_zero():
    real = golden_uniform(1, (2, 3, 4, 4))
    penalties = {"kl": torch.tensor([1.0, 2.0]), "commitment": torch.tensor([4.0, 8.0]), "codebook": torch.ones(2)}
    terms = AutoencoderLoss(weights(l1=1.0, kl=0.5, commitment=0.25))(real, real, penalties)
    assert terms.penalty.tolist() == [1.5, 3.0] and terms.reconstruction.tolist() == [0, 0]
    assert set(terms.each) == {"l1", "kl", "commitment"}


def test_features_are_compared_in_maps_and_embedding():
    backbone = recognizer()
    made, real = golden_uniform(1, (2, 3, 112, 112)), golden_uniform(2, (2, 3, 112, 112))
    loss = AutoencoderLoss(weights(feature=3.0, identity=5.0), FeatureDistance(backbone, 112, "features"))
    terms = loss(made, real, {})
    with torch.no_grad():
        feature = perceptual_distance(feature_maps(backbone, made), feature_maps(backbone, real))
        identity = 1 - torch.cosine_similarity(backbone(made), backbone(real))
    tolerance = rounding(products_of(backbone), feature.max())
    assert torch.allclose(terms.each["feature"], feature, rtol=0, atol=tolerance)
    assert torch.allclose(terms.each["identity"], identity, rtol=0, atol=tolerance)
    assert torch.allclose(terms.reconstruction, 3 * feature + 5 * identity, rtol=0, atol=8 * tolerance)
    same = loss(real, real, {})
    assert same.each["feature"].tolist() == [0, 0] and same.reconstruction.abs().max() < 5 * tolerance


def test_gradients_reach_the_reconstruction_alone_and_the_recognizer_stays_as_it_is():
    backbone = recognizer()
    distance = FeatureDistance(backbone, 112, "features").train()
    made, real = (golden_uniform(seed, (2, 3, 32, 32)).requires_grad_() for seed in (1, 2))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    sum(value.sum() for value in distance(made, real).values()).backward()
    assert made.grad.abs().max() > 0 and real.grad is None
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_only_what_is_wanted_is_computed():
    backbone = recognizer()
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    real = golden_uniform(1, (1, 3, 112, 112))
    for flags, names in (
        ({"use_maps": False}, {"identity"}), ({"use_embeddings": False}, {"feature"}), ({}, {"feature", "identity"}),
    ):
        calls.clear()
        assert set(FeatureDistance(backbone, 112, "features", **flags)(real, real)) == names
        assert len(calls) == 2  # once for each of the two images, whatever is wanted


def test_a_transformer_gives_maps_and_embedding():
    pytest.importorskip("timm")
    cfg = {"name": "timm", "model": "test_vit", "embedding_size": 8, "img_size": 32, "patch_size": 8}
    backbone = fill_state(registry.build("backbone", registry.configure("backbone", cfg)))
    made, real = golden_uniform(1, (1, 3, 32, 32)), golden_uniform(2, (1, 3, 32, 32))
    distances = FeatureDistance(backbone, 32, "features")(made, real)
    with torch.no_grad():
        expected = 1 - torch.cosine_similarity(backbone(made), backbone(real))
    torch.testing.assert_close(distances["identity"], expected, rtol=0, atol=rounding(products_of(backbone)))
    assert distances["feature"] > 0


def test_a_network_that_shows_no_maps_serves_for_embeddings_only():
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    with pytest.raises(UserError, match="features x does not expose its feature maps"):
        FeatureDistance(backbone, 2, "features x")
    real = golden_uniform(1, (2, 3, 2, 2))
    distance = FeatureDistance(backbone, 2, "features x", use_maps=False)(-real, real)
    assert set(distance) == {"identity"} and distance["identity"].shape == (2,)


def test_hinge_by_hand():
    real = torch.tensor([[0.5, 2.0], [-1.0, 1.0]]).view(2, 1, 1, 2)
    made = torch.tensor([[-2.0, 0.0], [3.0, -1.0]]).view(2, 1, 1, 2)
    assert discriminator_loss(real, made).tolist() == [(0.25 + 0.5) / 2, (1.0 + 2.0) / 2]
    assert generator_loss(made).tolist() == [1.0, -1.0]


def test_adaptive_factor_is_the_ratio_of_norms():
    ours, theirs = golden_normal(1, (4, 3, 3, 3)).double(), golden_normal(2, (4, 3, 3, 3)).double()
    expected = (ours**2).sum().sqrt() / ((theirs**2).sum().sqrt() + 1e-6)
    assert adaptive_factor(ours, theirs).item() == pytest.approx(expected.item(), rel=1e-12)
    assert adaptive_factor(ours, 0 * theirs).item() == 1e4
    assert adaptive_factor(0 * ours, theirs).item() == 0


def test_the_discriminator_sees_patches_and_no_neighbors():
    network = fill_state(PatchDiscriminator(8, 2))
    pixels = golden_uniform(1, (3, 3, 32, 32))
    with torch.no_grad():
        logits = network(pixels)
        assert logits.shape == (3, 1, 6, 6)
        tolerance = rounding(products_of(network), logits.std())
        torch.testing.assert_close(logits[1:2], network(pixels[1:2]), rtol=0, atol=tolerance)
        for layers in (1, 2, 3):
            side, network = smallest_side(layers), PatchDiscriminator(8, layers)
            assert network(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
            with pytest.raises(RuntimeError):
                network(torch.zeros(1, 3, side - 1, side - 1))
