"""The output folder of a stage: who may write, what it was begun with, and when it is finished.

Files with a meaning:

    facesyn.json           the header; written last, so a folder without it is unfinished
    facesyn.begun.json     the same without counts; written first, says what the unfinished work is
    shard-i-of-n.json      one part of a sharded run is finished
    .lock-*                a process is writing

`begun` decides while it exists: it appears before any other file, survives every kill and is removed
after the header has been written. Growing a finished folder writes a new `begun` and takes the header
away, so nobody mistakes a half-grown folder for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from facesyn_cli import __version__
from facesyn_cli.artifacts.atomic_files import explain, read_json, remove_temporaries, write_json
from facesyn_cli.artifacts.config_changes import Comparison, compare_configs
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header_content import HeaderContent
from facesyn_cli.artifacts.lock import Lock, remove_abandoned
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.checked import checked

HEADER = "facesyn.json"
BEGUN = "facesyn.begun.json"
FORMAT_VERSION = 1


class Config(Protocol):
    """A stage config as this package sees it."""

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

    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the settings grouped by role."""
        return {"identity": self.values, "growing": {}, "recorded": {}, "runtime": {}}

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return `config`: names have not changed."""
        return config


@dataclass(frozen=True)
class Parent:
    """One input of a stage.

    Args:
        path: Where it was found; a note for people, never compared.
        digest: What it contains; compared on resume.
    """

    path: str
    digest: str


@dataclass(frozen=True)
class Header:
    """What `facesyn.json` says about the folder it lies in."""

    kind: str
    command: str
    config: dict[str, Any]
    parents: dict[str, Parent]
    counts: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""        # of the content
    lineage: str = ""       # of what every larger or smaller folder of the same growing family shares
    format_version: int = FORMAT_VERSION
    package_version: str = __version__

    def count(self, name: str) -> int:
        """Return one of the counts.

        Raises:
            UserError: The header does not say it.
        """
        return self._found(self.counts, name)

    def figure(self, name: str) -> float:
        """Return a number that stands in `extra`.

        Raises:
            UserError: The header does not say it.
        """
        return self._found(self.extra, name)

    def _found(self, values: dict[str, Any], name: str) -> Any:
        value = values.get(name)
        if not isinstance(value, int | float):
            raise UserError(f"the header of a {self.kind} that `facesyn {self.command}` made has no number {name!r}; "
                            "remove its folder and run the command again")
        return value

    @staticmethod
    def from_json(value: Any, path: Path) -> Header:
        """Read a header back; `path` is named in the error when it is not one."""
        version = value.get("format_version") if isinstance(value, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, this facesyn ({__version__}) reads up to "
                f"{FORMAT_VERSION}; install a newer one"
            )
        checked(HeaderContent, value, path, "a facesyn header")
        return Header(**{**value, "parents": {name: Parent(**parent) for name, parent in value["parents"].items()}})


def read_header(folder: Path) -> Header | None:
    """Return the header of a finished folder, or None when there is none."""
    path = folder / HEADER
    if not path.is_file() or (folder / BEGUN).is_file():
        return None
    return Header.from_json(read_json(path), path)


def write_header(
    folder: Path, begun: Header, counts: dict[str, int], extra: dict[str, Any] | None = None, digest: str | None = None
) -> Header:
    """Write the header of a finished folder and return it; arguments as of `Output.finish`."""
    parents = {name: parent.digest for name, parent in begun.parents.items()}
    lineage = json_digest([begun.kind, begun.command, begun.config.get("identity"), parents])
    digest = digest or json_digest([lineage, begun.config.get("growing"), counts])
    header = replace(begun, counts=counts, extra=extra or {}, digest=digest, lineage=lineage)
    write_json(folder / HEADER, asdict(header))
    return header


def require_header(folder: Path, kind: str) -> Header:
    """Return the header of a finished folder of the given kind.

    Raises:
        UserError: The folder is missing, unfinished, or of another kind.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; a finished {kind} folder was expected")
    header = read_header(folder)
    if header is None:
        begun = folder / BEGUN
        if begun.is_file():
            command = Header.from_json(read_json(begun), begun).command
            raise UserError(f"{folder} is unfinished; run the same `facesyn {command}` command again to finish it")
        raise UserError(f"{folder} has no {HEADER}; a {kind} folder written by facesyn was expected")
    if header.kind != kind:
        raise UserError(f"{folder} is a {header.kind} made by `facesyn {header.command}`; a {kind} was expected")
    return header


