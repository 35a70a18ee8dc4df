"""Inputs of LDM training: images joined with their embeddings, the shape of latents, a new denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.console import log
from facesyn_cli.data.face_images import FaceImages
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_denoiser
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.training.data_order import is_held_out
from facesyn_cli.training.precision import autocast


@dataclass(frozen=True)
class JoinedFaces:
    """Images with their embeddings, split into training and validation.

    Args:
        faces: The images at training size; their order is that of the rows.
        contexts: (N, E) float32 unit embeddings, row by row, for a denoiser that takes poses (N, E + 1) with the yaw;
            None for an unconditional denoiser.
        train_rows: Rows to train on.
        held_out_rows: Rows for validation.
    """

    faces: FaceImages
    contexts: Tensor | None
    train_rows: list[int]
    held_out_rows: list[int]


def join_faces(
    images: ImageSet, embeddings: EmbeddingSet | None, size: int, held_out: float, max_held_out: int,
    has_pose: bool = False,
) -> JoinedFaces:
    """Join images and embeddings by key and hold some images out for validation.

    Args:
        images: The images.
        embeddings: Their embeddings; None for an unconditional denoiser.
        size: Side of a training image in pixels.
        held_out: Fraction of images to hold out; which ones depends on their keys only.
        max_held_out: Most images to validate with; held-out images beyond that are not used.
        has_pose: The denoiser takes poses.

    Raises:
        UserError: No image has an embedding or, with `has_pose`, a yaw, or none is left to train on.
    """
    entries = images.entries if embeddings is None else having_embeddings(images, embeddings)
    say_if_not_square(images.path, lambda row: images.read(entries[row]), len(entries))
    rows = range(len(entries))
    held_out_rows = [row for row in rows if is_held_out(entries[row].key, held_out)]
    train_rows = [row for row in rows if not is_held_out(entries[row].key, held_out)]
    if not train_rows:
        raise UserError(f"all {len(entries)} images are held out for validation; lower validation_fraction={held_out}")
    contexts = None
    if embeddings is not None:
        keys = [entry.key for entry in entries]
        contexts = torch.from_numpy(embeddings.join(keys))
        if has_pose:
            yaw = torch.from_numpy(embeddings.join_yaw(keys))
            if not yaw.isfinite().any():
                raise UserError(f"{embeddings.path} knows the yaw of no image: the detector found no face")
            contexts = torch.cat([contexts, yaw[:, None]], dim=1)
    return JoinedFaces(
        FaceImages(images, entries, size), contexts, train_rows, evenly(held_out_rows, max_held_out)
    )


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the rows, spread evenly over them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def autoencoder_parent(section: dict[str, Any]) -> Parent:
    """Return an autoencoder as an input for a header; one without a file has the digest of its settings."""
    digest = section["digest"] or json_digest([section["name"], section["settings"]])
    return Parent(section["path"] or section["name"], digest)


def build_denoiser(cfg: PluginConfig, seed: int, latent_shape: tuple[int, int, int], context_size: int) -> nn.Module:
    """Build a denoiser whose random weights depend on the seed alone.

    Args:
        cfg: Which denoiser.
        seed: Seed of its weights.
        latent_shape: (c, h, w) of the latents it must take.
        context_size: Length of an embedding; not used for an unconditional denoiser.

    Raises:
        UserError: It does not fit the latents or the embeddings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = registry.build("denoiser", cfg)
    channels, side = latent_shape[0], latent_shape[1]
    in_channels = getattr(denoiser, "in_channels", channels)
    if in_channels != channels:
        raise UserError(
            f"denoiser.in_channels is {in_channels}, but the autoencoder's latents have {channels} channels; "
            f"set denoiser.in_channels={channels}"
        )
    downscale = getattr(denoiser, "downscale", 1)
    if side % downscale:
        raise UserError(
            f"the denoiser needs latents whose side is divisible by {downscale}, image_size gives {side}; "
            "change image_size, or the number of denoiser.multipliers (idiff-unet) or denoiser.patch (dit)"
        )
    wanted = getattr(cfg, "context_size", context_size)
    if is_conditional(denoiser) and wanted != context_size:
        raise UserError(
            f"denoiser.context_size is {wanted}, but the embeddings have {context_size} numbers; "
            f"set denoiser.context_size={context_size}"
        )
    return denoiser


