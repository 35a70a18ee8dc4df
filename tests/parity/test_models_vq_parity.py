"""VQ-f4 against golden outputs, published names and parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill_state, load_golden, load_keys, skeleton
from tolerance import products_of, rounding


@pytest.fixture(scope="module")
def vq():
    return fill_state(skeleton("autoencoder", name="vq-f4"))


def _check(network: torch.nn.Module, actual: torch.Tensor, expected: np.ndarray) -> None:
    tolerance = rounding(products_of(network), expected.std())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("part", "num_tensors", "num_values"), [("encoder", 90, 22_337_423), ("decoder", 115, 32_985_359)]
)
def test_names_shapes_and_counts_of_the_halves(part, num_tensors, num_values):
    state = skeleton("autoencoder", name="vq-f4", part=part).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == load_keys(f"vq_{part}")
    assert (len(state), sum(value.numel() for value in state.values())) == (num_tensors, num_values)


def test_the_whole_is_both_halves(vq):
    assert set(vq.state_dict()) == set(load_keys("vq_encoder")) | set(load_keys("vq_decoder"))


@torch.inference_mode()
def test_encode(vq):
    golden = load_golden("vq")
    _check(vq.encoder, vq.encode(torch.from_numpy(golden["image"])), golden["latent"])


@torch.inference_mode()
def test_quantize(vq):
    golden = load_golden("vq")
    quantized, indices = vq.quantize(torch.from_numpy(golden["z"]))
    # no tie: the two nearest codes of a row are 6e-6 or more apart in squared distance, its rounding is about 1e-8
    assert indices.flatten().tolist() == golden["indices"].tolist()
    tolerance = rounding(scale=golden["z"].max())  # the published code adds z - z
    np.testing.assert_allclose(quantized.numpy(), golden["quantised"], rtol=0, atol=tolerance)


@torch.inference_mode()
def test_decode_with_and_without_quantization(vq):
    golden = load_golden("vq")
    z = torch.from_numpy(golden["z"])
    _check(vq.decoder, vq.decode(z), golden["decoded"])
    _check(vq.decoder, vq.decoder(vq.post_quant_conv(z)), golden["decoded_noquant"])
