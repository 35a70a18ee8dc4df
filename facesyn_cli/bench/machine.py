"""Measurements of a machine: time, matrix rate, peak memory."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facesyn_cli import signals
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.console import log
from facesyn_cli.data.ordered_pool import usable_cores
from facesyn_cli.distributed import choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.models.precision import DTYPES, WORTH

_SIDES = {"cpu": (128, 1024), "cuda": (1024, 8192)}  # of the matrices: for an estimate, and for the measurement
_PATIENCE = 0.5                                      # seconds a product may take
_SLACK = 8.0                                         # MiB by which a peak that was reset may exceed what is used


@dataclass(frozen=True)
class Clock:
    """Measures the time of a function call.

    Args:
        device: Where the function runs; on a GPU the clock waits for it.
        cores: Cores in use on a CPU.
        use_cpu_time: Measure processor time divided by `cores` instead of wall time, for a machine with other load.
            Waiting, for a disk for example, is not included.
    """

    device: torch.device
    cores: int = 1
    use_cpu_time: bool = False

    def seconds(self, work: Callable[[], Any]) -> float:
        """Call a function once and return its seconds."""
        signals.check()
        gc.collect()
        self._wait()
        start = self._now()
        work()
        self._wait()
        return self._now() - start

    def best(self, work: Callable[[], Any], rounds: int) -> float:
        """Return the seconds of the fastest of some rounds, after a warm-up round."""
        work()
        return min(self.seconds(work) for _ in range(rounds))

    def _now(self) -> float:
        if not self.use_cpu_time:
            return time.perf_counter()
        ended = os.times()  # of worker processes that have ended
        return (time.process_time() + ended.children_user + ended.children_system) / self.cores

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Machine:
    """A device with its clock and its matrix rates.

    Args:
        cfg: Device, clock, cores and rounds.

    Raises:
        UserError: There is no such device, or it has no such clock.
    """

    def __init__(self, cfg: BenchConfig) -> None:
        has_gpu = torch.cuda.is_available()
        self.device = choose_device("cpu" if cfg.device == "auto" and not has_gpu else cfg.device)
        if cfg.clock == "cpu" and self.device.type != "cpu":
            raise UserError("clock=cpu measures processor time, which is meaningless on a GPU; use clock=wall")
        self.cores = cfg.cores or usable_cores()
        self.clock = Clock(self.device, self.cores, cfg.clock == "cpu")
        self.is_gpu = self.device.type == "cuda"
        formats = ("fp32", "bf16", "fp16") if self.is_gpu else ("fp32", "bf16")
        with self.all_cores():
            self.rates = {name: matrix_rate(self.clock, name, cfg.rounds) for name in formats}

    @property
    def best_precision(self) -> str:
        """bf16 where its matrix rate is clearly higher than that of fp32, else fp32."""
        return "bf16" if self.rates["bf16"] >= WORTH * self.rates["fp32"] else "fp32"

    def workers(self, cfg: BenchConfig) -> int:
        """Return the number of workers that read images."""
        return self.cores if cfg.workers is None else cfg.workers

    def to_json(self) -> dict[str, Any]:
        """Return name, rates and clock as JSON values."""
        return {
            "device": (
                torch.cuda.get_device_name(self.device) if self.is_gpu
                else f"{_cpu_name()}, {self.cores} {'core' if self.cores == 1 else 'cores'}"
            ),
            "matrix rate": {name: four_digits(rate / 1e12) for name, rate in self.rates.items()},
            "precision that pays": self.best_precision,
            "clock": "processor time" if self.clock.use_cpu_time else "wall",
            "torch": torch.__version__,
        }

    def timed(self, name: str, num_images: int, work: Callable[[], Any], flop: float = 0, rate: float = 1) -> dict:
        """Call a function once and return a row of the table.

        Args:
            name: Name of the row.
            num_images: Images that `work` makes or reads.
            work: The function.
            flop: Operations per image; 0: not counted.
            rate: Ceiling, FLOP/s.
        """
        log.info(f"bench: {name}")
        with peak_memory(self.device) as memory:
            seconds = self.clock.seconds(work)
        speed = num_images / seconds
        row = {"name": name, "images": num_images, "seconds": four_digits(seconds), "images/s": four_digits(speed)}
        if flop:
            row["share of ceiling"] = four_digits(speed * flop / rate)
        return {**row, "peak memory MiB": memory["MiB"]}

    def all_cores(self) -> AbstractContextManager[None]:
        """Let torch use `cores` threads."""
        return torch_threads(self.cores)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use some threads for one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def four_digits(value: float) -> float:
    """Return a number rounded to four significant digits."""
    return float(f"{value:.4g}")


def matrix_rate(clock: Clock, precision: str, rounds: int = 5) -> float:
    """Return the rate of a large square matrix product on random numbers, FLOP/s: the ceiling of any network.

    Args:
        clock: Where; on a CPU it runs on as many cores as torch uses.
        precision: fp32, bf16 or fp16. float32 is not rounded to TF32.
        rounds: The fastest one is returned.
    """
    rate = 0.0
    for side in _SIDES[clock.device.type]:
        if rate and 2 * side**3 / rate > _PATIENCE:
            break  # emulated: the small product is enough
        a, b = (torch.randn(side, side, device=clock.device).to(DTYPES[precision]) for _ in range(2))
        rate = 2 * side**3 / clock.best(partial(torch.matmul, a, b), rounds)
    return rate


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """Yield a dict that holds `MiB` afterwards: on a GPU of its tensors, on a CPU of the whole process.

    None where the system does not report it.
    """
    found: dict[str, float | None] = {"MiB": None}
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    can_reset = not is_gpu and _reset_peak()
    yield found
    if is_gpu:
        found["MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    elif can_reset:
        found["MiB"] = _status_mib("VmHWM")


def used_memory(device: torch.device) -> float | None:
    """Return the MiB in use: on a GPU by tensors, on a CPU by the whole process; None: the system does not say."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else _status_mib("VmRSS")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _reset_peak() -> bool:
    """Reset the recorded peak to current use; False where the system does not do it, or only claims to."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    peak, used = _status_mib("VmHWM"), _status_mib("VmRSS")
    return peak is not None and used is not None and peak - used < _SLACK


def _status_mib(field: str) -> float | None:
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
