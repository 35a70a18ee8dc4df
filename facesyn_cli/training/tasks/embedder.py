"""Training of a small recognizer, of photos or of latents, towards the embeddings that a larger one wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes, launched_processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.interfaces import Reads
from facesyn_cli.training.bn_groups import copy_from_first, num_groups
from facesyn_cli.training.checkpoint import check_length
from facesyn_cli.training.data_order import EpochBatches, local_share
from facesyn_cli.training.group_passes import groups_of_a_pass
from facesyn_cli.training.initial_weights import build_backbone, open_initial_weights
from facesyn_cli.training.optimization import decay_groups
from facesyn_cli.training.precision import backbone_layout
from facesyn_cli.training.task import Monitor, Task
from facesyn_cli.training.tasks.embedder_inputs import LatentInputs, PhotoInputs, StudentInputs, join_teacher
from facesyn_cli.training.tasks.embedder_step import Distiller, TaughtGroup, agreement


class EmbedderTask(Task):
    """The task of `train-embedder`.

    Args:
        cfg: Settings, a `TrainEmbedderConfig`.
        work: Work folder.

    Raises:
        UserError: Inputs are missing, damaged or do not fit each other.
    """

    command = "train-embedder"
    reads: Reads = "photos"
    writes = "embedder"  # folder of the run

    def __init__(self, cfg: Any, work: Work) -> None:
        self.cfg, self.total_steps, self.folder = cfg, cfg.steps, cfg.out or work.folder(self.writes)
        check_length(self.folder, cfg)
        with torch.device("meta"):
            student = build_backbone(cfg.backbone, self.reads)
        images = open_images(cfg.images or work.folder("images"))
        embeddings = EmbeddingSet.open(cfg.embeddings or work.folder("embeddings"), cfg.embedding_names)
        width = embeddings.vectors.shape[1]
        if student.embedding_size != width:
            raise UserError(
                f"backbone.embedding_size is {student.embedding_size}, but the teacher's embeddings in "
                f"{embeddings.path} have {width} numbers; set backbone.embedding_size={width}"
            )
        self.taught = join_teacher(images, embeddings, cfg.validation_fraction, cfg.validation_images)
        self.inputs = self._inputs(student, work)
        self.initial = open_initial_weights(cfg.initial_backbone, None, cfg.backbone, student, None)
        self.parents = {
            "images": images.parent(), "embeddings": embeddings.parent(), **self.inputs.parents, **self.initial.parents
        }
        self.teacher, self.input_size = embeddings.embedder, student.input_size
        self.num_parameters = sum(p.numel() for p in student.parameters())

    def _inputs(self, student: nn.Module, work: Work) -> StudentInputs:
        return PhotoInputs(self.cfg, self.taught, student, self.folder)

    def full_plan(self) -> Plan:
        """Return what the training would do."""
        cfg = self.cfg
        count = num_groups(cfg.batch_size, cfg.norm_batch_size, launched_processes())
        copies = 3 if cfg.ema is None else 4  # weights, two moments, average
        return self.plan(
            {
                "images": len(self.inputs), "images_without_embedding": self.taught.num_without,
                "validation_images": len(self.taught.held_out.entries), "steps": cfg.steps,
                "parameters": self.num_parameters, "processes": launched_processes(),
            },
            {"backbone": cfg.steps * cfg.batch_size},
            4 * self.num_parameters * (copies * (cfg.keep_checkpoints + 1) + 1) + self.inputs.cache_bytes,
            **self.inputs.chosen(), embedding_size=self.taught.train_targets.shape[1], teacher=self.teacher,
            epochs=round(cfg.steps * cfg.batch_size / len(self.inputs), 2), groups_per_step=count,
            images_per_group=cfg.batch_size // count,
        )

    def build(self, processes: Processes) -> None:
        """Build the student and its batches."""
        cfg, taught, self.processes = self.cfg, self.taught, processes
        self.network = build_backbone(cfg.backbone, self.reads).train()
        self.network.to(processes.device, memory_format=backbone_layout(processes.device, self.network))
        self.inputs.prepare(processes, self.network)
        count = num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
        self.numbers = local_share(count, processes.rank, processes.world_size)
        self.order = EpochBatches(cfg.seed, len(self.inputs), cfg.batch_size, cfg.batch_size // count)
        size = groups_of_a_pass(
            cfg.groups_per_pass, self.network, self.order.group_size, len(self.numbers), processes.device
        )
        self.distiller = Distiller(
            self.network, cfg.seed, cfg.batch_size, cfg.precision, cfg.relational_weight, size
        )
        self.modules, self.optimizers = {"model": self.network}, {}
        self.parameters = list(self.network.parameters())
        self.groups = decay_groups(self.network, cfg.optimizer.weight_decay, False)
        self.monitors = [Monitor(cfg.validate_every, self._validate)] if taught.held_out.entries else []
        log.info(
            f"{self.command}: {len(self.inputs)} images to train on, "
            f"{len(taught.held_out.entries)} for validation"
            + (f"; {taught.num_without} have no embedding and are left out" if taught.num_without else "")
            + f"; {cfg.backbone.name} of {self.num_parameters} parameters, {cfg.steps} steps of "
            f"{cfg.batch_size} images"
        )

    def initialize(self) -> None:
        """Load the initial weights, if any were given."""
        self.initial.put_into(self.network, nn.Module())

    def batches(self, start: int) -> Iterator[list[TaughtGroup]]:
        """Yield this process's groups of every step."""
        rows = self.order.groups(start, self.total_steps, self.numbers)
        with closing(self.inputs.groups(rows, self.processes.device)) as groups:
            for _ in range(start, self.total_steps):
                yield [TaughtGroup(number, *next(groups)) for number in self.numbers]

    def step(self, batch: list[TaughtGroup], step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the gradient; return `loss`, the mean `cosine` to the teacher and the `relational` term."""
        scale = scaler.scale(torch.ones((), device=self.processes.device))
        figures = self.distiller.accumulate(batch, step, scale, self.gradients.last_pass)
        return dict(zip(("loss", "cosine", "relational"), figures, strict=True))

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        """Compare the embeddings of held-out photos with the teacher's."""
        processes, taught = self.processes, self.taught
        copy_from_first(network, processes)
        size = min(self.cfg.norm_batch_size, self.cfg.batch_size)
        embeddings = self.inputs.embed_held_out(network, size)
        found = agreement(processes.sum(embeddings.to(processes.device)).cpu(), taught.held_out_targets)
        return {f"val_{name}": value for name, value in found.items()}

    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        """Write the student."""
        config = {
            "kind": "backbone",
            "backbone": self.cfg.backbone.model_dump(mode="json"),
            "input_size": self.input_size,
            "embedding_size": self.taught.train_targets.shape[1],
            "distilled_from": self.teacher,
            "steps": step,
            **self.inputs.section,
        }
        write_weights(folder, network.state_dict(), config, precision=self.cfg.weights_precision)

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write the student."""
        if self.processes.is_first:
            self.write(self.folder, network, self.total_steps)
            self.inputs.finish()
        counts = {"steps": self.total_steps, "images": len(self.inputs)}
        return counts, {"backbone": self.cfg.backbone.name, "distilled_from": self.teacher}


class IdentityRecognizerTask(EmbedderTask):
    """The task of `train-identity`: the same, of latents.

    Args:
        cfg: Settings, a `TrainIdentityConfig`.
        work: Work folder.
    """

    command = "train-identity"
    reads: Reads = "latents"
    writes = "identity"

    def _inputs(self, student: nn.Module, work: Work) -> StudentInputs:
        path = self.cfg.autoencoder
        if path is None:
            own = work.folder("autoencoder")
            path = str(own.resolve()) if own.exists() else "taesd3"
        return LatentInputs(self.cfg, path, self.taught, student, self.folder)
