"""IResNet backbones as ElasticFace, arcface_torch, MagFace and CVLface save them, and arcface_torch's `mbf`.

MagFace keeps its IResNet under `features.`; otherwise names and shapes are those of the others. A MagFace file without
that wrapper needs `backbone.variant=magface`.
"""

from __future__ import annotations

from torch import Tensor

from facesyn_cli.models.convert.detected import RGB_BY_DEFAULT, DetectedNetwork, indices
from facesyn_cli.models.convert.wrappers import MAGFACE, View
from facesyn_cli.models.iresnet import BLOCKS
from facesyn_cli.models.mobilefacenet import MBF_BLOCKS


def read(view: View) -> DetectedNetwork | None:
    """Return the backbone in a state dict, or None where it holds none of this family.

    Raises:
        KeyError, IndexError, ValueError: Tensors that any such backbone has are missing or odd.
    """
    tensors = view.tensors
    if "conv_sep.layers.0.weight" in tensors and "features.layers.2.weight" in tensors:
        return _read_mbf(tensors)
    if "layer1.0.bn3.weight" not in tensors or "prelu.weight" not in tensors or "fc.weight" not in tensors:
        return None
    blocks = tuple(len(indices(tensors, f"layer{stage}.")) for stage in (1, 2, 3, 4))
    depth = next((d for d, counts in BLOCKS.items() if counts == blocks), None)
    settings: dict = {"embedding_size": tensors["fc.weight"].shape[0]}
    name, title = f"iresnet-{depth}", f"an iresnet-{depth} backbone"
    if depth is None:
        name, title = "iresnet", f"an iresnet backbone (blocks {', '.join(map(str, blocks))})"
        settings["blocks"] = list(blocks)
    if MAGFACE in view.wrappers:
        settings["variant"] = "magface"
        title += " of MagFace, BGR in [0, 1]"
    elif view.color_space == "bgr":
        settings["channel_order"] = "bgr"
        title += ", BGR"
    elif view.assumes_rgb:
        title += RGB_BY_DEFAULT
    return DetectedNetwork("backbone", name, settings, tensors, title)


def _read_mbf(tensors: dict[str, Tensor]) -> DetectedNetwork:
    scale = tensors["layers.0.layers.0.weight"].shape[0] // 64
    stem = 1 if "layers.1.layers.0.weight" in tensors else len(indices(tensors, "layers.1.layers."))
    blocks = (stem, *(len(indices(tensors, f"layers.{stage}.layers.")) for stage in (3, 5, 7)))
    name = next((name for name, known in MBF_BLOCKS.items() if known == (blocks, scale)), None)
    settings: dict = {"embedding_size": tensors["features.layers.2.weight"].shape[0]}
    if name is None:
        settings |= {"blocks": list(blocks), "scale": scale}
        title = f"an mbf backbone (blocks {', '.join(map(str, blocks))})"
        return DetectedNetwork("backbone", "mbf", settings, tensors, title)
    return DetectedNetwork("backbone", name, settings, tensors, f"an {name} backbone")
