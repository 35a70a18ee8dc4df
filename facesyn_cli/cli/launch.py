"""Several processes on CPUs: start those that `accelerate launch --cpu --num_processes N` asked for.

Accelerate (1.15 and before) starts a single process for that command and tells it nothing about N: its
launcher for CPUs starts more only through MPI. Our process sees the signs of it, reads N off the command
line of the launcher above it, and starts N workers of its own. Commands under torchrun or MPI, and those
on GPUs, are not touched: there RANK and WORLD_SIZE are set.

A launcher that is killed cannot stop what it has started. Every process that was started by one looks for it twice a
second, and when it is gone stops as if SIGTERM had arrived: finish the step, save, exit 143. A process that does not
get that far within `GRACE_SECONDS`, because it waits for another one, exits at once. Processes that were not started
by a launcher may lose their parent: `nohup`, `setsid` and the first process of a container stay as they are.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from facesyn_cli.console import log

_STOPS = ("SIGINT", "SIGTERM", "SIGUSR1")
_SIGNS = ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # in the environment: a launcher is at work
_LAUNCHERS = (
    "accelerate", "torchrun", "deepspeed", "mpirun", "mpiexec", "orterun", "orted", "prterun", "prted",
    "hydra_pmi_proxy", "slurmstepd", "facesyn",
)
_MODULES = ("accelerate.commands", "torch.distributed", "facesyn_cli")  # of `python -m`
_LOOK_SECONDS = 0.5
GRACE_SECONDS = 60  # as long as a cluster queue waits between SIGTERM and SIGKILL
_parent: list[int] = []


def record_parent() -> None:
    """Remember the process that started this one; the first thing a command does."""
    _parent[:] = [os.getppid()]


def watch_launcher() -> None:
    """Stop this process when the launcher that started it is gone; does nothing without a launcher."""
    if not any(name in os.environ for name in _SIGNS) or not _is_launcher(_parent_command()):
        return
    parent = _parent[0] if _parent else os.getppid()
    threading.Thread(target=_stop_without, args=(parent, os._exit), daemon=True).start()


def _stop_without(parent: int, leave: Callable[[int], None]) -> None:
    """Wait for the end of the parent; then ask this process to stop, and after a while leave it."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    log.warning(f"the launcher, process {parent}, is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    log.warning(f"still not stopped after {GRACE_SECONDS} s, probably waiting for another process: leaving")
    leave(128 + signal.SIGTERM)


def _is_launcher(command: Sequence[str]) -> bool:
    """Tell a launcher by the words of its command: its name, or that of a module, before its own arguments."""
    words = command[:3]
    return any(Path(word).name in _LAUNCHERS or word.startswith(_MODULES) for word in words)


def asked_processes() -> int:
    """Return how many CPU processes a launcher asked for but did not start; 1 when nothing is amiss."""
    environment = os.environ
    is_launched = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in environment
    if not is_launched or "WORLD_SIZE" in environment or "RANK" in environment:
        return 1
    return _number_in(_parent_command())


def run_workers(arguments: list[str], count: int) -> int:
    """Run this command in `count` processes on this machine and return the exit code of the group.

    Stop signals are passed on, and SIGTERM is sent when the launcher above is gone. When a worker fails the others are
    stopped; the code of the first that failed is returned.
    """
    parent, port = _parent[0] if _parent else os.getppid(), _free_port()
    workers = [_start(arguments, rank, count, port) for rank in range(count)]

    def pass_on(signum: int, frame: object) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signum)

    for name in _STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), pass_on)
    failed, is_orphan = 0, False
    while any(worker.poll() is None for worker in workers):
        if os.getppid() != parent and not is_orphan:
            is_orphan = True
            pass_on(signal.SIGTERM, None)
            threading.Thread(target=_kill_later, args=(workers,), daemon=True).start()
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


def _kill_later(workers: list[subprocess.Popen]) -> None:
    """Kill what has not stopped in time."""
    time.sleep(GRACE_SECONDS)
    for worker in workers:
        if worker.poll() is None:
            worker.kill()


def _parent_command() -> list[str]:
    """Return the words of the command that started this process."""
    import psutil

    try:
        return psutil.Process(_parent[0] if _parent else os.getppid()).cmdline()
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
