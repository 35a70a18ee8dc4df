"""Guided-diffusion UNets (`ffhq_10m.pt` of DCFace stage 1) as diffusers' `UNet2DModel`, and back.

Dhariwal and Nichol 2021, arXiv:2105.05233: residual blocks that scale and shift after the second norm, that
also do the up- and downsampling, and attention whose query, key and value come from one convolution, ordered
by head. `UNet2DModel` computes the same; only names and the order inside `qkv` differ.

Only the flags of DCFace are read: residual up- and downsampling, scale and shift, no classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import read_json
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detected import indices

HEAD_CHANNELS = 64  # published flag; it leaves no trace in the shapes
ATTENTION_SIDE = 16  # published flag: attention acts on the 16 x 16 grid

SCHEDULE = {  # the published settings: linear betas of T = 1000, learned variance, clipped images, ancestral steps
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "variance_type": "learned_range", "clip_sample": True, "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}
_RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}


@dataclass(frozen=True)
class GuidedUnet:
    """Settings of a guided-diffusion UNet, as its shapes show them.

    Args:
        in_channels: Of the image.
        out_channels: Twice as many where the variance is learned too.
        widths: Channels of each level, finest first.
        num_blocks: Residual blocks a level on the way down.
        attention: For each level, whether it has attention.
        head_channels: Width of an attention head.
        image_size: Side of the images it was trained on.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    num_blocks: int
    attention: tuple[bool, ...]
    head_channels: int
    image_size: int

    def diffusers_config(self) -> dict[str, Any]:
        """Return the settings of the same network as a `UNet2DModel`."""
        down = ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in self.attention]
        up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(self.attention)]
        return {
            "sample_size": self.image_size, "in_channels": self.in_channels, "out_channels": self.out_channels,
            "block_out_channels": list(self.widths), "layers_per_block": self.num_blocks,
            "down_block_types": down, "up_block_types": up, "downsample_type": "resnet", "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift", "attention_head_dim": self.head_channels,
            "flip_sin_to_cos": True, "freq_shift": 0,
            "norm_eps": 1e-5, "norm_num_groups": 32, "attn_norm_num_groups": 32,
        }