class Output:
    """An output folder opened for writing; made by `open_output`.

    Attributes:
        folder: The folder.
        finished: The folder is complete for this config; `header` describes it and nothing is to do.
        header: The finished header, or None.
        resumed: An earlier run has begun this work.
    """

    def __init__(self, folder: Path, begun: Header, part: tuple[int, int] | None) -> None:
        self.folder = folder
        self.part = part
        self.header: Header | None = None
        self.resumed = False
        self._begun = begun

    @property
    def finished(self) -> bool:
        """True when nothing is left to do here."""
        return self.header is not None

    def part_finished(self) -> bool:
        """True when this run is one part of a sharded one and the part's file says it is done."""
        return self.part is not None and self._part_path(self.part[0]).is_file()

    def finish(
        self, counts: dict[str, int], extra: dict[str, Any] | None = None, digest: str | None = None
    ) -> Header | None:
        """Write the header, last of all. Of a sharded run: write the part, and the header when it is the last.

        Args:
            counts: How many of what the folder holds. With parts: of the whole set.
            extra: Further facts for readers of the folder.
            digest: Digest of the content; by default that of config, parents and counts, which
                determine the content.

        Returns:
            The header, or None when other parts are still missing or another process writes it.
        """
        if not is_first_process():
            return None
        if self.part is not None:
            write_json(self._part_path(self.part[0]), {"part": self.part[0], "of": self.part[1]})
            missing = [i for i in range(1, self.part[1] + 1) if not self._part_path(i).is_file()]
            if missing and read_header(self.folder) is not None:
                return None  # another part has just found all of them
            if missing:
                log.info(f"part {self.part[0]} of {self.part[1]} is finished; still missing: {missing}")
                return None
        if self.part is not None:
            remove_temporaries(self.folder)  # of parts killed on other hosts; all are finished
        self.header = write_header(self.folder, self._begun, counts, extra, digest)
        (self.folder / BEGUN).unlink(missing_ok=True)
        _remove_parts(self.folder)
        return self.header

    def _part_path(self, index: int) -> Path:
        return self.folder / f"shard-{index}-of-{self.part[1]}.json"


@contextmanager
def open_output(
    folder: Path,
    kind: str,
    command: str,
    cfg: Config,
    parents: dict[str, Parent],
    part: tuple[int, int] | None = None,
) -> Iterator[Output]:
    """Open the output folder of a stage; see the module docstring for its life.

    Args:
        folder: Where to write.
        kind: Kind of artifact, for example `ImageSet`.
        command: Name of the command, for messages.
        cfg: Resolved config; its fields say by their role what may change on resume.
        parents: Inputs by name.
        part: (i, n), 1-based, when this run makes part i of n; parts may run at the same time.

    Raises:
        UserError: The folder holds something else, was begun with another config or other inputs, or
            another process is writing to it.
    """
    begun = Header(kind, command, cfg.to_json(), parents)
    output = Output(folder, begun, part)
    if not is_first_process():
        _adopt(output, begun, cfg)
        yield output
        return
    _refuse_strangers(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error
    with Lock(folder, f"{part[0]}-of-{part[1]}" if part else "all"):
        before = _read_begun(folder) or read_header(folder)
        if before is not None:
            comparison = check_same(folder, _upgraded(before, cfg), begun)
            output.resumed = True
            if read_header(folder) is not None and not comparison.grown:
                output.header = read_header(folder)
                remove_abandoned(folder)
                _remove_parts(folder)  # of a run killed in between
                log.info(f"{folder} is finished already")
                yield output
                return
        if part is None:
            remove_temporaries(folder)
        else:
            remove_abandoned(folder, below=True)
        write_json(folder / BEGUN, asdict(begun))
        (folder / HEADER).unlink(missing_ok=True)
        if before is not None and comparison.grown:
            _remove_parts(folder)
        yield output


def check_output(folder: Path, kind: str, cfg: Config, parents: dict[str, Parent]) -> str:
    """Say what `open_output` would find, without writing: `new`, `unfinished`, `grows` or `finished`.

    Raises:
        UserError: As `open_output`.
    """
    _refuse_strangers(folder, kind)
    before = _read_begun(folder) or read_header(folder)
    if before is None:
        return "new"
    now = Header(kind, before.command, cfg.to_json(), parents)
    comparison = check_same(folder, _upgraded(before, cfg), now)
    if read_header(folder) is None:
        return "unfinished"
    return "grows" if comparison.grown else "finished"


def check_same(folder: Path, before: Header, now: Header) -> Comparison:
    """Compare what a folder was begun with and what it is asked for now.

    Raises:
        UserError: They differ in what may not change; shows how.
    """
    if before.kind != now.kind:
        raise UserError(f"{folder} is a {before.kind} made by `facesyn {before.command}`; choose another --out")
    if before.command != now.command:
        raise UserError(f"{folder} was made by `facesyn {before.command}`, not by {now.command}; choose another --out")
    problems = []
    for name in sorted(set(before.parents) | set(now.parents)):
        old, new = before.parents.get(name), now.parents.get(name)
        if old is None or new is None or old.digest != new.digest:
            problems.append(f"input {name}: was {_describe(old)}, is {_describe(new)}")
    comparison = compare_configs(before.config, now.config)
    problems += comparison.problems
    if problems:
        raise UserError(
            f"{folder} was begun with other settings ({'; '.join(problems)}); "
            "use the same ones, another --out, or remove the folder"
        )
    for warning in comparison.warnings:
        log.warning(f"{folder}: {warning}")
    return comparison


def _describe(parent: Parent | None) -> str:
    return f"{parent.path} ({parent.digest[:19]})" if parent else "absent"


def _read_begun(folder: Path) -> Header | None:
    path = folder / BEGUN
    return Header.from_json(read_json(path), path) if path.is_file() else None


def _remove_parts(folder: Path) -> None:
    """Remove the files that say which parts are finished."""
    for path in folder.glob("shard-*-of-*.json"):
        path.unlink(missing_ok=True)


def _refuse_strangers(folder: Path, kind: str) -> None:
    """Never mix our files into a folder that somebody else filled."""
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


def _adopt(output: Output, begun: Header, cfg: Config) -> None:
    """Processes other than the first follow what the first one decides after its barrier."""
    header = read_header(output.folder) if output.folder.is_dir() else None
    if header is not None and not compare_configs(cfg.upgraded(header.config), begun.config).grown:
        output.header = header
