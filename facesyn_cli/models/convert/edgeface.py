"""State dicts of timm networks; EdgeFace, timm's `edgenext_*` with 512 outputs, is recognized by its names.

George et al. 2023, arXiv:2307.01838. That its networks are timm's was checked on EdgeFace-XXS: names, shapes and
embeddings agree. Its variants with factored linear layers are not supported: no reference states their layout.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.models.convert.detected import DetectedNetwork, indices
from facesyn_cli.models.convert.wrappers import LIGHTNING, View, unwrapped

_NETWORKS = {(24, 2): "edgenext_xx_small", (32, 3): "edgenext_x_small", (48, 3): "edgenext_small",
             (80, 3): "edgenext_base"}  # (channels of the stem, blocks of the first stage)
_OWN = f"{LIGHTNING}."  # where the plugin `timm` keeps the network


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a timm network under the names of the plugin `timm`, whatever wrapped all of them."""
    return {_OWN + key: value for key, value in unwrapped(tensors).items()}


def read(view: View) -> DetectedNetwork | None:
    """Return the EdgeNeXt recognizer in a state dict, or None where it holds none.

    Raises:
        KeyError, ValueError: Tensors that any such network has are missing or odd.
    """
    tensors = view.tensors
    if "stem.0.weight" not in tensors or not any(".xca.temperature" in key for key in tensors):
        return None
    shape = tensors["stem.0.weight"].shape[0], len(indices(tensors, "stages.0.blocks."))
    name = _NETWORKS.get(shape)
    if name is None:
        return None
    settings = {"model": name, "embedding_size": tensors["head.fc.weight"].shape[0]}
    own = {_OWN + key: value for key, value in tensors.items()}
    return DetectedNetwork("backbone", "timm", settings, own, f"a timm {name} backbone")
