"""Errors a user can act on, and the one signal-driven way to stop early."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix: shown as one message without a traceback, exit code 2.

    The message says what is wrong, where, and what was expected.
    """

    exit_code = 2


class Stopped(Exception):
    """The process was asked to stop by a signal and has saved its work.

    Args:
        signum: Number of the signal; the exit code is 128 + signum, as shells expect.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}; run the same command again to go on")
        self.signum = signum
        self.exit_code = 128 + signum
