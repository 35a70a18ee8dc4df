"""`facesyn bench classifier`: memory and time of one step of a classifier, whole, sharded and with Partial FC.

The backbone is one small layer, so the figures are those of the classifier: ArcFace on embeddings of 512 numbers, SGD
with momentum. Started by `accelerate launch`, the figures are those of the first of these processes.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

from facesyn_cli.bench.machine import Machine, four_digits, peak_memory, used_memory
from facesyn_cli.bench.settings import SAMPLE_RATE, BenchConfig
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes, processes
from facesyn_cli.models.heads.margin import build_head
from facesyn_cli.plugins import registry
from facesyn_cli.training.classifier import Group, WholeClassifier
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.gradient_sums import GradientSums
from facesyn_cli.training.optimization import OptimizerSettings, build_optimizer
from facesyn_cli.training.sharded_classifier import ShardedClassifier
from facesyn_cli.training.tasks.fr_step import Recognizer

_WIDTH, _SIDE, _GROUP_SIZE = 512, 4, 16


def bench_classifier(cfg: BenchConfig, machine: Machine) -> dict[str, Any]:
    """Measure one step for every number of classes and kind of classifier; return JSON values. A collective."""
    joined = processes(str(machine.device))
    batch_size = (cfg.batch_size or 64) // _GROUP_SIZE * _GROUP_SIZE or _GROUP_SIZE
    with machine.all_cores():
        rows = [
            _row(kind, num_classes, batch_size, cfg, machine, joined)
            for num_classes in cfg.classes for kind in cfg.classifiers
        ]
    return {
        "subject": "classifier", "machine": machine.to_json(),
        "network": {"embedding": _WIDTH, "batch": batch_size, "processes": joined.world_size}, "runs": rows,
    }


def _row(
    kind: str, num_classes: int, batch_size: int, cfg: BenchConfig, machine: Machine, joined: Processes
) -> dict[str, Any]:
    name = f"{kind}, {num_classes:,} classes"
    log.info(f"bench: {name}")
    gc.collect()
    start = used_memory(machine.device)
    step = _Step(kind, num_classes, batch_size, cfg.seed, joined)
    step(0)  # creates the state of the optimizer
    with peak_memory(machine.device) as memory:
        seconds = machine.clock.seconds(lambda: step(1))
    peak = memory["MiB"]
    return {
        "name": name, "centers and state MiB": round(step.num_bytes / 2**20, 1),
        "peak above start MiB": None if peak is None or start is None else round(peak - start, 1),
        "seconds a step": four_digits(seconds),
    }


class _Step:
    """A step of recognition training under one kind of classifier."""

    def __init__(self, kind: str, num_classes: int, batch_size: int, seed: int, joined: Processes) -> None:
        self.num_classes, self.joined = num_classes, joined
        head = build_head(registry.configure("head", {"name": "arcface"}))
        rate = SAMPLE_RATE if kind == "sampled" else None
        if kind == "whole":
            head.with_classes(num_classes, _WIDTH, seed).to(joined.device)
            classifier = WholeClassifier(head, seed)
        else:
            classifier = ShardedClassifier(head, num_classes, _WIDTH, seed, joined, rate)
        self.classifier = classifier
        network = nn.Sequential(nn.Flatten(), nn.Linear(_SIDE * _SIDE * 3, _WIDTH)).to(joined.device)
        self.parameters = [*network.parameters(), *(head.parameters() if kind == "whole" else [])]
        self.optimizer = build_optimizer(
            [*network.parameters(), *head.parameters()], OptimizerSettings(name="sgd", lr=0.1, weight_decay=5e-4)
        )
        self.gradients = GradientSums(self.parameters, joined)
        self.recognizer = Recognizer(network, classifier, seed, batch_size, "fp32", joined.sum)
        self.numbers = local_share(batch_size // _GROUP_SIZE, joined.rank, joined.world_size)

    @property
    def num_bytes(self) -> int:
        """Bytes of the class centers and their momentum in this process."""
        kernel = self.classifier.head.kernel
        held = [kernel, *self.optimizer.state[kernel].values()]
        return sum(value.nbytes for value in held if torch.is_tensor(value) and value.ndim == 2)

    def __call__(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        shape = (_GROUP_SIZE, _SIDE, _SIDE, 3)
        groups = []
        for number in self.numbers:
            pixels_u8 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, self.num_classes, shape[:1], generator=generator)
            parts = (pixels_u8, labels, torch.ones(_GROUP_SIZE))
            groups.append(Group(number, *(part.to(self.joined.device) for part in parts)))
        self.optimizer.zero_grad(set_to_none=True)
        self.recognizer.accumulate(groups, step, 1.0, self.gradients.last_pass)
        self.gradients.finish()
        if isinstance(self.classifier, ShardedClassifier):
            with self.classifier.updating(self.optimizer):
                self.optimizer.step()
        else:
            self.optimizer.step()
