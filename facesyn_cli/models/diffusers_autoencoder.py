"""Any diffusers autoencoder by path: `AutoencoderKL`, `VQModel`, `AutoencoderTiny`.

The factors of diffusion pipelines (`scaling_factor`, `shift_factor`) are not applied: latents are normalized per
channel with statistics of the training set, which are stored with the LDM. The latent of `AutoencoderKL` is the mean of
the posterior; `VQModel` quantizes in `decode`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.weights import read_config
from facesyn_cli.config.fields import input_path
from facesyn_cli.errors import UserError, first_line
from facesyn_cli.models.decoder_maps import diffusers_upsamplers, inputs_of
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
_WEIGHTS = (".safetensors", ".bin")
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.bin")


class DiffusersConfig(PluginConfig):
    """Settings of `diffusers`."""

    path: str | None = input_path(None, "folder with config.json and weights, or a hub id like owner/name")


@register(
    "autoencoder", "diffusers",
    Card(about="A diffusers autoencoder by folder or hub id: AutoencoderKL, VQModel or AutoencoderTiny",
         paper="Rombach et al. 2022, arXiv:2112.10752 (AutoencoderKL, VQModel)",
         input="RGB in [-1, 1], side divisible by the downscale of the network (often 8)",
         license="see the weights' own card"),
)
class DiffusersAutoencoder(nn.Module):
    """The diffusers autoencoder at `cfg.path`, with the interface of `models.interfaces.Autoencoder`.

    Raises:
        UserError: No path, no such folder or hub id, another class, or weights that do not match the config.

    Shapes: pixels (B, 3, S, S) in [-1, 1] <-> latents (B, latent_channels, S/downscale, S/downscale).
    """

    def __init__(self, cfg: DiffusersConfig) -> None:
        super().__init__()
        if cfg.path is None:
            raise UserError("autoencoder diffusers: path is not set; expected a folder in diffusers format or a hub id")
        self.folder = _folder(cfg.path)
        self.model = _load(self.folder)
        settings = self.model.config
        tiny = type(self.model).__name__ == "AutoencoderTiny"
        levels = settings.encoder_block_out_channels if tiny else settings.block_out_channels
        self.downscale = 2 ** (len(levels) - 1)
        self.latent_channels = getattr(settings, "vq_embed_dim", None) or settings.latent_channels

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents; deterministic (the mean of a distribution)."""
        encoded = self.model.encode(pixels)
        return encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels, about [-1, 1] and not clamped."""
        return self.model.decode(latents).sample

    def decoder_maps(self, latents: Tensor, count: int) -> list[Tensor]:
        """Return feature maps of the decoder, of latents that are not quantized; see `models/interfaces.py`.

        Raises:
            UserError: The decoder needs the quantized latents beside them.
        """
        if getattr(self.model.config, "norm_type", "group") == "spatial":
            raise UserError(f"{self.folder}: feature maps of a decoder with spatial norms are not supported")
        decoder, before = self.model.decoder, getattr(self.model, "post_quant_conv", None)
        enlarging = diffusers_upsamplers(decoder)[:count]
        return inputs_of(enlarging, lambda: decoder(latents if before is None else before(latents)))

    def digest(self) -> str:
        """Return the digest of config and weights files."""
        files = sorted(p for p in self.folder.iterdir() if p.name == "config.json" or p.suffix in _WEIGHTS)
        return json_digest([[p.name, file_digest(p)] for p in files])


def resolve_path(path: str) -> Path | None:
    """Return the local folder with the config of the autoencoder, or None.

    For the folder of a pipeline this is its `vae` or `vqvae`.
    """
    for folder in (Path(path), Path(path) / "vae", Path(path) / "vqvae"):
        if (folder / "config.json").is_file():
            return folder
    return None


def _folder(path: str) -> Path:
    folder = resolve_path(path)
    if folder is not None:
        return folder
    if Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"autoencoder {path}: no config.json there; expected a folder in diffusers format or a hub id")
    from huggingface_hub import snapshot_download

    nested = [f"{part}/{name}" for part in ("vae", "vqvae") for name in _FILES]
    try:
        local = snapshot_download(path, allow_patterns=[*_FILES, *nested])
    except (OSError, ValueError) as error:  # errors of the hub, also when offline
        raise UserError(f"autoencoder {path}: neither a local folder nor reachable on the hub ({first_line(error)})"
                        ) from error
    folder = resolve_path(local)
    if folder is None:
        raise UserError(f"autoencoder {path}: the hub repository has no config.json of an autoencoder")
    return folder


def _load(folder: Path) -> nn.Module:
    """Load strictly; diffusers only warns about missing and unexpected tensors."""
    name = read_config(folder).get("_class_name")
    if name not in CLASSES:
        raise UserError(f"{folder} holds {name or 'no diffusers model'}; expected one of {', '.join(CLASSES)}")
    import diffusers

    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # it warns about harmless extra settings; errors are checked below
    try:
        model, info = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{folder}: cannot load {name}: {first_line(error)}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
    wrong = {kind: sorted(map(str, info.get(kind) or [])) for kind in ("missing_keys", "unexpected_keys",
                                                                     "mismatched_keys")}
    if any(wrong.values()):
        listed = "; ".join(f"{len(v)} {k.replace('_', ' ')} such as {v[0]}" for k, v in wrong.items() if v)
        raise UserError(f"{folder}: the weights do not fit its config.json ({name}): {listed}")
    return model.eval()
