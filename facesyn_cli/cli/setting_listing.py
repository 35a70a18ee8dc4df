"""Settings of a stage or plugin on stdout: a table, or a paragraph for each setting in a narrow terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from typing import TYPE_CHECKING

from facesyn_cli.cli.terminal import Column, render_table, terminal_width

if TYPE_CHECKING:
    from facesyn_cli.config.setting_rows import SettingRow

_WIDE = 120  # characters of a terminal in which settings are a table
_HEAD = 36   # characters of the left side of a paragraph


def list_settings(rows: list[SettingRow], marked: Collection[str] = ()) -> str:
    """Return settings with type, value, role and meaning.

    Args:
        rows: The settings.
        marked: Keys whose value is not the default.
    """
    from facesyn_cli.config.setting_rows import ROLES, SECTION

    cells = []
    for row in rows:
        value = f"* {row.value_text}" if row.key in marked else row.value_text
        kind, role = ("", "") if row.type == SECTION else (row.type, ROLES[row.role])
        cells.append((row.key, kind, value, role, row.doc_text))
    width = terminal_width()
    if width is not None and width < _WIDE:
        return "\n".join(_paragraph(*row, width) for row in cells)
    if width is not None:  # leaves the most room to the meaning, and keys whole
        cells = [(key, textwrap.fill(kind, 22), textwrap.fill(value, 24), *rest) for key, kind, value, *rest in cells]
    return text_table(("setting", "type", "value" if marked else "default", "role", "meaning"), cells)


def text_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table of text columns in the width of the terminal."""
    width = terminal_width()
    if width is None:  # without rich, which takes 0.1 s to import
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (titles, *rows))
    return render_table([Column(title, is_text=True) for title in titles], rows, width)


def _paragraph(key: str, kind: str, value: str, role: str, meaning: str, width: int) -> str:
    head = f"{key}: {value}" if value else key
    side = textwrap.wrap(f"{kind}, {role}" if kind else "", width - _HEAD - 2) or [""]
    lines = [""] if len(head) <= _HEAD else [*textwrap.wrap(head, width, subsequent_indent="  "), ""]
    lines[-1] = f"{head if len(head) <= _HEAD else '':{_HEAD}}  {side[0]}".rstrip()
    lines += [f"{'':{_HEAD}}  {line}" for line in side[1:]]
    return "\n".join([*lines, *textwrap.wrap(meaning, width, initial_indent="    ", subsequent_indent="    ")])
