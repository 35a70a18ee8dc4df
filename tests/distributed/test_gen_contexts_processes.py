"""`gen-contexts` in two processes, and in separate runs that make parts, writes what one process writes."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest
from conftest import finish, spawn
from tiny_recognizer import write_faces, write_recognizer

pytestmark = pytest.mark.dist

SPHERE = ("--source", "sphere", "filters=[{name: unique, r: 0.16}]", "--count", 2700)  # of 3 batches too few are unique


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """41 faces, of which every second one comes twice and one cannot be read."""
    folder = tmp_path_factory.mktemp("inputs")
    faces = write_faces(folder / "faces", people=7, photos=6)
    for person in range(7):
        for number in (1, 3, 5):
            (faces / f"p{person}" / f"{number}.png").write_bytes((faces / f"p{person}" / "0.png").read_bytes())
    (faces / "p2" / "4.png").write_bytes(b"broken")
    return ("--source", "images", "--images", faces, "--weights", write_recognizer(folder / "fr"), "--batch-size", 3,
            "filters=[{name: unique, r: 0.99999}]")


def words(out: Path, arguments: tuple[object, ...], *more: object) -> tuple[object, ...]:
    return ("gen-contexts", "--out", out, "--work", out.parent / "none", "--device", "cpu", "--json", *arguments, *more)


def content(folder: Path) -> dict[str, str]:
    """Digest of every file of a finished set, and what its header says."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "progress" not in path.parts]
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    header = json.loads((folder / "facesyn.json").read_text())
    return {**found, "facesyn.json": json.dumps([header[key] for key in ("counts", "extra", "digest")], sort_keys=True)}


def test_two_processes_equal_one(run_cli, images, tmp_path: Path) -> None:
    for name, arguments in (("images", images), ("sphere", SPHERE)):
        one = run_cli(*words(tmp_path / f"{name}-1", arguments))
        assert one.code == 0, one.err
        assert one.json()["dropped"]["unique"] > 0, "nothing depends on the order"
        two = finish(spawn(*words(tmp_path / f"{name}-2", arguments), processes=2))
        assert two.code == 0 and "2 processes" in two.err, two.err
        assert {**two.json(), "folder": ""} == {**one.json(), "folder": ""}
        assert content(tmp_path / f"{name}-2") == content(tmp_path / f"{name}-1")
    # A problem is one line on stderr, whichever process has it, and all of them end.
    wrong = finish(spawn(*words(tmp_path / "many", images, "--count", 100), processes=2))
    assert wrong.code != 0 and wrong.err.count("error: ") == 1 and "100 are wanted; --count" in wrong.err


def test_two_processes_killed_and_finished_by_one(run_cli, images, tmp_path: Path) -> None:
    assert run_cli(*words(tmp_path / "one", images)).code == 0
    out = tmp_path / "killed"
    group = spawn(*words(out, images), processes=2)
    _kill_when(group, lambda: (out / "progress").is_dir() and len(list((out / "progress").rglob("*.npz"))) >= 3)
    assert not (out / "facesyn.json").exists(), "the run was too fast to be killed"
    assert run_cli(*words(out, images)).code == 0
    assert content(out) == content(tmp_path / "one")


@pytest.mark.parametrize("source", ["images", "sphere"])
def test_parts_in_any_order_and_killed_equal_one_run(run_cli, images, source: str, tmp_path: Path) -> None:
    """The parts of the sphere are three batches, too few: the run that joins them makes the others."""
    arguments = images if source == "images" else SPHERE
    one = run_cli(*words(tmp_path / "one", arguments))
    assert one.code == 0 and one.json()["candidates"] > (40 if source == "images" else 3 * 1024)
    out = tmp_path / "parts"
    if source == "images":
        process = spawn(*words(out, arguments, "--shard", "2/3"))
        _kill_when(process, lambda: len(list((out / "progress").rglob("*.npz"))) >= 2)
    for part in ("3/3", "1/3"):
        ran = run_cli(*words(out, arguments, "--shard", part))
        assert ran.code == 0 and ran.json()["part"] == part, ran.err
        assert not (out / "facesyn.json").exists()
        assert "batches of candidates of other parts are missing" in ran.err
    ran = finish(spawn(*words(out, arguments, "--shard", "2/3"), processes=2))
    assert ran.code == 0 and "contexts" in ran.json(), ran.err
    assert content(out) == content(tmp_path / "one")
    again = run_cli(*words(out, arguments, "--shard", "1/3"))
    assert again.code == 0 and again.json()["contexts"] == ran.json()["contexts"]


def _kill_when(process, is_due) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not is_due():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    finish(process)
