"""The vector-quantized autoencoder on small settings."""

from __future__ import annotations

import pytest
import torch
from fill import fill_state, golden_normal
from pydantic import ValidationError

from facesyn_cli.errors import UserError
from facesyn_cli.models import vq_f4
from facesyn_cli.models.vq_f4 import Codebook, VqConfig, VqF4

SMALL = {"name": "vq-f4", "channels": 32, "multipliers": (1, 2, 2), "num_blocks": 1, "codebook_size": 16}


def _small(**settings):
    return fill_state(VqF4(VqConfig(**{**SMALL, **settings})))


def test_nearest_code_by_hand_and_first_of_equals():
    codebook = Codebook(5, 2)
    codes = torch.tensor([[5.0, 5.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    codebook.embedding.weight.data = codes
    rows = torch.tensor([[0.1, 0.1], [0.9, -0.3], [0.0, 1.5], [0.5, 0.0]])         # the last is halfway
    quantized, indices = codebook(rows.T.reshape(1, 2, 2, 2))
    assert indices.flatten().tolist() == [1, 2, 4, 1]
    assert torch.equal(quantized, codes[indices].movedim(-1, 1))


def test_codes_do_not_depend_on_the_batch(monkeypatch):
    codebook = fill_state(Codebook(64, 3))
    latents = golden_normal(1, (5, 3, 6, 6))
    expected = codebook(latents)[1]
    distance = torch.cdist(latents.movedim(1, -1).reshape(-1, 3).double(), codebook.embedding.weight.double())
    assert torch.equal(expected.flatten(), distance.argmin(1))
    monkeypatch.setattr(vq_f4, "_ROWS", {"cpu": 7})  # blocks that do not divide the 180 positions
    assert torch.equal(codebook(latents)[1], expected)
    assert torch.equal(torch.cat([codebook(latents[i : i + 1])[1] for i in range(5)]), expected)


def test_quantization_can_be_switched_off():
    z = golden_normal(2, (1, 3, 4, 4))
    on, off = _small(), _small(quantize=False)
    torch.testing.assert_close(off.decode(z), off.decoder(off.post_quant_conv(z)))
    torch.testing.assert_close(on.decode(z), off.decode(on.quantize(z)[0]))
    assert not torch.allclose(on.decode(z), off.decode(z))


def test_encoding_is_continuous_and_shapes_follow_the_levels():
    vq = _small()
    pixels = golden_normal(3, (2, 3, 16, 24))
    latents = vq.encode(pixels)
    assert (vq.downscale, vq.latent_channels, tuple(latents.shape)) == (4, 3, (2, 3, 4, 6))
    assert not torch.allclose(latents, vq.quantize(latents)[0])
    assert tuple(vq.decode(latents).shape) == (2, 3, 16, 24)


def test_halves_say_what_they_lack():
    with pytest.raises(UserError, match="only the encoder was given"):
        _small(part="encoder").decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="only the decoder was given"):
        _small(part="decoder").encode(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("settings", [{"multipliers": ()}, {"channels": 33}, {"multipliers": (1, 0)}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        VqConfig(**{**SMALL, **settings})
