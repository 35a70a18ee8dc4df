"""The output folder of a stage: locking, resume, growth and completion.

Files with a meaning:

    facesyn.json           the header; written last, so a folder without it is unfinished
    facesyn.begun.json     the same without counts; written first, records what the unfinished work is
    shard-i-of-n.json      one part of a sharded run is finished
    .agreed-*.json         a setting that parts of an unfinished folder agreed on; see `agreed_setting.py`
    .lock-*                a process is writing

While `facesyn.begun.json` exists, the folder is unfinished: the file appears before any other one, survives every
kill, and is removed after the header has been written. Growing a finished folder writes it anew and removes the
header, so a partly grown folder never looks finished.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from facesyn_cli.artifacts.atomic_files import remove_temporaries, write_json, writing
from facesyn_cli.artifacts.config_changes import Change, Comparison, change_table, compare_configs
from facesyn_cli.artifacts.header import BEGUN, HEADER, Header, Parent, read_header, read_started, write_header
from facesyn_cli.artifacts.lock import Lock, LockedError, refuse_other_division, remove_abandoned
from facesyn_cli.console import is_first_process, log
from facesyn_cli.distributed import CollectiveError, Processes
from facesyn_cli.errors import UserError

AGREED = ".agreed-"  # start of the names of files with an agreed setting
_JOIN = "join"  # the lock of the run that joins the parts of others


class Config(Protocol):
    """The interface of a stage config that this module uses.

    Attributes:
        changeable: Settings that affect the result and may change while there is work to do.
    """

    changeable: ClassVar[Collection[str]]

    def to_json(self) -> dict[str, Any]:
        """Return the settings grouped by role; see `artifacts/config_changes.py`."""

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of an earlier header under their present names."""


@dataclass(frozen=True)
class FixedConfig:
    """Settings of a command without a config class; all of them affect the result.

    Args:
        values: JSON values by name.
    """

    changeable: ClassVar[Collection[str]] = ()

    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the settings grouped by role."""
        return {"identity": self.values, "growing": {}, "recorded": {}, "runtime": {}}

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return `config`: no setting was renamed."""
        return config


class Output:
    """An output folder opened for writing; made by `open_output`.

    Attributes:
        folder: The folder.
        part: (i, n), 1-based, for part i of a sharded run of n; else None.
        header: The header of a folder that is complete for this config, or None.
        resumed: An earlier run started this work.
    """

    def __init__(self, folder: Path, started: Header, part: tuple[int, int] | None) -> None:
        self.folder = folder
        self.part = part
        self.header: Header | None = None
        self.resumed = False
        self._started = started

    @property
    def finished(self) -> bool:
        """True if the folder is complete for this config."""
        return self.header is not None

    def part_finished(self) -> bool:
        """True if this run is one part of a sharded run and that part is complete."""
        return self.part is not None and self._part_path(self.part[0]).is_file()

    def join(
        self, processes: Processes, num_missing: Callable[[], int], unit: str, finish: Callable[[], Header | None]
    ) -> None:
        """Finish a set whose pieces lie on disk, whichever sharded runs made them; one run does. A collective.

        `header` is set in every process, also where another run has finished meanwhile; it is None where pieces are
        missing or another run joins them.

        Args:
            processes: Those of the run; the first one joins.
            num_missing: Returns how many pieces are not there; an unsharded run has made all.
            unit: Name of the pieces, for messages.
            finish: Joins the pieces and calls `finish` with `is_whole`.
        """

        def join_in_first() -> Header | None:
            with self.joining(num_missing, unit) as is_mine:
                return finish() if is_mine else self.header

        self.header = processes.from_first(join_in_first)

    @contextmanager
    def joining(self, num_missing: Callable[[], int], unit: str) -> Iterator[bool]:
        """As `join`, as a block: yield True in the run that is to join the pieces, False in the others."""
        if self.part is not None and (missing := num_missing()) and read_header(self.folder) is None:
            log.info(f"part {self.part[0]} of {self.part[1]} is finished; {missing} {unit} of other parts are missing")
            yield False
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(Lock(self.folder, _JOIN))
            except LockedError as error:
                log.info(f"another run joins the parts: {error}")
                yield False
                return
            self.header = read_header(self.folder)  # of a run that has just joined them
            yield self.header is None

    def finish(
        self, counts: dict[str, int], extra: dict[str, Any] | None = None, digest: str | None = None,
        is_whole: bool = False,
    ) -> Header | None:
        """Mark the work as complete: write the header, or of a sharded run the part, and the header after the last.

        Args:
            counts: Numbers of items in the folder; of a sharded run: in the whole set.
            extra: Further facts for readers of the folder.
            digest: Digest of the content; by default that of config, parents and counts, which determine the content.
            is_whole: The whole set is there, also in a sharded run.

        Returns:
            The header, or None when parts are missing or another process writes it.
        """
        if not is_first_process():
            return None
        if self.part is not None and is_whole:
            remove_temporaries(self.folder)  # of parts killed on other hosts; all are finished
        elif self.part is not None:
            write_json(self._part_path(self.part[0]), {"part": self.part[0], "of": self.part[1]})
            missing = [i for i in range(1, self.part[1] + 1) if not self._part_path(i).is_file()]
            if missing and read_header(self.folder) is not None:
                return None  # another part has just written the header
            if missing:
                log.info(f"part {self.part[0]} of {self.part[1]} is finished; still missing: {missing}")
                return None
            remove_temporaries(self.folder)
        self.header = write_header(self.folder, self._started, counts, extra, digest)
        (self.folder / BEGUN).unlink(missing_ok=True)
        _remove_parts(self.folder)
        return self.header

    def _part_path(self, index: int) -> Path:
        return self.folder / f"shard-{index}-of-{self.part[1]}.json"


