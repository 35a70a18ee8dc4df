"""Train a latent diffusion model on faces and their embeddings (`2-ldm`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from facesyn_cli.artifacts.ldm_settings import NOISE_SCHEDULE, FlowTimes
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginSection,
    affects_result,
    batch_setting,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.console import log
from facesyn_cli.training.ema import EmaSettings
from facesyn_cli.training.optimization import LrSchedule
from facesyn_cli.training.shared_settings import CompiledConfig, StepsConfig
from facesyn_cli.training.tasks.identity_loss import IdentitySettings
from facesyn_cli.training.tasks.ldm import LdmTask
from facesyn_cli.training.tasks.perceptual_loss import PerceptualSettings
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainLdmConfig(StepsConfig, CompiledConfig):
    """Settings of `facesyn train-ldm`. Defaults are the published values unless the description says otherwise."""

    removed: ClassVar[dict[str, Any]] = {"adversarial": None}

    images: Path | None = input_path(None, "folder or zip of faces; None: 0-images of the run")
    embeddings: Path | None = input_path(None, "EmbeddingSet or published embeddings; None: 1-embeddings of the run")
    embedding_names: Path | None = input_path(
        None, "row-order list of a published array; None: image_names.* beside it"
    )
    autoencoder: str | None = input_path(
        None, "weights of the autoencoder: file, folder, hub id, or taesd3, which is packaged; None: 2-autoencoder"
    )
    autoencoder_model: PluginConfig | None = PluginSection("autoencoder", default=None)  # None: read off the weights
    denoiser: PluginConfig = PluginSection("denoiser", default="idiff-unet")

    initial_denoiser: Path | None = input_path(
        None, "weights of an LDM to start from, of the same autoencoder; None: random weights"
    )
    identity_recognizer: Path | None = input_path(
        None, "recognizer of latents for the identity loss, by train-identity; None: 2-identity of the "
        "run, without one no such loss; identity.weight=0 trains without the loss"
    )
    identity_contexts: Path | None = input_path(
        None, "contexts without photos for identity.images: a ContextSet or published embeddings"
    )
    identity: IdentitySettings = affects_result(
        IdentitySettings(), "the identity loss on predicted latents, for which there must be a recognizer of latents"
    )

    perceptual: PerceptualSettings | None = affects_result(
        None, "compare predicted and true latents in the decoder: perceptual.weight, .maps, .eyes_and_mouth; None: no"
    )

    early_weight: float = affects_result(
        0.5, "weight of the loss of the early prediction of a denoiser with early_output", gt=0
    )

    image_size: int = affects_result(128, "side of the images the autoencoder sees, in pixels", ge=8)
    output_size: int = affects_result(112, "side of the images that `sample` will write, in pixels", ge=8)
    latent_statistics: Literal["auto", "measured", "identity"] = affects_result(
        "auto", "normalize latents by measured mean and std of each channel; auto: not for vq-f4, as published"
    )
    latent_precision: Literal["fp32", "bf16"] = affects_result(
        "fp32", "number format of the encoder; bf16 takes half the time where the processor has it"
    )
    num_timesteps: int = affects_result(1000, "timesteps T of the noise schedule", ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = affects_result(
        "linear", "shape of the noise schedule"
    )
    beta_start: float = affects_result(1e-4, "first beta at T = 1000", gt=0, lt=1)
    beta_end: float = affects_result(0.02, "last beta at T = 1000", gt=0, lt=1)
    zero_terminal_snr: bool = affects_result(
        False, "rescale the schedule to end in pure noise; needs prediction v or x0"
    )
    prediction: Literal["epsilon", "v", "x0", "flow"] = affects_result(
        "epsilon", "what the denoiser predicts; with few steps v learns more than epsilon, with very few x0 more than "
        "v; flow: the velocity of a rectified flow, which has no noise schedule"
    )
    flow: FlowTimes | None = affects_result(
        None, "times of the training with prediction flow: flow.mean and flow.std of logit(t), and flow.shift, which "
        "moves t towards noise (above 1) and is the default shift of the schedulers; None: 0, 1 and 1"
    )
    min_snr_gamma: float | None = affects_result(
        None, "weigh the loss by min(SNR, gamma), 5 in the paper; None: no", gt=0
    )

    steps: int = growable(200_000, "optimizer steps", ge=1)
    accumulate: int = batch_setting(
        1, "forward and backward passes of each process in one optimizer step; more need less memory", ge=1
    )
    lr_schedule: LrSchedule = affects_result(
        LrSchedule(name="cosine-warm-restarts"), "how the learning rate changes; only `cosine` depends on `steps`"
    )
    ema: EmaSettings | None = affects_result(
        EmaSettings(), "moving average of the weights, which is validated and written; None: the last weights are"
    )
    flip: float = affects_result(0.5, "probability of training on the mirror image", ge=0, le=1)
    context_dropout: float = affects_result(
        0.0, "probability of training an image under the empty context, for guidance", ge=0, le=1
    )

    pose_dropout: float = affects_result(
        0.1, "probability of training an image without its yaw, with denoiser.pose=true", ge=0, le=1
    )

    latents: Literal["auto", "cache", "fly"] = batch_setting(
        "auto", "cache: encode all once, to disk; fly: at every step; auto: cache where it fits on the disk"
    )
    latent_cache: Path | None = runtime_only(
        None, "folder of the cache, may be shared by runs; None: that of train-identity in the run, or latents/ in the "
        "output"
    )
    validation_images: int = runtime_only(1024, "most held-out images to validate with", ge=1)
    preview_every: int = runtime_only(2000, "steps between preview grids; 0: none", ge=0)
    preview_identities: int = runtime_only(6, "rows of a preview grid", ge=1)
    preview_samples: int = runtime_only(4, "samples a row", ge=1)
    preview_steps: int = runtime_only(25, "steps of a preview, by DDIM or, with prediction flow, Euler", ge=1)
    judge: Path | None = runtime_only(None, "weights of a recognizer that scores the identity of previews; None: none")
    judge_every: int = runtime_only(2000, "steps between two scores; 0: none", ge=0)
    judge_identities: int = runtime_only(16, "people whose previews are scored, by held-out photos first", ge=2)
    judge_images: int = runtime_only(4, "previews of each of them", ge=2)
    judge_steps: int = runtime_only(10, "steps of a scored preview, of the same sampler", ge=1)
    export_published: bool = runtime_only(False, "also write ema_averaged_model_<step>.ckpt for the published code")

    @model_validator(mode="before")
    @classmethod
    def _complete_flow(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or settings.get("prediction") != "flow" or settings.get("flow") is not None:
            return settings
        return {**settings, "flow": FlowTimes()}

    @model_validator(mode="after")
    def _prediction_fits(self) -> TrainLdmConfig:
        if self.prediction != "flow":
            if self.flow is not None:
                raise ValueError(f"flow belongs to prediction flow, the prediction is {self.prediction}")
            return self
        # A recipe of all settings states defaults too, so these are not refused.
        stated = [
            name for name in (*NOISE_SCHEDULE, "min_snr_gamma")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if stated:
            raise ValueError(f"prediction flow has no noise schedule: leave out {', '.join(stated)}")
        return self

    @model_validator(mode="after")
    def _identity_loss_is_whole(self) -> TrainLdmConfig:
        if (self.identity_contexts is None) != (self.identity.images == 0):
            raise ValueError("identity_contexts and identity.images, how many are drawn from them in each step, belong "
                             "together: give both or none")
        return self

    @classmethod
    def with_new_names(cls, settings: dict[str, Any], is_silent: bool = False) -> dict[str, Any]:
        """Return settings with names of an earlier release replaced; see `StageConfig`."""
        found = super().with_new_names(settings, is_silent)
        largest = found.get("micro_batch")  # most images of a forward pass
        batch_size = str(found.get("batch_size", cls.model_fields["batch_size"].default))
        if largest is None or not (str(largest).isdigit() and int(largest) and batch_size.isdigit()):
            return {key: value for key, value in found.items() if key != "micro_batch" or value is not None}
        del found["micro_batch"]
        passes = found.setdefault("accumulate", math.ceil(int(batch_size) / int(largest)))
        if not is_silent:
            log.warning(f"setting micro_batch is now accumulate, forward passes of each process in a step; it is taken "
                        f"as accumulate={passes}, and will be refused in the next release")
        return found


def plan(cfg: TrainLdmConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    task = LdmTask(cfg, work)
    num_values, num_train = sum(p.numel() for p in task.denoiser.parameters()), len(task.joined.train_rows)
    cache = task.latent_cache()
    is_cached = task.uses_cache(cache)
    cache_bytes = cache.num_bytes if is_cached else 0
    times = cfg.steps // cfg.judge_every + (cfg.steps % cfg.judge_every > 0) if task.judge else 0
    judged = times * cfg.judge_identities * cfg.judge_images * min(cfg.judge_steps, cfg.num_timesteps)
    return task.plan(
        {
            "images": num_train, "images_without_embedding": task.num_images - len(task.joined.faces),
            "validation_images": len(task.joined.held_out_rows), "steps": cfg.steps, "parameters": num_values,
        },
        {"denoiser": cfg.steps * cfg.batch_size} | ({"denoiser_for_judge": judged} if judged else {}),
        task.checkpoint_bytes + cache_bytes,
        latent="x".join(map(str, task.latent_shape)), epochs=round(cfg.steps * cfg.batch_size / num_train, 2),
        latents="cache" if is_cached else "fly", latent_cache_mib=round(cache_bytes / 2**20, 1),
        memory_mib=round(20 * num_values / 2**20),  # weights, gradients, moments, average
    )


def run(cfg: TrainLdmConfig, work: Work) -> Outcome:
    """Train, or resume, and write the averaged weights."""
    check_environment(cfg)
    return run_training(LdmTask(cfg, work), join_processes(cfg))
