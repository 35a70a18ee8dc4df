"""Types of the public surface: mypy passes on the API, the config classes and a notebook that uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_mypy_passes_on_the_public_surface(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
