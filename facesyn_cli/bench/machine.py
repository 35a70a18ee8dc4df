"""What a machine can do: time, matrix rate, peak memory."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facesyn_cli import signals

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDES = {"cpu": (128, 1024), "cuda": (1024, 8192)}  # of the matrices: to see how fast it is, and to measure it
_PATIENCE = 0.5                                      # seconds a product may take
_SLACK = 8.0                                         # MiB by which a peak that was reset may exceed what is used


@dataclass(frozen=True)
class Clock:
    """Measures how long a piece of work takes.

    Args:
        device: Where it runs; on a GPU the clock waits for it.
        cores: Cores that work side by side on a CPU.
        use_cpu_time: Count processor time divided by `cores` instead of the time on the wall: for a machine that
            others use too. It leaves out waiting, for a disk for example.
    """

    device: torch.device
    cores: int = 1
    use_cpu_time: bool = False

    def seconds(self, work: Callable[[], Any]) -> float:
        """Run something once and return its seconds."""
        signals.check()
        gc.collect()
        self._wait()
        start = self._now()
        work()
        self._wait()
        return self._now() - start

    def best(self, work: Callable[[], Any], rounds: int) -> float:
        """Return the seconds of the fastest of some rounds, after one that does not count."""
        work()
        return min(self.seconds(work) for _ in range(rounds))

    def _now(self) -> float:
        return time.process_time() / self.cores if self.use_cpu_time else time.perf_counter()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matrix_rate(clock: Clock, precision: str, rounds: int = 5) -> float:
    """Return the rate of a large square matrix product on random numbers, FLOP/s: the ceiling of any network.

    Args:
        clock: Where, and with how many cores.
        precision: fp32, bf16 or fp16. float32 is not rounded to TF32.
        rounds: The fastest counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(clock.cores)
    rate = 0.0
    try:
        for side in _SIDES[clock.device.type]:
            if rate and 2 * side**3 / rate > _PATIENCE:
                break  # emulated: the small product has said enough
            a, b = (torch.randn(side, side, device=clock.device).to(DTYPES[precision]) for _ in range(2))
            rate = 2 * side**3 / clock.best(partial(torch.matmul, a, b), rounds)
        return rate
    finally:
        torch.set_num_threads(threads)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """Yield a dict that holds `MiB` afterwards: on a GPU of its tensors, on a CPU of the whole process.

    None where the system does not tell it.
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
        found["MiB"] = _peak_mib()


def describe(device: torch.device, cores: int) -> str:
    """Return the name of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {cores} {'core' if cores == 1 else 'cores'}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _reset_peak() -> bool:
    """Lower the peak to what is used now; False where the system does not do it, or only says that it did."""
    try:
        with open(f"/proc/{os.getpid()}/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    peak, used = _status_mib("VmHWM"), _status_mib("VmRSS")
    return peak is not None and used is not None and peak - used < _SLACK


def _peak_mib() -> float | None:
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
