"""Work with launchers: several processes on CPUs, and a launcher that is killed.

`accelerate launch --cpu --num_processes N` starts a single process and does not pass on N (Accelerate 1.15 and before;
it starts more only through MPI). That process reads N off the command line of the launcher and starts N workers with
torchrun's own launcher. Commands under torchrun or MPI and those on GPUs are not affected: RANK and WORLD_SIZE are set.

A launcher that is killed cannot stop its workers. A process that was started by one checks twice a second whether it
still runs, and otherwise stops as with SIGTERM: finish the step, save, exit 143. When that takes longer than
`GRACE_SECONDS`, because the process waits for another one, it exits at once. Processes without a launcher may lose
their parent: `nohup`, `setsid` and the first process of a container keep running.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from facesyn_cli.console import log

_SIGNS = ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # variables that a launcher sets
_LAUNCHERS = (
    "accelerate", "torchrun", "deepspeed", "mpirun", "mpiexec", "orterun", "orted", "prterun", "prted",
    "hydra_pmi_proxy", "slurmstepd", "facesyn",
)
_MODULES = ("accelerate.commands", "torch.distributed", "facesyn_cli")  # of `python -m`
_POLL_SECONDS = 0.5
GRACE_SECONDS = 60  # as long as a cluster queue waits between SIGTERM and SIGKILL
_PROCESS, _PARENT = os.getpid(), os.getppid()  # read at the start, before the parent may end


def stop_with_launcher() -> None:
    """Stop this process when the launcher that started it is gone; does nothing without a launcher."""
    if any(name in os.environ for name in _SIGNS) and _is_launcher(_parent_command()):
        threading.Thread(target=_stop_without, args=(_parent(), os._exit), daemon=True).start()


def _stop_without(parent: int, leave: Callable[[int], None]) -> None:
    """Wait until the parent is gone, send SIGTERM to this process, and end it after `GRACE_SECONDS`."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    log.warning(f"the launcher, process {parent}, is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    log.warning(f"still running after {GRACE_SECONDS} s, probably waiting for another process: exiting")
    leave(128 + signal.SIGTERM)


def _is_launcher(command: Sequence[str]) -> bool:
    """True when one of the first words of a command is the name or module of a launcher."""
    words = command[:3]
    return any(Path(word).name in _LAUNCHERS or word.startswith(_MODULES) for word in words)


def missing_processes() -> int:
    """Return the number of CPU processes that `accelerate launch` was given but did not start; otherwise 1."""
    environment = os.environ
    is_launched = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in environment
    if not is_launched or "WORLD_SIZE" in environment or "RANK" in environment:
        return 1
    return _number_in(_parent_command())


def run_workers(arguments: list[str], count: int, program: Sequence[str] = ("-m", "facesyn_cli")) -> int:
    """Run this command in `count` processes on this machine and return the exit code of the first that failed.

    Stop signals are passed on to the workers; when one fails or the launcher is gone, the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the workers print their own errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(GRACE_SECONDS)
    config = LaunchConfig(
        1, 1, count, run_id="facesyn", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        logs_specs=DefaultLogsSpecs(), local_addr="127.0.0.1", signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )
    stop_with_launcher()
    try:
        elastic_launch(config, sys.executable)(*program, *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _parent() -> int:
    return _PARENT if os.getpid() == _PROCESS else os.getppid()  # another one after a fork


def _parent_command() -> list[str]:
    """Return the words of the command that started this process; empty where the system does not tell."""
    try:
        return Path(f"/proc/{_parent()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        pass
    try:  # systems without /proc, for example macOS
        ran = subprocess.run(["ps", "-o", "args=", "-p", str(_parent())], capture_output=True, text=True, check=False)
        return ran.stdout.split()
    except OSError:
        return []


def _number_in(words: list[str]) -> int:
    """Return the value of `--num_processes` in a command of `accelerate launch`; 1 without it."""
    if "facesyn_cli" in words:
        words = words[: words.index("facesyn_cli")]  # what follows belongs to our own command
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key in ("--num_processes", "--num-processes"):
            value = value if equals else "".join(words[place + 1 : place + 2])
            return int(value) if value.isdecimal() and int(value) > 0 else 1
    return 1
