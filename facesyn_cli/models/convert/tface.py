"""IR, IR-SE and MobileFaceNet backbones as TFace saves them, and IR of AdaFace, CVLface, CurricularFace, face.evoLVe.

TFace: `Backbone_Epoch_<E>_checkpoint.pth`, a flat state dict, RGB. AdaFace: a Lightning checkpoint, `model.*` beside
`head.*`, BGR. Its network also divides by the norm and returns both; what is read here is the product, the embedding
before that. CVLface: `net.*` or `model.net.*`, in the order that `model.yaml` beside the file states, RGB by default.
CurricularFace and face.evoLVe: units without BatchNorm before their PReLU, RGB.

The same IR network under `model.` alone may be AdaFace's without its head (BGR) or anybody's (RGB): its order of
channels is left open.
"""

from __future__ import annotations

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detected import RGB_BY_DEFAULT, DetectedNetwork, indices
from facesyn_cli.models.convert.wrappers import LIGHTNING, View
from facesyn_cli.models.ir import BLOCKS, BOTTLENECK_BLOCKS, BOTTLENECK_WIDTHS, WIDTHS, final_side

LIGHTNING_HEAD = "head."


def read(view: View) -> DetectedNetwork | None:
    """Return the backbone in a state dict, or None where it holds none of this family.

    Raises:
        UserError: An IR network with bottleneck blocks that is neither IR-152 nor IR-200.
        KeyError, IndexError, ValueError: Tensors that any such backbone has are missing or odd.
    """
    tensors = view.tensors
    if "conv_6_sep.conv.weight" in tensors and "output_layer.linear.weight" in tensors:
        settings = {"embedding_size": tensors["output_layer.linear.weight"].shape[0]}
        return DetectedNetwork("backbone", "mobilefacenet", settings, tensors, "a mobilefacenet backbone")
    if "input_layer.0.weight" not in tensors or not any(key.startswith("body.0.res_layer.") for key in tensors):
        return None
    is_bottleneck = "body.0.res_layer.7.weight" in tensors
    has_middle_norm = "body.0.res_layer.2.bias" in tensors  # else the PReLU is there, which has a weight only
    last = 7 if is_bottleneck else 4 if has_middle_norm else 3  # number of the last convolution of a unit
    stages: dict[int, int] = {}  # width -> units
    for unit in indices(tensors, "body."):
        width = tensors[f"body.{unit}.res_layer.{last}.weight"].shape[0]
        stages[width] = stages.get(width, 0) + 1
    widths, blocks = tuple(stages), tuple(stages.values())
    if "output_layer.pool.weight" in tensors:
        settings = {"embedding_size": tensors["output_layer.linear.weight"].shape[0]}
        settings |= {"widths": list(widths), "blocks": list(blocks)}
        return DetectedNetwork("backbone", "ir-lite", settings, tensors, "an ir-lite backbone")
    embedding_size, flat = tensors["output_layer.3.weight"].shape
    strides = [s for s in (1, 2) if final_side(s, len(widths)) ** 2 * widths[-1] == flat] or [1]
    known_widths, known_blocks = (BOTTLENECK_WIDTHS, BOTTLENECK_BLOCKS) if is_bottleneck else (WIDTHS, BLOCKS)
    depth = next((d for d, counts in known_blocks.items() if (widths, blocks) == (known_widths, counts)), None)
    if depth is None and is_bottleneck:
        raise UserError(f"an IR network with bottleneck blocks {list(blocks)} of widths {list(widths)}; of that sort "
                        "only IR-152 and IR-200 are known")
    has_se = any(f"body.0.res_layer.{name}.fc1.weight" in tensors for name in ("se_block", "5"))
    settings = {"embedding_size": embedding_size}
    if depth is not None and strides[0] == 1:
        name = f"ir-se-{depth}" if has_se else f"ir-{depth}"
    else:
        name = "ir-tiny"
        settings |= {"widths": list(widths), "blocks": list(blocks), "stem_stride": strides[0]}
    title = f"an {name} backbone"
    if not (has_middle_norm or is_bottleneck):
        settings["variant"] = "face-evolve" if "output_layer.4.weight" in tensors else "curricularface"
        title += f" ({settings['variant']})"
    order, undecided = _channel_order(view, "variant" in settings)
    if order == "bgr":
        settings["channel_order"] = "bgr"
        title += ", BGR"
    elif view.assumes_rgb:
        title += RGB_BY_DEFAULT
    return DetectedNetwork("backbone", name, settings, tensors, title, undecided=undecided)


def _channel_order(view: View, is_variant: bool) -> tuple[str, str]:
    """Return the order of the channels; when the file does not tell it, the name of the setting that must be given."""
    if view.color_space is not None:
        return view.color_space, ""
    if is_variant or view.innermost != LIGHTNING:
        return "rgb", ""
    outer = view.prefix.removesuffix(f"{LIGHTNING}.")
    if any(key.startswith(outer + LIGHTNING_HEAD) for key in view.around):
        return "bgr", ""
    return "", "channel_order"
