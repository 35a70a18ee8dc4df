"""What becomes of output that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def test_stdout_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "facesyn_cli", "config"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == ["error: a file or the standard output: No space left on device"]


def test_a_log_file_on_a_full_disk_is_given_up_with_one_line(run_cli, tmp_path) -> None:
    ran = run_cli("pack", "--in", tmp_path / "none", "--log-file", "/dev/full")
    assert ran.code == 2
    assert ran.err.splitlines() == [
        f"error: {tmp_path / 'none'} does not exist; a folder or zip of images was expected",
        "warning: the log file /dev/full is given up: No space left on device",
    ]
