"""`facesyn` and `python -m facesyn_cli`, also as started by `accelerate launch -m facesyn_cli`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from facesyn_cli.launch import missing_processes, run_workers

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings for authors of training loops, not for users
    count = missing_processes()
    if count > 1:
        sys.exit(run_workers(sys.argv[1:], count))
    from facesyn_cli.cli.main import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