@dataclass(frozen=True)
class InitialLdm:
    """The LDM that a training starts from.

    Args:
        config: Its settings.
        digest: Of the content of its weights file.
        state: Its weights, as the network to be trained takes them.
    """

    config: LdmSettings
    digest: str
    state: dict[str, Tensor]


def open_initial(
    path: Path, denoiser: nn.Module, cfg: Any, autoencoder: dict[str, Any], embedder: str | None
) -> InitialLdm:
    """Open the LDM that a training starts from.

    Args:
        path: Weights of an LDM.
        denoiser: The network to be trained; settings that do not change its weights may differ, and those for which
            its method `weights_of` converts weights.
        cfg: Settings, a `TrainLdmConfig`.
        autoencoder: Section of the autoencoder.
        embedder: Digest of the recognizer of the embeddings; None when unknown.

    Raises:
        UserError: It is another network, predicts something else, or belongs to another autoencoder.
    """
    loaded = load_denoiser(path)
    config, name = loaded.config, loaded.config.denoiser["name"]
    if name != cfg.denoiser.name:
        raise UserError(f"{path} is a denoiser {name}, {cfg.denoiser.name} is to be trained")
    try:
        take = getattr(denoiser, "weights_of", nn.Module.state_dict)
        state = take(loaded.module)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if getattr(loaded.module, "has_early_output", False) and not getattr(denoiser, "has_early_output", False):
        log.info(f"{path}: its early prediction is left out, as denoiser.early_output is not set")
        state = {key: value for key, value in state.items() if not key.startswith("early_")}
    have = {key: tuple(value.shape) for key, value in state.items()}
    wanted = {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}
    for added, layers in (("takes_pose", "pose_emb."), ("has_early_output", "early_")):
        if getattr(denoiser, added, False) and not getattr(loaded.module, added, False):
            wanted = {key: shape for key, shape in wanted.items() if not key.startswith(layers)}  # zero at first
    if have != wanted:
        key = next(key for key in [*wanted, *have] if have.get(key) != wanted.get(key))
        raise UserError(f"{path}: {key} is {have.get(key, 'missing')}, in the network to be trained it is "
                        f"{wanted.get(key, 'missing')}; give the same denoiser settings, or leave initial_denoiser out")
    if config.prediction != cfg.prediction:
        raise UserError(f"{path} predicts {config.prediction}, prediction is {cfg.prediction}")
    found = config.autoencoder or {}
    if found.get("digest") not in (None, autoencoder["digest"]):
        raise UserError(f"{path} was trained on latents of {found.get('path')}, not of {autoencoder['path']}")
    if None not in (config.embedder, embedder) and config.embedder_beside(embedder) != embedder:
        log.warning(f"{path} was trained under embeddings of another recognizer, those given are new to it")
    return InitialLdm(config, loaded.digest, state)


def is_conditional(denoiser: nn.Module) -> bool:
    """Return True when a denoiser takes contexts."""
    return bool(getattr(denoiser, "is_conditional", True))


def latent_shape(autoencoder: Any, image_size: int) -> tuple[int, int, int]:
    """Return (c, h, w) of the latents of images of one size.

    Raises:
        UserError: The autoencoder cannot take that size.
    """
    if image_size % autoencoder.downscale:
        raise UserError(
            f"image_size {image_size} is not divisible by {autoencoder.downscale}, which the autoencoder needs"
        )
    side = image_size // autoencoder.downscale
    return autoencoder.latent_channels, side, side


def encoder(autoencoder: Any, device: torch.device, precision: str = "fp32") -> Callable[[Tensor], Tensor]:
    """Return pixels (B, 3, S, S) on the CPU -> float32 latents (B, c, h, w) on the CPU, computed in fp32 or bf16."""

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with autocast(precision, device):
            return autoencoder.encode(pixels.to(device)).float().cpu()

    return encode


def having_embeddings(images: ImageSet, embeddings: EmbeddingSet) -> list[ImageEntry]:
    """Return the images that have an embedding.

    Raises:
        UserError: None has.
    """
    known = set(embeddings.keys)
    entries = [entry for entry in images.entries if entry.key in known]
    if not entries:
        raise UserError(
            f"no image of {images.path} has an embedding in {embeddings.path}: keys look like "
            f"{images.entries[0].key!r} there and {embeddings.keys[0] if embeddings.keys else 'nothing'!r} here"
        )
    return entries
