"""IR and IR-SE backbones as TFace saves them: `Backbone_Epoch_<E>_checkpoint.pth`, a flat state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.models.convert.recognised import Recognised, indices, strip_prefix
from facesyn_cli.models.ir import BLOCKS, WIDTHS, final_side


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefix of a data-parallel wrapper."""
    return strip_prefix(tensors, "module.")


def read(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """Return the backbone in a state dict, or None where it holds none of this family.

    Raises:
        KeyError, IndexError, ValueError: Tensors that any such backbone has are missing or odd.
    """
    tensors = bare(tensors)
    if "input_layer.0.weight" not in tensors or not any(key.startswith("body.0.res_layer.") for key in tensors):
        return None
    stages: dict[int, int] = {}  # width -> units
    for unit in indices(tensors, "body."):
        width = tensors[f"body.{unit}.res_layer.4.weight"].shape[0]
        stages[width] = stages.get(width, 0) + 1
    widths, blocks = tuple(stages), tuple(stages.values())
    embedding_size, flat = tensors["output_layer.3.weight"].shape
    strides = [s for s in (1, 2) if final_side(s, len(widths)) ** 2 * widths[-1] == flat] or [1]
    depth = next((d for d, counts in BLOCKS.items() if (widths, blocks) == (WIDTHS, counts)), None)
    has_se = "body.0.res_layer.se_block.fc1.weight" in tensors
    settings = {"embedding_size": embedding_size}
    if depth is not None and strides[0] == 1:
        name = f"ir-se-{depth}" if has_se else f"ir-{depth}"
    else:
        name = "ir-tiny"
        settings |= {"widths": list(widths), "blocks": list(blocks), "stem_stride": strides[0]}
    return Recognised("backbone", name, settings, tensors, f"an {name} backbone")
