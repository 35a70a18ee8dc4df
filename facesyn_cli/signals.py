"""Stop politely: remember the first SIGINT, SIGTERM or SIGUSR1 and let the loops finish their step.

Cluster queues send SIGTERM or SIGUSR1 before they kill a job; SIGINT is Ctrl-C. The second SIGINT
interrupts at once.
"""

from __future__ import annotations

import signal
from types import FrameType

from facesyn_cli.errors import Stopped

_received: list[int] = []


def install() -> None:
    """Install the handlers; call once from the main thread of a command-line process."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _remember)


def received() -> int | None:
    """Return the number of the first stop signal received so far, or None."""
    return _received[0] if _received else None


def check() -> None:
    """Raise `Stopped` if a stop signal was received. Call it between two pieces of finished work."""
    if _received:
        raise Stopped(_received[0])


def reset() -> None:
    """Forget received signals (for tests)."""
    _received.clear()


def _remember(signum: int, frame: FrameType | None) -> None:
    if _received and signum == signal.SIGINT:
        raise Stopped(signum)
    _received.append(signum)
