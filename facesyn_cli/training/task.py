"""What one training brings to the loop of `training/trainer.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.output import check_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.distributed import Processes
from facesyn_cli.models.heads.class_range import ClassRange
from facesyn_cli.training.gradient_sums import GradientSums
from facesyn_cli.training.shared_settings import StepsConfig, TrainingConfig


@dataclass(frozen=True)
class Monitor:
    """A look at the network at regular steps and after the last one; it never changes the training.

    Args:
        every: Optimizer steps in between; 0: never.
        run: Takes the network in eval mode and the step, returns metrics. All processes call it together.
    """

    every: int
    run: Callable[[nn.Module, int], dict[str, float]]

    def is_due(self, step: int, is_last: bool) -> bool:
        """Return whether it runs after a step."""
        return bool(self.every) and (step % self.every == 0 or is_last)


class Task(ABC):
    """What one training brings to the loop.

    The attributes from `network` on are set by `build`.

    Attributes:
        cfg: Settings.
        command: Name of the command.
        folder: Output folder.
        parents: Inputs, for the header.
        total_steps: Length of the training; where `minutes` run out first, set to the steps taken before `finish`.
        position: Share of the training that is done before the present step, in [0, 1), of its steps or its minutes.
        epoch_steps: Steps of an epoch where the training is counted in epochs (a line of metrics and a checkpoint at
            the end of each, milestones in epochs); None: it is counted in steps.
        summary: Names of metrics whose last value goes into the header, beside those that begin with `val_`.
        watched: Names of metrics that the progress shows.
        network: The network that is averaged, monitored and written.
        parameters: What the optimizer updates, in the order in which norms are computed; the same in all processes.
        sharded_parameters: What the optimizer updates as well, and of which every process holds another part: their
            gradients are not summed over processes, and `columns` returns the part.
        groups: Both as parameter groups of torch.
        modules: Trained modules by their name in a checkpoint.
        optimizers: Optimizers besides the main one, likewise.
        monitors: Validation, previews and the like; the same in all processes.
        gradients: Sums of the gradients of `parameters` over processes, made by the trainer after `build`.
    """

    cfg: TrainingConfig
    command: str
    folder: Path
    parents: dict[str, Parent]
    total_steps: int
    position: float = 0.0
    epoch_steps: int | None = None
    summary: tuple[str, ...] = ("loss",)
    watched: tuple[str, ...] = ("loss",)

    network: nn.Module
    parameters: list[nn.Parameter]
    sharded_parameters: Sequence[nn.Parameter] = ()
    groups: list[dict[str, Any]]
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    monitors: list[Monitor]
    gradients: GradientSums

    @property
    def seed(self) -> int:
        """Seed of what is random in the steps."""
        return self.cfg.seed

    def plan(
        self, counts: dict[str, int], network_evaluations: dict[str, int], num_bytes: int, **chosen: Any
    ) -> Plan:
        """Return a plan; arguments as of `Plan`.

        Raises:
            UserError: The output folder holds something else, or was begun with other settings or inputs.
        """
        state = check_output(self.folder, "Weights", self.cfg, self.parents)
        inputs = {name: parent.path for name, parent in self.parents.items()}
        if (minutes := getattr(self.cfg, "minutes", None)) is not None:  # counts are then the most there can be
            chosen["ends_after_minutes"] = minutes
        return Plan(
            self.folder, state, inputs, counts, network_evaluations, disk_mib=num_bytes / 2**20, chosen=chosen
        )

    @abstractmethod
    def build(self, processes: Processes) -> None:
        """Build networks, data and monitors on the device of this process. A collective."""

    def initialize(self) -> None:  # noqa: B027
        """Set weights that are computed from the data; called when there is no checkpoint to resume from."""

    @abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """Yield this process's share of the batches of steps `start`, `start` + 1, ..."""

    @abstractmethod
    def step(self, batch: Any, step: int, lr: float, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the gradient of this process's share of the global batch's mean loss to `.grad`.

        The last backward pass runs in `self.gradients.last_pass()`, so that the sums over processes begin in it.

        Args:
            batch: From `batches`.
            step: Number of the step, 0-based.
            lr: Its learning rate.
            scaler: Scales losses before their backward pass.

        Returns:
            This process's part of `loss` and other means over the global batch, scalars.
        """

    def updating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return the context of the optimizer's step, which fp16 may leave out."""
        return nullcontext()

    def columns(self, group: str, name: str) -> ClassRange | None:
        """Return the columns that this process holds of a tensor of a checkpoint; None: all of it.

        Args:
            group: Name of the module or optimizer.
            name: Name of the tensor in it. Tensors without columns, such as a count of steps, are never divided.
        """
        return None

    @abstractmethod
    def write(self, folder: Path, network: nn.Module, step: int) -> None:
        """Write the weights of `network` as a finished training has them; the first process calls it."""

    def write_shards(self, step: int) -> None:  # noqa: B027
        """Write what every process holds a part of, after a step whose weights are kept. A collective."""

    def kept_folder(self, step: int) -> str | None:
        """Return the folder in which the weights after `step` are kept, None when they are not."""
        is_kept = isinstance(self.cfg, StepsConfig) and step in self.cfg.save_steps
        return f"weights/step-{step:08d}" if is_kept else None

    @abstractmethod
    def finish(self, network: nn.Module) -> tuple[dict[str, int], dict[str, Any]]:
        """Write the finished weights; return counts and further facts for the header. A collective."""
