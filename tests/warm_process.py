"""Processes that run `facesyn` without importing torch anew: forked from one that has it already.

The command itself starts in a second and imports torch in five; some hundred tests start it, kill it and start it
again. `tests/distributed/test_launch.py` starts it as users do.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_STAGES = sorted(path.stem for path in (Path(__file__).parent.parent / "facesyn_cli" / "stages").glob("[!_]*.py"))
HEAVY = (
    "torch", "torch.utils.data", "torch.distributed", "accelerate", "diffusers.models.autoencoders",
    "facesyn_cli.cli.main", *(f"facesyn_cli.stages.{stage}" for stage in _STAGES),
)
_MESSAGE = 1 << 20


class WarmProcess:
    """A running command, with what tests need of `subprocess.Popen`.

    Args:
        arguments: Of the command.
        environment: All of its environment.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._status, written = os.pipe()
        request = {"arguments": arguments, "environment": environment, "cwd": os.getcwd()}
        _server().request(request, [*(file.fileno() for file in self._files), written])
        os.close(written)
        self.returncode: int | None = None
        self._said = b""
        while b"\n" not in self._said:
            self._read()
        self.pid = int(self._said.split(b"\n")[0])

    def poll(self) -> int | None:
        """Return the exit code, minus the signal's number if one ended it; None while it runs."""
        while self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end and return the exit code."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if not select.select([self._status], [], [], max(0.0, end - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("facesyn", timeout)
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for its end and return what it printed on stdout and stderr."""
        self.wait(timeout)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        read = os.read(self._status, 64)
        if not read:
            raise RuntimeError("the process from which warm processes are forked is gone")
        self._said += read
        lines = self._said.split(b"\n")
        if len(lines) > 2:
            self.returncode = int(lines[1])
            os.close(self._status)


_GRACE_SECONDS = 3  # in which the others of a group may print the same error and end by themselves


class WarmGroup:
    """One command in several processes that know of each other as `accelerate launch` tells them; one fails, all end.

    Args:
        arguments: Of the command.
        environment: All of its environment.
        processes: How many.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {**environment, "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                  "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self._members = [
            WarmProcess(arguments, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
        ]
        self.pid = self._members[0].pid
        self.returncode: int | None = None
        self._failed: float | None = None

    def poll(self) -> int | None:
        """Return the first exit code that is not 0, or 0 when all are; None while one runs."""
        codes = [member.poll() for member in self._members]
        if any(codes):  # neither None nor 0
            self._failed = self._failed or time.monotonic()
            if time.monotonic() > self._failed + _GRACE_SECONDS:
                for member in self._members:
                    member.kill()
        if None not in codes and self.returncode is None:
            self.returncode = next((code for code in codes if code), 0)
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end of all and return what they printed, one after the other."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("facesyn", timeout)
            time.sleep(0.05)
        printed = [member.communicate() for member in self._members]
        return "".join(out for out, _ in printed), "".join(err for _, err in printed)

    def send_signal(self, number: int) -> None:
        """Send all a signal."""
        for member in self._members:
            member.send_signal(number)

    def kill(self) -> None:
        """Kill all."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The process that forks, as its client sees it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(self._process.kill)

    def request(self, message: dict, files: list[int]) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        self._socket.sendmsg([json.dumps(message).encode()], rights)


_started: list[_Server] = []


def _server() -> _Server:
    if not _started:
        _started.append(_Server())
    return _started[0]


def _serve(connection: socket.socket) -> None:
    """Fork for every request; returns in the forked process only, ready to run the command."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is imported is not collected again in each fork: it would be copied there, a second's work
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the watchers are nobody's to wait for
    while True:
        message, files, _, _ = socket.recv_fds(connection, _MESSAGE, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.close()
    child = os.fork()
    if child:
        _watch(child, files[2])
    os.close(files[2])
    request = json.loads(message)
    for file, standard in zip(files[:2], (1, 2), strict=True):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = ["facesyn", *request["arguments"]]


def _watch(child: int, status: int) -> None:
    """Tell the pid, and at its end the exit code."""
    os.write(status, b"%d\n" % child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(status, b"%d\n" % code)
    os._exit(0)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from facesyn_cli.__main__ import main

    main()
