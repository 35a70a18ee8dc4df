"""Inputs of autoencoder training: images, an autoencoder, and the recognizers of loss and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.work import Work
from facesyn_cli.errors import UserError
from facesyn_cli.models.face_autoencoder import FaceAutoencoder, FaceVq
from facesyn_cli.models.loading import load_autoencoder, load_backbone
from facesyn_cli.models.onnx_torch import OnnxTorch
from facesyn_cli.plugins import registry
from facesyn_cli.training.checkpoint import check_length
from facesyn_cli.training.tasks.feature_distance import FeatureDistance
from facesyn_cli.training.tasks.ldm_inputs import JoinedFaces, join_faces, latent_shape


@dataclass(frozen=True)
class AutoencoderInputs:
    """The inputs of a training; networks are on the CPU.

    Args:
        joined: The images.
        autoencoder: The network, new or trained before.
        teacher: Autoencoder whose latents a decoder learns; None: the network's own.
        features: Recognizer of the loss; None: none.
        judge: Recognizer of the validation; None: none.
        latent_shape: (c, h, w).
        parents: The inputs, for the header.
    """

    joined: JoinedFaces
    autoencoder: FaceAutoencoder
    teacher: nn.Module | None
    features: FeatureDistance | None
    judge: FeatureDistance | None
    latent_shape: tuple[int, int, int]
    parents: dict[str, Parent]

    def rows(self) -> list[int]:
        """Return the rows of all images that training and validation use."""
        return self.joined.train_rows + self.joined.held_out_rows


def open_inputs(cfg: Any, work: Work) -> AutoencoderInputs:
    """Open and check all inputs of a training with the settings `cfg`, a `TrainAutoencoderConfig`."""
    check_length(cfg.out or work.folder("autoencoder"), cfg)
    images = open_images(cfg.images or work.folder("images"))
    parents: dict[str, Parent] = {}
    teacher = None
    if cfg.teacher is not None:
        teacher = load_autoencoder(cfg.teacher, part="encoder").requires_grad_(False)
        latent_shape(teacher, cfg.image_size)
        parents["teacher"] = Parent(cfg.teacher, teacher.section["digest"])
    autoencoder = _open_autoencoder(cfg, teacher, parents)
    shape = latent_shape(autoencoder, cfg.image_size)
    features = judge = None
    if cfg.features is not None:
        backbone = load_backbone(cfg.features, cfg.features_model)
        parents["features"] = Parent(str(cfg.features), backbone.digest)
        module = OnnxTorch(backbone.module) if backbone.name == "onnx" else backbone.module  # it is differentiated
        features = FeatureDistance(
            module, backbone.input_size, f"features {cfg.features}", use_maps=cfg.feature_weight > 0,
            use_embeddings=cfg.identity_weight > 0,
        )
    if cfg.judge is not None:
        backbone = load_backbone(cfg.judge)
        judge = FeatureDistance(backbone.module, backbone.input_size, f"judge {cfg.judge}", use_maps=False)
    elif features is not None:
        judge = FeatureDistance(features.backbone, features.input_size, "features", use_maps=False)
    parents["images"] = images.parent()
    joined = join_faces(images, None, cfg.image_size, cfg.validation_fraction, cfg.validation_images)
    return AutoencoderInputs(joined, autoencoder, teacher, features, judge, shape, parents)


def _open_autoencoder(cfg: Any, teacher: nn.Module | None, parents: dict[str, Parent]) -> FaceAutoencoder:
    """Load the initial autoencoder, or build one whose random weights depend on the seed alone.

    With a teacher it is only a decoder, for the teacher's latents.
    """
    section, part = cfg.autoencoder, "both" if teacher is None else "decoder"
    if cfg.initial is not None:
        autoencoder = load_autoencoder(cfg.initial, section, part)
        parents["initial"] = Parent(str(cfg.initial), autoencoder.section["digest"])
    else:
        if "part" in type(section).model_fields:
            section = section.model_copy(update={"part": part})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            autoencoder = registry.build("autoencoder", section)
    if not isinstance(autoencoder, FaceAutoencoder):
        raise UserError(f"autoencoder {section.name} cannot be trained here; face-kl and face-vq can")
    if teacher is not None:
        _check_student(autoencoder, teacher)
    return autoencoder


def _check_student(autoencoder: FaceAutoencoder, teacher: nn.Module) -> None:
    if isinstance(autoencoder, FaceVq):
        raise UserError(f"autoencoder {autoencoder.cfg.name} decodes only latents of its own; face-kl can be a "
                        "teacher's decoder")
    if autoencoder.latent_channels != teacher.latent_channels:
        raise UserError(f"the teacher's latents have {teacher.latent_channels} channels, the decoder is for "
                        f"{autoencoder.latent_channels}; set autoencoder.latent_channels={teacher.latent_channels}")
    if autoencoder.downscale != teacher.downscale:
        raise UserError(f"the teacher's latents have 1/{teacher.downscale} of the image's side, the decoder is for "
                        f"1/{autoencoder.downscale}; change autoencoder.patch or the number of autoencoder.channels")
