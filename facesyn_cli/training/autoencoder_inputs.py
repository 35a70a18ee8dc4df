"""What autoencoder training starts from: an autoencoder, fresh or trained before, and recognisers that judge."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from facesyn_cli.artifacts.output import Parent
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder, load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.training.feature_distance import FeatureDistance


def build_autoencoder(cfg: PluginConfig, seed: int, initial: Path | None, parents: dict[str, Parent]) -> nn.Module:
    """Build an autoencoder whose random weights depend on the seed alone, or load one to go on from.

    Args:
        cfg: Which autoencoder.
        seed: Seed of its weights.
        initial: Folder of a trained one with these settings; None: random weights.
        parents: Gets an entry for `initial`.

    Raises:
        UserError: It cannot be trained here, or `initial` is something else.
    """
    if initial is not None:
        autoencoder = load_autoencoder(initial, cfg)
        parents["initial"] = Parent(str(initial), autoencoder.section["digest"])
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = registry.build("autoencoder", cfg)
    if not hasattr(autoencoder, "training_pass"):
        raise UserError(f"autoencoder {cfg.name} cannot be trained here; face-kl and face-vq can")
    return autoencoder


def load_features(
    path: Path, cfg: PluginConfig | None, key: str, use_maps: bool, parents: dict[str, Parent]
) -> FeatureDistance:
    """Load the recogniser whose eyes compare images.

    Args:
        path: Whatever `load_backbone` takes.
        cfg: Plugin and settings asked for; None takes what the file holds.
        key: Setting that named it.
        use_maps: Whether feature maps are needed, besides embeddings.
        parents: Gets an entry for it.

    Raises:
        UserError: It is none, or gradients or feature maps are needed and it has none.
    """
    loaded = load_backbone(path, cfg)
    if loaded.name == "onnx" and key == "features":
        raise UserError(f"{path} is an ONNX network, through which no gradient flows; features needs weights of a "
                        "recogniser of ours or published ones (see facesyn plugins)")
    parents[key] = Parent(str(path), loaded.digest)
    return FeatureDistance(loaded.module, loaded.input_size, f"{key} {path}", use_maps)
