"""Processes and devices: what Accelerate knows, in the few words our stages need."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from facesyn_cli.artifacts.output import Config, Output, Parent, open_output
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=1)  # of a process that is done for the others; torch's 10 to 30 minutes end in an error


class AgreedError(UserError):
    """Something the user can fix that every process raises; the first one tells it."""


class Processes:
    """This process among those started by `accelerate launch` or torchrun; alone without them.

    Attributes:
        accelerator: The Accelerate object underneath.
        index: Global rank, 0-based.
        count: Number of processes.
        device: Device of this process.
        is_first: True in the process that speaks and writes headers.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.index = accelerator.process_index
        self.count = accelerator.num_processes
        self.device = accelerator.device
        self.is_first = accelerator.is_main_process

    def announce(self) -> None:
        """Say how many processes work together, when there are several."""
        if self.count > 1:
            log.info(f"{self.count} processes")

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Return True in every process when `flag` is true in any: all must call it together."""
        if self.count == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.device)
        torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.MAX)
        return bool(total.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; the argument is not changed."""
        if self.count == 1:
            return values
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @contextmanager
    def open_output(
        self, folder: Path, kind: str, command: str, cfg: Config, parents: dict[str, Parent],
        part: tuple[int, int] | None = None,
    ) -> Iterator[Output]:
        """Open an output folder in all processes: the first one first, the others after it succeeded.

        Raises:
            UserError: As `artifacts.output.open_output`, in every process.
        """
        if self.count == 1:
            with open_output(folder, kind, command, cfg, parents, part) as output:
                yield output
            return
        opened = open_output(folder, kind, command, cfg, parents, part)
        if self.is_first:
            try:
                output = opened.__enter__()
            except UserError as error:
                self._tell(str(error))
                raise
            self._tell("")
        else:
            problem = self._tell("")
            if problem:
                raise AgreedError(problem)
            output = opened.__enter__()
        with ExitStack() as stack:
            stack.push(opened.__exit__)
            try:
                yield output
            except UserError as error:
                if not self.is_first and not isinstance(error, AgreedError):  # nobody else may know of it
                    log.error(f"process {self.index}: {error}")
                raise

    def of_first(self, compute: Callable[[], T]) -> T:
        """Return in every process what `compute` returns in the first one; only that one calls it.

        Raises:
            UserError: As `compute`, in every process.
        """
        if self.count == 1:
            return compute()
        value, problem = None, ""
        if self.is_first:
            try:
                value = compute()
            except UserError as error:
                problem = str(error)
        value, problem = self._tell((value, problem))
        if problem:
            raise AgreedError(problem)
        return value

    def _tell(self, value: T) -> T:
        """Send one value from the first process to all and return it."""
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]


def processes(device: str = "auto") -> Processes:
    """Join the launched processes, if any, on the wanted device; those that are done wait a day for the others.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: The device does not exist here.
    """
    patience = InitProcessGroupKwargs(timeout=_LONGEST_WAIT)
    group = Processes(build_accelerator(device, kwargs_handlers=[patience]))
    group.announce()
    return group


def build_accelerator(device: str = "auto", precision: str = "fp32", **options: Any) -> Accelerator:
    """Build the Accelerate object of this process.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16 or fp16.
        options: Further arguments of `accelerate.Accelerator`.

    Raises:
        UserError: The device does not exist here, or the precision is unknown.
    """
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    if precision not in mixed:
        raise UserError(f"precision must be one of {', '.join(mixed)}, got {precision!r}")
    wanted = torch.device(check_device(device)) if device != "auto" else None
    if wanted is not None and wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    use_cpu = wanted is not None and wanted.type == "cpu"
    try:
        accelerator = Accelerator(cpu=use_cpu or None, mixed_precision=mixed[precision], **options)
    except ValueError as error:
        raise UserError(f"cannot use precision {precision} on device {device}: {error}") from error
    atexit.register(_leave_group)
    return accelerator


def _leave_group() -> None:
    """End the threads of gloo before the interpreter ends: one that is left can abort a process that is done."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def check_device(device: str) -> str:
    """Return `device` when it exists here.

    Raises:
        UserError: It does not, or it is no device name.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}") from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count()
        if (wanted.index or 0) >= count:
            raise UserError(
                f"device {device} was asked for, but this machine has {count} CUDA devices; try --device cpu"
            )
    elif wanted.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps was asked for, but this machine has none; try --device cpu")
    elif wanted.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    return device


def launched_processes() -> int:
    """Return how many processes were launched together, without joining them."""
    return int(os.environ.get("WORLD_SIZE", "1"))
