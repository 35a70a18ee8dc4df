"""Stop signals: record the first SIGINT, SIGTERM or SIGUSR1, so that loops finish their step and stop.

Cluster queues send SIGTERM or SIGUSR1 before they kill a job; SIGINT is Ctrl-C. The second SIGINT
interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from facesyn_cli.errors import Stopped

_received: list[int] = []
_raises = False  # whether a signal raises as soon as it arrives


def install() -> None:
    """Install the handlers; call once from the main thread of a command-line process."""
    for number in _stop_signals():
        signal.signal(number, _remember)


@contextmanager
def handled() -> Iterator[None]:
    """Handle stop signals in the block, then restore the handlers of the caller and forget what was received.

    Outside of the main thread, where Python allows no handlers, the block runs without them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _stop_signals()}
    reset()
    install()
    try:
        yield
    finally:
        reset()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def received() -> int | None:
    """Return the number of the first stop signal received so far, or None."""
    return _received[0] if _received else None


def check() -> None:
    """Raise `Stopped` if a stop signal was received. Call it between two pieces of finished work."""
    if _received:
        raise Stopped(_received[0])


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Stopped` in the block as soon as a stop signal arrives, even in a blocking call.

    For waiting on a network or another process; the block must leave nothing that breaks the next run.
    """
    global _raises
    before = _raises
    check()
    try:
        _raises = True
        yield
    finally:
        _raises = before


def reset() -> None:
    """Clear received signals (for tests)."""
    _received.clear()


def _stop_signals() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def _remember(signum: int, frame: FrameType | None) -> None:
    is_second_interrupt = bool(_received) and signum == signal.SIGINT
    _received.append(signum)
    if _raises or is_second_interrupt:
        raise Stopped(signum)
