"""Training of a latent diffusion model: denoise latents of faces under their embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent, require_header
from facesyn_cli.artifacts.ldm_settings import NOISE_SCHEDULE, LdmSettings
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.sampling.pipeline import ChannelScale
from facesyn_cli.training.batch_loading import read_ahead
from facesyn_cli.training.checkpoint import check_length
from facesyn_cli.training.data_order import continued_seed, local_share
from facesyn_cli.training.precision import convolution_layout
from facesyn_cli.training.published_export import check_exportable, export_ldm
from facesyn_cli.training.task import Task
from facesyn_cli.training.tasks.identity_loss import IdentityLoss, find_recognizer
from facesyn_cli.training.tasks.ldm_batches import (
    Batch,
    BatchPlan,
    CachedLatents,
    EncodedLatents,
    fill_cache,
    latent_statistics,
    training_batches,
)
from facesyn_cli.training.tasks.ldm_inputs import (
    autoencoder_parent,
    build_denoiser,
    encoder,
    evenly,
    is_conditional,
    join_faces,
    latent_shape,
    open_initial,
)
from facesyn_cli.training.tasks.ldm_monitors import FIGURES, ldm_monitors, open_judge
from facesyn_cli.training.tasks.ldm_step import accumulate_gradients
from facesyn_cli.training.tasks.perceptual_loss import MEASURED, PerceptualLoss


class LdmTask(Task):
    """The task of `train-ldm`.

    Args:
        cfg: Settings, a `TrainLdmConfig`.
        work: Work folder.

    Raises:
        UserError: Inputs are missing, damaged or do not fit each other.
    """

    command, summary = "train-ldm", ("loss", *FIGURES)

    def __init__(self, cfg: Any, work: Work) -> None:
        self.cfg, self.total_steps, self.folder = cfg, cfg.steps, cfg.out or work.folder("ldm")
        check_length(self.folder, cfg, "identity.fall" if cfg.identity.fall else None)
        if cfg.output_size > cfg.image_size:
            log.warning(f"output_size {cfg.output_size} exceeds image_size {cfg.image_size}: images will be blurred")
        images = open_images(cfg.images or work.folder("images"))
        path = _absolute(cfg.autoencoder)
        if path is None and cfg.autoencoder_model is None:
            path = _trained_autoencoder(work)
        has_judge = cfg.judge is not None and cfg.judge_every > 0
        part = "both" if cfg.preview_every or has_judge or cfg.perceptual else "encoder"
        autoencoder = self.autoencoder = load_autoencoder(path, cfg.autoencoder_model, part)
        self.is_normalized = cfg.latent_statistics == "measured"
        if cfg.latent_statistics == "auto":
            self.is_normalized = autoencoder.section["name"] != "vq-f4"
        if cfg.export_published:
            check_exportable(cfg.denoiser, cfg.beta_schedule, cfg.prediction, self.is_normalized)
        self.latent_shape = latent_shape(autoencoder, cfg.image_size)
        self.perceptual = None
        if cfg.perceptual is not None:
            self.perceptual = PerceptualLoss(cfg.perceptual, autoencoder, self.latent_shape)
        self.schedule = FlowSchedule(cfg.flow) if cfg.prediction == "flow" else build_schedule(
            cfg.beta_schedule, cfg.num_timesteps, cfg.beta_start, cfg.beta_end, cfg.zero_terminal_snr, cfg.prediction
        )
        section = autoencoder.section
        self.parents = {"images": images.parent(), "autoencoder": autoencoder_parent(section)}
        embeddings = None
        if getattr(cfg.denoiser, "conditioning", None) != "unconditional":
            embeddings = EmbeddingSet.open(cfg.embeddings or work.folder("embeddings"), cfg.embedding_names)
            self.parents["embeddings"] = embeddings.parent()
        elif cfg.embeddings is not None:
            raise UserError("embeddings were given, but the denoiser is unconditional; leave one of the two out")
        self.joined = join_faces(
            images, embeddings, cfg.image_size, cfg.validation_fraction, cfg.validation_images,
            has_pose=getattr(cfg.denoiser, "pose", False),
        )
        self.embedder = embeddings.embedder if embeddings else None
        self.context_size = size = 0 if embeddings is None else embeddings.vectors.shape[1]
        self.denoiser = build_denoiser(cfg.denoiser, cfg.seed, self.latent_shape, size)
        self.initial = None
        if cfg.initial_denoiser is not None:
            self.initial = open_initial(cfg.initial_denoiser, self.denoiser, cfg, section, self.embedder)
            self.parents["initial_denoiser"] = Parent(str(cfg.initial_denoiser), self.initial.digest)
        if cfg.context_dropout and not is_conditional(self.denoiser):
            raise UserError("context_dropout needs a conditional denoiser; this one is unconditional")
        self.identity = None
        self.identity_latents = work.folder("identity") / "latents"
        recognizer = find_recognizer(cfg, work)
        if recognizer is not None:
            if not is_conditional(self.denoiser):
                raise UserError("the identity loss needs a conditional denoiser, this one is unconditional: set "
                                "identity.weight=0")
            self.identity = IdentityLoss(
                recognizer, cfg.identity, cfg.identity_contexts, section, self.embedder,
                self.latent_shape, size, self.seed,
            )
            self.parents |= self.identity.parents
        self.judge = open_judge(cfg.judge, self.embedder, is_conditional(self.denoiser)) if has_judge else None
        self.num_images = len(images.entries)

    @property
    def seed(self) -> int:
        """Seed of what is random in the steps; another one for every LDM that a training starts from."""
        seed = self.cfg.seed
        return seed if self.initial is None else continued_seed(seed, self.initial.digest)

    def build(self, processes: Processes) -> None:
        """Fill the cache of latents, measure them, and build batches and monitors."""
        cfg, joined, device, self.processes = self.cfg, self.joined, processes.device, processes
        self._log_counts()
        cache, encode = self.latent_cache(), encoder(self.autoencoder.to(device), device, cfg.latent_precision)
        if processes.from_first(lambda: self.uses_cache(cache)):
            fill_cache(cache, encode, cfg.workers, processes)
            self.latents = CachedLatents(cache)
        else:
            self.latents = EncodedLatents(joined.faces, encode, cfg.workers)
            if cfg.latents == "auto":
                size = f"{cache.num_bytes / 2**20:.0f} MiB"
                log.info(f"latents are encoded at every step: a cache of {size} does not fit on the disk of "
                         f"{cache.folder.parent}; latent_cache sets another folder")
        mean = std = None
        if self.initial is not None:
            mean, std = self.initial.config.latent_mean, self.initial.config.latent_std
        elif self.is_normalized:
            mean, std = latent_statistics(self.folder, self.latents, joined.train_rows, processes)
        self.settings = self._settings(mean, std)
        self.scale = ChannelScale.of(mean, std, device)
        if self.identity is not None:
            self.identity.prepare(self.scale, device)
        if self.perceptual is not None:
            photos = self.latents.read(evenly(joined.train_rows, MEASURED))
            self.perceptual.prepare(self.scale, photos, device)
        self.network = self.denoiser.to(device, memory_format=convolution_layout(device)).train()
        self.modules, self.optimizers = {"model": self.network}, {}
        self.parameters = list(self.network.parameters())
        self.groups = [{"params": self.parameters}]
        conditional = is_conditional(self.network)
        self.plan = BatchPlan(
            self.seed, cfg.batch_size, local_share(cfg.batch_size, processes.rank, processes.world_size),
            joined.train_rows, cfg.flip, self.latent_shape, self.schedule,
            cfg.context_dropout if conditional else 0.0,
            getattr(cfg.denoiser, "component_dropout", 0.0) if conditional else 0.0,
            getattr(cfg.denoiser, "context_width", 1), cfg.pose_dropout,
        )
        self.monitors = ldm_monitors(self)

    def initialize(self) -> None:
        """Load the initial weights, if any were given."""
        if self.initial is not None:
            self.network.load_state_dict({**self.network.state_dict(), **self.initial.state})

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield this process's latents, contexts and noise of every step."""
        steps = range(start, self.total_steps)
        stream = self.latents.stream(self.plan.rows(step) for step in steps)
        batches = training_batches(self.plan, stream, self.joined.contexts, steps, self.context_size)
        if self.processes.device.type == "cuda":
            batches = (batch.pinned() for batch in batches)
        is_cached = isinstance(self.latents, CachedLatents)
        return read_ahead(batches) if is_cached else batches  # workers read ahead themselves

    def step(self, batch: Batch, step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the gradient; return `loss` and, where there are such, the means of the other losses without weights."""
        cfg, device = self.cfg, self.processes.device
        batch = Batch(
            self.scale.normalize(batch.latents.to(device, non_blocking=True)),
            None if batch.contexts is None else batch.contexts.to(device, non_blocking=True),
            batch.draws.to(device),
        )
        identity, weight = self.identity, cfg.identity.weight_at(self.position)
        drawn = {}
        if identity is not None and identity.drawn is not None:
            drawn = {"identity_drawn": self._add_drawn(identity, weight, step, scaler)}
        figures = accumulate_gradients(
            self.network, self.schedule, batch, cfg.batch_size, cfg.accumulate, cfg.precision, scaler,
            cfg.min_snr_gamma, self.gradients.last_pass, identity, weight, self.perceptual,
            cfg.early_weight if getattr(self.denoiser, "has_early_output", False) else 0.0,
        )
        return figures | drawn

    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        """Write the denoiser with everything that `sample` needs to know."""
        write_weights(folder, network.state_dict(), self.settings.model_dump(mode="json"))

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write the denoiser, in our form and, where set, in the published one."""
        if self.processes.is_first:
            self.write(self.folder, network, self.total_steps)
            if self.cfg.export_published:
                export_ldm(self.folder, self.total_steps, network.state_dict(), self.schedule)
        counts = {"steps": self.total_steps, "images": len(self.joined.train_rows)}
        return counts, {"denoiser": self.cfg.denoiser.name}

    @property
    def checkpoint_bytes(self) -> int:
        """Most bytes of the checkpoints on disk, one that is being written included."""
        return (self.cfg.keep_checkpoints + 1) * 16 * sum(p.numel() for p in self.denoiser.parameters())

    def latent_cache(self) -> LatentCache:
        """Return the cache of latents, which may be empty: that of `train-identity` where it holds these latents."""
        in_folder = partial(
            LatentCache, faces=self.joined.faces, autoencoder=self.parents["autoencoder"].digest,
            latent_shape=self.latent_shape, has_mirror=self.cfg.flip > 0, precision=self.cfg.latent_precision,
        )
        if self.cfg.latent_cache is None and (made := in_folder(self.identity_latents)).folder.exists():
            return made
        return in_folder(self.cfg.latent_cache or self.folder / "latents")

    def uses_cache(self, cache: LatentCache) -> bool:
        """Return whether to train on cached latents; False: they are encoded at every step."""
        is_auto = self.cfg.latents == "auto"
        return self.cfg.latents == "cache" or (is_auto and cache.fits(self.checkpoint_bytes))

    def _settings(self, mean: list[float] | None, std: list[float] | None) -> LdmSettings:
        cfg = self.cfg
        names = ("flow",) if cfg.prediction == "flow" else NOISE_SCHEDULE
        process = {name: getattr(cfg, name) for name in names}
        return LdmSettings(
            denoiser=cfg.denoiser.model_dump(mode="json"),
            prediction=cfg.prediction, **process,
            latent_channels=self.latent_shape[0], latent_size=self.latent_shape[1],
            latent_mean=mean, latent_std=std, image_size=cfg.image_size, output_size=cfg.output_size,
            autoencoder=self.autoencoder.section, embedder=self.embedder,
            embedding_size=self.context_size or 512,
        )

    def _add_drawn(
        self, identity: IdentityLoss, weight: float, step: int, scaler: torch.amp.GradScaler
    ) -> Tensor:
        """Add the gradient of the identity loss of the images drawn for it; return its mean without the weight."""
        cfg, processes = self.cfg, self.processes
        if not weight:
            return torch.zeros((), device=processes.device)
        distances = identity.of_drawn(
            self.network, self.schedule, step, processes.rank, processes.world_size, cfg.precision
        )
        if distances is None:
            return torch.zeros((), device=processes.device)
        scaler.scale(distances.sum() * (weight / cfg.batch_size)).backward()
        return distances.detach().sum() / cfg.identity.images

    def _log_counts(self) -> None:
        joined, num_images = self.joined, self.num_images
        without = num_images - len(joined.faces)
        log.info(
            f"train-ldm: {len(joined.train_rows)} images to train on, {len(joined.held_out_rows)} for validation"
            + (f"; {without} of {num_images} have no embedding and are left out" if without else "")
            + f"; {sum(p.numel() for p in self.denoiser.parameters())} parameters, "
            f"{self.total_steps * self.cfg.batch_size / len(joined.train_rows):.3g} epochs"
        )


def _trained_autoencoder(work: Work) -> str:
    """Return the folder of the autoencoder that `train-autoencoder` wrote in this run."""
    folder = work.folder("autoencoder")
    if not folder.exists():
        raise UserError(
            "train-ldm needs an autoencoder: give --autoencoder FILE, folder or hub id, or run train-autoencoder first"
        )
    require_header(folder, "Weights")
    return str(folder.resolve())


def _absolute(path: str | None) -> str | None:
    """Return a local path in full, so that `sample` finds it from any folder, and a hub id unchanged."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path
