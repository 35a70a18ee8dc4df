"""IR, IR-SE and MobileFaceNet backbones as TFace saves them, and IR as AdaFace releases it.

TFace: `Backbone_Epoch_<E>_checkpoint.pth`, a flat state dict, RGB. AdaFace (and CVLface): a Lightning checkpoint,
`state_dict` -> `model.*` beside `head.*`, BGR. Its network also divides by the norm and returns both; what is read
here is the product, the embedding before that.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.recognised import Recognised, indices, strip_prefix
from facesyn_cli.models.ir import BLOCKS, BOTTLENECK_BLOCKS, BOTTLENECK_WIDTHS, WIDTHS, final_side

LIGHTNING = "model."
_LIGHTNING_HEAD = "head."


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's tensors without the prefix of a data-parallel wrapper or a Lightning module."""
    return strip_prefix(_without_head(tensors), "module.", LIGHTNING)


def read(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """Return the backbone in a state dict, or None where it holds none of this family.

    Raises:
        UserError: An IR network with bottleneck blocks that is neither IR-152 nor IR-200.
        KeyError, IndexError, ValueError: Tensors that any such backbone has are missing or odd.
    """
    is_lightning = all(key.startswith(LIGHTNING) for key in _without_head(tensors))
    tensors = bare(tensors)
    if "conv_6_sep.conv.weight" in tensors and "output_layer.linear.weight" in tensors:
        settings = {"embedding_size": tensors["output_layer.linear.weight"].shape[0]}
        return Recognised("backbone", "mobilefacenet", settings, tensors, "a mobilefacenet backbone")
    if "input_layer.0.weight" not in tensors or not any(key.startswith("body.0.res_layer.") for key in tensors):
        return None
    is_bottleneck = "body.0.res_layer.7.weight" in tensors
    stages: dict[int, int] = {}  # width -> units
    for unit in indices(tensors, "body."):
        width = tensors[f"body.{unit}.res_layer.{7 if is_bottleneck else 4}.weight"].shape[0]
        stages[width] = stages.get(width, 0) + 1
    widths, blocks = tuple(stages), tuple(stages.values())
    if "output_layer.pool.weight" in tensors:
        settings = {"embedding_size": tensors["output_layer.linear.weight"].shape[0]}
        settings |= {"widths": list(widths), "blocks": list(blocks)}
        return Recognised("backbone", "ir-lite", settings, tensors, "an ir-lite backbone")
    embedding_size, flat = tensors["output_layer.3.weight"].shape
    strides = [s for s in (1, 2) if final_side(s, len(widths)) ** 2 * widths[-1] == flat] or [1]
    known_widths, known_blocks = (BOTTLENECK_WIDTHS, BOTTLENECK_BLOCKS) if is_bottleneck else (WIDTHS, BLOCKS)
    depth = next((d for d, counts in known_blocks.items() if (widths, blocks) == (known_widths, counts)), None)
    if depth is None and is_bottleneck:
        raise UserError(f"an IR network with bottleneck blocks {list(blocks)} of widths {list(widths)}; of that sort "
                        "only IR-152 and IR-200 are known")
    has_se = "body.0.res_layer.se_block.fc1.weight" in tensors
    settings = {"embedding_size": embedding_size}
    if depth is not None and strides[0] == 1:
        name = f"ir-se-{depth}" if has_se else f"ir-{depth}"
    else:
        name = "ir-tiny"
        settings |= {"widths": list(widths), "blocks": list(blocks), "stem_stride": strides[0]}
    title = f"an {name} backbone"
    if is_lightning:
        settings["channel_order"] = "bgr"
        title += " of a Lightning checkpoint, BGR"
    return Recognised("backbone", name, settings, tensors, title)


def _without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the classifier that a Lightning checkpoint holds beside its network."""
    if not any(key.startswith(LIGHTNING) for key in tensors):
        return dict(tensors)
    return {key: value for key, value in tensors.items() if not key.startswith(_LIGHTNING_HEAD)}
