"""Every command that writes, killed at random moments: what is finished stays, and the end is that of a quiet run.

Not part of the usual run; some minutes to an hour:

    python -m pytest -m exhaustive -n 0 -s tests/kills

`FACESYN_KILLS` sets the number of kills of each command (default 12), `FACESYN_KILLS_SEED` the seed of all moments.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Ran, finish, spawn

sys.path.insert(0, str(Path(__file__).parent))
from kill_commands import COMMANDS, Command, write_inputs  # noqa: E402

pytestmark = pytest.mark.exhaustive

KILLS = int(os.environ.get("FACESYN_KILLS", "12"))
SEED = os.environ.get("FACESYN_KILLS_SEED", "0")
# Not of the result but of one run: pictures of its latest images, what its parts took, weights of a stopped training.
_OF_ONE_RUN = re.compile(r"((^|/|\.)strip(-\d+)?\.png|(^|/)(times\.json|speed/[^/]+|weights/step-\d+/[^/]+))$")
_SHARE_OF_TERMINATIONS, _SHARE_BEFORE_WRITING = 0.15, 0.1
_TIMES = re.compile(rb'("(?:time|seconds|minutes|[a-z_]*per_s(?:econd)?|[a-z_]*_seconds)": )[-+.\deE]+')


@dataclass(frozen=True)
class Quiet:
    """A step of a command that nobody disturbed.

    Args:
        files: Name -> content below the folder it wrote in.
        before: Seconds from its start until it wrote.
        writing: Seconds from then to its end.
    """

    files: dict[str, bytes]
    before: float
    writing: float


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_killed_at_random_moments(command: Command, inputs: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {command.name}")
    area, counts, faults = tmp_path / "area", Counter(), []
    lines = command.steps(inputs, area / "out")
    quiet = _undisturbed(lines, area)
    tries = 0
    while counts["killed"] + counts["terminated"] < KILLS and tries < 4 * KILLS and not faults:
        _clear(area)
        for number, line in enumerate(lines):
            wholes = quiet[: number + 1]
            for _ in range(rng.randint(1, 6)):
                tries += 1
                found = _files(area)
                ended = _disturb(line, area, quiet[number], rng, faults)
                counts[ended] += 1
                faults += _wrong_after_a_kill(command, area, wholes, found)
            ran = finish(spawn(*line), timeout=600)
            faults += _wrong_at_the_end(ran, area, quiet[number])
            counts["resumed"] += 1
        counts["equal"] += not faults
    faults += _wrong_when_repeated(line, area, quiet[-1])
    print(f"{command.name}: {dict(counts)}, faults: {faults[:3]}", flush=True)
    assert not faults, faults
    assert counts["killed"] + counts["terminated"] >= KILLS // 2, f"it ends too fast to be killed: {dict(counts)}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_full_disk_is_one_line_and_more_space_finishes(command: Command, inputs: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {command.name}")
    area = tmp_path / "area"
    lines = command.steps(inputs, area / "out")
    quiet = _undisturbed(lines, area)
    size = sum(-(-len(data) // 4096) * 4096 for data in quiet[-1].files.values())
    _clear(area)
    faults, counts = [], Counter()
    with _small_disk(area) as resize:
        reached = 0  # a folder that began to grow is not run with the smaller settings again
        for share in sorted(rng.uniform(0.05, 0.95) for _ in range(2)):
            resize(max(16384, int(share * size)))
            for number, line in list(enumerate(lines))[reached:]:
                found = _files(area)
                ran = finish(spawn(*line), timeout=600)
                counts[ran.code] += 1
                if ran.code not in (0, 2) or "Traceback" in ran.err:
                    faults.append(f"exit code {ran.code}: {ran.err[-600:]}")
                elif ran.code == 2 and "no space left" not in ran.err.splitlines()[-1]:
                    faults.append(f"last line: {ran.err.splitlines()[-1]}")
                faults += _wrong_after_a_kill(command, area, quiet[: number + 1], found)
                reached = number
                if ran.code:
                    break
        resize(64 * size + 2**24)
        for line in lines[reached:]:
            ran = finish(spawn(*line), timeout=600)
        faults += _wrong_at_the_end(ran, area, quiet[-1])
    print(f"{command.name} on a full disk: exit codes {dict(counts)}, faults: {faults[:3]}", flush=True)
    assert not faults, faults


def _undisturbed(lines: list[list[object]], area: Path) -> list[Quiet]:
    _clear(area)
    quiet = []
    for line in lines:
        stamp, start = _stamp(area), time.monotonic()
        process = spawn(*line)
        _wait_for_writing(process, area, stamp)
        begun = time.monotonic()
        ran = finish(process, timeout=600)
        assert ran.code == 0, f"{' '.join(map(str, line))}\n{ran.err}"
        quiet.append(Quiet(_files(area), begun - start, time.monotonic() - begun))
    return quiet


def _disturb(line: list[object], area: Path, quiet: Quiet, rng: random.Random, faults: list[str]) -> str:
    """Run a command, stop it at a random moment and say how it ended."""
    number = signal.SIGTERM if rng.random() < _SHARE_OF_TERMINATIONS else signal.SIGKILL
    before = _leftovers(area)
    stamp, process = _stamp(area), spawn(*line)
    if rng.random() < _SHARE_BEFORE_WRITING:
        time.sleep(rng.uniform(0, quiet.before))
    else:
        _wait_for_writing(process, area, stamp)
        time.sleep(rng.uniform(0, 0.9 * quiet.writing))
    process.send_signal(number)
    ran = finish(process, timeout=600)
    if ran.code == 0:
        return "ended before"
    if ran.code == -signal.SIGKILL:
        return "killed"
    if number == signal.SIGTERM and ran.code in (143, -signal.SIGTERM):  # before it listens, the signal ends it
        left = [name for name, content in _leftovers(area).items() if before.get(name) != content]
        if ran.code == 143 and left:
            faults.append(f"a stopped run leaves {left}")
        return "terminated"
    faults.append(f"exit code {ran.code} after signal {number}: {ran.err[-600:]}")
    return "failed"


def _wrong_after_a_kill(
    command: Command, area: Path, wholes: list[Quiet], before: dict[str, bytes]
) -> list[str]:
    """Return what is wrong with the folder of an unfinished run; `before` is what it held before this run."""
    found, faults = _files(area), []
    whole = wholes[-1].files
    lost = [name for name, data in before.items() if whole.get(name) == data and found.get(name) != data]
    if lost and not any(_is_header(name) for name in lost):  # a set that grows loses its header first
        faults.append(f"lost: {lost[:5]}")
    for name in found:
        folder = Path(name).parent
        is_finished = _is_header(name) and (folder / "facesyn.begun.json").as_posix() not in found
        if is_finished and not any(_same_below(found, quiet.files, folder) for quiet in wholes):
            faults.append(f"{folder} has a header and is not whole")
    if command.atomic and (area / "out").exists() and not _same_below(found, whole, Path("out")):
        faults.append("the folder is there and not whole")
    return faults


def _wrong_at_the_end(ran: Ran, area: Path, quiet: Quiet) -> list[str]:
    if ran.code != 0:
        return [f"the same command ends with {ran.code}: {ran.err[-600:]}"]
    found = _files(area)
    faults = [f"missing: {name}" for name in quiet.files if name not in found]
    faults += [f"left: {name}" for name in found if name not in quiet.files]
    return faults + [
        f"differs: {name}{_first_difference(found[name], data)}" for name, data in quiet.files.items()
        if name in found and _without_times(found[name]) != _without_times(data)
    ]


def _wrong_when_repeated(line: list[object], area: Path, quiet: Quiet) -> list[str]:
    before = {path: path.stat().st_mtime_ns for path in area.rglob("*") if path.suffix in (".png", ".jpg", ".tar")}
    faults = _wrong_at_the_end(finish(spawn(*line), timeout=600), area, quiet)
    return faults + [f"written again: {path}" for path, at in before.items() if path.stat().st_mtime_ns != at][:3]


def _same_below(found: dict[str, bytes], whole: dict[str, bytes], folder: Path) -> bool:
    """True when a folder holds all that it holds in a finished run, besides locks and temporary files."""
    return all(
        _without_times(found.get(name, b"")) == _without_times(data) for name, data in whole.items()
        if name.startswith(f"{folder.as_posix()}/") and "/." not in name
    )


def _is_header(name: str) -> bool:
    return name.endswith("/facesyn.json")


def _without_times(data: bytes) -> bytes:
    return _TIMES.sub(rb"\1", data)


def _first_difference(one: bytes, other: bytes) -> str:
    if len(one) > 100_000 or b"\0" in one:
        return f" ({len(one)} and {len(other)} bytes)"
    lines = zip(one.splitlines(), other.splitlines(), strict=False)
    return next((f" {a[:160]} and {b[:160]}" for a, b in lines if _without_times(a) != _without_times(b)), "")


def _files(area: Path) -> dict[str, bytes]:
    return {name: (area / name).read_bytes() for name in _names(area)}


def _leftovers(area: Path) -> dict[str, bytes]:
    """Return locks and temporary files by name; those of a run that was killed before stay until a run meets them."""
    names = [name for name in _names(area) if Path(name).name.startswith((".lock", ".tmp-"))]
    return {name: (area / name).read_bytes() for name in names}


def _names(area: Path) -> list[str]:
    """Return the files below a folder that belong to a result."""
    found = (path.relative_to(area).as_posix() for path in sorted(area.rglob("*")) if path.is_file())
    return [name for name in found if not _OF_ONE_RUN.search(name)]


def _stamp(area: Path) -> int:
    """Return a number that changes with every file that appears, disappears or is renamed."""
    stamp = 0
    for folder, _, _ in os.walk(area):
        try:
            stamp += os.stat(folder).st_mtime_ns
        except FileNotFoundError:
            continue  # a temporary folder
    return stamp


def _wait_for_writing(process: object, area: Path, stamp: int) -> None:
    while process.poll() is None and _stamp(area) == stamp:
        time.sleep(0.002)


def _clear(area: Path) -> None:
    shutil.rmtree(area, ignore_errors=True)
    area.mkdir()


@contextmanager
def _small_disk(area: Path) -> Iterator[object]:
    """Mount memory of a size that can be changed on a folder; only root may."""

    def mount(*options: str) -> bool:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", area], capture_output=True)
        return done.returncode == 0

    if sys.platform != "linux" or shutil.which("mount") is None or not mount("size=1m"):
        pytest.skip("no small disk can be mounted here")
    try:
        yield lambda size: mount("remount", f"size={size}")
    finally:
        subprocess.run(["umount", area], check=True)
