"""Networks of a recognizer's training: built with random weights, or with those of a trained backbone or classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.tface_head import KERNEL, HeadFiles, open_any_head
from facesyn_cli.models.heads.class_range import ClassRange
from facesyn_cli.models.interfaces import Reads, what_it_reads
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig


def build_backbone(cfg: PluginConfig, reads: Reads = "photos") -> nn.Module:
    """Build a network with random weights.

    Args:
        cfg: Which one.
        reads: What it will be trained on.

    Raises:
        UserError: It cannot be trained, or not on that.
    """
    if cfg.name == "onnx":
        raise UserError("backbone onnx has fixed weights and cannot be trained; choose ir-50 or another built-in one")
    backbone = registry.build("backbone", cfg)
    if what_it_reads(backbone) != reads:
        hint = "take latent-ir" if reads == "latents" else "train-identity trains it"
        raise UserError(f"backbone {cfg.name} reads {what_it_reads(backbone)}, {reads} are given: {hint}")
    return backbone


@dataclass(frozen=True)
class InitialWeights:
    """Initial weights, validated.

    Args:
        backbone: State dict of the backbone; None: random.
        head: Files of the head, which are read by `put_into`; None: random.
        parents: The files, for the header.
    """

    backbone: dict[str, Tensor] | None
    head: HeadFiles | None
    parents: dict[str, Parent]

    def put_into(self, backbone: nn.Module, head: nn.Module, classes: ClassRange | None = None) -> None:
        """Load the tensors; buffers of the head that the file lacks keep their values.

        Args:
            backbone: The backbone to be trained.
            head: The head to be trained.
            classes: The classes that the head holds; None: all.
        """
        if self.backbone is not None:
            backbone.load_state_dict(self.backbone)
        if self.head is not None:
            head.load_state_dict({**head.state_dict(), **self.head.read(classes)})


def open_initial_weights(
    backbone_path: Path | None, head_path: Path | None, cfg: PluginConfig, backbone: nn.Module, head: nn.Module | None
) -> InitialWeights:
    """Read the files and compare their names and shapes with the networks to be trained.

    Args:
        backbone_path: Whatever `load_backbone` takes, ONNX excepted.
        head_path: `head.safetensors` of ours, or TFace's HEAD files (see `models/convert/tface_head.py`).
        cfg: The backbone's settings.
        backbone: The network to be trained; only its names and shapes are read, so it may be on "meta".
        head: The head, likewise; needed with `head_path`.

    Raises:
        UserError: Missing, damaged, or of another network or number of classes.
    """
    parents, tensors, classifier = {}, None, None
    if backbone_path is not None:
        loaded = load_backbone(backbone_path, cfg, what_it_reads(backbone))
        if loaded.name == "onnx":
            raise UserError(f"{backbone_path} is an ONNX network, which cannot be trained further")
        if getattr(loaded.module, "is_magface", False) != getattr(backbone, "is_magface", False):
            raise UserError(f"{backbone_path} and the backbone to be trained are of different variants: one is "
                            "MagFace's network, which takes pixels in [0, 1] (backbone.variant=magface)")
        order = getattr(backbone, "channel_order", "rgb")
        tensors = loaded.module.state_in(order) if hasattr(loaded.module, "state_in") else loaded.module.state_dict()
        _check({key: value.shape for key, value in tensors.items()}, backbone, backbone_path, is_complete=True)
        parents["initial_backbone"] = Parent(str(backbone_path), loaded.digest)
    if head_path is not None:
        classifier = open_any_head(head_path)
        is_ours = head_path.suffix == ".safetensors"
        digest = file_digest(head_path) if is_ours else json_digest([file_digest(f) for f in classifier.files])
        _check(classifier.shapes, head, head_path, is_complete=False)
        parents["initial_head"] = Parent(str(head_path), digest)
    return InitialWeights(tensors, classifier, parents)


def _check(shapes: dict[str, torch.Size], module: nn.Module, path: Path, is_complete: bool) -> None:
    state = module.state_dict()
    for key, shape in shapes.items():
        if key not in state:
            raise UserError(f"{path} holds {key}, which the network to be trained does not have")
        if shape != state[key].shape:
            raise UserError(f"{path}: {key} is {list(shape)}; {list(state[key].shape)} was expected"
                            + ("" if is_complete else " (embedding size, identities in the training set)"))
    missing = [key for key in state if key not in shapes]
    if missing and (is_complete or KERNEL in missing):
        raise UserError(f"{path} holds no {missing[0]}")
