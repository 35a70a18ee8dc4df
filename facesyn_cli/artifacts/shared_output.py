"""The output folder of a stage, opened by all processes of a distributed run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from facesyn_cli.artifacts.output import Config, Output, Parent, open_output
from facesyn_cli.console import log
from facesyn_cli.distributed import CollectiveError, Processes
from facesyn_cli.errors import UserError


@contextmanager
def open_shared_output(
    processes: Processes, folder: Path, kind: str, command: str, cfg: Config, parents: dict[str, Parent],
    part: tuple[int, int] | None = None,
) -> Iterator[Output]:
    """Open an output folder in all processes: the first one before the others. Arguments as of `open_output`.

    Raises:
        UserError: As `open_output`, in every process.
    """
    if processes.world_size == 1:
        with open_output(folder, kind, command, cfg, parents, part) as output:
            yield output
        return
    opened = open_output(folder, kind, command, cfg, parents, part)
    if processes.is_first:
        try:
            output = opened.__enter__()
        except UserError as error:
            processes.broadcast(str(error))
            raise
        processes.broadcast("")
    else:
        problem = processes.broadcast("")
        if problem:
            raise CollectiveError(problem)
        output = opened.__enter__()
    with ExitStack() as stack:
        stack.push(opened.__exit__)
        try:
            yield output
        except UserError as error:
            if not processes.is_first and not isinstance(error, CollectiveError):  # other processes may not have it
                log.error(f"process {processes.rank}: {error}")
            raise
