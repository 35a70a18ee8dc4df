"""The header of a folder, `facesyn.json`: what made the folder, from which inputs, with which settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter

from facesyn_cli import __version__
from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.missing_input import missing_input, unfinished_input
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.parsing import validated

HEADER = "facesyn.json"        # written last: a folder without it is unfinished
BEGUN = "facesyn.begun.json"   # the same without counts; written first
FORMAT_VERSION = 1


def _checked_name(name: str) -> str:
    if name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError("the name of a file or folder inside was expected")
    return name


NameInside = Annotated[str, AfterValidator(_checked_name)]


class _Extra(BaseModel):
    """The entries of `extra` that readers of a folder use; any others are informative."""

    model_config = ConfigDict(extra="allow", strict=True)

    embedder: str | None = None
    format: str | None = None
    name: NameInside | None = Field(None, min_length=1)  # of a folder inside the folder of the header


def _checked_extra(extra: dict[str, Any]) -> dict[str, Any]:
    _Extra.model_validate(extra)
    return extra


def _checked_config(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check that growable settings are numbers or None, which can be compared."""
    queue = list(config.get("growing", {}).items())
    for key, value in queue:
        if isinstance(value, dict) and value:
            queue += value.items()
        elif not isinstance(value, int | float | None):
            raise ValueError(f"growing.{key}: a number was expected")
    return config


@dataclass(frozen=True)
class Parent:
    """One input of a stage.

    Args:
        path: Where the input was found; informative, not compared.
        digest: Digest of its content; compared on resume.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: StrictStr
    digest: StrictStr


@dataclass(frozen=True)
class Header:
    """The content of `facesyn.json`.

    Args:
        kind: Kind of artifact, for example `ImageSet`.
        command: Command that wrote the folder.
        config: Role group -> settings; see `artifacts/config_changes.py`.
        parents: Inputs by name.
        counts: Numbers of items in the folder.
        extra: Further facts for readers of the folder.
        digest: Digest of the content.
        lineage: Digest shared by all folders that differ only in growable settings.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: StrictStr
    command: StrictStr
    config: Annotated[dict[str, dict[str, Any]], AfterValidator(_checked_config)]
    parents: dict[str, Parent]
    counts: dict[str, StrictInt] = field(default_factory=dict)
    extra: Annotated[dict[str, Any], AfterValidator(_checked_extra)] = field(default_factory=dict)
    digest: StrictStr = ""
    lineage: StrictStr = ""
    format_version: StrictInt = FORMAT_VERSION
    package_version: StrictStr = __version__

    def count(self, name: str) -> int:
        """Return an entry of `counts`.

        Raises:
            UserError: The header has no such number.
        """
        return self._number(self.counts, name)

    def figure(self, name: str) -> float:
        """Return a number from `extra`.

        Raises:
            UserError: The header has no such number.
        """
        return self._number(self.extra, name)

    def _number(self, values: dict[str, Any], name: str) -> Any:
        value = values.get(name)
        if not isinstance(value, int | float):
            raise UserError(f"the header of a {self.kind} that `facesyn {self.command}` made has no number {name!r}; "
                            "remove its folder and run the command again")
        return value

    @staticmethod
    def read(path: Path) -> Header:
        """Read a header file.

        Raises:
            UserError: It cannot be read, is not a header, or was written by a newer release.
        """
        value = read_json(path)
        version = value.get("format_version") if isinstance(value, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise UserError(f"{path} has format version {version}, this facesyn ({__version__}) reads up to "
                            f"{FORMAT_VERSION}; install a newer one")
        return validated(_ADAPTER, value, path, "a facesyn header")


_ADAPTER = TypeAdapter(Header)


def is_ours(path: Path) -> bool:
    """Return whether a path is a folder that a stage has finished or begun."""
    return path.is_dir() and any((path / name).is_file() for name in (HEADER, BEGUN))


def read_header(folder: Path) -> Header | None:
    """Return the header of a finished folder; None for any other folder."""
    path = folder / HEADER
    return Header.read(path) if path.is_file() and not (folder / BEGUN).is_file() else None


def read_started(folder: Path) -> Header | None:
    """Return the header, without counts, that an unfinished folder was started with; None for any other folder."""
    path = folder / BEGUN
    return Header.read(path) if path.is_file() else None


def write_header(
    folder: Path, started: Header, counts: dict[str, int], extra: dict[str, Any] | None = None,
    digest: str | None = None,
) -> Header:
    """Write the header of a finished folder and return it; arguments as of `Output.finish`."""
    parents = {name: parent.digest for name, parent in started.parents.items()}
    lineage = json_digest([started.kind, started.command, started.config.get("identity"), parents])
    digest = digest or json_digest([lineage, started.config.get("growing"), counts])
    header = replace(started, counts=counts, extra=extra or {}, digest=digest, lineage=lineage)
    write_json(folder / HEADER, asdict(header))
    return header


def require_header(folder: Path, kind: str) -> Header:
    """Return the header of a finished folder of the given kind.

    Raises:
        UserError: The folder is missing, unfinished, or of another kind.
    """
    if not folder.is_dir():
        raise missing_input(folder, f"a finished {kind} folder")
    header = read_header(folder)
    if header is None:
        if started := read_started(folder):
            raise unfinished_input(folder, started.command)
        raise UserError(f"{folder} has no {HEADER}; a {kind} folder written by facesyn was expected")
    if header.kind != kind:
        raise UserError(f"{folder} is a {header.kind} made by `facesyn {header.command}`; a {kind} was expected")
    log.debug(f"read {folder}: {header.kind} by `facesyn {header.command}`, {header.counts}, {header.digest}")
    return header
