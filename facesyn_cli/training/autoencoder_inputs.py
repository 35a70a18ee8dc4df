"""What autoencoder training starts from: an autoencoder, fresh or trained before, and recognizers that judge."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.errors import UserError
from facesyn_cli.models.face_autoencoder import FaceVq, TrainableAutoencoder
from facesyn_cli.models.face_pca import FacePca
from facesyn_cli.models.loading import load_autoencoder, load_backbone
from facesyn_cli.models.onnx_torch import OnnxTorch
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.training.feature_distance import FeatureDistance
from facesyn_cli.training.ldm_inputs import latent_shape


def build_autoencoder(
    cfg: PluginConfig, seed: int, initial: Path | None, teacher: nn.Module | None, parents: dict[str, Parent]
) -> nn.Module:
    """Build an autoencoder whose random weights depend on the seed alone, or load one to go on from.

    Args:
        cfg: Which autoencoder.
        seed: Seed of its weights.
        initial: Folder of a trained one with these settings; None: random weights.
        teacher: Autoencoder whose latents are to be decoded: only a decoder for them is built; None: both halves.
        parents: Gets an entry for `initial`.

    Raises:
        UserError: It cannot be trained here, `initial` is something else, or it does not fit the teacher's latents.
    """
    part = "both" if teacher is None else "decoder"
    if initial is not None:
        autoencoder = load_autoencoder(initial, cfg, part)
        parents["initial"] = Parent(str(initial), autoencoder.section["digest"])
    else:
        if "part" in type(cfg).model_fields:
            cfg = cfg.model_copy(update={"part": part})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = registry.build("autoencoder", cfg)
    if not isinstance(autoencoder, TrainableAutoencoder):
        raise UserError(f"autoencoder {cfg.name} cannot be trained here; face-kl, face-vq and face-pca can")
    if teacher is not None:
        _check_student(autoencoder, teacher)
    return autoencoder


def open_teacher(path: str, image_size: int, parents: dict[str, Parent]) -> nn.Module:
    """Load the autoencoder whose latents a decoder is trained for.

    Args:
        path: Whatever `load_autoencoder` takes; its encoder suffices.
        image_size: Side of the images it will see.
        parents: Gets an entry for it.

    Raises:
        UserError: It is none, or cannot take images of that size.
    """
    teacher = load_autoencoder(path, part="encoder")
    latent_shape(teacher, image_size)
    parents["teacher"] = Parent(path, teacher.section["digest"])
    return teacher.requires_grad_(False)


def _check_student(autoencoder: nn.Module, teacher: nn.Module) -> None:
    name = autoencoder.cfg.name
    if isinstance(autoencoder, (FacePca, FaceVq)):
        raise UserError(f"autoencoder {name} decodes only latents of its own; face-kl can be a teacher's decoder")
    if autoencoder.latent_channels != teacher.latent_channels:
        raise UserError(f"the teacher's latents have {teacher.latent_channels} channels, the decoder is for "
                        f"{autoencoder.latent_channels}; set autoencoder.latent_channels={teacher.latent_channels}")
    if autoencoder.downscale != teacher.downscale:
        raise UserError(f"the teacher's latents have 1/{teacher.downscale} of the image's side, the decoder is for "
                        f"1/{autoencoder.downscale}; change autoencoder.patch or the number of autoencoder.channels")


def load_features(
    path: Path, cfg: PluginConfig | None, key: str, parents: dict[str, Parent], use_maps: bool, use_embeddings: bool
) -> FeatureDistance:
    """Load the recognizer whose eyes compare images.

    Args:
        path: Whatever `load_backbone` takes.
        cfg: Plugin and settings asked for; None takes what the file holds.
        key: Setting that named it.
        parents: Gets an entry for it.
        use_maps: Whether its feature maps are compared.
        use_embeddings: Whether its embeddings are compared.

    Raises:
        UserError: It is none, or gradients or feature maps are needed and it cannot give them.
    """
    loaded = load_backbone(path, cfg)
    is_differentiated = loaded.name == "onnx" and key == "features"
    module = OnnxTorch(loaded.module) if is_differentiated else loaded.module
    parents[key] = Parent(str(path), loaded.digest)
    return FeatureDistance(module, loaded.input_size, f"{key} {path}", use_maps, use_embeddings)
