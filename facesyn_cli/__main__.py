"""`facesyn` and `python -m facesyn_cli`, also as started by `accelerate launch -m facesyn_cli`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from facesyn_cli.cli.launch import asked_processes, record_parent, run_workers

    record_parent()
    from facesyn_cli.cli.main import run_command_line

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice for authors of training loops, not for users
    count = asked_processes()
    if count > 1:
        sys.exit(run_workers(sys.argv[1:], count))
    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
