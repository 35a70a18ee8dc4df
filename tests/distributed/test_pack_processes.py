"""`pack` in two processes, and in separate runs that make parts, writes what one process writes."""

from __future__ import annotations

import hashlib
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, spawn

from facesyn_cli.data.pixels import encode_png

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """2,500 images, three blocks; one cannot be read."""
    archive = tmp_path_factory.mktemp("in") / "many.zip"
    images = [encode_png(np.random.RandomState(k).randint(256, size=(8, 8, 3), dtype=np.uint8)) for k in range(50)]
    with zipfile.ZipFile(archive, "w") as file:
        for k in range(2500):
            file.writestr(f"{k // 20}/{k % 20}.png", b"no image" if k == 1700 else images[k % 50])
    return ("pack", "--in", archive, "size=96", "format.records_per_shard=600", "workers=1", "--json")


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "facesyn.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_processes_equal_one(run_cli, words, tmp_path: Path) -> None:
    one = run_cli(*words, "--out", tmp_path / "one")
    assert one.code == 0 and one.json()["unreadable"] == 1
    two = finish(spawn(*words, "--out", tmp_path / "two", processes=2))
    assert two.code == 0 and "2 processes" in two.err and two.err.count("unreadable images were left out") == 1, two.err
    assert {**two.json(), "folder": ""} == {**one.json(), "folder": ""}
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_parts_that_are_killed_equal_one_run(run_cli, words, tmp_path: Path) -> None:
    assert run_cli(*words, "--out", tmp_path / "one").code == 0
    out = tmp_path / "parts"
    blocks = out / ".unfinished" / "blocks"
    process = spawn(*words, "--out", out, "--shard", "1/2")  # blocks 0 and 2
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(blocks.glob("0*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    finish(process)
    finished = [(path, path.stat().st_mtime_ns) for path in blocks.glob("0*")]
    assert finished and not (out / "facesyn.json").exists()
    assert finish(spawn(*words, "--out", out, "--shard", "2/2", processes=2)).json()["part"] == "2/2"
    assert all(path.stat().st_mtime_ns == before for path, before in finished)
    ran = run_cli(*words, "--out", out, "--shard", "1/2")
    assert ran.code == 0 and ran.json()["images"] == 2499, ran.err
    assert content(out) == content(tmp_path / "one")
