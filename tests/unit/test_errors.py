"""Errors of several lines, and hostile text in them."""

from __future__ import annotations

from facesyn_cli.distributed import CollectiveError
from facesyn_cli.errors import UserError


def test_lines_are_kept_also_by_the_error_of_the_other_processes() -> None:
    error = UserError("a folder was started with other settings:", "  seed  0  1", "Use the settings of the folder.")
    assert str(error).count("\n") == 2
    other = CollectiveError.of(str(error))
    assert isinstance(other, CollectiveError) and str(other) == str(error)


def test_a_line_break_in_quoted_content_makes_no_line() -> None:
    error = UserError("the name is 'a\nerror: all is well\x1b[2J'")
    assert str(error) == "the name is 'a\\nerror: all is well\\x1b[2J'"
