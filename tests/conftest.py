"""Fixtures for all tests: fixed seeds, no network, and the command line in process or as a process."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # shared builders such as `fill.py`
from warm_process import WarmGroup, WarmProcess  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process a core; more threads would fight over them

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> dict:
        """Return stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _still_random_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    monkeypatch.delenv("COLUMNS", raising=False)  # exported by readline; tables would be cut to this width

    def refuse(self: socket.socket, address: object, *args: object) -> None:
        is_local = self.family == socket.AF_UNIX or (
            isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        )
        if is_local:
            return connect(self, address, *args)
        raise OSError(f"tests do not use the network (tried {address})")

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def golden() -> Path:
    """Return the folder of golden vectors."""
    return GOLDEN


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every message of the package is added, warnings and others."""
    from facesyn_cli.console import log

    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    monkeypatch.setattr(log, "info", lines.append)
    return lines


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]):
    """Return a function that runs `facesyn` in this process: fast, and a traceback fails the test."""
    from facesyn_cli import console, signals
    from facesyn_cli.cli.main import run_command_line

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run_command_line([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    handlers = _handlers()
    yield run
    console.log.handlers.clear()  # they hold this test's stderr
    signals.reset()
    _restore(handlers)


@pytest.fixture
def assert_refused(run_cli):
    """Return a function that runs a command and checks for exit code 2 and one clear message at the end of stderr.

    The message may have further lines, for example a table; texts to find in it are given with single spaces.
    """

    def check(*arguments: object, says: str | tuple[str, ...] = ()) -> Ran:
        ran = run_cli(*arguments)
        _, mark, message = f"\n{ran.err.strip()}".partition("\nerror: ")
        assert ran.code == 2, f"exit code {ran.code}\n{ran.err}"
        assert mark and "\nerror: " not in message, ran.err
        assert "Traceback" not in ran.err
        for text in (says,) if isinstance(says, str) else says:
            assert text in " ".join(message.split()), f"{text!r} is not in {message!r}"
        return ran

    return check


@pytest.fixture
def limited_files():
    """Return a function that limits the size of files, in bytes: what is larger fails as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def spawn(*arguments: object, processes: int = 1) -> WarmProcess | WarmGroup:
    """Start `facesyn` as a process of its own, or as several that form one group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes == 1:
        return WarmProcess([str(a) for a in arguments], environment)
    return WarmGroup([str(a) for a in arguments], environment, processes)


def finish(process: WarmProcess | WarmGroup, timeout: float = 240) -> Ran:
    """Wait for a started command."""
    out, err = process.communicate(timeout=timeout)
    return Ran(process.returncode, out, err)


def _handlers() -> dict[int, object]:
    import signal

    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


def _restore(handlers: dict[int, object]) -> None:
    import signal

    for number, handler in handlers.items():
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Collect garbage among what tests make, not again and again among what was imported."""
    gc.collect()
    gc.freeze()