def is_guided_unet(tensors: Mapping[str, Tensor]) -> bool:
    """True where the names are those of a guided-diffusion UNet."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "out.2.weight"} <= (
        tensors.keys()
    )


def read_settings(tensors: Mapping[str, Tensor]) -> GuidedUnet:
    """Return the settings that the shapes show.

    Raises:
        UserError: Parts are missing, or it was built with other flags than those of DCFace stage 1.
    """
    if "label_emb.weight" in tensors:
        raise UserError("is a class-conditional guided-diffusion UNet; only unconditional ones are read")
    try:
        return _settings(tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, StopIteration) as error:
        raise UserError("looks like a guided-diffusion UNet, but parts of it are missing or it was built without "
                        f"residual up- and downsampling (no {error})") from error


def _settings(tensors: Mapping[str, Tensor]) -> GuidedUnet:
    count = len(indices(tensors, "output_blocks."))
    # the last block of a level upsamples: it ends in a second residual block
    num_blocks = next(i for i in range(count) if any(f"output_blocks.{i}.{k}.in_layers.0.weight" in tensors
                                                     for k in (1, 2)))
    starts = range(1, count, num_blocks + 1)
    widths = tuple(tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in starts)
    attention = tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in starts)
    if tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] != 2 * widths[0]:
        raise ValueError("scale and shift in input_blocks.1.0.emb_layers.1")
    attending = [width for width, attends in zip(widths, attention, strict=True) if attends] + [widths[-1]]
    level = attention.index(True) if any(attention) else len(widths) - 1
    return GuidedUnet(
        in_channels=tensors["input_blocks.0.0.weight"].shape[1],
        out_channels=tensors["out.2.weight"].shape[0],
        widths=widths, num_blocks=num_blocks, attention=attention,
        head_channels=math.gcd(HEAD_CHANNELS, *attending),
        image_size=ATTENTION_SIDE * 2**level,
    )


def to_diffusers(tensors: Mapping[str, Tensor], settings: GuidedUnet) -> dict[str, Tensor]:
    """Return the tensors under the names of `UNet2DModel`.

    Raises:
        UserError: A tensor is missing, unexpected or of an odd shape.
    """
    result: dict[str, Tensor] = {}
    used = set()
    try:
        for published, ours, role in _modules(settings):
            for ending in ("weight", "bias"):
                key = f"{published}.{ending}"
                if key not in tensors and published.endswith("skip_connection"):
                    continue  # only where the width changes
                used.add(key)
                if role == "qkv":
                    parts = _split_heads(tensors[key], settings.head_channels)
                    result |= {f"{ours}.{name}.{ending}": part for name, part in parts.items()}
                else:
                    is_matrix = role == "proj" and ending == "weight"
                    result[f"{ours}.{ending}"] = tensors[key].squeeze(-1) if is_matrix else tensors[key]
    except (KeyError, RuntimeError) as error:
        raise UserError(f"looks like a guided-diffusion UNet, but does not fit: {error}") from error
    unexpected = [key for key in tensors if key not in used]
    if unexpected:
        raise UserError(f"looks like a guided-diffusion UNet, but has {len(unexpected)} unexpected tensors such as "
                        f"{unexpected[0]}")
    return result


def from_diffusers(tensors: Mapping[str, Tensor], settings: GuidedUnet) -> dict[str, Tensor]:
    """Return the tensors of a `UNet2DModel` under the published names, the inverse of `to_diffusers`."""
    result: dict[str, Tensor] = {}
    for published, ours, role in _modules(settings):
        for ending in ("weight", "bias"):
            key = f"{ours}.{ending}"
            if role == "qkv":
                parts = [tensors[f"{ours}.{name}.{ending}"] for name in ("to_q", "to_k", "to_v")]
                heads = [part.unflatten(0, (-1, settings.head_channels)) for part in parts]
                joined = torch.stack(heads, dim=1).flatten(0, 2)
                result[f"{published}.{ending}"] = joined[..., None] if ending == "weight" else joined
            elif key in tensors:
                is_matrix = role == "proj" and ending == "weight"
                result[f"{published}.{ending}"] = tensors[key][..., None] if is_matrix else tensors[key]
    return result


def settings_of_config(config: Mapping[str, Any]) -> GuidedUnet:
    """Return the settings from the config of a `UNet2DModel` that `to_diffusers` could have made.

    Raises:
        UserError: Guided-diffusion has no such network.
    """
    settings = GuidedUnet(
        config["in_channels"], config["out_channels"], tuple(config["block_out_channels"]), config["layers_per_block"],
        tuple(name == "AttnDownBlock2D" for name in config["down_block_types"]), config["attention_head_dim"],
        config["sample_size"],
    )
    wanted = settings.diffusers_config()
    wrong = next((key for key, value in wanted.items() if _plain(config.get(key)) != value), None)
    if wrong is not None:
        raise UserError(f"guided-diffusion has no UNet with {wrong} {config.get(wrong)}")
    return settings


def load_guided_pipeline(path: Path) -> Any:
    """Load a guided-diffusion checkpoint strictly as a diffusers `DDPMPipeline`, in eval mode on the CPU.

    Raises:
        UserError: Missing, damaged, another network, or built with unsupported settings.
    """
    tensors = read_tensors(path)
    if not is_guided_unet(tensors):
        raise UserError(f"{path} is not a guided-diffusion UNet; such a file or the folder of a diffusers pipeline was "
                        "expected")
    try:
        settings = read_settings(tensors)
        return build_pipeline(to_diffusers(tensors, settings), settings)
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
        settings = settings_of_config(config)
        tensors = read_tensors(unet / "diffusion_pytorch_model.safetensors")
        return from_diffusers(tensors, settings)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {error}") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _split_heads(qkv: Tensor, head_channels: int) -> dict[str, Tensor]:
    """(3 C, C, 1) or (3 C), ordered (head, q k v, channel) -> query, key, value (C, C) or (C)."""
    parts = qkv.unflatten(0, (-1, 3, head_channels))
    if qkv.ndim == 3:
        parts = parts.squeeze(-1)
    return {name: parts[:, i].flatten(0, 1).contiguous() for i, name in enumerate(("to_q", "to_k", "to_v"))}


def _modules(settings: GuidedUnet) -> Iterator[tuple[str, str, str]]:
    """Yield (published name, name in `UNet2DModel`, "qkv", "proj" or "") of every module with tensors."""
    yield from ((published, ours, "") for published, ours in _ENDS.items())
    levels, num = len(settings.widths), settings.num_blocks
    yield from _residual("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _residual("middle_block.2", "mid_block.resnets.1")
    for level in range(levels):
        up = levels - 1 - level  # number of the block on the way up
        for block in range(num):
            i = 1 + level * (num + 1) + block
            yield from _residual(f"input_blocks.{i}.0", f"down_blocks.{level}.resnets.{block}")
            if settings.attention[level]:
                yield from _attention(f"input_blocks.{i}.1", f"down_blocks.{level}.attentions.{block}")
        for block in range(num + 1):
            i = up * (num + 1) + block
            yield from _residual(f"output_blocks.{i}.0", f"up_blocks.{up}.resnets.{block}")
            if settings.attention[level]:
                yield from _attention(f"output_blocks.{i}.1", f"up_blocks.{up}.attentions.{block}")
        if level < levels - 1:
            yield from _residual(f"input_blocks.{(level + 1) * (num + 1)}.0", f"down_blocks.{level}.downsamplers.0")
        if level > 0:
            last = 2 if settings.attention[level] else 1
            yield from _residual(f"output_blocks.{up * (num + 1) + num}.{last}", f"up_blocks.{up}.upsamplers.0")


def _residual(published: str, ours: str) -> Iterator[tuple[str, str, str]]:
    for theirs, name in _RESIDUAL.items():
        yield f"{published}.{theirs}", f"{ours}.{name}", ""


def _attention(published: str, ours: str) -> Iterator[tuple[str, str, str]]:
    yield f"{published}.norm", f"{ours}.group_norm", ""
    yield f"{published}.qkv", ours, "qkv"
    yield f"{published}.proj_out", f"{ours}.to_out.0", "proj"
