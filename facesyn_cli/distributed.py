"""Processes and devices: rank, world size, collectives and errors that all processes raise together.

A thin layer over Accelerate. Every method that is a collective says so: all processes must call it together.
"""

from __future__ import annotations

import atexit
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from facesyn_cli import __version__, signals
from facesyn_cli.console import log
from facesyn_cli.errors import Stopped, UserError

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=1)  # of a process that is done for the others; torch's 10 to 30 minutes end in an error


class CollectiveError(UserError):
    """A `UserError` that every process raises; the first one prints it."""


class Processes:
    """The processes started by `accelerate launch` or torchrun, as this one sees them; one process without them.

    Attributes:
        accelerator: The Accelerate object underneath.
        rank: Global rank, 0-based.
        world_size: Number of processes.
        device: Device of this process.
        is_first: True in the process of rank 0, which prints messages and writes headers.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.device = accelerator.device
        self.is_first = accelerator.is_main_process

    def announce(self) -> None:
        """Log the number of processes when there are several and, for debugging, where each one runs. A collective."""
        if self.world_size > 1:
            log.info(f"{self.world_size} processes")
        log.debug(f"facesyn {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
        for place in self.gather_objects(_place(self)):
            log.debug(place)

    def barrier(self) -> None:
        """Wait for all processes. A collective."""
        if self.world_size > 1:
            self.accelerator.wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Return True in every process when `flag` is true in any. A collective, which waits for no GPU."""
        return self.any_of([flag])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return `any` of each of some flags, as many in every process. A collective, which waits for no GPU."""
        if self.world_size == 1:
            return list(flags)
        total = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.MAX, group=_host_group())
        return total.bool().tolist()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; the argument is not changed. A collective."""
        if self.world_size == 1:
            return values
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    def begin_sum(self, values: torch.Tensor) -> torch.distributed.Work:
        """Begin to replace the values of a tensor by their sums over all processes; `wait` of the result ends it.

        A collective: all processes begin their sums in the same order. There must be two processes or more.
        """
        return torch.distributed.all_reduce(values, async_op=True)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest value over all processes, element by element. A collective."""
        if self.world_size == 1:
            return values
        largest = values.clone()
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        return largest

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all processes, which have one shape, joined along their first axis. A collective."""
        if self.world_size == 1:
            return values
        joined = values.new_empty((self.world_size * len(values), *values.shape[1:]))
        torch.distributed.all_gather(list(joined.chunk(self.world_size)), values.contiguous())
        return joined

    def gather_objects(self, value: T) -> list[T]:
        """Return in every process the values of all of them, by rank. A collective."""
        return gather_object([value])

    def raise_in_all(self, problem: str, place: int = 0) -> None:
        """Raise in every process when any of them has a problem. A collective.

        Args:
            problem: What went wrong in this process; empty when nothing did.
            place: Where in the whole work it did; the first of several problems is raised.

        Raises:
            CollectiveError: With the first problem, of the lowest rank among equals.
        """
        if self.any(bool(problem)):
            found = [one for one in self.gather_objects((place, self.rank, problem)) if one[-1]]
            raise CollectiveError.of(min(found)[-1])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block in every process; an error or a stop signal in one of them ends it in all. A collective.

        Raises:
            UserError: As the block, in every process.
            Stopped: In every process, when any of them received a stop signal.
        """
        problem: UserError | None = None
        try:
            yield
        except UserError as error:
            problem = error
        except Stopped:
            pass  # raised below, in all
        if problem is not None and self.world_size == 1:
            raise problem
        self.raise_in_all(str(problem or ""))
        if self.any(signals.received() is not None):
            raise Stopped(signals.received() or signal.SIGTERM)

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return in every process what `compute` returns in the process of rank 0. A collective.

        Raises:
            UserError: As `compute`, in every process.
            Stopped: The same.
        """
        if self.world_size == 1:
            return compute()
        computed: tuple[list[T], str, int] = [], "", 0
        if self.is_first:
            try:
                computed = [compute()], "", 0
            except UserError as error:
                computed = [], str(error), 0
            except Stopped as stop:
                computed = [], "", stop.signum
        values, problem, signum = self.broadcast(computed)
        if problem:
            raise CollectiveError.of(problem)
        if signum:
            raise Stopped(signum)
        return values[0]

    def broadcast(self, value: T) -> T:
        """Return in every process the value that the process of rank 0 passes. A collective."""
        if self.world_size == 1:
            return value
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]


def _place(group: Processes) -> str:
    """Return where a process runs: host, device, threads."""
    device = str(group.device)
    if group.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(group.device)})"
    return (f"process {group.rank} of {group.world_size}: host {platform.node()}, pid {os.getpid()}, device {device}, "
            f"{torch.get_num_threads()} threads")


def processes(device: str = "auto") -> Processes:
    """Join the launched processes, if any, on the wanted device; collectives time out after a day.

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
    if torch.distributed.is_initialized():
        if torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
        elif _host_group.cache_info().currsize:
            torch.distributed.destroy_process_group(_host_group())


@cache
def _host_group() -> torch.distributed.ProcessGroup | None:
    """Return the group of all processes for tensors on the CPU; None: the default group. First called by all together.

    Collectives of NCCL wait for the work that the GPU has still to do, those of gloo do not.
    """
    if torch.distributed.get_backend() == "gloo":
        return None
    return torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)


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


def choose_device(name: str) -> torch.device:
    """Return the device of a name, for auto a GPU where there is one; raises as `check_device` does."""
    if name != "auto":
        return torch.device(check_device(name))
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def launched_processes() -> int:
    """Return how many processes were launched together, without joining them."""
    return int(os.environ.get("WORLD_SIZE", "1"))
