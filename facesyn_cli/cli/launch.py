"""Several processes on CPUs: start those that `accelerate launch --cpu --num_processes N` asked for.

Accelerate (1.15 and before) starts a single process for that command and tells it nothing about N: its
launcher for CPUs starts more only through MPI. Our process sees the signs of it, reads N off the command
line of the launcher above it, and starts N workers of its own. Commands under torchrun or MPI, and those
on GPUs, are not touched: there RANK and WORLD_SIZE are set.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from facesyn_cli.console import log

_STOPS = ("SIGINT", "SIGTERM", "SIGUSR1")


def asked_processes() -> int:
    """Return how many CPU processes a launcher asked for but did not start; 1 when nothing is amiss."""
    environment = os.environ
    is_launched = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in environment
    if not is_launched or "WORLD_SIZE" in environment or "RANK" in environment:
        return 1
    return _number_in(_parent_command())


def run_workers(arguments: list[str], count: int) -> int:
    """Run this command in `count` processes on this machine and return the exit code of the group.

    Stop signals are passed on. When a worker fails the others are stopped; the code of the first that
    failed is returned.
    """
    port = _free_port()
    workers = [_start(arguments, rank, count, port) for rank in range(count)]

    def pass_on(signum: int, frame: object) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signum)

    for name in _STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), pass_on)
    failed = 0
    while any(worker.poll() is None for worker in workers):
        codes = [worker.poll() for worker in workers]
        bad = [code for code in codes if code]
        if bad and not failed:
            failed = bad[0]
            _stop_the_rest(workers)
        time.sleep(0.05)
    codes = [worker.returncode for worker in workers]
    failed = failed or next((code for code in codes if code), 0)
    return 128 - failed if failed < 0 else failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(arguments: list[str], rank: int, count: int, port: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return subprocess.Popen([sys.executable, "-m", "facesyn_cli", *arguments], env=environment)


def _stop_the_rest(workers: list[subprocess.Popen]) -> None:
    """The others may wait for the one that is gone: ask, then insist."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(worker.poll() is None for worker in workers):
        time.sleep(0.05)  # workers that met the same error end by themselves
    for worker in workers:
        if worker.poll() is None:
            worker.kill()


def _parent_command() -> list[str]:
    """Return the words of the command that started this process."""
    import psutil

    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error as error:
        log.warning(f"cannot see how many processes were asked for ({error}); going on with one")
        return []


def _number_in(words: list[str]) -> int:
    if "facesyn_cli" in words:
        words = words[: words.index("facesyn_cli")]  # what follows belongs to our own command
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key in ("--num_processes", "--num-processes"):
            value = value if equals else "".join(words[place + 1 : place + 2])
            return int(value) if value.isdecimal() and int(value) > 0 else 1
    return 1
