"""Training of a face recognizer: a backbone under a margin head, over groups of images (see `bn_groups`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet, natural_labels
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.weights import write_tensors, write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.data.datasets import LabeledImages, LabeledRecords, LabeledSet, TrainingFaces, WeightedSet
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.all_pairs import FolderPairs
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.evaluation.pairs import PairSet, read_bin
from facesyn_cli.evaluation.protocol import verify_in_training
from facesyn_cli.models.convert.tface_head import PUBLISHED
from facesyn_cli.models.heads.class_range import ClassRange
from facesyn_cli.models.heads.margin import build_head
from facesyn_cli.training.batch_loading import load_groups
from facesyn_cli.training.bn_groups import copy_from_first, num_groups, use_global_norms
from facesyn_cli.training.checkpoint import check_total
from facesyn_cli.training.classifier import Group, WholeClassifier
from facesyn_cli.training.data_order import EpochBatches, local_share
from facesyn_cli.training.group_passes import groups_of_a_pass
from facesyn_cli.training.initial_weights import build_backbone, open_initial_weights
from facesyn_cli.training.optimization import decay_groups
from facesyn_cli.training.precision import backbone_layout
from facesyn_cli.training.published_export import export_classifier, export_recognizer
from facesyn_cli.training.sharded_classifier import ShardedClassifier, check_shardable
from facesyn_cli.training.sharded_tensors import join_columns
from facesyn_cli.training.task import Monitor, Task
from facesyn_cli.training.tasks.fr_step import Recognizer
from facesyn_cli.training.tasks.fr_validation import held_out_sets, split_identities

IDENTITIES = "identities.json"    # [number of the input, identity] of every class of the head


class FrTask(Task):
    """The task of `train-fr`; it is counted in epochs.

    Args:
        cfg: Settings, a `TrainFrConfig`.
        work: Work folder.

    Raises:
        UserError: Inputs are missing, damaged or do not fit each other.
    """

    command, summary = "train-fr", ("loss", "top1")
    watched = summary

    def __init__(self, cfg: Any, work: Work) -> None:
        self.cfg, self.folder = cfg, cfg.out or work.folder("fr")
        check_total(self.folder, cfg.epochs, cfg.lr_schedule.name, "epochs")
        with torch.device("meta"):
            backbone = build_backbone(cfg.backbone)
        size = embedding_size(backbone)
        paths = list(cfg.inputs) or [work.folder("records")]
        if cfg.input_starts is not None and len(cfg.input_starts) != len(paths):
            raise UserError(f"input_starts has {len(cfg.input_starts)} epochs for {len(paths)} inputs")
        sets, held_out, self.parents = [], [], {}
        self.identities: list[list[int | str]] = []  # [number of the input, name] of every class
        for number, path in enumerate(paths, 1):
            examples, names, self.parents[f"input-{number}"] = open_labeled(path)
            keys = [f"{number - 1}/{name}" for name in names]
            part, rest = split_identities(examples, keys, cfg.seed, cfg.validation_fraction)
            sets.append(WeightedSet(part))
            held_out.append(rest)
            self.identities += [[number, names[label]] for label in part.old_labels]
        if len(self.identities) < 2:
            raise UserError(
                f"{', '.join(map(str, paths))}: {len(self.identities)} identities to train on "
                f"(validation_fraction {cfg.validation_fraction:g}); at least 2 are needed"
            )
        self.faces = TrainingFaces(sets, compose(cfg.transforms), cfg.seed, backbone.input_size)
        self.cache_plan = self.faces.plan_caches(cfg.decoded, cfg.decoded_cache, self.folder, cfg.epochs)
        self.weights = list(cfg.input_weights) or [1.0] * len(paths)
        head = build_head(cfg.head)
        if cfg.classifier.sharded:
            check_shardable(head, cfg.head.name)
        with torch.device("meta" if cfg.classifier.sharded else "cpu"):  # only shapes are compared
            head = head.with_classes(len(self.identities), size) if cfg.initial_head else None
        self.initial = open_initial_weights(cfg.initial_backbone, cfg.initial_head, cfg.backbone, backbone, head)
        self.parents |= self.initial.parents
        self.pairs: list[PairSet | FolderPairs] = [
            *held_out_sets(held_out, cfg.validation_pairs, cfg.seed, cfg.validation_fraction > 0),
            *(read_bin(path, path.stem) for path in cfg.validation_bins),
        ]
        self.pairs += [FolderPairs(path.stem, ImageSet.open(path)) for path in cfg.validation_folders]
        if twice := [name for name, count in Counter(pairs.name for pairs in self.pairs).items() if count > 1]:
            raise UserError(f"two sets to validate on are called {twice[0]}; rename one of the files")
        self.num_parameters, self.embedding_size = sum(p.numel() for p in backbone.parameters()), size
        self.epoch_steps = EpochBatches(cfg.seed, len(self.faces), cfg.batch_size, cfg.batch_size).steps_per_epoch
        self.total_steps = cfg.epochs * self.epoch_steps

    def build(self, processes: Processes) -> None:
        """Build backbone, head and batches."""
        cfg, self.processes = self.cfg, processes
        self.faces.use(self.cache_plan, processes)
        self.network = build_backbone(cfg.backbone).train()
        self.network.to(processes.device, memory_format=backbone_layout(processes.device, self.network))
        num_classes = self.faces.num_classes
        self._build_head(processes)
        if cfg.sync_batchnorm:
            use_global_norms(self.network, processes.sum)
        count = groups_of_a_step(cfg, processes.world_size)
        self.numbers = local_share(count, processes.rank, processes.world_size)
        starts = cfg.input_starts or (1,) * len(self.faces.row_ends)
        curriculum = tuple(zip((start - 1 for start in starts), self.faces.row_ends, strict=True))
        self.order = EpochBatches(cfg.seed, len(self.faces), cfg.batch_size, cfg.batch_size // count, curriculum)
        size = groups_of_a_pass(
            cfg.groups_per_pass, self.network, self.order.group_size, len(self.numbers), processes.device
        )
        self.recognizer = Recognizer(
            self.network, self.classifier, cfg.seed, cfg.batch_size, cfg.precision, processes.sum, size
        )
        self.modules, self.optimizers = {"backbone": self.network, "head": self.head}, {}
        head_parameters = list(self.head.parameters())
        is_sharded = isinstance(self.classifier, ShardedClassifier)
        self.parameters = [*self.network.parameters(), *([] if is_sharded else head_parameters)]
        self.sharded_parameters = head_parameters if is_sharded else []
        head_group = {"params": list(self.head.parameters()), "weight_decay": cfg.optimizer.weight_decay}
        self.groups = [*decay_groups(self.network, cfg.optimizer.weight_decay, cfg.decay_norms), head_group]
        self.monitors = [Monitor(cfg.validate_every * self.epoch_steps, self._validate)] if self.pairs else []
        log.info(
            f"{self.total_steps} steps of {cfg.batch_size} images of {num_classes} identities: "
            f"{len(self.numbers)} x {self.order.group_size} images on each of {processes.world_size} processes"
        )
        if len(self.faces) < cfg.batch_size:
            log.warning(f"{len(self.faces)} images are fewer than batch_size {cfg.batch_size}; it repeats them")

    def _build_head(self, processes: Processes) -> None:
        cfg, num_classes, head = self.cfg, self.faces.num_classes, build_head(self.cfg.head)
        self.classifier: WholeClassifier | ShardedClassifier
        if cfg.classifier.sharded:
            rate = cfg.classifier.sample_rate
            self.classifier = ShardedClassifier(head, num_classes, self.embedding_size, cfg.seed, processes, rate)
        else:
            self.classifier = WholeClassifier(head.with_classes(num_classes, self.embedding_size, cfg.seed), cfg.seed)
        self.head = head.to(processes.device).train()

    def initialize(self) -> None:
        """Load the initial weights, if any were given."""
        self.initial.put_into(self.network, self.head, self.columns("head", "kernel"))

    def updating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """See `ShardedClassifier.updating`."""
        classifier = self.classifier
        return classifier.updating(optimizer) if isinstance(classifier, ShardedClassifier) else nullcontext()

    def columns(self, group: str, name: str) -> ClassRange | None:
        """Return the classes of this process for a sharded kernel and its optimizer state."""
        if not isinstance(self.classifier, ShardedClassifier):
            return None
        number = sum(len(parameters["params"]) for parameters in self.groups) - 1  # the kernel is the last one
        is_kernel = (group, name) == ("head", "kernel") or (group == "optimizer" and name.startswith(f"{number}."))
        return self.classifier.classes if is_kernel else None

    def batches(self, start: int) -> Iterator[list[Group]]:
        """Yield this process's groups of every step."""
        rows, device = self.order.groups(start, self.total_steps, self.numbers), self.processes.device
        with closing(load_groups(self.faces, self.weights, rows, self.cfg.workers, device)) as loaded:
            for _ in range(start, self.total_steps):
                yield [
                    Group(number, *(part.to(device, non_blocking=True) for part in next(loaded)))
                    for number in self.numbers
                ]

    def step(self, batch: list[Group], step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the gradient; return `loss` and `top1`, the share of images nearest to their own class center."""
        scale = scaler.scale(torch.ones((), device=self.processes.device))
        figures = self.recognizer.accumulate(batch, step, scale, self.gradients.last_pass)
        return dict(zip(("loss", "top1"), figures, strict=True))

    def _validate(self, network: nn.Module, step: int) -> dict[str, Any]:
        processes = self.processes
        copy_from_first(network, processes)
        options = EmbedOptions(network.input_size, self.order.group_size, processes.device, flip=True, fit="square")
        embedder = FaceEmbedder(network, options)
        found = {}
        for pairs in self.pairs:
            values = verify_in_training(embedder, pairs, self.embedding_size, processes)
            found |= {f"val_{pairs.name}_{name}": value for name, value in values.items()}
        return found

    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        """Write the backbone, in our form and, where set, in TFace's."""
        cfg, epoch = self.cfg, -(-step // self.epoch_steps)
        config = {
            "kind": "backbone",
            "backbone": cfg.backbone.model_dump(mode="json"),
            "input_size": network.input_size,
            "embedding_size": self.embedding_size,
            "head": cfg.head.model_dump(mode="json"),
            "num_classes": self.faces.num_classes,
            "epochs": epoch,
        }
        write_weights(folder, network.state_dict(), config)
        if self._is_exported(step):
            export_recognizer(network, self.folder, epoch)

    def write_shards(self, step: int) -> None:
        """Write the classifier in TFace's form, where set: every process its own part, or the first one all."""
        if not self._is_exported(step):
            return
        processes, tensors = self.processes, self.head.state_dict()
        is_sharded = isinstance(self.classifier, ShardedClassifier)
        if odd := sorted(tensors.keys() - PUBLISHED):
            log.warning(f"TFace's files have no place for {', '.join(odd)} of this head; only the backbone is exported")
        elif is_sharded or processes.is_first:
            rank = processes.rank if is_sharded else None
            export_classifier(tensors, self.folder, step // self.epoch_steps, rank, processes.world_size)
        processes.barrier()

    def _is_exported(self, step: int) -> bool:
        epoch, rest = divmod(step, self.epoch_steps)
        return self.cfg.export_published and rest == 0 and epoch in (*self.cfg.save_epochs, self.cfg.epochs)

    def kept_folder(self, step: int) -> str | None:
        """Return `epoch-E` after an epoch whose weights are kept."""
        epoch, rest = divmod(step, self.epoch_steps)
        return f"epoch-{epoch}" if rest == 0 and epoch in self.cfg.save_epochs else None

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write backbone, head and the identities of its classes."""
        joined = join_columns({"head": self.head.state_dict()}, self.columns, self.processes)
        self.write_shards(self.total_steps)
        if self.processes.is_first:
            self.write(self.folder, network, self.total_steps)
            write_tensors(self.folder / "head.safetensors", joined["head"])
            write_json(self.folder / IDENTITIES, self.identities)
            self.cache_plan.remove_scratch()
        counts = {"epochs": self.cfg.epochs, "steps": self.total_steps, "identities": self.faces.num_classes,
                  "images": len(self.faces)}
        return counts, {}


def groups_of_a_step(cfg: Any, num_processes: int) -> int:
    """Return the number of BatchNorm groups of a step; with sync_batchnorm one per process.

    Raises:
        UserError: The batch does not divide into groups, or the groups not over the processes.
    """
    if not cfg.sync_batchnorm:
        return num_groups(cfg.batch_size, cfg.norm_batch_size, num_processes)
    if cfg.batch_size % num_processes:
        raise UserError(f"batch_size {cfg.batch_size} does not divide over {num_processes} processes")
    return num_processes


def embedding_size(backbone: nn.Module) -> int:
    """Return the length of a backbone's embeddings.

    Raises:
        UserError: A plugin's network lacks an attribute of `models.interfaces.Backbone`.
    """
    lacking = [name for name in ("embedding_size", "input_size") if not isinstance(getattr(backbone, name, None), int)]
    if lacking:
        raise UserError(f"backbone {type(backbone).__name__} has no {' and no '.join(lacking)}; see "
                        "facesyn_cli.models.interfaces.Backbone")
    return backbone.embedding_size


def open_labeled(path: Path) -> tuple[LabeledSet, list[str], Parent]:
    """Open records or images; return them, the identity of every label, and the input for the header."""
    if RecordSet.recognizes(path):
        records = RecordSet.open(path)
        say_if_not_square(path, records.read, len(records))
        return LabeledRecords(records), records.identities, records.parent()
    images = ImageSet.open(path)
    warn_of_unclear_identities(images)
    names, _ = natural_labels(list(images.by_identity()))
    say_if_not_square(path, lambda row: images.read(images.entries[row]), len(images.entries))
    return LabeledImages(images), names, images.parent()
