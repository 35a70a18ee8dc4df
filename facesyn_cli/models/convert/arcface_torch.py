"""IResNet backbones as ElasticFace and InsightFace's arcface_torch save them: a flat state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.models.convert.recognised import Recognised, indices, strip_prefix
from facesyn_cli.models.iresnet import BLOCKS


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefix of a data-parallel wrapper."""
    return strip_prefix(tensors, "module.")


def read(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """Return the backbone in a state dict, or None where it holds none of this family.

    Raises:
        KeyError, IndexError, ValueError: Tensors that any such backbone has are missing or odd.
    """
    tensors = bare(tensors)
    if "layer1.0.bn3.weight" not in tensors or "prelu.weight" not in tensors or "fc.weight" not in tensors:
        return None
    blocks = tuple(len(indices(tensors, f"layer{stage}.")) for stage in (1, 2, 3, 4))
    depth = next((d for d, counts in BLOCKS.items() if counts == blocks), None)
    settings = {"embedding_size": tensors["fc.weight"].shape[0]}
    if depth is not None:
        name = f"iresnet-{depth}"
        return Recognised("backbone", name, settings, tensors, f"an {name} backbone")
    title = f"an iresnet backbone (blocks {', '.join(map(str, blocks))})"
    return Recognised("backbone", "iresnet", {**settings, "blocks": list(blocks)}, tensors, title)
