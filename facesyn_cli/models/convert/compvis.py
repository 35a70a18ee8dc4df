"""VQ and KL autoencoders as CompVis and ADMIS save them: whole, within a latent diffusion model, or in halves.

`first_stage_encoder_state_dict.pt` holds `encoder.*` and `quant_conv.*`; `first_stage_decoder_state_dict.pt`
holds `decoder.*`, `quantize.*` and `post_quant_conv.*`. A whole checkpoint may add the training loss
(`loss.*`), and a latent diffusion checkpoint puts `first_stage_model.` in front. KL models have no `quantize.*`
and twice as many channels behind the encoder. An encoder alone does not say which it is: published VQ models have
3 channels there, published KL models 6 or 8. The decoder of a kl-f4 alone looks like that of a vq-f4 which has
lost its codebook, so it is not read; the whole file is.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detected import DetectedNetwork, indices
from facesyn_cli.models.convert.wrappers import View

ENCODER = ("encoder.", "quant_conv.")
DECODER = ("decoder.", "quantize.", "post_quant_conv.")
_KL_CHANNELS = (6, 8)  # behind the encoders of kl-f4 and kl-f8: mean and log variance of 3 or 4


def without_loss(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the autoencoder's tensors without its training loss."""
    return {key: value for key, value in tensors.items() if not key.startswith("loss.")}


def half(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part: encoder, decoder or both."""
    prefixes = {"encoder": ENCODER, "decoder": DECODER, "both": ENCODER + DECODER}[part]
    return {key: value for key, value in tensors.items() if key.startswith(prefixes)}


def read(view: View) -> DetectedNetwork | None:
    """Return the autoencoder, or the half, in a state dict, or None where it holds none.

    Raises:
        UserError: It has attention within its levels, whose layout no reference states.
        KeyError, IndexError, ValueError: Tensors that any such autoencoder has are missing or odd.
    """
    tensors = without_loss(view.tensors)
    has_encoder = "encoder.conv_in.weight" in tensors and "quant_conv.weight" in tensors
    has_decoder = "decoder.conv_in.weight" in tensors and "post_quant_conv.weight" in tensors
    if not (has_encoder or has_decoder):
        return None
    if any(".attn." in key for key in tensors if key.startswith(("encoder.down.", "decoder.up."))):
        raise UserError("an autoencoder with attention within its levels (f16 and smaller latents): "
                        "not supported: no facts")
    is_kl = _is_kl(tensors, has_decoder)
    settings: dict = {"part": "both" if has_encoder and has_decoder else "encoder" if has_encoder else "decoder"}
    if has_encoder:
        channels = tensors["encoder.conv_in.weight"].shape[0]
        widths = _widths(tensors, "encoder.down.")
        settings["num_blocks"] = len(indices(tensors, "encoder.down.0.block."))
        settings["latent_channels"] = tensors["quant_conv.weight"].shape[0] // (2 if is_kl else 1)
        inner = tensors["quant_conv.weight"].shape[1] // 2
    if has_decoder:
        channels = tensors["decoder.norm_out.weight"].shape[0]
        widths = _widths(tensors, "decoder.up.")
        settings["num_blocks"] = len(indices(tensors, "decoder.up.0.block.")) - 1
        inner, settings["latent_channels"] = tensors["post_quant_conv.weight"].shape[:2]
        if not is_kl:
            settings["codebook_size"] = tensors["quantize.embedding.weight"].shape[0]
    settings |= {"channels": channels, "multipliers": [width // channels for width in widths]}
    name = "vq-f4"
    if is_kl:
        settings["inner_channels"] = inner
        name = {3: "kl-f4", 4: "kl-f8"}[len(widths)]
        if name == "kl-f4" and not has_encoder:
            raise ValueError("no quantize.embedding.weight")
    part = {"both": "a", "encoder": "the encoder of a", "decoder": "the decoder of a"}[settings["part"]]
    return DetectedNetwork("autoencoder", name, settings, tensors, f"{part} {name} autoencoder")


def _is_kl(tensors: Mapping[str, Tensor], has_decoder: bool) -> bool:
    if has_decoder:
        return not any(key.startswith("quantize.") for key in tensors)
    return tensors["quant_conv.weight"].shape[0] in _KL_CHANNELS


def _widths(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    levels = indices(tensors, prefix)
    if not levels:
        raise ValueError(f"no {prefix}0")
    return [tensors[f"{prefix}{level}.block.0.conv1.weight"].shape[0] for level in levels]
