"""Denoisers as IDiff-Face and ADMIS save them: `ema_averaged_model_<step>.ckpt`, `model_<step>.ckpt`.

A file is the state dict of the UNet alone, of the diffusion wrapper (`eps_model.` and 8 schedule buffers), or
of that inside one or two wrappers of its trainer (`module.`, `_module.`, `_module.module.`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detected import DetectedNetwork, indices
from facesyn_cli.models.convert.wrappers import View

BUFFERS = (
    "betas", "alphas", "sigmas", "sqrt_alphas_inv", "alpha_bars", "sqrt_alpha_bars", "sqrt_one_minus_alpha_bars",
    "one_minus_alphas_over_sqrt_one_minus_alpha_bars",
)


def read(view: View) -> DetectedNetwork | None:
    """Return the UNet in a state dict with the settings that its shapes show, or None where it holds none.

    Two settings leave no trace: CPD's probability, and the width of an attention head unless the conditioning
    is cross-attention; they keep their defaults.

    Raises:
        UserError: The schedule buffers contradict each other or are no noise schedule.
        KeyError, IndexError, ValueError: Tensors that any such UNet has are missing or have odd shapes.
    """
    unet = {key: value for key, value in view.tensors.items() if key not in BUFFERS}
    if "image_proj.weight" not in unet or not any(key.startswith("middle.res1.") for key in unet):
        return None
    settings = _settings(unet)
    title = f"an idiff-unet denoiser ({settings['conditioning']})"
    return DetectedNetwork("denoiser", "idiff-unet", settings, unet, title, _schedule(find_buffers(view)))


def find_buffers(view: View) -> dict[str, Tensor]:
    """Return the schedule buffers beside the network or beside the innermost of its wrappers that has any."""
    levels = [view.tensors]
    prefix = view.prefix
    while prefix:
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
        levels.append({name: view.around[prefix + name] for name in BUFFERS if prefix + name in view.around})
    found = ({name: level[name] for name in BUFFERS if name in level} for level in levels)
    return next((buffers for buffers in found if buffers), {})


def _settings(unet: Mapping[str, Tensor]) -> dict:
    channels, in_channels = unet["image_proj.weight"].shape[:2]
    levels: list[list[tuple[int, bool]]] = [[]]  # (width, attends) of each block, by level
    for i in indices(unet, "down."):
        if f"down.{i}.conv.weight" in unet:
            levels.append([])
        else:
            attends = any(key.startswith(f"down.{i}.attn.") for key in unet)
            levels[-1].append((unet[f"down.{i}.res.conv1.weight"].shape[0], attends))
    widths = [channels, *(level[0][0] for level in levels)]
    settings = {
        "in_channels": in_channels,
        "channels": channels,
        "multipliers": [after // before for before, after in zip(widths, widths[1:], strict=False)],
        "attention": [level[0][1] for level in levels],
        "num_blocks": len(levels[0]),
        "conditioning": "unconditional",
    }
    if "context_emb.weight" in unet:
        width, size = unet["context_emb.weight"].shape
        by_attention = "middle.attn.c_proj_in.weight" in unet
        settings |= {
            "conditioning": "ca" if by_attention else "adagn",
            "context_size": size,
            "context_width": width,
            "learn_empty_context": "empty_context_embedding" in unet,
        }
        if by_attention:
            settings["head_channels"] = unet["middle.attn.c_proj_in.weight"].shape[0] // width
    if "head_channels" not in settings:
        settings["head_channels"] = math.gcd(32, *widths)
    return settings


def _schedule(buffers: Mapping[str, Tensor]) -> dict:
    """Check the buffers against each other and return the schedule as settings; empty without any.

    The published schedule, which is linear, is returned as its two ends at 1,000 timesteps (`diffusion/schedule.py`
    scales them to T); of any other, such as a cosine, the betas themselves.
    """
    if not buffers:
        return {}
    if "betas" not in buffers and "alpha_bars" not in buffers:
        raise UserError(f"schedule buffers {', '.join(buffers)} without betas or alpha_bars")
    name, given = next((key, buffers[key].double()) for key in ("betas", "alpha_bars") if key in buffers)
    if given.ndim != 1 or len(given) < 2:
        raise UserError(f"schedule buffer {name} has shape {list(given.shape)}; a list of at least 2 was expected")
    betas = given if name == "betas" else 1 - given / torch.cat([given.new_ones(1), given[:-1]])
    if not ((betas > 0) & (betas < 1)).all():  # also what is not a number
        raise UserError(f"schedule buffer {name} is no noise schedule: betas between 0 and 1 were expected")
    alphas = 1 - betas
    bars = alphas.log().cumsum(0).exp()
    expected = {
        "alphas": alphas,
        "sigmas": betas.sqrt(),
        "sqrt_alphas_inv": alphas.rsqrt(),
        "alpha_bars": bars,
        "sqrt_alpha_bars": bars.sqrt(),
        "sqrt_one_minus_alpha_bars": (1 - bars).sqrt(),
        "one_minus_alphas_over_sqrt_one_minus_alpha_bars": betas / (1 - bars).sqrt(),
    }
    for buffer, values in expected.items():
        found = buffers.get(buffer)
        if found is not None and not (
            found.shape == values.shape and torch.allclose(found.double(), values, rtol=2e-3, atol=1e-6)
        ):
            raise UserError(f"schedule buffer {buffer} does not follow from the {name} in the same file")
    count = len(betas)
    start, end = (float(f"{value:.6g}") for value in (betas[0].item(), betas[-1].item()))
    if torch.allclose(betas, torch.linspace(start, end, count, dtype=torch.float64), rtol=1e-4, atol=1e-7):
        ends = {"beta_start": float(f"{start * count / 1000:.6g}"), "beta_end": float(f"{end * count / 1000:.6g}")}
        return {"num_timesteps": count, "beta_schedule": "linear", **ends}
    return {"num_timesteps": count, "beta_schedule": betas.float().tolist()}
