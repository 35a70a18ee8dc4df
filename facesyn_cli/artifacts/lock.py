"""A lock file that admits one writer per folder, or per part of it; it names host and process."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import TEMPORARY_PREFIX, host_tag, temporary_name
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

HEARTBEAT_SECONDS = 30
STALE_SECONDS = 300
TORN_SECONDS = 5  # age at which a lock file without an owner, left by a kill, is stale

_PART = re.compile(r"^\.lock-(?:all|\d+-of-\d+)$")  # locks of writers; others are held for a moment
_WRITER = re.compile(r"-([0-9a-f]{8})-(\d+)-\d+$")  # host, process and thread at the end of a temporary name


class LockedError(UserError):
    """Another process holds the lock."""


class Lock:
    """A lock file held while the `with` block runs.

    On the same host a lock is stale when its process has ended; on another host when its file was last touched more
    than `STALE_SECONDS` ago (the owner touches it every `HEARTBEAT_SECONDS`). A lock file without an owner is stale
    after `TORN_SECONDS`. A stale lock is taken over and logged.

    Args:
        folder: The folder to lock; must exist.
        part: Name of the part to lock; other parts can be locked at the same time.
    """

    def __init__(self, folder: Path, part: str = "all") -> None:
        self.path = folder / f".lock-{part}"
        self._released = threading.Event()

    def __enter__(self) -> Lock:
        owner = {"host": socket.gethostname(), "process": os.getpid(), "started": _start_time(os.getpid())}
        for _ in range(20):
            if _create(self.path, json.dumps(owner)):
                threading.Thread(target=self._beat, daemon=True).start()
                remove_abandoned(self.path.parent, self.path.name)
                return self
            self._take_over_or_refuse()
        raise UserError(f"cannot take the lock {self.path}; another process keeps taking it")

    def __exit__(self, *exc: object) -> None:
        self._released.set()
        self.path.unlink(missing_ok=True)

    def _take_over_or_refuse(self) -> None:
        holder = _holder(self.path)
        if holder is None:
            return
        host, process, is_stale = holder
        if not is_stale:
            raise LockedError(f"{self.path.parent} is being written by process {process} on {host}; "
                              f"wait for it, or remove {self.path} if it has ended")
        log.info(f"taking over {self.path.parent} from process {process} on {host}, which has ended")
        discarded = self.path.with_name(f"{TEMPORARY_PREFIX}{self.path.name}-stale-{os.getpid()}")
        try:
            os.replace(self.path, discarded)  # succeeds for one of several processes only
        except FileNotFoundError:
            return
        discarded.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def refuse_other_division(folder: Path, part: tuple[int, int] | None) -> None:
    """Refuse to write a folder while another process writes it as a whole, or as parts of another number of parts.

    Args:
        folder: The folder, locked by this process for `part`.
        part: (i, n); None: the whole.

    Raises:
        LockedError: Another process does.
    """
    for path in folder.glob(".lock-*"):
        if not _PART.match(path.name) or path.name.endswith(f"-of-{part[1]}" if part else "-all"):
            continue
        holder = _holder(path)
        if holder is not None and not holder[2]:
            theirs = path.name.removeprefix(".lock-").replace("-of-", "/").replace("all", "a whole")
            raise LockedError(f"{folder} is being written by process {holder[1]} on {holder[0]} as {theirs}; wait for "
                              f"it, or remove {path} if it has ended")


def remove_abandoned(folder: Path, start: str = "", below: bool = False) -> None:
    """Remove the temporary files of killed processes in a folder that several processes may write to.

    Files from other hosts stay: whether their process still runs is unknown here.

    Args:
        folder: The folder; it may be missing.
        start: Prefix of the names of the files that were being written.
        below: Include all folders below.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            writer = _WRITER.search(name) if name.startswith(f"{TEMPORARY_PREFIX}{start}") else None
            if writer and writer[1] == host_tag() and not _start_time(int(writer[2])):
                with suppress(OSError):  # removed meanwhile, or of another user
                    Path(place, name).unlink()
        if not below:
            return


def _holder(path: Path) -> tuple[str, int, bool] | None:
    """Return host and process that hold a lock, and whether it is stale; None where the file is gone."""
    try:
        text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        owner = json.loads(text)
        host, process, started = owner["host"], int(owner["process"]), owner["started"]
    except (ValueError, KeyError, TypeError):
        host, process, started = "unknown", 0, ""
    if host == socket.gethostname():
        return host, process, _start_time(process) != started
    return host, process, time.time() - touched > (STALE_SECONDS if process else TORN_SECONDS)


def _create(path: Path, text: str) -> bool:
    """Create the lock file with its content atomically; return False if it exists."""
    draft = path.with_name(temporary_name(path.name))
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _create_in_place(path, text)  # a file system without hard links
    finally:
        draft.unlink(missing_ok=True)


def _create_in_place(path: Path, text: str) -> bool:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        return True
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _start_time(process: int) -> str:
    """Return the start time of a process, which is unlike that of a later one with the same id; "" if ended."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    if not Path("/proc/self/stat").exists():
        with suppress(OSError, OverflowError):
            os.kill(process, 0)
            return "alive"
    return ""
