"""Train an autoencoder on a folder of faces (`2-autoencoder`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, affects_result, input_path, runtime_only
from facesyn_cli.errors import UserError
from facesyn_cli.training.ema import EmaSettings
from facesyn_cli.training.optimization import LrSchedule, OptimizerSettings
from facesyn_cli.training.shared_settings import StepsConfig
from facesyn_cli.training.tasks.autoencoder import AutoencoderTask
from facesyn_cli.training.tasks.discriminator import AdversarialSettings, smallest_side
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainAutoencoderConfig(StepsConfig):
    """Settings of `facesyn train-autoencoder`."""

    removed: ClassVar[dict[str, Any]] = {  # of the training of decoders on samples of an LDM
        "ldm": None, "embeddings": None, "features_coarsest": 1.0, "interpolation": 1.0,
        "adversarial.largest_factor": 1e4, "adversarial.lr_factor": 1.0,
        "drawn": {"count": 8192, "scheduler": "unipc", "steps": 20, "guidance": 1.5, "identity_weight": 0.3},
    }

    images: Path | None = input_path(None, "folder or zip of faces; None: 0-images of the run")
    autoencoder: PluginConfig = PluginSection("autoencoder", default="face-kl")
    initial: Path | None = input_path(
        None, "folder of an autoencoder trained before, to start from; None: random weights"
    )
    freeze_encoder: bool = affects_result(False, "train the decoder only, for the unchanged latents of `initial`")
    teacher: str | None = input_path(None, "autoencoder whose latents a decoder of ours learns: file, folder or hub id")
    image_size: int = affects_result(112, "side of the images, in pixels", ge=8)

    l1_weight: float = affects_result(1.0, "weight of the mean absolute difference of pixels in [-1, 1]", ge=0)
    mse_weight: float = affects_result(0.0, "weight of the mean squared difference of pixels in [-1, 1]", ge=0)
    kl_weight: float = affects_result(1e-6, "weight of the KL divergence, a mean over the elements of a latent", ge=0)
    codebook_weight: float = affects_result(1.0, "weight of the distance that moves codes to latents (VQ)", ge=0)
    commitment_weight: float = affects_result(
        0.25, "weight of the distance that moves latents to their codes (VQ)", ge=0
    )
    features: Path | None = input_path(None, "weights of a recognizer that compares reconstructions in the loss")
    features_model: PluginConfig | None = PluginSection("backbone", default=None)  # None: read off the weights
    feature_weight: float = affects_result(0.1, "with features: weight of the distance of feature maps", ge=0)
    identity_weight: float = affects_result(0.1, "with features: weight of 1 - cosine of the embeddings", ge=0)
    adversarial: AdversarialSettings = affects_result(AdversarialSettings(), "discriminator of patches; weight 0: none")

    optimizer: OptimizerSettings = affects_result(
        OptimizerSettings(lr=4e-4, betas=(0.9, 0.99)), "the optimizer and its base learning rate"
    )
    lr_schedule: LrSchedule = affects_result(
        LrSchedule(warmup_steps=100), "how the learning rate changes; only `cosine` depends on `steps`"
    )
    clip: float | None = affects_result(1.0, "largest norm of the gradient; None: no clipping", gt=0)
    ema: EmaSettings | None = affects_result(
        EmaSettings(maximum=0.999),
        "moving average of the weights, which is validated and written; None: the last weights are",
    )
    flip: float = affects_result(0.5, "probability of training on the mirror image", ge=0, le=1)

    judge: Path | None = runtime_only(
        None, "weights of a recognizer that compares identities in validation; None: features"
    )
    validation_images: int = runtime_only(512, "most held-out images to validate with", ge=1)
    preview_every: int = runtime_only(1000, "steps between previews; 0: none", ge=0)
    preview_images: int = runtime_only(12, "images of a preview", ge=1)
    memory_gib: float = runtime_only(8.0, "images are decoded once, to memory, where they take at most this", ge=0)


def plan(cfg: TrainAutoencoderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    _check_settings(cfg)
    return AutoencoderTask(cfg, work).full_plan()


def run(cfg: TrainAutoencoderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the averaged weights."""
    check_environment(cfg)
    _check_settings(cfg)
    return run_training(AutoencoderTask(cfg, work), join_processes(cfg))


def _check_settings(cfg: TrainAutoencoderConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: Naming them and what is missing.
    """
    if cfg.freeze_encoder and (cfg.initial is None or cfg.teacher is not None):
        raise UserError("freeze_encoder=true keeps the encoder of a trained one: give initial=FOLDER and no teacher")
    if cfg.adversarial.weight and (smallest := smallest_side(cfg.adversarial.layers)) > cfg.image_size:
        raise UserError(f"adversarial.layers={cfg.adversarial.layers} needs images of side {smallest}, image_size is "
                        f"{cfg.image_size}; take fewer layers")
    if cfg.features is None:
        stated = {name for name in cfg.model_fields_set if getattr(cfg, name)}
        if asked := {"feature_weight", "identity_weight", "features_model"} & stated:
            raise UserError(f"{', '.join(sorted(asked))} needs a recognizer: give --features WEIGHTS")
    elif not (cfg.feature_weight or cfg.identity_weight):
        raise UserError("features was given, but feature_weight and identity_weight are both 0; leave features out")
    if not (cfg.l1_weight or cfg.mse_weight or cfg.features is not None):
        raise UserError("l1_weight and mse_weight are both 0 and there are no features: the loss is empty")
