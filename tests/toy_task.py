"""The smallest task of the training loop: a linear network with dropout and BatchNorm on made numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.shared_settings import StepsConfig
from facesyn_cli.training.task import Monitor, Task


class ToyTask(Task):
    """Learns to map numbers to their sum; the attributes below make it fail or stop.

    Args:
        folder: Output folder.
        settings: Of the training.
    """

    command = "train-toy"

    def __init__(self, folder: Path, **settings: Any) -> None:
        defaults = {
            "steps": 6, "batch_size": 4, "log_every": 2, "checkpoint_every": 3, "validate_every": 3, "device": "cpu",
            "optimizer": {"lr": 0.05},
        }
        self.cfg = StepsConfig(**{**defaults, **settings})
        self.folder, self.parents, self.total_steps = folder, {}, self.cfg.steps
        self.broken_batch: int | None = None   # its numbers are not finite
        self.unreadable: int | None = None     # it cannot be read
        self.after: dict[int, Any] = {}        # step -> called while it is taken
        self.monitored: list[tuple[int, bool]] = []

    def build(self, processes: Processes) -> None:
        self.network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)).train()
        self.parameters = list(self.network.parameters())
        self.groups, self.modules, self.optimizers = [{"params": self.parameters}], {"model": self.network}, {}
        self.monitors = [Monitor(self.cfg.validate_every, self._validate)]

    def initialize(self) -> None:
        nn.init.constant_(self.network[0].bias, 0.5)

    def batches(self, start: int) -> Iterator[Tensor]:
        for step in range(start, self.total_steps):
            if step == self.unreadable:
                raise UserError("photo 7 is unreadable")
            x = torch.randn(self.cfg.batch_size, 3, generator=torch.Generator().manual_seed(step))
            yield x * float("nan") if step == self.broken_batch else x

    def step(self, batch: Tensor, step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        if step in self.after:
            self.after[step]()
        loss = (self.network(batch) - batch.sum(1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        return {"loss": loss.detach()}

    def _validate(self, network: nn.Module, step: int) -> dict[str, float]:
        self.monitored.append((step, network.training))
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(99))
        with torch.no_grad():
            return {"val_loss": (network(x) - x.sum(1, keepdim=True)).square().mean().item()}

    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        write_weights(folder, network.state_dict(), {"kind": "toy", "steps": step})

    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        self.write(self.folder, network, self.total_steps)
        return {"steps": self.total_steps}, {}
