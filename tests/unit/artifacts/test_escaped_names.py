"""Escaped names are one word, stay below their folder, and are undone exactly."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from facesyn_cli.artifacts.names import (
    escape_folder,
    escape_name,
    escape_stem,
    is_file_name,
    key_part,
    one_line,
    unescape_name,
)

NAMES = ("a", "a/b", "../..", ".hidden", "/", "a//b", "50%", "%0025", "tab\tline\n", "a\\b", "\u00e4 b.c", "\u2028")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("escape", [escape_name, escape_stem, escape_folder])
def test_escaping_is_undone(escape, name: str):
    escaped = escape(name)
    if escape is not escape_folder or "" not in name.split("/"):  # parts of an identity are not empty
        assert unescape_name(escaped) == name
    assert "\t" not in escaped and len(escaped.splitlines()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_escaped_names_are_safe_paths(name: str):
    assert is_file_name(escape_stem(name)) and "." not in escape_stem(name)
    parts = PurePosixPath(escape_folder(name)).parts
    assert parts and all(is_file_name(part) for part in parts)


def test_names_of_keys_are_one_line_in_nfc():
    assert key_part("e\u0301\n") == "\u00e9%000a"
    assert one_line("a\udce4/50%") == "a%dce4/50%"
