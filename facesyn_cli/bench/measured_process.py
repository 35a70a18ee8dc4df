"""Run a command and write its exit code, processor time and peak memory to a file; run by `scale_bench` as a script.

It imports little: Linux counts the memory of the process that starts a command as memory of the command, so this one
must be smaller than what it measures.

    python measured_process.py RESULT STOP_AT COMMAND...
"""

import json
import os
import signal
import subprocess
import sys
import time

_POLL = 0.1  # seconds


def main(result: str, stop_at: str, *command: str) -> None:
    """Run a command.

    Args:
        result: JSON file to write: `code`, `processor s`, `peak MiB`.
        stop_at: File after whose appearance, with content, the command gets SIGTERM; empty: it runs to its end.
        command: Its words.
    """
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG if stop_at else 0)
        if pid:
            break
        if stop_at and os.path.isfile(stop_at) and os.path.getsize(stop_at):
            process.terminate()
            stop_at = ""
        else:
            time.sleep(_POLL)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in 1 / MiB
    facts = {
        "code": os.waitstatus_to_exitcode(status), "processor s": usage.ru_utime + usage.ru_stime,
        "peak MiB": usage.ru_maxrss / unit,
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
