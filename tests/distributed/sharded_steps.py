"""Steps of every head with its classes divided over 1, 2 and 4 processes; run as a script, which forks the processes.

    python sharded_steps.py OUT    writes OUT/<number of processes>.pt from the first process of each group
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
from torch import nn

from facesyn_cli import distributed
from facesyn_cli.distributed import Processes
from facesyn_cli.models.heads.margin import MarginHead, build_head
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN
from facesyn_cli.training.classifier import Group, WholeClassifier
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.gradient_sums import GradientSums
from facesyn_cli.training.optimization import OptimizerSettings, build_optimizer, gradient_norm, share_overflow
from facesyn_cli.training.sharded_classifier import ShardedClassifier
from facesyn_cli.training.sharded_tensors import join_columns
from facesyn_cli.training.tasks.fr_step import Recognizer

HEADS = [*(name for name in BUILTIN["head"] if name != "softmax"), "shifted"]
NUM_CLASSES, SIZE, NUM_GROUPS, GROUP_SIZE, NUM_STEPS, SCALE = 23, 16, 4, 3, 3, 16.0
OPTIMIZERS = {
    "sgd": OptimizerSettings(name="sgd", lr=0.05, weight_decay=5e-4), "adamw": OptimizerSettings(name="adamw", lr=0.01),
}


def run_steps(
    head: str, processes: Processes, sharded: bool, optimizer: str = "sgd", rate: float | None = None
) -> dict[str, torch.Tensor]:
    """Take some steps; return losses, accuracies, gradient and its norm of the first step, and weights after the last.

    Of a sharded classifier everything is joined in the first process.
    """
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, SIZE, bias=False), nn.Dropout(0.2), nn.BatchNorm1d(SIZE))
    backbone[-1].weight.data *= 8  # norms inside MagFace's range
    module = Shifted() if head == "shifted" else build_head(registry.configure("head", {"name": head, "scale": SCALE}))
    if sharded:
        classifier = ShardedClassifier(module, NUM_CLASSES, SIZE, 1, processes, rate)
    else:
        classifier = WholeClassifier(module.with_classes(NUM_CLASSES, SIZE, 1), 1)
    module.train()
    recognizer = Recognizer(backbone, classifier, 0, NUM_GROUPS * GROUP_SIZE, "fp32", processes.sum)
    parameters = [*backbone.parameters(), *(() if sharded else module.parameters())]
    divided = list(module.parameters()) if sharded else []
    updater = build_optimizer([*parameters, *divided], OPTIMIZERS[optimizer])

    def whole(value: torch.Tensor) -> torch.Tensor:
        def columns(group: str, name: str):
            return classifier.classes
        joined = join_columns({"a": {"b": value}}, columns, processes) if sharded else {"a": {"b": value}}
        return joined["a"]["b"].detach().clone() if processes.is_first else value

    kept: dict[str, torch.Tensor] = {}
    figures, gradients = [], GradientSums(parameters, processes)
    for step in range(NUM_STEPS):
        updater.zero_grad(set_to_none=True)
        own = local_share(NUM_GROUPS, processes.rank, processes.world_size)
        part = recognizer.accumulate([_groups(step)[number] for number in own], step, last_pass=gradients.last_pass)
        figures.append(processes.sum(part))
        gradients.finish()
        norm = gradient_norm(parameters, divided, processes)
        if step == 0:
            kept |= {"norm": norm, "backbone_gradient": backbone[1].weight.grad.clone()}
            if rate is None:
                kept["gradient"] = whole(module.kernel.grad)
        nn.utils.clip_grads_with_norm_([*parameters, *divided], 5.0, norm)
        sampled, before = classifier._sampled if sharded else None, module.kernel.detach()
        if sharded:
            before = classifier._centers.clone()
            with classifier.updating(updater):
                updater.step()
        else:
            updater.step()
        if sampled is not None:
            changed = (classifier._centers != before).any(1)
            expected = torch.zeros_like(changed).index_fill_(0, sampled, True)
            assert torch.equal(changed, expected), "other centers than the sampled ones changed"
    kept |= {"loss": torch.stack(figures)[:, 0], "top1": torch.stack(figures)[:, 1], "backbone": backbone[1].weight}
    kept["kernel"] = whole(module.kernel)
    for name, value in updater.state[module.kernel].items():
        kept[f"state_{name}"] = whole(value) if value.ndim == 2 else value
    kept |= dict(module.named_buffers())
    return {name: value.detach().clone() for name, value in kept.items()}


def _groups(step: int) -> list[Group]:
    generator = torch.Generator().manual_seed(step)
    return [
        Group(
            number,
            torch.randint(0, 256, (GROUP_SIZE, 4, 4, 3), generator=generator, dtype=torch.uint8),
            torch.randint(0, NUM_CLASSES, (GROUP_SIZE,), generator=generator),
            torch.rand(GROUP_SIZE, generator=generator) + 0.5,
        )
        for number in range(NUM_GROUPS)
    ]


class Shifted(MarginHead):
    """A plugin whose other logits depend on the target cosine, so that its gradient comes from all processes."""

    def __init__(self) -> None:
        super().__init__(SCALE)

    def _apply_margin(self, cosines, target, is_target, embeddings):
        return torch.where(is_target, target - 0.2, cosines + 0.5 * target)


def _overflow_in_the_last(processes: Processes) -> dict[str, torch.Tensor]:
    """Return the replicated gradient of a step whose sharded gradient overflows in one process."""
    replicated, sharded = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    is_last = processes.rank == processes.world_size - 1
    replicated.grad, sharded.grad = torch.ones(2), torch.tensor([1.0, float("inf") if is_last else 1.0])
    share_overflow([replicated], [sharded], processes)
    return {"gradient": replicated.grad}


def _work(rank: int, count: int, port: int, out: Path) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    if count > 1:
        os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    processes = distributed.processes("cpu")
    found = {head: run_steps(head, processes, sharded=True) for head in HEADS}
    found["arcface, adamw"] = run_steps("arcface", processes, True, "adamw")
    for head in HEADS:
        found[f"{head}, sampled"] = run_steps(head, processes, True, rate=0.6)
    found["arcface, adamw, sampled"] = run_steps("arcface", processes, True, "adamw", rate=0.6)
    found["arcface, few sampled"] = run_steps("arcface", processes, True, rate=0.01)  # the classes of the batch alone
    found["overflow"] = _overflow_in_the_last(processes)
    torch.save(found, out / f"{count}-{rank}.pt")


if __name__ == "__main__":
    context, folder = multiprocessing.get_context("fork"), Path(sys.argv[1])
    for count in (1, 2, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = [context.Process(target=_work, args=(rank, count, port, folder)) for rank in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit(1)
