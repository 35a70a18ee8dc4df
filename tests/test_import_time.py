"""Help and listings import nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("rich", "torch", "numpy", "diffusers", "accelerate", "PIL", "matplotlib", "onnxruntime", "yaml")


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["sample", "--help"], ["models", "--help"], ["plugins"], ["plugins", "head"],
])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from facesyn_cli.cli.main import run_command_line; "
        f"code = run_command_line({arguments!r}); "
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    plain = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # readline, here, exports a width
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
