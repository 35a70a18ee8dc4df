"""Recognition networks against golden embeddings, published names and parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill_state, golden_uniform, load_golden, load_keys, skeleton
from tolerance import products_of, rounding

# name -> golden file, key list, parameters and tensors as published (None: not stated)
NETWORKS = {
    "ir-18": ("ir18", "ir18", None, None),
    "ir-50": ("ir50", "ir50", 43_585_600, 467),
    "ir-101": ("ir101", "ir101", 65_150_912, 917),
    "ir-se-50": ("irse50", "irse50", None, None),
    "iresnet-50": ("iresnet50", "elastic_iresnet50", 43_590_848, 475),
    "iresnet-100": ("iresnet100", "elastic_iresnet100", 65_156_160, 925),
    "mobilefacenet": ("tface_mobilefacenet", "tface_mobilefacenet", None, None),
}


@pytest.fixture(scope="module")
def drawn():
    """Weights drawn so far: networks of one family share most names and shapes."""
    return {}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_shapes_and_counts_are_the_published_ones(name):
    _, keys, num_parameters, num_tensors = NETWORKS[name]
    module = skeleton("backbone", name=name)
    state = module.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == load_keys(keys)
    if num_parameters is not None:
        assert (sum(p.numel() for p in module.parameters()), len(state)) == (num_parameters, num_tensors)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings(name, drawn):
    module = fill_state(skeleton("backbone", name=name), drawn)
    drawn.update(module.state_dict())
    expected = load_golden(f"backbone_{NETWORKS[name][0]}")["embedding"]
    actual = module(golden_uniform(7, (2, 3, 112, 112))).numpy()
    tolerance = rounding(products_of(module), expected.std())  # the spread reaches 1e6
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@torch.inference_mode()
def test_the_tolerance_would_show_a_wrong_eps():
    module = fill_state(skeleton("backbone", name="mobilefacenet"))
    pixels = golden_uniform(7, (1, 3, 112, 112))
    expected = module(pixels)
    for layer in module.modules():
        if hasattr(layer, "running_var"):
            assert layer.eps == 1e-5
            layer.eps = 2e-5
    assert (module(pixels) - expected).abs().max() > rounding(products_of(module), expected.std())
