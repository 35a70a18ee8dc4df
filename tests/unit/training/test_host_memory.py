"""Freed memory is kept while a training runs, and returned to the system afterwards."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
# In a process of its own, whose heap has no large free blocks yet.
SCRIPT = """
import json
from pathlib import Path
import torch
from facesyn_cli.training.host_memory import freed_memory_is_kept

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

def freed():
    torch.ones(64 << 20)  # 256 MiB, freed at once
    return resident()

found = [freed()]
with freed_memory_is_kept(torch.device("cuda")):
    found.append(freed())
with freed_memory_is_kept(torch.device("cpu")):
    found.append(freed())
found += [resident(), freed()]
print(json.dumps(found))
"""


@pytest.mark.skipif(not IS_GLIBC, reason="glibc alone has these settings")
def test_freed_memory_is_kept_in_the_block_alone() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, on_a_gpu, inside, after, later = json.loads(ran.stdout)
    assert inside > before + 128, "MiB"
    assert max(on_a_gpu, after, later) < before + 128
