"""An error or a stop signal in one process ends a block in all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist

WORKER = """
import os, signal, sys
from facesyn_cli import signals
from facesyn_cli.distributed import CollectiveError, processes
from facesyn_cli.errors import Stopped, UserError
group, found = processes("cpu"), []
signals.install()
with group.together():
    found.append("both")
try:
    with group.together():
        if group.rank == 1:
            raise UserError("the disk of rank 1")
        found.append("rank 0")
except CollectiveError as error:
    found.append(str(error))
try:
    with group.together():
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            signals.check()
        found.append("rank 0")
except Stopped as error:
    found.append(error.exit_code)
open(sys.argv[1] + f"/{group.rank}", "w").write(repr(found))
"""


def test_both_end(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    code = f"from facesyn_cli.launch import run_workers; print(run_workers([{str(tmp_path)!r}], 2, [{str(script)!r}]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ran.stdout.splitlines()[-1:] == ["0"], ran.stderr
    found = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert found[1] == "['both', 'the disk of rank 1', 138]"
    assert found[0] == "['both', 'rank 0', 'the disk of rank 1', 'rank 0', 143]"