@contextmanager
def open_output(
    folder: Path, kind: str, command: str, cfg: Config, parents: dict[str, Parent], part: tuple[int, int] | None = None
) -> Iterator[Output]:
    """Open the output folder of a stage in one process; see the module docstring.

    Args:
        folder: Where to write.
        kind: Kind of artifact, for example `ImageSet`.
        command: Name of the command, for messages.
        cfg: Resolved config; the roles of its fields decide what may change on resume.
        parents: Inputs by name.
        part: (i, n), 1-based, if this run makes part i of n; parts may run at the same time.

    Raises:
        UserError: The folder holds something else, was started with another config or other inputs, or another
            process is writing to it.
    """
    started = Header(kind, command, cfg.to_json(), parents)
    output = Output(folder, started, part)
    if not is_first_process():  # the first process has opened the folder already
        header = read_header(folder) if folder.is_dir() else None
        if header is not None and not compare_configs(cfg.upgraded(header.config), started.config).grown:
            output.header = header
        yield output
        return
    refuse_foreign_content(folder, kind)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder, f"{part[0]}-of-{part[1]}" if part else "all"):
        refuse_other_division(folder, part)
        before = read_started(folder) or read_header(folder)
        comparison = None if before is None else check_same(folder, _upgraded(before, cfg), started, cfg.changeable)
        if comparison is not None:
            output.resumed = True
            if read_header(folder) is not None and not comparison.grown:
                output.header = read_header(folder)
                remove_abandoned(folder)
                _remove_parts(folder)  # of a run killed in between
                if (folder / f".lock-{_JOIN}").exists():  # the same, or of a run that has just finished it
                    with suppress(LockedError), Lock(folder, _JOIN):
                        pass
                log.info(f"{folder} is finished already")
                yield output
                return
        if part is None:
            remove_temporaries(folder)
        else:
            remove_abandoned(folder, below=True)
        log.debug(f"write {folder}" + (", which is unfinished" if output.resumed else ""))
        is_begun = part is not None and comparison is not None and not comparison.grown
        if not is_begun:  # else another part may finish the set at this moment
            write_json(folder / BEGUN, asdict(started))
            (folder / HEADER).unlink(missing_ok=True)
        if comparison is not None and comparison.grown:
            _remove_parts(folder)
        yield output


