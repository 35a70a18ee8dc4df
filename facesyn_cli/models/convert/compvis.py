"""VQ-f4 autoencoders as CompVis and ADMIS save them: whole, within a latent diffusion model, or in halves.

`first_stage_encoder_state_dict.pt` holds `encoder.*` and `quant_conv.*`; `first_stage_decoder_state_dict.pt`
holds `decoder.*`, `quantize.*` and `post_quant_conv.*`. A whole checkpoint may add the training loss
(`loss.*`), and a latent diffusion checkpoint puts `first_stage_model.` in front.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from facesyn_cli.models.convert.recognised import Recognised, indices

ENCODER = ("encoder.", "quant_conv.")
DECODER = ("decoder.", "quantize.", "post_quant_conv.")
_FIRST_STAGE = "first_stage_model."
_REST_OF_LDM = ("model.", "model_ema.", "cond_stage_model.")  # and buffers, whose names have no dot


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the autoencoder's tensors without prefix, training loss and the model built on it."""
    if any(key.startswith(_FIRST_STAGE) for key in tensors):
        tensors = {
            key.removeprefix(_FIRST_STAGE): value
            for key, value in tensors.items()
            if not (key.startswith(_REST_OF_LDM) or "." not in key)
        }
    return {key: value for key, value in tensors.items() if not key.startswith("loss.")}


def half(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part: encoder, decoder or both."""
    prefixes = {"encoder": ENCODER, "decoder": DECODER, "both": ENCODER + DECODER}[part]
    return {key: value for key, value in tensors.items() if key.startswith(prefixes)}


def read(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """Return the autoencoder, or the half, in a state dict, or None where it holds none.

    Raises:
        KeyError, IndexError, ValueError: Tensors that any such autoencoder has are missing or odd.
    """
    tensors = bare(tensors)
    has_encoder = "encoder.conv_in.weight" in tensors and "quant_conv.weight" in tensors
    has_decoder = "decoder.conv_in.weight" in tensors and "post_quant_conv.weight" in tensors
    if not (has_encoder or has_decoder):
        return None
    settings: dict = {"part": "both" if has_encoder and has_decoder else "encoder" if has_encoder else "decoder"}
    if has_encoder:
        channels = tensors["encoder.conv_in.weight"].shape[0]
        widths = _widths(tensors, "encoder.down.")
        settings["num_blocks"] = len(indices(tensors, "encoder.down.0.block."))
        settings["latent_channels"] = tensors["quant_conv.weight"].shape[0]
    if has_decoder:
        channels = tensors["decoder.norm_out.weight"].shape[0]
        widths = _widths(tensors, "decoder.up.")
        settings["num_blocks"] = len(indices(tensors, "decoder.up.0.block.")) - 1
        settings["latent_channels"] = tensors["decoder.conv_in.weight"].shape[1]
        settings["codebook_size"] = tensors["quantize.embedding.weight"].shape[0]
    settings |= {"channels": channels, "multipliers": [width // channels for width in widths]}
    part = {"both": "a", "encoder": "the encoder of a", "decoder": "the decoder of a"}[settings["part"]]
    return Recognised("autoencoder", "vq-f4", settings, tensors, f"{part} vq-f4 autoencoder")


def _widths(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    levels = indices(tensors, prefix)
    if not levels:
        raise ValueError(f"no {prefix}0")
    return [tensors[f"{prefix}{level}.block.0.conv1.weight"].shape[0] for level in levels]
