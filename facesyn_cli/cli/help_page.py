"""Layout of the help of a command: groups of options in aligned columns, and examples at the end.

Plain text; Typer's own panels import rich, which takes 0.1 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import typer.core

from facesyn_cli.cli.stage_command import COMMON

_WIDEST_NAME = 26  # characters of the left column; a longer name has its text on the next line
_METAVARS = {"int": "N", "float": "X", "str": "NAME", "path": "PATH"}
_TYPE = re.compile(r"<(?:list\[)?(\w+)\]?(?: range)?>")  # Typer shows Python's types where an option has no metavar


class CommandHelp(typer.core.TyperCommand):
    """A command; its options are grouped by their `rich_help_panel`, and its epilog holds example command lines."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_sections(formatter, parameters_of(self, ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.epilog)


class GroupHelp(typer.core.TyperGroup):
    """A command with sub-commands, in the same layout."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_sections(formatter, {"Commands": summaries(self, self.commands), **parameters_of(self, ctx)})

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.epilog)


def summaries(group: Any, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, first line of the help) of commands of a group."""
    return [(name, (group.commands[name].help or "").strip().partition("\n")[0]) for name in names]


def parameters_of(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return (name, help) of the arguments and options of a command, by heading."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx)
        if row is not None:
            is_argument = parameter.param_type_name == "argument"
            heading = "Arguments" if is_argument else COMMON if parameter.name == "help" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or heading
            name = _TYPE.sub("", row[0]).strip() if is_argument else _TYPE.sub(_metavar, row[0])
            sections.setdefault(heading, []).append((name, row[1]))
    return sections


def _metavar(found: re.Match[str]) -> str:
    return _METAVARS.get(found[1].lower(), "VALUE")


def write_sections(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    """Write rows of two columns under headings; the left column has one width in all sections."""
    widths = [len(name) for rows in sections.values() for name, _ in rows if len(name) <= _WIDEST_NAME]
    width = max(widths, default=0)
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl([(f"{name:{width}}", text) for name, text in rows], col_max=width)


def _write_examples(formatter: Any, lines: str | None) -> None:
    """Write command lines as they are, without wrapping."""
    if lines:
        with formatter.section("Examples"):
            for line in lines.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
