"""The context source `diffusers`: faces drawn by an unconditional diffusers pipeline, as the published contexts were.

ADMIS took its context faces from an unconditional DDPM trained on FFHQ. Any pipeline that makes images from noise alone
works (DDPM, DDIM, LDM, ...).
"""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from facesyn_cli.contexts.endless import GeneratedFaces
from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.guided_diffusion import load_guided_pipeline
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class DiffusersConfig(PluginConfig):
    """Settings of the source `diffusers`; the pipeline is `generator`, the recognizer is `weights`."""

    steps: int | None = Field(None, ge=1, description="network evaluations per face; None: the pipeline's own default")
    crop: float = Field(1.0, gt=0, le=1, description="central share kept; 0.8 turns FFHQ framing into ArcFace framing")


@register(
    "contexts",
    "diffusers",
    Card(
        about="Faces of an unconditional diffusers pipeline (DDPM, DDIM, LDM, ...), folder or hub id, then embedded.",
        paper="DDPM, Ho et al. 2020, arXiv:2006.11239; as context source: ADMIS, FRCSyn at CVPR 2024",
    ),
)
class DiffusersPipeline(GeneratedFaces):
    """Endless faces of a pipeline.

    Candidate k has a generator of its own, seeded with b + k modulo 2^32, where b follows from the seed:
    torch keeps 32 bits of a seed, so hashing k would make some of 200,000 candidates twins.

    In FFHQ framing the eyes lie a quarter of the image's side apart, in ArcFace's 35.2 of 112 pixels, at
    nearly the same height; the central 0.8 of the one is therefore close to the other.
    """

    needs = frozenset({"generator", "recognizer"})

    def __init__(self, cfg: DiffusersConfig) -> None:
        self._steps, self.crop = cfg.steps, cfg.crop

    def open(self, resources: Resources) -> None:
        """Take the pipeline and the recognizer from the resources."""
        super().open(resources)
        self._base = int(keyed_random("pipeline", resources.seed).randint(2**32, dtype=np.uint64))
        default = inspect.signature(type(resources.generator).__call__).parameters.get("num_inference_steps")
        self.evaluations = {"generator": self._steps or (default.default if default else 1), "recognizer": 1}

    def draw(self, numbers: list[int]) -> np.ndarray:
        """Return an image of each candidate number; see `GeneratedFaces.draw`."""
        generators = [torch.Generator("cpu").manual_seed((self._base + k) % 2**32) for k in numbers]
        steps = {} if self._steps is None else {"num_inference_steps": self._steps}
        pipeline = copy.copy(self.resources.generator)  # a scheduler has a state, and batches may be drawn in threads
        pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
        images = pipeline(
            batch_size=len(numbers), generator=generators, output_type="np", **steps
        ).images                                                       # (N, H, W, C) in [0, 1]
        images_u8 = (np.asarray(images) * 255).round().astype(np.uint8)
        if images_u8.shape[-1] == 1:
            images_u8 = images_u8.repeat(3, axis=-1)
        return images_u8


def find_pipeline(name: str) -> Path:
    """Return the folder of a pipeline given by folder, or by hub id, which is downloaded; or a file as it is.

    Raises:
        UserError: None of these, or the download fails.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(f"{path} has no model_index.json; the folder of a diffusers pipeline was expected")
        return path
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(f"{name} is not there; the folder of a diffusers pipeline or a hub id owner/name was expected")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no folder here, and cannot be downloaded from the hub: {reason}") from error


def load_pipeline(folder: Path, device: torch.device) -> Any:
    """Load an unconditional pipeline in float32 and move it to its device; nothing is downloaded.

    Args:
        folder: Folder in diffusers format, or a guided-diffusion checkpoint (DCFace stage 1).
        device: Where it is to run.

    Raises:
        UserError: It does not load, or the pipeline takes more than noise.
    """
    import diffusers

    if folder.is_file():
        pipeline = load_guided_pipeline(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} does not load as a diffusers pipeline: {reason}") from error
    finally:
        diffusers.utils.logging.enable_progress_bar()
    wanted = inspect.signature(inspect.unwrap(type(pipeline).__call__)).parameters
    if "batch_size" not in wanted or "generator" not in wanted or "prompt" in wanted:
        raise UserError(f"{folder} is a {type(pipeline).__name__}; a pipeline that draws from noise alone was expected")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
