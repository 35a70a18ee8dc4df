"""Trained weights in the files of the published code: LDMs for IDiff-Face and ADMIS, recognizers for TFace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.weights import write_torch
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.tface_head import part_name
from facesyn_cli.models.recognizer import published_state
from facesyn_cli.plugins.settings import PluginConfig


def check_exportable(denoiser: PluginConfig, beta_schedule: str, prediction: str, is_normalized: bool) -> None:
    """Refuse an LDM that the published code cannot run.

    Raises:
        UserError: Not the published architecture, not the linear noise schedule, not a prediction of eps, or
            latents normalized by statistics, for which the published file has no place.
    """
    if is_normalized:
        raise UserError("export_published needs latent_statistics=identity; the published file cannot hold statistics")
    for what, needed, found in (
        ("beta_schedule", "linear", beta_schedule), ("prediction", "epsilon", prediction),
        ("the denoiser", "idiff-unet", denoiser.name),
    ):
        if found != needed:
            raise UserError(f"export_published needs {what} {needed}, this one is {found}")
    if getattr(denoiser, "pose", False):
        raise UserError("export_published needs denoiser.pose=false; the published network takes no poses")


def export_ldm(folder: Path, step: int, weights: Mapping[str, Tensor], schedule: NoiseSchedule) -> Path:
    """Write `ema_averaged_model_<step>.ckpt` and return its path.

    It is a flat `torch.save` of the weights of an `idiff-unet` as `eps_model.*` and of eight buffers of the noise
    schedule, in the published order.
    """
    path = folder / f"ema_averaged_model_{step}.ckpt"
    tensors = {f"eps_model.{key}": value.detach().cpu().float().clone() for key, value in weights.items()}
    write_torch(path, {**tensors, **schedule_buffers(schedule)})
    return path


def schedule_buffers(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """Return the eight published buffers, (T,) float32 each."""
    betas, alpha_bars = schedule.betas, schedule.alpha_bars
    alphas = 1 - betas
    sqrt_one_minus = torch.sqrt(1 - alpha_bars)
    return {
        "betas": betas,
        "alphas": alphas,
        "sigmas": torch.sqrt(betas),
        "sqrt_alphas_inv": 1 / torch.sqrt(alphas),
        "alpha_bars": alpha_bars,
        "sqrt_alpha_bars": torch.sqrt(alpha_bars),
        "sqrt_one_minus_alpha_bars": sqrt_one_minus,
        "one_minus_alphas_over_sqrt_one_minus_alpha_bars": (1 - alphas) / sqrt_one_minus,
    }


def published_name(epoch: int) -> str:
    """Return TFace's name of the backbone's weights after `epoch` (1-based) epochs."""
    return f"Backbone_Epoch_{epoch}_checkpoint.pth"


def export_recognizer(backbone: nn.Module, folder: Path, epoch: int) -> Path:
    """Write the flat state dict of a backbone with `torch.save`, as TFace does.

    Args:
        backbone: The network; its parameter names are written as they are, which for `ir-*` are TFace's. TFace
            reads RGB: of a network that takes BGR the first layer is reversed.
        folder: Where to write.
        epoch: Number of finished epochs, part of the file name.
    """
    path = folder / published_name(epoch)
    layout = torch.contiguous_format  # channels-last ones too
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in published_state(backbone).items()
    }
    write_torch(path, tensors)
    return path


def export_classifier(tensors: Mapping[str, Tensor], folder: Path, epoch: int, rank: int | None, count: int) -> Path:
    """Write a classifier, or this process's part of it, as TFace does; files of another division are removed.

    Args:
        tensors: State of the head, with `kernel` (E, classes of this process).
        folder: Where to write.
        epoch: Number of finished epochs, part of the file name.
        rank: Rank of this process among those that write a part each; None: the classifier is not divided.
        count: Number of processes that write.
    """
    prefix = f"HEAD_Epoch_{epoch}"
    wanted = {part_name(prefix, None)} if rank is None else {part_name(prefix, other) for other in range(count)}
    for stale in folder.glob(f"{prefix}_*checkpoint.pth"):
        if stale.name not in wanted:
            stale.unlink(missing_ok=True)
    path = folder / part_name(prefix, rank)
    write_torch(path, {"facesyn": {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}})
    return path
