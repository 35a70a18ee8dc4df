"""Training of an autoencoder, or of a decoder alone.

The loss is reconstruction in pixels, in a recognizer's feature maps and embedding, the autoencoder's own penalties, and
an adversarial term.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.distributed import Processes
from facesyn_cli.models.face_autoencoder import FaceAutoencoder
from facesyn_cli.models.loading import LATENTS_OF, latents_of
from facesyn_cli.training.batch_loading import read_ahead
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.optimization import set_lr
from facesyn_cli.training.precision import autocast
from facesyn_cli.training.task import Monitor, Task
from facesyn_cli.training.tasks.autoencoder_batches import (
    AutoencoderBatch,
    AutoencoderBatchPlan,
    DecodedFaces,
    num_bytes,
    open_faces,
)
from facesyn_cli.training.tasks.autoencoder_inputs import open_inputs
from facesyn_cli.training.tasks.autoencoder_step import (
    AutoencoderLoss,
    LossWeights,
    accumulate_gradients,
    build_adversary,
)
from facesyn_cli.training.tasks.autoencoder_validation import (
    Coder,
    ReconstructionValidation,
    write_reconstructions,
)
from facesyn_cli.training.tasks.ldm_batches import fill_cache
from facesyn_cli.training.tasks.ldm_inputs import encoder, evenly


class AutoencoderTask(Task):
    """The task of `train-autoencoder`.

    Args:
        cfg: Settings, a `TrainAutoencoderConfig`.
        work: Work folder.

    Raises:
        UserError: Inputs are missing, damaged or do not fit each other.
    """

    command = "train-autoencoder"

    def __init__(self, cfg: Any, work: Work) -> None:
        self.cfg, self.total_steps = cfg, cfg.steps
        self.folder, self.inputs = cfg.out or work.folder("autoencoder"), open_inputs(cfg, work)
        self.parents = self.inputs.parents

    def full_plan(self) -> Plan:
        """Return what the training would do."""
        cfg, inputs = self.cfg, self.inputs
        num_values, num_train = sum(p.numel() for p in inputs.autoencoder.parameters()), len(inputs.joined.train_rows)
        size = num_bytes(len(inputs.rows()), cfg.image_size)
        cache_bytes = cache.num_bytes if (cache := self.teacher_latents()) else 0
        return self.plan(
            {
                "images": num_train, "validation_images": len(inputs.joined.held_out_rows), "steps": cfg.steps,
                "parameters": num_values,
                "trained_parameters": sum(p.numel() for p in _trained(cfg, inputs.autoencoder)),
            },
            {"autoencoder": cfg.steps * cfg.batch_size},
            (cfg.keep_checkpoints + 1) * 16 * num_values + cache_bytes,
            latent="x".join(map(str, inputs.latent_shape)), epochs=round(cfg.steps * cfg.batch_size / num_train, 2),
            latent_cache_mib=round(cache_bytes / 2**20, 1),
            images_in_memory_mib=round(size / 2**20) if size <= cfg.memory_gib * 2**30 else None,
        )

    def teacher_latents(self) -> LatentCache | None:
        """Return the cache of the teacher's latents; None without a teacher."""
        inputs = self.inputs
        if inputs.teacher is None:
            return None
        digest, shape = inputs.parents["teacher"].digest, inputs.latent_shape
        return LatentCache(self.folder / "latents", inputs.joined.faces, digest, shape, self.cfg.flip > 0)

    def build(self, processes: Processes) -> None:
        """Decode images, cache the latents of a teacher, and build networks and monitors."""
        cfg, inputs, device, self.processes = self.cfg, self.inputs, processes.device, processes
        self.network = inputs.autoencoder.to(device, memory_format=torch.channels_last).train().requires_grad_(False)
        self.parameters = _trained(cfg, self.network)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.groups = [{"params": self.parameters}]
        self.modules, self.optimizers = {"model": self.network}, {}
        self.adversary = build_adversary(cfg.adversarial, cfg.optimizer, cfg.seed, processes)
        if self.adversary is not None:
            self.modules["discriminator"] = self.adversary.network
            self.optimizers["discriminator_optimizer"] = self.adversary.optimizer
        self.latents = self.teacher_latents()
        if self.latents is not None:
            fill_cache(self.latents, encoder(inputs.teacher.to(device), device), cfg.workers, processes)
        self.images = open_faces(inputs.joined.faces, inputs.rows(), cfg.memory_gib, cfg.workers, processes)
        features = inputs.features
        if features is not None:
            features = features.to(device, memory_format=torch.channels_last)
        weights = LossWeights(
            cfg.l1_weight, cfg.mse_weight, cfg.feature_weight, cfg.identity_weight, cfg.kl_weight, cfg.codebook_weight,
            cfg.commitment_weight,
        )
        self.loss = AutoencoderLoss(weights, features)
        self._build_monitors()

    def _build_monitors(self) -> None:
        cfg, joined, device = self.cfg, self.inputs.joined, self.processes.device
        held_out, self.monitors = joined.held_out_rows, []
        if held_out and cfg.validate_every:
            judge = self.inputs.judge.to(device) if self.inputs.judge is not None else None
            self.validation = ReconstructionValidation(
                self.images.read(held_out), judge, cfg.batch_size, self.processes
            )
            self.monitors.append(Monitor(cfg.validate_every, self._validate))
        self.shown = self.images.read(evenly(held_out or joined.train_rows, cfg.preview_images))
        self.monitors.append(Monitor(cfg.preview_every, self._preview))

    def batches(self, start: int) -> Iterator[AutoencoderBatch]:
        """Yield this process's images, noise and latents of every step."""
        cfg, processes = self.cfg, self.processes
        plan = AutoencoderBatchPlan(
            cfg.seed, cfg.batch_size, local_share(cfg.batch_size, processes.rank, processes.world_size),
            self.inputs.joined.train_rows, cfg.flip, self.inputs.latent_shape,
        )
        batches = plan.batches(self.images, range(start, self.total_steps), self.latents)
        return read_ahead(batches) if isinstance(self.images, DecodedFaces) else batches  # workers read ahead too

    def step(
        self, batch: AutoencoderBatch, step: int, lr: float, scaler: torch.amp.GradScaler
    ) -> dict[str, Tensor]:
        """Add the gradient, and take the discriminator's step; return `loss` and its terms."""
        cfg = self.cfg
        if self.adversary is not None:
            set_lr(self.adversary.optimizer, lr)
        return accumulate_gradients(
            self.network, self.adversary, batch, self.loss, step, cfg.batch_size, cfg.precision, scaler, self.processes,
            self.gradients.last_pass,
        )

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        encode, decode = self._coders(network)
        return self.validation.figures(encode, decode, autocast(self.cfg.precision, self.processes.device))

    def _preview(self, network: nn.Module, step: int) -> dict[str, float]:
        if self.processes.is_first:
            path = self.folder / "previews" / f"step-{step:08d}.png"
            write_reconstructions(path, *self._coders(network), self.shown, self.processes.device)
        return {}

    def _coders(self, network: nn.Module) -> tuple[Coder, Coder]:
        """Return encoder and decoder; those of a teacher's latents are its encoder and the network's decoder."""
        teacher, device = self.inputs.teacher, self.processes.device
        if teacher is None:
            return network.encode, network.decode

        def encode(pixels: Tensor) -> Tensor:
            with torch.autocast(device.type, enabled=False):  # as its latents are cached
                return teacher.encode(pixels)

        return encode, network.decode

    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        """Write the autoencoder, and the digests of others whose latents it decodes as well."""
        section = self.inputs.autoencoder.cfg.model_dump(mode="json")
        description = {"kind": "autoencoder", "autoencoder": section, "image_size": self.cfg.image_size}
        original = self.parents.get("teacher") or (self.parents["initial"] if self.cfg.freeze_encoder else None)
        if original is not None:
            description[LATENTS_OF] = [original.digest, *latents_of(original.path)]
        write_weights(folder, network.state_dict(), description)

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write the autoencoder."""
        if self.processes.is_first:
            self.write(self.folder, network, self.total_steps)
        counts = {"steps": self.total_steps, "images": len(self.inputs.joined.train_rows)}
        return counts, {"autoencoder": self.inputs.autoencoder.cfg.name}


def _trained(cfg: Any, autoencoder: FaceAutoencoder) -> list[nn.Parameter]:
    """Return the parameters that are trained: all, or those of the decoder."""
    frozen = {id(p) for p in autoencoder.latent_side()} if cfg.freeze_encoder else set()
    return [p for p in autoencoder.parameters() if id(p) not in frozen]
