"""The packaged TAESD3: it loads by name, gives the same numbers everywhere, and returns faces nearly unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fill import golden_uniform
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.models import face_check
from facesyn_cli.models.loading import load_autoencoder, open_autoencoder

ROUNDING = 2e-3  # float32 through 40 convolutions on any processor


@pytest.fixture(scope="module")
def taesd3() -> nn.Module:
    return load_autoencoder("taesd3")


@torch.inference_mode()
def test_known_inputs_give_known_outputs(taesd3: nn.Module) -> None:
    assert (taesd3.latent_channels, taesd3.downscale) == (16, 8)
    latents = taesd3.encode(golden_uniform(4, (2, 3, 32, 32)))
    assert latents.shape == (2, 16, 4, 4) and latents.dtype == torch.float32
    assert latents[0, :4, 1, 2].tolist() == pytest.approx([1.0514, -1.0117, 0.5495, 1.1117], abs=ROUNDING)
    pixels = taesd3.decode(golden_uniform(3, (2, 16, 4, 4)))
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels[0, :, 8, 8].tolist() == pytest.approx([0.3864, 0.4635, 0.4565], abs=ROUNDING)
    assert pixels[1, :, 20, 11].tolist() == pytest.approx([0.3580, 0.3112, 0.0707], abs=ROUNDING)


@torch.inference_mode()
def test_faces_come_back(taesd3: nn.Module) -> None:
    faces = face_check._faces(112)[0][:4]  # drawn by the starter
    back = taesd3.decode(taesd3.encode(faces)).clamp(-1, 1)
    assert psnr(faces, back).min() > 33
    assert psnr(faces, back.flip(1)).max() < 30  # red stays red


@torch.inference_mode()
def test_an_ldm_finds_it_by_name_in_any_folder(
    taesd3: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taesd3.section["path"] == "taesd3" and taesd3.section["name"] == "diffusers"
    monkeypatch.chdir(tmp_path)
    Path("taesd3").mkdir()  # what an LDM names is never a folder that happens to lie here
    again = open_autoencoder(taesd3.section, part="decoder")
    assert again.section == taesd3.section
    latents = golden_uniform(3, (1, 16, 4, 4))
    assert torch.equal(again.decode(latents), taesd3.decode(latents))
    with pytest.raises(UserError, match="autoencoder taesd3 has changed since the LDM was trained"):
        open_autoencoder({**taesd3.section, "digest": "sha256:" + "0" * 64})
    with pytest.raises(UserError, match="also a file or folder here"):
        load_autoencoder("taesd3")


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the PSNR of each image in [-1, 1], in dB."""
    return 10 * torch.log10(4 / (first - second).square().mean(dim=(1, 2, 3)))
