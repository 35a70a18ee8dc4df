"""`accelerate launch --cpu --num_processes N` really gives N processes, and their exit codes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import tiny_fr
from tiny_recognizer import write_faces

from facesyn_cli import launch

pytestmark = pytest.mark.dist

WORKER = """
import atexit, json, sys
import torch
atexit.register(lambda: open(sys.argv[1] + f"/left-{group.rank}", "w").write(str(torch.distributed.is_initialized())))
from facesyn_cli.distributed import processes
group = processes("cpu")
told = group.any(group.rank == 1)
total = int(group.sum(torch.tensor([float(group.rank + 1)])).item())
open(sys.argv[1] + f"/{group.rank}.json", "w").write(json.dumps([group.world_size, told, total]))
"""


def test_the_number_is_read_off_the_launcher() -> None:
    accelerate = ["python", "-m", "accelerate.commands.launch", "--cpu"]
    assert launch._number_in([*accelerate, "--num_processes", "3", "-m", "facesyn_cli"]) == 3
    assert launch._number_in([*accelerate, "--num_processes=2", "-m", "facesyn_cli"]) == 2
    assert launch._number_in([*accelerate, "-m", "facesyn_cli", "x", "--num_processes", "5"]) == 1
    assert launch._number_in([]) == 1


def test_nothing_is_started_outside_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launch.missing_processes() == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch, "_parent_command", lambda: ["accelerate", "launch", "--num_processes", "4"])
    assert launch.missing_processes() == 4
    monkeypatch.setenv("RANK", "0")
    assert launch.missing_processes() == 1


def test_two_workers_form_one_group(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    code = f"from facesyn_cli.launch import run_workers; print(run_workers([{str(tmp_path)!r}], 2, [{str(script)!r}]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ran.stdout.splitlines()[-1:] == ["0"], ran.stderr
    assert [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)] == [[2, True, 3]] * 2
    assert [(tmp_path / f"left-{i}").read_text() for i in (0, 1)] == ["False"] * 2, "the group outlives its processes"


@pytest.mark.parametrize("wanted", [2, 143])
def test_the_exit_code_of_a_worker_is_returned(wanted: int, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1': sys.exit({wanted})\ntime.sleep(100)\n")
    code = f"import sys; from facesyn_cli.launch import run_workers; sys.exit(run_workers([], 2, [{str(script)!r}]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ran.returncode == wanted and not ran.stderr, ran.stderr


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_stop_signal_reaches_the_workers(name: str, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"def stop(*_): pathlib.Path(sys.argv[1], 'stopped-' + os.environ['RANK']).touch(); sys.exit(0)\n"
        f"signal.signal(signal.{name}, stop)\n"
        "pathlib.Path(sys.argv[1], 'ready-' + os.environ['RANK']).touch()\ntime.sleep(100)\n"
    )
    code = (f"import sys; from facesyn_cli.launch import run_workers\n"
            f"sys.exit(run_workers([{str(tmp_path)!r}], 2, [{str(script)!r}]))")
    with subprocess.Popen([sys.executable, "-c", code]) as started:
        _wait(lambda: len(list(tmp_path.glob("ready-*"))) == 2, 100)
        started.send_signal(getattr(signal, name))
        assert started.wait(60) == 128 + getattr(signal, name)
    assert len(list(tmp_path.glob("stopped-*"))) == 2


def test_the_launched_command_runs_in_two_and_speaks_once(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 1, 1)
    ran = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "facesyn_cli",
         "embed", "--images", tmp_path / "faces", "--weights", tmp_path / "none.pth"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "ACCELERATE_DISABLE_RICH": "1"},
    )
    assert ran.returncode != 0
    assert len([line for line in ran.stderr.splitlines() if line.startswith("error: ")]) == 1, ran.stderr
    assert "none.pth" in ran.stderr



@pytest.mark.parametrize(
    ("command", "is_one"),
    [("/usr/bin/python3 /opt/bin/accelerate launch -m facesyn_cli", True), ("python -m torch.distributed.run x", True),
     ("/opt/python /opt/bin/torchrun --nproc-per-node 2", True), ("python -m facesyn_cli train-ldm", True),
     ("mpirun -n 2 facesyn", True), ("-bash", False), ("bash run_accelerate.sh", False), ("/sbin/init", False),
     ("sshd: user@pts/0", False), ("python train.py --name torchrun", False), ("", False)],
)
def test_launchers_are_told_by_their_command(command: str, is_one: bool) -> None:
    assert launch._is_launcher(command.split()) is is_one


def test_only_a_process_of_a_launcher_watches_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[int] = []
    monkeypatch.setattr(launch, "_stop_without", lambda parent, leave: watched.append(parent))
    monkeypatch.setattr(launch.threading, "Thread", _AtOnce)
    for name in launch._SIGNS:
        monkeypatch.delenv(name, raising=False)
    launcher, shell = ["python", "-m", "torch.distributed.run"], ["bash", "job.sh"]
    for command, environment in ((launcher, {}), (shell, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}), (shell, {})):
        monkeypatch.setattr(launch, "_parent_command", lambda command=command: command)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        launch.stop_with_launcher()
        assert not watched, (command, environment)
        for name in environment:
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(launch, "_parent_command", lambda: launcher)
    launch.stop_with_launcher()
    assert watched == [os.getppid()]


class _AtOnce:
    """A thread that runs where it is started."""

    def __init__(self, target, args, daemon: bool) -> None:
        self.start = lambda: target(*args)


def test_a_process_that_cannot_stop_leaves_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, told = iter([7, 7, 1]), []
    monkeypatch.setattr(launch.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(launch.os, "kill", lambda process, number: told.append((process, number)))
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: told.append(seconds))
    launch._stop_without(7, told.append)
    assert told == [launch._POLL_SECONDS] * 2 + [(os.getpid(), signal.SIGTERM), launch.GRACE_SECONDS, 143]


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
}


@pytest.mark.parametrize(("launcher", "number"), [("accelerate", signal.SIGTERM), ("torchrun", signal.SIGKILL)])
def test_workers_stop_when_their_launcher_is_gone(launcher: str, number: int, tmp_path: Path) -> None:
    faces, out = tiny_fr.write_faces(tmp_path / "faces"), tmp_path / "out"
    arguments = tiny_fr.train_arguments(faces, out, "checkpoint_every=1000000", epochs=100_000)
    environment = {**os.environ, "ACCELERATE_DISABLE_RICH": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "stderr", "w") as stderr:
        started = subprocess.Popen(
            [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "facesyn_cli", *arguments], env=environment,
            stdout=subprocess.DEVNULL, stderr=stderr,
        )
    workers: list[psutil.Process] = []
    try:
        _wait(lambda: started.poll() is not None or _num_lines(out / "metrics.jsonl") > 1, 200)
        assert started.poll() is None, (tmp_path / "stderr").read_text()
        workers = psutil.Process(started.pid).children(recursive=True)
        assert len(workers) >= 2
        started.send_signal(number)
        started.wait(60)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive, "workers outlive their launcher"
        assert not list(out.glob(".lock-*")), "the next run meets a lock"
        step = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        newest = max(path.name for path in (out / "checkpoints").glob("step-*"))
        assert newest == f"step-{step:08d}", "they stopped without saving their last step"
        assert "stopped by signal 15" in (tmp_path / "stderr").read_text()
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        started.kill()


def _num_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


def _wait(is_there: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_there() and time.monotonic() < end:
        time.sleep(0.1)
