"""Damaged and hostile files: every reader reads them or refuses them in one line, in bounded time and memory.

A few files a reader run always; `python -m pytest tests/mutation -m exhaustive -n 0 -s` damages some ten thousand and
prints a table. FACESYN_MUTATIONS sets how many a reader, FACESYN_READERS (a part of their names) which.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from mutated_readers import Reader, make_readers
from mutations import Random

from facesyn_cli.errors import UserError

resource = pytest.importorskip("resource", reason="limits of memory are tested where processes have them")
if not os.path.exists("/proc/self/statm"):
    pytest.skip("limits of memory are tested where the system tells how much a process has", allow_module_level=True)

FEW, MANY = 3, 150
SECONDS = 60            # of one file of some kB; far more than any needs on a loaded machine
MEMORY = 3 * 2**30      # bytes that reading may take beyond what the process has
LINE = 3000             # characters of a message


class TooLong(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


@contextmanager
def limits() -> Iterator[None]:
    """Bound the time and the memory of the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    with open("/proc/self/statm") as file:
        have = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (have + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(read: Callable[[], Any]) -> str:
    """Return "read", "refused", or what went wrong."""
    try:
        with limits():
            read()
        return "read"
    except UserError as error:
        line = str(error)
        return "refused" if "\n" not in line and 0 < len(line) < LINE else f"no message of one line: {line[:300]!r}"
    except TooLong:
        return f"longer than {SECONDS} s\n{traceback.format_exc()}"
    except BaseException:
        return traceback.format_exc()


def damage(name: str, reader: Reader, count: int) -> dict[str, list[str]]:
    """Read the whole file and `count` damaged ones; return the outcomes by kind."""
    whole = reader.path.read_bytes()
    reader.read()
    found: dict[str, list[str]] = {"read": [], "refused": [], "failed": []}
    try:
        for number in range(count):
            reader.path.write_bytes(reader.mutate(whole, Random(zlib.crc32(f"{name} {number}".encode()))))
            result = outcome(reader.read)
            kind = result if result in found else "failed"
            found[kind].append(f"{name}, file {number}: {result}")
    finally:
        reader.path.write_bytes(whole)
    return found


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    chosen = os.environ.get("FACESYN_READERS", "")
    return {name: reader for name, reader in make_readers(tmp_path_factory.mktemp("whole")).items() if chosen in name}


@pytest.mark.filterwarnings("default")
def test_a_few_damaged_files(readers: dict[str, Reader]) -> None:
    failed = [line for name, reader in readers.items() for line in damage(name, reader, FEW)["failed"]]
    assert not failed, "\n".join(failed)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")
def test_many_damaged_files(readers: dict[str, Reader]) -> None:
    count = int(os.environ.get("FACESYN_MUTATIONS", MANY))
    failed, total = [], 0
    for name, reader in readers.items():
        found = damage(name, reader, count)
        failed += found["failed"]
        total += count
        row = f"{name:34} {count:6} {len(found['read']):6} read {len(found['refused']):6} refused"
        print(f"{row} {len(found['failed']):4} failed", file=sys.stderr, flush=True)
    print(f"{total} files, {len(failed)} failed", file=sys.stderr)
    assert not failed, "\n".join(failed)