@contextmanager
def open_shared_output(
    processes: Processes, folder: Path, kind: str, command: str, cfg: Config, parents: dict[str, Parent],
    part: tuple[int, int] | None = None,
) -> Iterator[Output]:
    """Open an output folder in all processes of a distributed run, in the first one before the others.

    Args:
        processes: Processes of the run; see `open_output` for the other arguments.

    Raises:
        UserError: As `open_output`, in every process.
    """
    opened = open_output(folder, kind, command, cfg, parents, part)
    if processes.world_size == 1:
        with opened as output:
            yield output
        return
    if processes.is_first:
        try:
            output = opened.__enter__()
        except UserError as error:
            processes.broadcast((str(error), None))
            raise
        processes.broadcast(("", output.header))
    else:
        problem, header = processes.broadcast(("", None))
        if problem:
            raise CollectiveError.of(problem)
        output = opened.__enter__()
        output.header = header  # the folder may have been finished since, by another part
    with ExitStack() as stack:
        stack.push(opened.__exit__)
        try:
            yield output
        except UserError as error:
            if not processes.is_first and not isinstance(error, CollectiveError):  # an error of this process alone
                log.error(f"process {processes.rank}: {error}")
            raise


def check_output(folder: Path, kind: str, cfg: Config, parents: dict[str, Parent]) -> str:
    """Return the state in which `open_output` would find a folder, without writing.

    Returns:
        `new`, `unfinished`, `grows` or `finished`.

    Raises:
        UserError: As `open_output`.
    """
    refuse_foreign_content(folder, kind)
    before = read_started(folder) or read_header(folder)
    if before is None:
        return "new"
    now = Header(kind, before.command, cfg.to_json(), parents)
    comparison = check_same(folder, _upgraded(before, cfg), now, cfg.changeable)
    if read_header(folder) is None:
        return "unfinished"
    return "grows" if comparison.grown else "finished"


def check_same(folder: Path, before: Header, now: Header, changeable: Collection[str] = ()) -> Comparison:
    """Compare the header that a folder was started with to the present one; `changeable` as of `Config`.

    Raises:
        UserError: They differ in what may not change; the message lists the differences.
    """
    if before.kind != now.kind:
        raise UserError(f"{folder} is a {before.kind} made by `facesyn {before.command}`; choose another --out")
    if before.command != now.command:
        raise UserError(f"{folder} was made by `facesyn {before.command}`, not by {now.command}; choose another --out")
    comparison = compare_configs(before.config, now.config, changeable)
    has_work = comparison.grown or read_header(folder) is None
    settings = comparison.problems + ([] if has_work else comparison.changes)
    inputs = _changed_inputs(before.parents, now.parents)
    if settings or inputs:
        what = " and ".join(["settings"] * bool(settings) + ["inputs"] * bool(inputs))
        raise UserError(
            f"{folder} was started with other {what}:", *change_table([*settings, *inputs]),
            f"Use the {what} of the folder, write to another one with --out, or remove {folder}.",
        )
    for change in comparison.changes:
        log.warning(f"{folder}: {change}; it holds from here on")
    for warning in comparison.warnings:
        log.warning(f"{folder}: {warning}")
    return comparison


def _changed_inputs(before: dict[str, Parent], now: dict[str, Parent]) -> list[Change]:
    """Return two lines for each input with another content: the digests and the paths."""
    changes = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if old is None or new is None or old.digest != new.digest:
            title = name if name.startswith("input") else f"input {name}"
            changes.append(Change(title, *(one.digest[:19] if one else "absent" for one in (old, new))))
            changes.append(Change("", *(one.path if one else "" for one in (old, new))))
    return changes


def _remove_parts(folder: Path) -> None:
    """Remove the files that mark parts as finished, and those that the header replaces."""
    for pattern in ("shard-*-of-*.json", f"{AGREED}*.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def refuse_foreign_content(folder: Path, kind: str) -> None:
    """Refuse a folder with files that facesyn did not write."""
    if not folder.exists() or (folder / HEADER).exists() or (folder / BEGUN).exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder to write a {kind} into was expected")
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if foreign:
        raise UserError(
            f"{folder} is not empty and was not made by facesyn (it holds {foreign[0]!r}); choose another --out"
        )


def _upgraded(header: Header, cfg: Config) -> Header:
    return replace(header, config=cfg.upgraded(header.config))
