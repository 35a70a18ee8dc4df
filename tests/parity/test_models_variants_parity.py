"""Recognition networks of METHODS.md G.11 against golden embeddings and published names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill_state, golden_uniform, load_golden, load_keys, skeleton
from tolerance import rounding
from torch import nn

# golden file and key list -> settings of the plugin
NETWORKS = {
    "curricularface_ir50": {"name": "ir-50", "variant": "curricularface"},
    "curricularface_irse50": {"name": "ir-se-50", "variant": "curricularface"},
    "faceevolve_ir50": {"name": "ir-50", "variant": "face-evolve"},
    "arcface_mbf": {"name": "mbf"},
    "magface_iresnet50": {"name": "iresnet-50", "variant": "magface"},
}
KEYS = {"magface_iresnet50": "elastic_iresnet50"}  # the same names and shapes


def float32_tolerance(module: nn.Module) -> float:
    """Return how far two float32 evaluations may be apart, relative to the spread of the outputs."""
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return rounding(sum(layer.weight[0].numel() for layer in layers))  # sums of these lengths, one after the other


@pytest.fixture(scope="module")
def drawn():
    """Weights drawn so far: networks of one family share most names and shapes."""
    return {}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_the_published_ones(name):
    state = skeleton("backbone", **NETWORKS[name]).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == load_keys(KEYS.get(name, name))


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings(name, drawn):
    module = fill_state(skeleton("backbone", **NETWORKS[name]), drawn)
    drawn.update(module.state_dict())
    pixels = golden_uniform(7, (2, 3, 112, 112))
    if name == "magface_iresnet50":  # the golden input goes into the layers as it is; ours are RGB in [-1, 1]
        pixels = (2 * pixels.double() - 1).flip(1)
        module.double()
    expected = load_golden(f"backbone_{name}")["embedding"]
    actual = module(pixels).numpy()
    tolerance = float32_tolerance(module)
    np.testing.assert_allclose(actual / expected.std(), expected / expected.std(), rtol=0, atol=tolerance)
