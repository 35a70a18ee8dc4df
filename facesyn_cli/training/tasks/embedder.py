"""Training of a small recognizer towards the embeddings that a larger one wrote, over groups of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.data.datasets import TrainingFaces, WeightedSet
from facesyn_cli.data.decoded_cache import file_stamps
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.progress import progress
from facesyn_cli.training.batch_loading import load_groups
from facesyn_cli.training.bn_groups import copy_from_first, num_groups
from facesyn_cli.training.checkpoint import check_total
from facesyn_cli.training.data_order import EpochBatches, is_held_out, local_share
from facesyn_cli.training.group_passes import groups_of_a_pass
from facesyn_cli.training.initial_weights import build_backbone, open_initial_weights
from facesyn_cli.training.optimization import decay_groups
from facesyn_cli.training.precision import backbone_layout
from facesyn_cli.training.task import Monitor, Task
from facesyn_cli.training.tasks.embedder_step import Distiller, TaughtGroup, agreement
from facesyn_cli.training.tasks.ldm_inputs import evenly, having_embeddings


class NumberedFaces:
    """Photos for training whose label is their own number, which is the row of their target.

    Args:
        images: The set they belong to.
        entries: The photos.
    """

    def __init__(self, images: ImageSet, entries: Sequence[ImageEntry]) -> None:
        self._images, self.entries = images, list(entries)
        self.labels, self.num_classes = np.arange(len(self.entries), dtype=np.int32), len(self.entries)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._images.read(self.entries[index])

    def name_of(self, index: int) -> str:
        """Return the location of an image, for messages."""
        return f"{self.entries[index].location} in {self._images.path}"

    def content(self) -> Any:
        """Return a JSON value that names the images; see `LabeledSet`."""
        images = self._images
        return [images.digest, file_stamps(images.files()), json_digest([entry.location for entry in self.entries])]


@dataclass(frozen=True)
class TaughtFaces:
    """Photos and the teacher's embeddings of them.

    Args:
        train: Photos to train on.
        train_targets: (N, E) float32, their unit embeddings.
        held_out: Photos of other people, to validate with.
        held_out_targets: (M, E) float32, their unit embeddings.
        num_without: Photos that have no embedding and are left out.
    """

    train: NumberedFaces
    train_targets: Tensor
    held_out: NumberedFaces
    held_out_targets: Tensor
    num_without: int


def join_teacher(images: ImageSet, embeddings: EmbeddingSet, fraction: float, max_held_out: int) -> TaughtFaces:
    """Join photos and embeddings by key and hold some identities out.

    Args:
        images: The photos.
        embeddings: The teacher's, of these photos and possibly of others.
        fraction: About this share of the identities is held out; which ones depends on their names only.
        max_held_out: Most photos to validate with; photos of held-out identities beyond that are not used.

    Raises:
        UserError: No photo has an embedding, or fewer than two are left to train on.
    """
    entries = having_embeddings(images, embeddings)
    train = [entry for entry in entries if not is_held_out(entry.identity, fraction)]
    say_if_not_square(images.path, lambda row: images.read(entries[row]), len(entries))
    if len(train) < 2:
        raise UserError(
            f"{len(train)} of {len(entries)} images are left to train on, at least 2 are needed; lower "
            f"validation_fraction={fraction:g}"
        )
    held_out = evenly([entry for entry in entries if is_held_out(entry.identity, fraction)], max_held_out)
    targets = [torch.from_numpy(embeddings.join([entry.key for entry in part])) for part in (train, held_out)]
    return TaughtFaces(
        NumberedFaces(images, train), targets[0], NumberedFaces(images, held_out), targets[1],
        len(images.entries) - len(entries),
    )


class EmbedderTask(Task):
    """The task of `train-embedder`.

    Args:
        cfg: Settings, a `TrainEmbedderConfig`.
        work: Work folder.

    Raises:
        UserError: Inputs are missing, damaged or do not fit each other.
    """

    command = "train-embedder"

    def __init__(self, cfg: Any, work: Work) -> None:
        self.cfg, self.total_steps, self.folder = cfg, cfg.steps, cfg.out or work.folder("embedder")
        check_total(self.folder, cfg.steps, cfg.lr_schedule.name)
        with torch.device("meta"):
            student = build_backbone(cfg.backbone)
        images = open_images(cfg.images or work.folder("images"))
        embeddings = EmbeddingSet.open(cfg.embeddings or work.folder("embeddings"), cfg.embedding_names)
        width = embeddings.vectors.shape[1]
        if student.embedding_size != width:
            raise UserError(
                f"backbone.embedding_size is {student.embedding_size}, but the teacher's embeddings in "
                f"{embeddings.path} have {width} numbers; set backbone.embedding_size={width}"
            )
        self.taught = join_teacher(images, embeddings, cfg.validation_fraction, cfg.validation_images)
        sets = [WeightedSet(self.taught.train)]
        self.faces = TrainingFaces(sets, compose(cfg.transforms), cfg.seed, student.input_size)
        num_reads = cfg.steps * cfg.batch_size / len(self.faces)
        self.cache_plan = self.faces.plan_caches(cfg.decoded, cfg.decoded_cache, self.folder, num_reads)
        self.initial = open_initial_weights(cfg.initial_backbone, None, cfg.backbone, student, None)
        self.parents = {"images": images.parent(), "embeddings": embeddings.parent(), **self.initial.parents}
        self.teacher, self.input_size = embeddings.embedder, student.input_size
        self.num_parameters = sum(p.numel() for p in student.parameters())

    def build(self, processes: Processes) -> None:
        """Build the student and its batches."""
        cfg, taught, self.processes = self.cfg, self.taught, processes
        self.faces.use(self.cache_plan, processes)
        self.network = build_backbone(cfg.backbone).train()
        self.network.to(processes.device, memory_format=backbone_layout(processes.device, self.network))
        count = num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
        self.numbers = local_share(count, processes.rank, processes.world_size)
        self.order = EpochBatches(cfg.seed, len(self.faces), cfg.batch_size, cfg.batch_size // count)
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
            f"train-embedder: {len(self.faces)} images to train on, "
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
        targets, device = self.taught.train_targets, self.processes.device
        with closing(load_groups(self.faces, [1.0], rows, self.cfg.workers, device)) as loaded:
            for _ in range(start, self.total_steps):
                groups = []
                for number in self.numbers:
                    pixels_u8, labels, _ = next(loaded)
                    groups.append(TaughtGroup(number, pixels_u8, targets[labels].to(device)))
                yield groups

    def step(self, batch: list[TaughtGroup], step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the gradient; return `loss`, the mean `cosine` to the teacher and the `relational` term."""
        scale = scaler.scale(torch.ones((), device=self.processes.device))
        figures = self.distiller.accumulate(batch, step, scale, self.gradients.last_pass)
        return dict(zip(("loss", "cosine", "relational"), figures, strict=True))

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        """Compare the embeddings of held-out photos with the teacher's."""
        processes, taught = self.processes, self.taught
        copy_from_first(network, processes)
        size, faces = min(self.cfg.norm_batch_size, self.cfg.batch_size), taught.held_out
        options = EmbedOptions(
            self.input_size, size, processes.device, flip=False, fit="square", workers=max(1, self.cfg.workers)
        )
        embeddings, problem = torch.zeros_like(taught.held_out_targets), ""
        batches = share(fixed_batches(len(faces.entries), size), processes.rank, processes.world_size)
        with progress("validate", sum(map(len, batches))) as bar:
            for batch in FaceEmbedder(network, options).files(faces.read, batches):
                embeddings[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
                for index, reason in batch.problems.items():
                    problem = problem or f"{faces.name_of(index)} is unreadable: {reason}"
                bar.advance(len(batch.indices))
        processes.raise_in_all(problem)
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
        }
        write_weights(folder, network.state_dict(), config, precision=self.cfg.weights_precision)

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write the student."""
        if self.processes.is_first:
            self.write(self.folder, network, self.total_steps)
            self.cache_plan.remove_scratch()
        counts = {"steps": self.total_steps, "images": len(self.faces)}
        return counts, {"backbone": self.cfg.backbone.name, "distilled_from": self.teacher}
