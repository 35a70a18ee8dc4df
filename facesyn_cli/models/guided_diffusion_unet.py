"""The network of DCFace stage 1 (`ffhq_10m.pt`): conversion from and to a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert import guided_diffusion
from facesyn_cli.models.convert.guided_diffusion import GuidedUnet

SCHEDULE = {  # the published settings: linear betas of T = 1000, learned variance, clipped images, ancestral steps
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "variance_type": "learned_range", "clip_sample": True, "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}


def load_guided_pipeline(path: Path) -> Any:
    """Load a guided-diffusion checkpoint strictly as a diffusers `DDPMPipeline`, in eval mode on the CPU.

    Raises:
        UserError: Missing, damaged, another network, or built with unsupported settings.
    """
    tensors = read_tensors(path)
    if not guided_diffusion.is_guided_unet(tensors):
        raise UserError(f"{path} is not a guided-diffusion UNet; such a file or the folder of a diffusers pipeline was "
                        "expected")
    try:
        settings = guided_diffusion.read_settings(tensors)
        return build_pipeline(guided_diffusion.to_diffusers(tensors, settings), settings)
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def build_pipeline(tensors: Mapping[str, Tensor], settings: GuidedUnet) -> Any:
    """Build the pipeline around tensors with the names of `UNet2DModel`.

    Raises:
        UserError: The tensors do not match the settings, or are not finite.
    """
    bad = [key for key, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"holds numbers that are not finite, in {len(bad)} tensors such as {bad[0]}")
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**settings.diffusers_config())
    try:
        unet.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError("looks like a guided-diffusion UNet, but does not fit: "
                        f"{' '.join(str(error).split())[:300]}") from error
    return diffusers.DDPMPipeline(unet.eval(), diffusers.DDPMScheduler(**SCHEDULE))


def published_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the UNet of a pipeline under the published names.

    Args:
        folder: Diffusers pipeline written by `facesyn models convert`.

    Raises:
        UserError: It is not a network of guided-diffusion.
    """
    unet = folder / "unet"
    config = read_json(unet / "config.json")
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{folder} holds no UNet2DModel; the pipeline of a guided-diffusion UNet was expected")
    try:
        settings = guided_diffusion.settings_of_config(config)
        tensors = read_tensors(unet / "diffusion_pytorch_model.safetensors")
        return guided_diffusion.from_diffusers(tensors, settings)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {error}") from error
